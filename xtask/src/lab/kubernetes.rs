//! `cargo xtask lab kubernetes`.

use anyhow::Result;
use clap::Args;

use super::api_server;
use crate::{
    command::{cargo, ensure_root, run},
    setup::{Purpose, setup},
};

/// The choice of scenarios, and their length.
#[derive(Debug, Args)]
pub(crate) struct Options {
    /// Run only tests whose names contain this text.
    #[arg(default_value = "")]
    only: String,
    /// The number of seconds for which the API server is away.
    #[arg(long, value_name = "SECONDS", default_value_t = 600)]
    away: u32,
    /// The number of clients that connect all the time.
    #[arg(long, default_value_t = 2_000)]
    clients: u16,
}

/// Sets up the machine, builds the API server if it is missing, and simulates the events that can happen to a Service.
pub(crate) fn lab(options: &Options) -> Result<()> {
    ensure_root("the lab of Kubernetes", "lab kubernetes")?;
    setup(Purpose::Test)?;
    let programs = api_server::programs()?;
    run(cargo()
        .args(["build", "--locked", "--workspace", "--bin", "balancer", "--bin", "balancer-kubernetes"])
        .args(["--test", "e2e"]))?;
    let mut command = cargo();
    command.args(["nextest", "run", "--locked", "--workspace", "--test", "e2e", "--profile", "release"]);
    command.args(["--no-fail-fast", "--no-capture"]);
    command.args(["--run-ignored", "only", "-E"]);
    command.arg(format!("test(/^release::kubernetes::lab::.*{}/)", options.only));
    command.env("KUBERNETES_PROGRAMS", programs).env("LAB_AWAY_SECONDS", options.away.to_string());
    run(command.env("LAB_CLIENTS", options.clients.to_string()))
}
