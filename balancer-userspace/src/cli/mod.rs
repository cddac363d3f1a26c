//! The command line. One file a verb group.
//!
//! Exit codes: 0 done, 1 refused or failed, 2 usage, 3 no controller reachable, 4 wait timed out.

mod backend;
mod check;
mod client;
mod completions;
mod decap;
mod detach;
mod output;
mod plan;
mod run;
mod service;
mod stats;
mod status;

use std::{
    io::{self, Write as _},
    path::PathBuf,
    process::ExitCode,
};

use anyhow::Context as _;
use clap::{Parser, Subcommand};

use crate::{
    api::client::{Client, ClientError},
    config::{ConfigErrors, value},
};

const FAILED: u8 = 1;
const NO_CONTROLLER: u8 = 3;
const WAIT_TIMED_OUT: u8 = 4;

/// Sticky layer-4 load balancer in XDP
#[derive(Debug, Parser)]
#[command(name = "balancer", version, arg_required_else_help = true)]
struct Cli {
    /// Control socket; with `run`, instead of the configuration's [default: /run/balancer/balancer.sock]
    #[arg(long, global = true, env = "BALANCER_SOCKET", value_name = "PATH", value_parser = socket)]
    socket: Option<PathBuf>,
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Attach and serve, in the foreground
    Run(run::Args),
    /// Validate a configuration file
    Check(check::Args),
    /// Show interfaces, services and backends
    Status(status::Args),
    /// Look at services
    #[command(subcommand)]
    Service(service::Verb),
    /// Look at and change backends
    #[command(subcommand)]
    Backend(backend::Verb),
    /// Show what a change would move, and change nothing
    #[command(subcommand)]
    Plan(plan::Verb),
    /// Look at clients
    #[command(subcommand)]
    Client(client::Verb),
    /// Show how well clients stick, and how evenly they are spread
    Stats(stats::Args),
    /// On a backend: strip the headers of ipip and gue packets in XDP, in the foreground
    Decap(decap::Args),
    /// Take off the interfaces what a controller left there (on_exit = "keep"), and remove its pinned maps
    Detach,
    /// Print a completion script for a shell
    Completions(completions::Args),
}

/// Why a verb did not do what it was asked.
#[derive(Debug, thiserror::Error)]
enum Failure {
    #[error(transparent)]
    Client(#[from] ClientError),
    #[error(transparent)]
    Config(#[from] ConfigErrors),
    #[error("{0}")]
    WaitTimedOut(String),
    #[error("cannot write the output: {0}")]
    Output(#[from] io::Error),
    #[error("{0:#}")]
    Other(#[from] anyhow::Error),
}

/// Parses the process's arguments, does what they say and reports errors on standard error.
#[must_use]
pub fn main() -> ExitCode {
    let cli = Cli::parse();
    match dispatch(cli) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => report(&failure),
    }
}

fn dispatch(Cli { socket, verb }: Cli) -> Result<(), Failure> {
    let client = || Client::new(socket.as_deref().unwrap_or(crate::config::DEFAULT_SOCKET.as_ref()));
    match verb {
        Verb::Run(args) => run::run(args, socket),
        Verb::Check(args) => check::run(&args),
        Verb::Status(args) => wait_for(status::run(&client(), &args)),
        Verb::Service(verb) => wait_for(service::run(&client(), verb)),
        Verb::Backend(verb) => wait_for(backend::run(&client(), verb)),
        Verb::Plan(verb) => wait_for(plan::run(&client(), verb)),
        Verb::Client(verb) => wait_for(client::run(&client(), verb)),
        Verb::Stats(args) => wait_for(stats::run(&client(), &args)),
        Verb::Decap(args) => decap::run(args),
        Verb::Detach => detach::run(),
        Verb::Completions(args) => completions::run(&args),
    }
}

/// Runs a verb to its end, in this thread.
fn wait_for(verb: impl Future<Output = Result<(), Failure>>) -> Result<(), Failure> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().context("cannot start tokio")?;
    runtime.block_on(verb)
}

fn report(failure: &Failure) -> ExitCode {
    let (code, text) = match failure {
        // The reader of a pipe has seen enough.
        Failure::Output(error) if error.kind() == io::ErrorKind::BrokenPipe => return ExitCode::SUCCESS,
        // Already FILE:LINE: what, as editors expect it.
        Failure::Config(errors) => (FAILED, errors.to_string()),
        Failure::Client(ClientError::Unreachable { .. }) => (NO_CONTROLLER, format!("balancer: {failure}")),
        Failure::WaitTimedOut(_) => (WAIT_TIMED_OUT, format!("balancer: {failure}")),
        Failure::Client(ClientError::Refused { .. } | ClientError::Broken { .. })
        | Failure::Output(_)
        | Failure::Other(_) => (FAILED, format!("balancer: {failure}")),
    };
    // With standard error gone, the exit code is all there is left to say.
    let _ = writeln!(io::stderr(), "{text}");
    ExitCode::from(code)
}

/// A socket path from the command line, which may be relative.
fn socket(text: &str) -> Result<PathBuf, String> {
    value::socket_path_length(text).map(PathBuf::from)
}
