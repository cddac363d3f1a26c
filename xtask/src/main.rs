//! The project's chores: set-up, build, demo, tests, benchmarks, CI.
//!
//! Begin with the enum `Chore`: each chore has a file of its own.

mod arch;
mod bench;
mod book;
mod build;
mod ci;
mod command;
mod debian;
mod fuzz;
mod kernels;
mod lab;
mod miri;
mod mutants;
mod package;
mod recording;
mod release;
mod run;
mod sanitize;
mod setup;
mod test;
mod times;
mod try_package;
mod verified;

use std::{path::PathBuf, process::ExitCode};

use anyhow::Result;
use clap::{Parser, Subcommand};

use crate::{arch::Arch, setup::Purpose};

#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask", about = "The project's chores")]
struct Cli {
    #[command(subcommand)]
    chore: Chore,
}

#[derive(Subcommand)]
enum Chore {
    /// Install everything that is needed to build, run and test; the command names what it installs.
    Setup {
        /// Also install the requirements of `ci`.
        #[arg(long)]
        ci: bool,
    },
    /// Set up, then build the balancer.
    Build {
        /// With optimizations.
        #[arg(long)]
        release: bool,
    },
    /// Set up, build, and show the balancer at work: its demo, or on real interfaces with --config.
    Run(run::Options),
    /// Set up, then run the tests that a change must pass, from unit tests to network namespaces; needs root.
    Test {
        /// Build everything, but run only tests whose names contain one of these texts, such as `fragments::`. A text
        /// with `release::` also selects tests that run only before a release.
        #[arg(value_name = "NAME", conflicts_with = "kernels")]
        names: Vec<String>,
        #[command(flatten)]
        kernels: kernels::Options,
    },
    /// Set up, then run the long tests: packets from several processors against a busy controller, random faults in a
    /// whole site under traffic, a hundred thousand random sequences of events against the controller's model, and as
    /// many simulated fleets; needs root.
    Soak {
        /// How many fleets to simulate; each processor runs about 20 a second.
        #[arg(long, default_value_t = 100_000)]
        seeds: u64,
        /// The seed of the first fleet.
        #[arg(long, default_value_t = 0)]
        first: u64,
        /// How many minutes a whole site runs (20), and after how many minutes no more fleets start (never).
        #[arg(long)]
        minutes: Option<u64>,
    },
    /// Interpret the unit tests of the kernel program's parts with Miri, which it installs.
    Miri,
    /// Run the unit tests that load no BPF program under AddressSanitizer, then under ThreadSanitizer, with a nightly
    /// compiler, which it installs.
    Sanitize {
        /// Run only this sanitizer.
        #[arg(long, value_name = "SANITIZER")]
        only: Option<sanitize::Sanitizer>,
    },
    /// Fuzz parsers, kernel program and controller with coverage feedback (libFuzzer), until an input fails; installs a
    /// nightly compiler and cargo-fuzz; needs root.
    Fuzz {
        /// Run only this target, a file name in fuzz/fuzz_targets.
        target: Option<String>,
        /// The minutes for each target.
        #[arg(long, default_value_t = 10)]
        minutes: u64,
        /// Then replace each corpus in fuzz/corpus by the fewest inputs with the same coverage.
        #[arg(long)]
        keep: bool,
    },
    /// Set up, then break the rules of steering, one at a time and in a copy, and check that tests find each mistake;
    /// needs root.
    Mutants {
        /// Run only mutations whose names contain this text.
        #[arg(default_value = "")]
        only: String,
    },
    /// Set up, then run one benchmark, and print its figures.
    Bench {
        only: bench::Benchmark,
        /// With `path`: compare with the kernel program of this commit, in turns, and fail if a path is more than 7%
        /// slower in two comparisons.
        #[arg(long, value_name = "REV")]
        against: Option<String>,
        /// Options of the benchmark's program, such as --rounds; its --help lists all.
        #[arg(last = true)]
        options: Vec<String>,
    },
    /// Set up, then print how many instructions the kernel's verifier examines: the totals of the feature sets in
    /// balancer-ebpf/verified.txt; needs root.
    Verified {
        /// Print the functions of the program with these features, such as v4,nat, or with all features (all).
        features: Option<String>,
    },
    /// Set up, then run a lab with third-party software; needs root.
    Lab {
        /// The lab to run.
        #[command(subcommand)]
        lab: lab::Lab,
    },
    /// Build the book of `docs/src` as HTML in `docs/book`; installs mdbook if it is missing.
    Book,
    /// Set up, build for release, and make a Debian package with manual pages, completions and the systemd unit.
    Package {
        /// Then install, run, upgrade and purge the package on a separate machine, booted by systemd; needs root.
        #[arg(long = "try")]
        attempt: bool,
        /// The Debian release of the separate machine.
        #[arg(long, requires = "attempt", default_value = try_package::SUITE)]
        suite: String,
    },
    /// Run the demo and make a moving picture of its kill step, `docs/src/kill.svg`; needs root and `script`.
    Recording,
    /// Set up, then make the files for download: static programs in Debian packages and archives, bills of materials,
    /// and checksums.
    Release {
        /// Build only for these processors.
        #[arg(long)]
        arch: Vec<Arch>,
        /// Sign the checksums with this private SSH key, or with this public key if the agent has its private key.
        #[arg(long, value_name = "KEY")]
        sign: Option<PathBuf>,
    },
    /// Run all checks that a change must pass: format, spelling, lints, docs, licences and dependencies, loading on
    /// older kernels, tests, and the kernel program's speed.
    Ci {
        /// Run only one part.
        #[arg(long, value_name = "PART")]
        only: Option<ci::Part>,
        /// Run the checks that a release must pass in addition: labs, whole machines, the package, Miri.
        #[arg(long, conflicts_with = "only")]
        release: bool,
    },
}

fn main() -> ExitCode {
    match perform(Cli::parse().chore) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn perform(chore: Chore) -> Result<()> {
    match chore {
        Chore::Setup { ci } => setup::setup(if ci { Purpose::Ci } else { Purpose::Test }),
        Chore::Build { release } => build::build(release),
        Chore::Run(options) => run::run(&options),
        Chore::Test { kernels, .. } if kernels.is_about_kernels() => kernels::test(&kernels),
        Chore::Test { names, .. } if names.is_empty() => test::test(None),
        Chore::Test { names, .. } => test::some(&names),
        Chore::Miri => miri::Miri::install()?.run(),
        Chore::Sanitize { only } => sanitize::sanitize(only),
        Chore::Fuzz { target, minutes, keep } => fuzz::fuzz(target.as_deref(), minutes, keep),
        Chore::Mutants { only } => mutants::mutants(&only),
        Chore::Soak { seeds, first, minutes } => test::soak(seeds, first, minutes),
        Chore::Bench { only, against, options } => bench::bench(only, against.as_deref(), &options),
        Chore::Verified { features } => verified::verified(features.as_deref()),
        Chore::Lab { lab } => lab::lab(&lab),
        Chore::Book => book::book(),
        Chore::Package { attempt: false, .. } => package::package(),
        Chore::Package { attempt: true, suite } => try_package::try_package(&suite, build::Aim::Release),
        Chore::Recording => recording::recording(),
        Chore::Release { arch, sign } => release::release(&arch, sign.as_deref()),
        Chore::Ci { only: Some(part), .. } => ci::only(part),
        Chore::Ci { release: true, .. } => ci::release(),
        Chore::Ci { .. } => ci::landing(),
    }
}
