//! `cargo xtask run`.

use std::{os::unix::process::CommandExt as _, path::PathBuf, process::Command};

use anyhow::{Context as _, Result, bail};
use clap::Args;

use crate::{
    build::{LAB, PRODUCT, programs},
    command::{built, ensure_root, shown},
    setup::{Purpose, setup},
};

/// Without options: the lab. With --config: the balancer on this machine's interfaces.
#[derive(Args)]
pub(crate) struct Options {
    /// An interface to attach to; may be given several times, and overrides the configuration.
    #[arg(long, requires = "config")]
    interface: Vec<String>,
    /// The balancer's configuration.
    #[arg(long)]
    config: Option<PathBuf>,
    /// The lab: how packets reach the backends, dsr or nat.
    #[arg(long, conflicts_with = "config")]
    forwarding: Option<String>,
    /// The lab: end by itself after so many seconds.
    #[arg(long, conflicts_with = "config")]
    seconds: Option<String>,
    /// The lab: how many client addresses send requests.
    #[arg(long, conflicts_with = "config")]
    clients: Option<String>,
    /// The lab: how long the balancer remembers a client; "0s": not at all, the table alone decides.
    #[arg(long, conflicts_with = "config")]
    remember: Option<String>,
    /// The lab: no tour, nothing happens by itself.
    #[arg(long, conflicts_with = "config")]
    no_tour: bool,
}

/// Sets up, builds, and becomes the lab or the balancer, so that signals reach it.
pub(crate) fn run(options: &Options) -> Result<()> {
    let mut command = if let Some(config) = &options.config {
        let config = config.canonicalize().with_context(|| config.display().to_string())?;
        setup(Purpose::Build)?;
        programs(PRODUCT, true)?;
        let mut command = Command::new(built("release")?.join("balancer"));
        command.arg("run").arg("--config").arg(config);
        for interface in &options.interface {
            command.args(["--interface", interface]);
        }
        command
    } else {
        ensure_root("the lab", "run")?;
        setup(Purpose::Run)?;
        // The kernel program is optimised all the same; for the rest, that would take longer than it is worth here.
        programs(LAB, false)?;
        let mut command = Command::new(built("debug")?.join("lab"));
        if options.no_tour {
            command.arg("--no-tour");
        }
        let valued = [
            ("--forwarding", &options.forwarding),
            ("--seconds", &options.seconds),
            ("--clients", &options.clients),
            ("--remember", &options.remember),
        ];
        for (name, value) in valued {
            if let Some(value) = value {
                command.args([name, value]);
            }
        }
        command
    };
    let error = command.exec();
    bail!("cannot start `{}`: {error}", shown(&command))
}
