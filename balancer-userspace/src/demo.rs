//! `balancer demo`.

use std::{
    env,
    io::{self, IsTerminal as _},
    net::SocketAddr,
    path::PathBuf,
    time::Duration,
};

use anyhow::{Context as _, anyhow};
use balancer_common::map_types::Forwarding;
use balancer_config::value;
use balancer_demo::{Course, MAX_CLIENTS, Options, lab, server};
use clap::ValueEnum;

use super::{Failure, wait_for};

#[derive(Debug, clap::Args)]
#[command(args_conflicts_with_subcommands = true)]
pub(super) struct Args {
    #[command(subcommand)]
    verb: Option<Verb>,
    /// How packets reach the servers
    #[arg(long, value_enum, default_value_t = Mode::Nat)]
    forwarding: Mode,
    /// How many client addresses send requests
    #[arg(long, value_name = "N", default_value_t = 300, value_parser = clap::value_parser!(u16).range(1..=i64::from(MAX_CLIENTS)))]
    clients: u16,
    /// How long clients are remembered; 0s: not at all, the lookup table alone decides
    #[arg(long, value_name = "DURATION", default_value = "3h", value_parser = value::duration)]
    remember: Duration,
    /// Run the tour as fast as its steps take, print a line for each, and end; so it is where standard output is no
    /// terminal, unless --no-tour or --seconds says otherwise
    #[arg(long, conflicts_with_all = ["no_tour", "seconds"])]
    once: bool,
    /// Show only the table, without the tour
    #[arg(long)]
    no_tour: bool,
    /// End after this number of seconds
    #[arg(long, value_name = "N")]
    seconds: Option<u64>,
    /// Several balancers that are one fleet, behind a router with BIRD, on three etcds; commands to break it are printed
    #[arg(long, value_name = "N", group = "lab", conflicts_with_all = ["once", "no_tour", "forwarding"],
          value_parser = clap::value_parser!(u16).range(2..=i64::from(lab::MAX_MEMBERS)))]
    fleet: Option<u16>,
    /// Two balancers of which one stands by, with keepalived, on three etcds
    #[arg(long, group = "lab", conflicts_with_all = ["once", "no_tour", "forwarding"])]
    standby: bool,
    /// With --fleet or --standby: a line of JSON each second instead of the table, the commands in the first one
    #[arg(long, requires = "lab")]
    json: bool,
    /// Show this balancer instead of this program
    #[arg(long, value_name = "PROGRAM")]
    balancer: Option<PathBuf>,
}

#[derive(Debug, clap::Subcommand)]
enum Verb {
    /// Be one of the web servers: count each session's requests, answer /healthz, fail it after POST /fail?mode=503
    Server(ServerArgs),
    /// Show which way of keeping sessions survives what: real servers and stores behind the balancer, and all that can
    /// happen to them
    Sessions(Box<balancer_lab::Options>),
}

#[derive(Debug, clap::Args)]
struct ServerArgs {
    /// Name of the server
    #[arg(long)]
    name: String,
    /// Address to listen on; may be repeated
    #[arg(long, required = true, value_name = "ADDR:PORT")]
    listen: Vec<SocketAddr>,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Mode {
    Dsr,
    Nat,
    Snat,
}

pub(super) fn run(args: Args) -> Result<(), Failure> {
    let program = env::current_exe().context("this program's path is unknown")?;
    match args.verb {
        Some(Verb::Server(ServerArgs { name, listen })) => {
            return wait_for(async move { Ok(server::serve(&name, &listen).await?) });
        }
        Some(Verb::Sessions(options)) => {
            return balancer_lab::run(&options, program).map_err(in_one_line).map_err(shown);
        }
        None => {}
    }
    let kind = args.fleet.map(lab::Kind::Spread).or(args.standby.then_some(lab::Kind::Standby));
    match kind {
        Some(kind) => lab::run(&lab_options(args, kind, program)),
        None => balancer_demo::run(&options(args, program)),
    }
    .map_err(shown)
}

/// Puts an error into one line, because a log may quote it.
fn in_one_line(error: anyhow::Error) -> anyhow::Error {
    if error.downcast_ref::<io::Error>().is_some() {
        return error;
    }
    let said = format!("{error:#}");
    anyhow!(said.lines().map(str::trim).collect::<Vec<_>>().join(" "))
}

/// Classifies the error that ended the demo: a broken pipe means that the reader has closed the output.
fn shown(error: anyhow::Error) -> Failure {
    match error.downcast_ref::<io::Error>().map(io::Error::kind) {
        Some(kind @ io::ErrorKind::BrokenPipe) => Failure::Output(kind.into()),
        _ => Failure::Other(error),
    }
}

fn options(args: Args, program: PathBuf) -> Options {
    let live = args.no_tour || args.seconds.is_some() || (io::stdout().is_terminal() && !args.once);
    Options {
        forwarding: match args.forwarding {
            Mode::Dsr => Forwarding::Dsr,
            Mode::Nat => Forwarding::Nat,
            Mode::Snat => Forwarding::Snat,
        },
        clients: args.clients,
        remember: args.remember,
        course: if live {
            Course::Live { tour: !args.no_tour, limit: args.seconds.map(Duration::from_secs) }
        } else {
            Course::Once
        },
        balancer: args.balancer.unwrap_or_else(|| program.clone()),
        program,
    }
}

fn lab_options(args: Args, kind: lab::Kind, program: PathBuf) -> lab::Options {
    lab::Options {
        kind,
        clients: args.clients,
        remember: args.remember,
        limit: args.seconds.map(Duration::from_secs),
        json: args.json,
        balancer: args.balancer.unwrap_or_else(|| program.clone()),
        program,
    }
}
