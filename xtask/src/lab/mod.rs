//! `cargo xtask lab`.

mod api_server;
mod kubernetes;

use anyhow::Result;
use clap::Subcommand;

use crate::{
    build::{Aim, LAB, programs},
    command::{built, cargo, ensure_root, program, root, run},
    setup::{Purpose, session_lab, setup},
};

/// The subject of a lab.
#[derive(Debug, Subcommand)]
pub(crate) enum Lab {
    /// The session lab: shows which methods of keeping sessions survive which events, with real servers and stores.
    Sessions {
        /// Options of the lab: `--strategy`, `--front`, `--event`, `--output DIRECTORY`, `--fresh`, `--json`, `--list`;
        /// `--help` explains them.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        options: Vec<String>,
    },
    /// Tests `balancer doctor`: seeds faults, one at a time and in each forwarding mode in which they can occur. The
    /// doctor must name only the fault, its cure must work, and clients must be served afterwards.
    Doctor {
        /// Seed only faults of this kind, such as `vip-missing`; the book's chapter on troubleshooting lists the kinds.
        fault: Option<String>,
    },
    /// Tests `balancer-kubernetes` with a real API server and a real `kubectl`, both Debian's. The first run builds the
    /// server from Debian's sources, which takes a quarter of an hour, and temporarily 3 GB below `target`.
    Kubernetes(kubernetes::Options),
}

/// Installs what a lab needs, and runs the lab.
pub(crate) fn lab(lab: &Lab) -> Result<()> {
    match lab {
        Lab::Sessions { options } => sessions(options),
        Lab::Doctor { fault } => doctor(fault.as_deref()),
        Lab::Kubernetes(options) => kubernetes::lab(options),
    }
}

fn doctor(fault: Option<&str>) -> Result<()> {
    ensure_root("the doctor's lab", "lab doctor")?;
    setup(Purpose::Test)?;
    run(cargo().args(["build", "--locked", "--workspace", "--bin", "balancer", "--test", "e2e"]))?;
    let mut command = cargo();
    command.args(["nextest", "run", "--locked", "--workspace", "--test", "e2e", "--no-fail-fast", "--no-capture"]);
    match fault {
        Some(fault) => command.env("DOCTOR_FAULT", fault).arg("doctor::faults::"),
        None => command.arg("doctor::"),
    };
    run(&mut command)
}

fn sessions(options: &[String]) -> Result<()> {
    ensure_root("the session lab", "lab sessions")?;
    setup(Purpose::Run)?;
    session_lab()?;
    programs(&["balancer", LAB], Aim::Release)?;
    let mut command = program(built("release")?.join(LAB));
    // Set the output directory only if the user has not set it.
    if !options.iter().any(|option| option.starts_with("--output")) {
        command.arg("--output").arg(root().join("target/lab/sessions"));
    }
    run(command.args(options))
}
