//! `cargo xtask run`.

use std::{os::unix::process::CommandExt as _, path::PathBuf, process::Command};

use anyhow::{Context as _, Result, bail};
use clap::Args;

use crate::{
    build::{Aim, PRODUCT, programs},
    command::{built, ensure_root, shown},
    setup::{self, Purpose, setup},
};

/// Without --config, run the demo; with --config, run the balancer on this machine's interfaces.
#[derive(Args)]
pub(crate) struct Options {
    /// An interface to attach to; may be given several times, and overrides the configuration.
    #[arg(long, requires = "config")]
    interface: Vec<String>,
    /// The balancer's configuration.
    #[arg(long)]
    config: Option<PathBuf>,
    /// Options of `balancer demo`, such as --once or --fleet 3.
    #[arg(conflicts_with = "config", trailing_var_arg = true, allow_hyphen_values = true)]
    demo: Vec<String>,
}

/// Sets up the machine and builds the balancer. Then replaces this process by the demo or the balancer, so that signals
/// reach the demo or the balancer.
pub(crate) fn run(options: &Options) -> Result<()> {
    let mut command = if let Some(config) = &options.config {
        let config = config.canonicalize().with_context(|| config.display().to_string())?;
        setup(Purpose::Build)?;
        programs(PRODUCT, Aim::Release)?;
        let mut command = Command::new(built("release")?.join("balancer"));
        command.arg("run").arg("--config").arg(config);
        for interface in &options.interface {
            command.args(["--interface", interface]);
        }
        command
    } else {
        ensure_root("the demo", "run")?;
        setup(Purpose::Run)?;
        if options.demo.iter().any(|option| option.starts_with("--fleet") || option == "--standby") {
            setup::fleet()?;
        }
        programs(PRODUCT, Aim::Demo)?;
        let mut command = Command::new(built("debug")?.join("balancer"));
        command.arg("demo").args(&options.demo);
        command
    };
    let error = command.exec();
    bail!("cannot start `{}`: {error}", shown(&command))
}
