//! Tests the Debian package on a separate Debian system while clients keep sending requests. The steps install, start,
//! reload, kill, upgrade and purge the balancer.
//!
//! The machine is a directory that debootstrap fills; systemd-nspawn boots this directory in the network namespace of
//! the balancer. At the end, the program removes everything that it has created.

mod clients;
mod operator;
mod steps;

use std::{path::PathBuf, process::ExitCode, time::Instant};

use anyhow::{Context as _, Result};
use balancer_testkit::outcome::outcome;
use clap::Parser;

use crate::operator::Operator;

/// Tries the Debian package under systemd; needs root, debootstrap and systemd-nspawn.
#[derive(Parser)]
pub(crate) struct Options {
    /// The package to test.
    #[arg(long)]
    package: PathBuf,
    /// A later version of the package.
    #[arg(long)]
    upgrade: PathBuf,
    /// The package of the program for clusters.
    #[arg(long)]
    kubernetes: PathBuf,
    /// The Debian release to install on the machine.
    #[arg(long, default_value = "bookworm")]
    suite: String,
    /// Directory for the machine; its contents are deleted.
    #[arg(long)]
    directory: PathBuf,
}

fn main() -> ExitCode {
    outcome(attempt(&Options::parse()))
}

fn attempt(options: &Options) -> Result<()> {
    let begun = Instant::now();
    let mut operator = Operator::new(options)?;
    println!("Debian {} with {} in {} s", options.suite, operator.systemd()?, begun.elapsed().as_secs());
    for (what, step) in steps::STEPS {
        let begun = Instant::now();
        match step(&mut operator) {
            Ok(found) => println!("{what} ({:.1} s): {found}", begun.elapsed().as_secs_f64()),
            Err(error) => {
                println!("{}", operator.journal());
                return Err(error).with_context(|| what.to_owned());
            }
        }
    }
    println!("{} steps passed in {} s", steps::STEPS.len(), begun.elapsed().as_secs());
    Ok(())
}
