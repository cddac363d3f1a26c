//! `cargo xtask test --kernels`: runs the kernel programs on Debian's kernels in virtual machines.
//!
//! The emulator does not use hardware virtualization: an emulated guest boots within ten seconds everywhere, while
//! nested virtualization often hangs.

mod debian;
mod guest;
mod initramfs;
mod outcome;
mod tools;

use std::{env::consts::ARCH, fs, path::Path};

use anyhow::{Context as _, Result, bail, ensure};
use clap::Args;

use self::{
    debian::{Kernel, Which},
    guest::boot,
    outcome::Outcome,
};
use crate::{
    arch::Arch,
    command::root,
    setup::{Purpose, guests, setup},
};

/// The default series: tests run on the newest kernel of each series, and on the newest kernel of all.
const SERIES: [&str; 3] = ["6.1", "6.12", "6.18"];

/// The word for the newest kernel of each supported series.
const ALL: &str = "all";

/// The series on which the kernel program must load after each change: the oldest supported series and the most common
/// series.
const EVERY_CHANGE: [&str; 2] = ["6.1", "6.12"];

/// The choice of tests and kernels.
#[derive(Clone, Debug, Args)]
pub(crate) struct Options {
    /// Run only tests of the kernel programs, in virtual machines with Debian's newest kernels of these versions (6.1,
    /// 6.12.117, …) or of all series from 6.1 on (all); the default is 6.1, 6.12, 6.18 and the newest.
    #[arg(long, value_name = "VERSION", num_args = 0..)]
    kernels: Option<Vec<String>>,
    /// Run on this processor, instead of this machine's.
    #[arg(long, requires = "kernels")]
    arch: Option<Arch>,
    /// Only let these kernels verify the programs.
    #[arg(long, requires = "kernels")]
    load: bool,
    /// Run only these suites, such as `packets` or `vlan`.
    #[arg(long, requires = "kernels", conflicts_with = "load")]
    suite: Vec<String>,
}

impl Options {
    pub(crate) const fn is_about_kernels(&self) -> bool {
        self.kernels.is_some()
    }

    fn kernels(&self) -> Vec<Which<'_>> {
        match self.kernels.as_deref().unwrap_or_default() {
            [] => SERIES.into_iter().map(Which::Of).chain([Which::Newest]).collect(),
            versions => {
                let which = |version| if version == ALL { Which::NewestOfEach } else { Which::Of(version) };
                versions.iter().map(|version| which(version.as_str())).collect()
            }
        }
    }

    fn suites(&self) -> Result<Vec<Suite>> {
        if let Some(unknown) = self.suite.iter().find(|name| !SUITES.iter().any(|suite| suite.name == **name)) {
            bail!("no suite {unknown}; there are {}", SUITES.map(|suite| suite.name).join(", "));
        }
        let is_wanted = |suite: &Suite| match self.suite.as_slice() {
            _ if self.load => suite.name == LOADING.name,
            [] => true,
            names => names.iter().any(|name| name == suite.name),
        };
        Ok(SUITES.into_iter().filter(is_wanted).collect())
    }
}

/// One program that a guest runs: a test program, or the balancer itself.
#[derive(Debug)]
struct Suite {
    name: &'static str,
    program: &'static str,
    /// The filter for the names of tests, or the arguments of the balancer.
    only: &'static str,
    environment: &'static [&'static str],
}

const LOADING: Suite = Suite { name: "verifier", program: "dataplane", only: "verifier::", environment: &[] };

/// Rows of the packet tests with each set of features, on programs that have exactly these features.
const SETS: Suite = Suite { name: "sets", program: "packets", only: "sets::", environment: &[] };

