//! `cargo xtask lab`.

use anyhow::Result;
use clap::Subcommand;

use crate::{
    build::{Aim, programs},
    command::{built, ensure_root, program, root, run},
    setup::{Purpose, session_lab, setup},
};

/// What is tried.
#[derive(Debug, Subcommand)]
pub(crate) enum Lab {
    /// Which way of keeping sessions survives what: real servers and stores, and all that can happen to them.
    Sessions {
        /// Of the lab: `--strategy`, `--front`, `--event`, `--output DIRECTORY`, `--fresh`, `--json`, `--list`; `--help` says
        /// more.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        options: Vec<String>,
    },
}

/// Sets up and runs it.
pub(crate) fn lab(lab: &Lab) -> Result<()> {
    let Lab::Sessions { options } = lab;
    ensure_root("the session lab", "lab sessions")?;
    setup(Purpose::Run)?;
    session_lab()?;
    programs(&["balancer"], Aim::Release)?;
    let mut command = program(built("release")?.join("balancer"));
    command.args(["demo", "sessions"]);
    // Where the user says nothing else.
    if !options.iter().any(|option| option.starts_with("--output")) {
        command.arg("--output").arg(root().join("target/lab/sessions"));
    }
    run(command.args(options))
}
