//! The command `balancer demo`.

use std::{
    env,
    io::{self, IsTerminal as _},
    net::SocketAddr,
    path::PathBuf,
    time::Duration,
};

use anyhow::Context as _;
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
    /// How long the balancer remembers clients; 0s: it remembers no clients, so the lookup table alone decides
    #[arg(long, value_name = "DURATION", default_value = "3h", value_parser = value::duration)]
    remember: Duration,
    /// Run the tour as fast as possible, print a line for each step, and end. This is the default if standard output is
    /// no terminal, unless --no-tour or --seconds is given
    #[arg(long, conflicts_with_all = ["no_tour", "seconds"])]
    once: bool,
    /// Show only the table, without the tour
    #[arg(long)]
    no_tour: bool,
    /// End after this number of seconds
    #[arg(long, value_name = "N")]
    seconds: Option<u64>,
    /// Run a fleet of several balancers behind a router with BIRD, with three etcd servers, and print commands that
    /// break it
    #[arg(long, value_name = "N", group = "lab", conflicts_with_all = ["once", "no_tour", "forwarding"],
          value_parser = clap::value_parser!(u16).range(2..=i64::from(lab::MAX_MEMBERS)))]
    fleet: Option<u16>,
    /// Run an active and a standby balancer with keepalived, with three etcd servers
    #[arg(long, group = "lab", conflicts_with_all = ["once", "no_tour", "forwarding"])]
    standby: bool,
    /// With --fleet or --standby: print a line of JSON each second instead of the table; the first line has the
    /// commands
    #[arg(long, requires = "lab")]
    json: bool,
    /// Show this balancer instead of this program
    #[arg(long, value_name = "PROGRAM")]
    balancer: Option<PathBuf>,
}

#[derive(Debug, clap::Subcommand)]
enum Verb {
    /// Run one of the web servers: count each session's requests, and answer /healthz, with a failure after POST
    /// /fail?mode=503
    Server(ServerArgs),
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
    if let Some(Verb::Server(ServerArgs { name, listen })) = args.verb {
        return wait_for(async move { Ok(server::serve(&name, &listen).await?) });
    }
    let kind = args.fleet.map(lab::Kind::Spread).or(args.standby.then_some(lab::Kind::Standby));
    match kind {
        Some(kind) => lab::run(&lab_options(args, kind, program)),
        None => balancer_demo::run(&options(args, program)),
    }
    .map_err(shown)
}

/// Classifies an error that has ended the demo: a broken pipe means that the reader has closed the output.
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
