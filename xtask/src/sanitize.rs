//! `cargo xtask sanitize`.

use std::{env::consts::ARCH, process::Command};

use anyhow::Result;
use clap::ValueEnum;

use crate::{
    command::{built, cargo_of, run},
    setup::{Purpose, nightly, setup},
};

/// Crates whose unit tests load no BPF program. The list lacks `balancer-ebpf`: `aya-ebpf` gives that crate's tests a
/// `memcpy` that replaces the sanitizer's, and Miri interprets these tests.
const CRATES: [&str; 14] = [
    "balancer-common",
    "balancer-config",
    "balancer-control",
    "balancer-api",
    "balancer-fleet",
    "balancer-etcd",
    "balancer-dataplane",
    "balancer-runtime",
    "balancer-state",
    "balancer-netlink",
    "balancer-checks",
    "balancer-sources",
    "balancer-listeners",
    "balancer-daemon",
];

/// The sanitizers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Sanitizer {
    /// Finds leaks, and memory accesses out of bounds or after a free.
    Address,
    /// Finds data races.
    Thread,
}

impl Sanitizer {
    const ALL: [Self; 2] = [Self::Address, Self::Thread];

    /// The compiler's name of the sanitizer.
    const fn name(self) -> &'static str {
        match self {
            Self::Address => "address",
            Self::Thread => "thread",
        }
    }

    /// Tests with one of these texts in their names are skipped.
    const fn skipped(self) -> &'static [&'static str] {
        match self {
            // The skipped tests run hundreds of fleets until a deliberate mistake shows; the remaining tests run the
            // same code. The scheduler of race tests has its own stacks, which neither sanitizer knows.
            Self::Address => &[
                "simulation::when_a_mistake_is_made_on_purpose_then_the_simulation_finds_it",
                "simulation::when_a_story_goes_wrong_then_it_is_made_short",
                "races::",
                "grace::",
            ],
            // A simulation runs in only one thread, even a simulation of races. Snapshots of 20,000 backends take so
            // long on a busy machine that the server's limits of 5 s for a request and 20 s for its answer expire.
            Self::Thread => &[
                "simulation::",
                "races::",
                "grace::",
                "metrics::tests::when_answers_are_not_read_then_their_number_and_time_are_bounded",
            ],
        }
    }
}

/// Runs the unit tests under one sanitizer, or under both sanitizers one after the other.
pub(crate) fn sanitize(only: Option<Sanitizer>) -> Result<()> {
    // The data path's crate embeds the kernel program.
    setup(Purpose::Build)?;
    let nightly = nightly()?;
    for sanitizer in Sanitizer::ALL.into_iter().filter(|sanitizer| only.is_none_or(|only| only == *sanitizer)) {
        println!("The host tests under the sanitizer {}", sanitizer.name());
        run(&mut tests(&nightly, sanitizer)?)?;
    }
    Ok(())
}

fn tests(nightly: &str, sanitizer: Sanitizer) -> Result<Command> {
    let mut command = cargo_of(nightly);
    command.args(["test", "--locked", "--lib", "--no-fail-fast"]).args(CRATES.map(|name| format!("--package={name}")));
    // Build the standard library as well, because ThreadSanitizer must also see the synchronization in the standard
    // library. Name the target explicitly, so that cargo does not instrument build scripts and macros.
    command.args(["-Z", "build-std", "--target", &format!("{ARCH}-unknown-linux-gnu")]);
    command.arg("--").args(sanitizer.skipped().iter().map(|name| format!("--skip={name}")));
    command.env("CARGO_TARGET_DIR", built("sanitize")?).env("RUSTFLAGS", format!("-Zsanitizer={}", sanitizer.name()));
    // Few random cases suffice, because memory errors depend on the code rather than on rare inputs, and instrumented
    // code is slow.
    command.env("PROPTEST_CASES", "32").env("FLEET_SEEDS", "20").env("PROPTEST_FAILURE_PERSISTENCE", "off");
    Ok(command)
}
