//! The controller for Kubernetes Services with `type: LoadBalancer`, which the balancer serves.
//!
//! The program compares the Services of the cluster with the services of the balancer, and requests the differences as
//! changes from the balancer. The comparison ([`round`]) is pure; the modules that it uses access neither clock nor
//! network.
//!
//! Begin with [`round`]; `run`, `cluster`, `lease` and `balancer` do the I/O, and `drop_in` is what this program writes into
//! the balancer.

pub mod annotations;
pub mod args;
pub mod balancer;
pub mod candidates;
pub mod changes;
pub mod cluster;
pub mod drop_in;
pub mod fit;
pub mod lease;
pub mod members;
pub mod metrics;
pub mod names;
pub mod others;
pub mod pools;
pub mod round;
pub mod run;
pub mod slices;
pub mod sources;
pub mod wanted;

use std::{
    io::{self, IsTerminal as _},
    process::ExitCode,
};

use clap::Parser as _;
use tracing_subscriber::EnvFilter;

use crate::args::{Cli, Verb};

/// Runs the command line until the command ends.
#[must_use]
pub fn main() -> ExitCode {
    let Cli { verb: Verb::Run(args) } = Cli::parse();
    tracing_subscriber::fmt()
        .with_env_filter(EnvFilter::new("info,kube=off"))
        .with_writer(io::stderr)
        .with_ansi(io::stderr().is_terminal())
        .init();
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            tracing::error!("no runtime: {error}");
            return ExitCode::FAILURE;
        }
    };
    match runtime.block_on(run::run(*args)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!("{error:#}");
            ExitCode::FAILURE
        }
    }
}