const SUITES: [Suite; 15] = [
    LOADING,
    SETS,
    Suite { name: "packets", program: "packets", only: "--skip sets::", environment: &["BALANCER_FLOOD=20000"] },
    Suite { name: "known_clients", program: "dataplane", only: "known_clients::", environment: &[] },
    Suite { name: "memory", program: "dataplane", only: "memory::", environment: &[] },
    Suite { name: "model", program: "dataplane", only: "model::", environment: &["BALANCER_MODEL_PACKETS=40000"] },
    Suite {
        name: "stickiness",
        program: "e2e",
        only: "stickiness::when_clients_connect_with_nat_on_two_legs",
        environment: &[],
    },
    // Kernels differ in the time at which they detach an XDP program from an interface.
    Suite { name: "restart", program: "e2e", only: "restart::when_a_", environment: &[] },
    Suite { name: "passive", program: "e2e", only: "passive::", environment: &[] },
    Suite { name: "tunnels", program: "e2e", only: "tunnels::when_gue_runs_on_one_leg", environment: &[] },
    Suite { name: "demo", program: "balancer", only: "demo --once", environment: &[] },
    Suite {
        name: "bridge",
        program: "e2e",
        only: "devices::when_the_backends_are_behind_a_bridge devices::release::",
        environment: &[],
    },
    Suite {
        name: "cards",
        program: "e2e",
        only: "devices::when_the_backends_are_behind_network_cards --include-ignored",
        environment: &[],
    },
    Suite { name: "bond", program: "e2e", only: "bonds:: --include-ignored", environment: &[] },
    Suite {
        name: "vlan",
        program: "e2e",
        only: "devices::when_the_backends_are_behind_a_vlan --include-ignored",
        environment: &[],
    },
];

/// Runs suites on kernels and prints a table.
pub(crate) fn test(options: &Options) -> Result<()> {
    let suites = options.suites()?;
    setup(Purpose::Run)?;
    let arch = match options.arch {
        Some(arch) => arch,
        None => this_machines()?,
    };
    run(arch, &options.kernels(), &suites)
}

fn this_machines() -> Result<Arch> {
    Arch::of_this_machine().with_context(|| format!("there are no guests for {ARCH}"))
}

/// Lets the kernels of the series [`EVERY_CHANGE`] verify both programs.
pub(crate) fn load() -> Result<()> {
    run(this_machines()?, &EVERY_CHANGE.map(Which::Of), &[LOADING])
}

fn run(arch: Arch, wanted: &[Which<'_>], suites: &[Suite]) -> Result<()> {
    guests(arch)?;
    let mut directory = root().join("target/kernels");
    if !arch.is_this_machines() {
        directory.push(arch.name());
    }
    fs::create_dir_all(&directory).with_context(|| directory.display().to_string())?;
    let kernels = debian::kernels(&directory, arch, wanted)?;
    let tests = initramfs::make(&directory, arch, suites)?;
    let mut outcomes = Vec::new();
    for kernel in &kernels {
        outcomes.push(on(kernel, &tests, suites)?);
    }
    println!("\n{}", outcome::table(&outcomes, suites));
    let failed: Vec<&str> = outcomes.iter().filter(|outcome| !outcome.passed(suites)).map(Outcome::kernel).collect();
    ensure!(failed.is_empty(), "failed on {}; logs are in {}", failed.join(", "), directory.display());
    Ok(())
}

/// The number of attempts to boot a guest until process 1 starts. If qemu emulates several processors without
/// virtualization, it sometimes executes an instruction that the kernel is replacing (`Oops: int3`).
const BOOTS: u32 = 3;

fn on(kernel: &Kernel, tests: &Path, suites: &[Suite]) -> Result<Outcome> {
    println!("Linux {}", kernel.label());
    let mut outcome = boot(kernel, tests)?;
    for _ in 1..BOOTS {
        if outcome.has_booted() {
            break;
        }
        println!("    the machine did not boot; again");
        outcome = boot(kernel, tests)?;
    }
    if !outcome.passed(suites) {
        println!("    log: {}", kernel.log().display());
    }
    Ok(outcome)
}
