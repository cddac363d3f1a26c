//! `cargo xtask test --kernels`: the kernel programs on other kernels than this machine's, Debian's, in virtual machines.
//!
//! Processors are emulated in software: a guest boots within ten seconds everywhere, while virtualization within a virtual
//! machine often hangs.

mod debian;
mod guest;
mod initramfs;
mod outcome;

use std::{env::consts::ARCH, fs, path::Path};

use anyhow::{Context as _, Result, bail, ensure};

use self::{debian::Kernel, guest::boot, outcome::Outcome};
use crate::{
    command::root,
    setup::{Purpose, guests, setup},
};

/// Series whose newest kernel is tried if none is named; besides them the newest of all.
const SERIES: [&str; 3] = ["6.1", "6.12", "6.18"];

/// Series on which each change must load: the oldest that is supported, and the one with which most people run.
const EVERY_CHANGE: [&str; 2] = ["6.1", "6.12"];

/// Tests of one program, as they are run in a guest.
#[derive(Debug)]
struct Suite {
    name: &'static str,
    program: &'static str,
    /// Only tests whose names hold this.
    only: &'static str,
    environment: &'static [&'static str],
}

const LOADING: Suite = Suite { name: "verifier", program: "dataplane", only: "verifier::", environment: &[] };

const SUITES: [Suite; 9] = [
    LOADING,
    Suite { name: "packets", program: "packets", only: "", environment: &[] },
    Suite { name: "known_clients", program: "dataplane", only: "known_clients::", environment: &[] },
    Suite { name: "memory", program: "dataplane", only: "memory::", environment: &[] },
    Suite { name: "model", program: "dataplane", only: "model::", environment: &["BALANCER_MODEL_PACKETS=40000"] },
    Suite {
        name: "stickiness",
        program: "e2e",
        only: "stickiness::clients_stay_with_nat_on_two_legs",
        environment: &[],
    },
    Suite { name: "tunnels", program: "e2e", only: "tunnels::gue_on_one_leg", environment: &[] },
    Suite { name: "bridge", program: "e2e", only: "devices::behind_a_bridge", environment: &[] },
    Suite { name: "vlan", program: "e2e", only: "devices::behind_a_vlan --include-ignored", environment: &[] },
];

/// Runs the suites of these names, or all, on the newest kernel of each version or beginning of one, such as `6.12`, and
/// prints a table.
pub(crate) fn test(versions: &[String], names: &[String]) -> Result<()> {
    let suites: Vec<Suite> = SUITES.into_iter().filter(|suite| names.is_empty() || is_among(suite, names)).collect();
    let unknown = names.iter().find(|name| !SUITES.iter().any(|suite| suite.name == **name));
    if let Some(unknown) = unknown {
        bail!("no suite {unknown}; there are {}", SUITES.map(|suite| suite.name).join(", "));
    }
    setup(Purpose::Run)?;
    let mut wanted: Vec<Option<&str>> = versions.iter().map(|version| Some(version.as_str())).collect();
    if wanted.is_empty() {
        wanted = SERIES.into_iter().map(Some).chain([None]).collect();
    }
    run(&wanted, &suites)
}

fn is_among(suite: &Suite, names: &[String]) -> bool {
    names.iter().any(|name| name == suite.name)
}

/// Has the kernels on which each change must load verify both programs.
pub(crate) fn load() -> Result<()> {
    run(&EVERY_CHANGE.map(Some), &[LOADING])
}

fn run(wanted: &[Option<&str>], suites: &[Suite]) -> Result<()> {
    ensure!(ARCH == "x86_64", "guests are made for x86_64, and this is {ARCH}");
    guests()?;
    let directory = root().join("target/kernels");
    fs::create_dir_all(&directory).with_context(|| directory.display().to_string())?;
    let kernels = debian::kernels(&directory, wanted)?;
    let tests = initramfs::make(&directory, suites)?;
    let mut outcomes = Vec::new();
    for kernel in &kernels {
        outcomes.push(on(kernel, &tests, suites)?);
    }
    println!("\n{}", outcome::table(&outcomes, suites));
    let failed: Vec<&str> = outcomes.iter().filter(|outcome| !outcome.passed(suites)).map(Outcome::kernel).collect();
    ensure!(failed.is_empty(), "failed on {}; logs are in {}", failed.join(", "), directory.display());
    Ok(())
}

fn on(kernel: &Kernel, tests: &Path, suites: &[Suite]) -> Result<Outcome> {
    println!("Linux {}", kernel.version);
    let outcome = boot(kernel, tests)?;
    if !outcome.passed(suites) {
        println!("    log: {}", kernel.log().display());
    }
    Ok(outcome)
}
