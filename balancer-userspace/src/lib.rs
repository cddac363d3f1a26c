//! The command line of the balancer. Each group of commands has its own file, and `book` contains the manual.
//!
//! The exit codes of commands: 0 done, 1 refused or failed, 2 usage, 3 no controller reachable, 4 wait timed out.
//!
//! Begin with the enum `Verb`; `observe` draws packets for `trace` and `capture`, and `stats` the statistics.

mod absence;
mod apply;
mod backend;
pub mod book;
mod capture;
mod check;
mod client;
mod completions;
mod decap;
mod demo;
mod detach;
mod doctor;
mod drop_in;
mod events;
mod first_step;
mod fleet;
mod flow;
mod health;
mod help;
mod import;
mod journal;
mod live;
mod observe;
mod output;
mod plan;
mod quic;
mod ready;
mod rule;
mod run;
mod server;
mod service;
mod simulate;
mod stats;
mod status;
mod trace;
mod wait;
mod withdraw;

use std::{
    env,
    ffi::OsString,
    io::{self, Write as _},
    path::PathBuf,
    process::ExitCode,
    sync::LazyLock,
};

use anyhow::Context as _;
use balancer_api::{
    client::{Client, ClientError},
    model::Changed,
};
use balancer_common::map_types::LAYOUT_VERSION;
use balancer_config::{file::ConfigErrors, value};
use clap::{CommandFactory as _, Parser, Subcommand};

/// The script `packaging/debian/preinst` reads the second line of this text before an upgrade.
static LONG_VERSION: LazyLock<String> =
    LazyLock::new(|| format!("{}\nlayout of kept maps: {LAYOUT_VERSION}", env!("CARGO_PKG_VERSION")));

const FAILED: u8 = 1;
const WRONG_USAGE: u8 = 2;
const NO_CONTROLLER: u8 = 3;
const WAIT_TIMED_OUT: u8 = 4;
const NOT_BY_ALL: u8 = 5;

/// Sticky layer-4 load balancer in XDP
#[derive(Debug, Parser)]
#[command(name = "balancer", version, long_version = LONG_VERSION.as_str(), arg_required_else_help = true)]
#[command(after_help = help::topics())]
struct Cli {
    /// Control socket; with `run`, this path overrides the configuration [default: /run/balancer/balancer.sock]
    #[arg(long, global = true, env = "BALANCER_SOCKET", value_name = "PATH", value_parser = socket)]
    socket: Option<PathBuf>,
    #[command(flatten)]
    server: server::Args,
    /// Make a change only if the configuration has this generation, which `status` shows
    #[arg(long, global = true, value_name = "N")]
    if_generation: Option<u64>,
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Attach and serve, in the foreground
    #[command(after_help = help::see("getting-started"))]
    Run(run::Args),
    /// Validate a configuration file
    #[command(after_help = help::see("configuration"))]
    Check(check::Args),
    /// Make the running controller apply a configuration file
    #[command(after_help = help::see("configuration"))]
    Apply(apply::Args),
    /// Look at and change drop-ins: services that the balancer keeps beside those of its configuration file
    #[command(subcommand, after_help = help::see("restarts"))]
    DropIn(drop_in::Verb),
    /// Show interfaces, services and backends
    Status(status::Args),
    /// Find out why no packets flow: examine this machine, send probes, and name causes with their cures. Exit code 0:
    /// healthy, 1: findings, 3: no controller
    #[command(after_help = help::see("troubleshooting"))]
    Doctor(doctor::Args),
    /// Show the path of each packet, live: service, client, backend with the reason, and next hop, or the reason for
    /// the drop
    #[command(after_help = help::see("troubleshooting"))]
    Trace(trace::Args),
    /// Write packets into a file for Wireshark, as they came and as they left; a comment explains each decision
    #[command(after_help = help::see("troubleshooting"))]
    Capture(capture::Args),
    /// Report whether this balancer can take clients: exit code 0 ready or degraded, 1 not ready
    #[command(after_help = help::see("several-balancers"))]
    Ready(ready::Args),
    /// Show the members of the fleet, its etcd, and the traffic between members
    #[command(after_help = help::see("several-balancers"))]
    Fleet(fleet::Args),
    /// Withdraw this balancer's VIPs, so that routers send clients elsewhere; the balancer continues to steer. The
    /// withdrawal survives restarts
    #[command(after_help = help::see("several-balancers"))]
    Withdraw(withdraw::Args),
    /// Bring this balancer's VIPs back
    #[command(after_help = help::see("several-balancers"))]
    Announce,
    /// Look at services
    #[command(subcommand)]
    Service(service::Verb),
    /// Show how QUIC connection IDs name backends, and change the IDs' key
    #[command(subcommand)]
    Quic(quic::Verb),
    /// Look at and change backends
    #[command(subcommand, after_help = help::see("operations"))]
    Backend(backend::Verb),
    /// Show the clients and slots that a change would move, without making the change
    #[command(subcommand)]
    Plan(plan::Verb),
    /// Wait until a backend is in a state
    Wait(wait::Args),
    /// Show past events: changes of state, and changes by users
    Events(events::Args),
    /// Look at clients, and make the balancer forget clients
    #[command(subcommand, after_help = help::see("memory"))]
    Client(client::Verb),
    /// Look at health checks, and override their verdicts
    #[command(subcommand, after_help = help::see("health-checks"))]
    Health(health::Verb),
    /// Look at and change rules for client prefixes
    #[command(subcommand, after_help = help::see("rules"))]
    Rule(rule::Verb),
    /// Look at the connections of services with forwarding = "snat"
    #[command(subcommand, after_help = help::see("forwarding"))]
    Flow(flow::Verb),
    /// Show how well clients stick, and how evenly they are spread
    #[command(after_help = help::see("statistics"))]
    Stats(stats::Args),
    /// Show the servers that the clients of an access log would get, and the clients that changes would move; needs no
    /// controller
    #[command(after_help = help::see("simulation"))]
    Simulate(simulate::Args),
    /// Convert a configuration of nginx, HAProxy, keepalived or ipvsadm; needs no controller. Exit code 1: an operator
    /// has to convert some lines, 2: not understood
    #[command(after_help = help::see("moving"))]
    Import(import::Args),
    /// On a backend: strip the headers of ipip and gue packets in XDP, in the foreground
    #[command(after_help = help::see("forwarding"))]
    Decap(decap::Args),
    /// Show the balancer at work in its own network namespaces: a tour of the events that move clients; needs root and
    /// ip
    #[command(after_help = help::see("getting-started"))]
    Demo(demo::Args),
    /// Detach the programs that a controller left on interfaces (on_exit = "keep"), and remove its pinned maps
    #[command(after_help = help::see("restarts"))]
    Detach {
        /// In every network namespace of this machine, including deleted namespaces
        #[arg(long)]
        all: bool,
    },
    /// Print a completion script for a shell
    Completions(completions::Args),
    /// Remove VIPs when the balancer that started this process has ended
    #[command(hide = true, name = balancer_netlink::machine::GUARD_VIPS)]
    GuardVips {
        /// The indices of the VIPs' interfaces; each line of standard input replaces the list
        interfaces: Vec<u32>,
    },
}

/// The reason why a command failed.
#[derive(Debug, thiserror::Error)]
enum Failure {
    #[error(transparent)]
    Client(#[from] ClientError),
    #[error(transparent)]
    Config(#[from] ConfigErrors),
    #[error("{0}")]
    Usage(String),
    /// The text of another program's configuration cannot be parsed. The message begins with the file name and the line
    /// number.
    #[error("{0}")]
    NotUnderstood(String),
    #[error("{0}")]
    WaitTimedOut(String),
    /// The output has already described the fault, so no message is printed.
    #[error("no")]
    Told,
    /// The change is made, but not every member of the fleet applies it, as the output has already said.
    #[error("not applied by every member")]
    NotByAll,
    #[error("cannot write the output: {0}")]
    Output(#[from] io::Error),
    #[error("{0:#}")]
    Other(#[from] anyhow::Error),
}

/// Parses the arguments of the process, runs the command, and reports errors on standard error.
#[must_use]
pub fn main() -> ExitCode {
    let arguments: Vec<OsString> = env::args_os().collect();
    let done = match Cli::try_parse_from(&arguments) {
        Ok(cli) => dispatch(cli),
        Err(error) => help::or(&error, &arguments),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => report(&failure),
    }
}

fn dispatch(Cli { socket, server, if_generation, verb }: Cli) -> Result<(), Failure> {
    let server = server.server()?;
    let client = || {
        if let Some(server) = server.clone() {
            return Client::remote(server).if_generation(if_generation);
        }
        let socket = socket.as_deref().unwrap_or(balancer_config::file::DEFAULT_SOCKET.as_ref());
        Client::new(socket).if_generation(if_generation)
    };
    match verb {
        Verb::Run(args) => run::run(args, socket),
        Verb::Check(args) => wait_for(check::run(&args)),
        Verb::Apply(args) => match apply::own_socket(&args)? {
            Some(own) => {
                let here = || Client::new(socket.as_deref().unwrap_or(&own));
                let client = server.clone().map_or_else(here, Client::remote);
                wait_for(apply::reread(&client, args))
            }
            None => wait_for(apply::run(&client(), args)),
        },
        Verb::DropIn(verb) => wait_for(drop_in::run(&client(), verb)),
        Verb::Status(args) => wait_for(status::run(&client(), &args)),
        Verb::Doctor(args) => wait_for(doctor::run(&client(), &args)),
        Verb::Trace(args) => wait_for(trace::run(&client(), &args)),
        Verb::Capture(args) => wait_for(capture::run(&client(), &args)),
        Verb::Ready(args) => wait_for(ready::run(&client(), &args)),
        Verb::Fleet(args) => wait_for(fleet::run(&client(), &args)),
        Verb::Withdraw(args) => wait_for(withdraw::withdraw(&client(), &args)),
        Verb::Announce => wait_for(withdraw::announce(&client())),
        Verb::Service(verb) => wait_for(service::run(&client(), verb)),
        Verb::Quic(verb) => wait_for(quic::run(&client(), verb)),
        Verb::Backend(verb) => wait_for(backend::run(&client(), verb)),
        Verb::Plan(verb) => wait_for(plan::run(&client(), verb)),
        Verb::Wait(args) => wait_for(wait::run(&client(), &args)),
        Verb::Events(args) => wait_for(events::run(&client(), &args)),
        Verb::Client(verb) => wait_for(client::run(&client(), verb)),
        Verb::Health(verb) => wait_for(health::run(&client(), verb)),
        Verb::Rule(verb) => wait_for(rule::run(&client(), verb)),
        Verb::Flow(verb) => wait_for(flow::run(&client(), verb)),
        Verb::Stats(args) => wait_for(stats::run(&client(), &args)),
        Verb::Simulate(args) => simulate::run(&args),
        Verb::Import(args) => wait_for(import::run(&args)),
        Verb::Decap(args) => decap::run(args),
        Verb::Demo(args) => demo::run(args),
        Verb::Detach { all } => detach::run(all),
        Verb::GuardVips { interfaces } => {
            balancer_netlink::machine::guard_vips(interfaces.into_iter().collect());
            Ok(())
        }
        Verb::Completions(args) => completions::run(&args),
    }
}

/// Runs the future of a command in this thread until it completes.
fn wait_for(verb: impl Future<Output = Result<(), Failure>>) -> Result<(), Failure> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().context("cannot start tokio")?;
    runtime.block_on(verb)
}

/// Returns the whole command line, from which the manual pages are made.
#[must_use]
pub fn command() -> clap::Command {
    Cli::command()
}

/// Prints the message of a change.
///
/// # Errors
/// Fails if not every member of the fleet applies the change.
fn print_changed(changed: &Changed) -> Result<(), Failure> {
    output::print(&format!("{}\n", changed.message))?;
    by_all(&changed.not_applied_by)
}

/// Fails if there are members that do not apply a change.
fn by_all(not_applied_by: &[String]) -> Result<(), Failure> {
    if not_applied_by.is_empty() { Ok(()) } else { Err(Failure::NotByAll) }
}

fn report(failure: &Failure) -> ExitCode {
    let (code, text) = match failure {
        // The output is a pipe, and its reader has closed it.
        Failure::Output(error) if error.kind() == io::ErrorKind::BrokenPipe => return ExitCode::SUCCESS,
        Failure::Told => return ExitCode::from(FAILED),
        Failure::NotByAll => return ExitCode::from(NOT_BY_ALL),
        // The text already has the form FILE:LINE: what, which editors can parse.
        Failure::Config(errors) => (FAILED, errors.to_string()),
        Failure::Client(ClientError::Refused { status: hyper::StatusCode::UNPROCESSABLE_ENTITY, message }) => {
            (FAILED, message.clone())
        }
        Failure::Client(ClientError::Unreachable { .. }) => (NO_CONTROLLER, format!("balancer: {failure}")),
        Failure::Usage(_) => (WRONG_USAGE, format!("balancer: {failure}")),
        Failure::NotUnderstood(text) => (WRONG_USAGE, text.clone()),
        Failure::WaitTimedOut(_) => (WAIT_TIMED_OUT, format!("balancer: {failure}")),
        Failure::Client(ClientError::Refused { .. } | ClientError::Broken { .. })
        | Failure::Output(_)
        | Failure::Other(_) => (FAILED, format!("balancer: {failure}")),
    };
    let text = if journal::is_standard_error() { journal::error(&text) } else { text };
    // If standard error is closed, only the exit code can report the failure.
    let _ = writeln!(io::stderr(), "{text}");
    ExitCode::from(code)
}

/// Parses a socket path from the command line, which may be relative.
fn socket(text: &str) -> Result<PathBuf, String> {
    value::socket_path_length(text).map(PathBuf::from)
}
