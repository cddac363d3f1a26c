//! `cargo xtask sanitize`.

use std::{env::consts::ARCH, process::Command};

use anyhow::Result;
use clap::ValueEnum;

use crate::{
    command::{built, cargo_of, run},
    setup::{Purpose, nightly, setup},
};

/// Crates whose unit tests load no BPF program. Not `balancer-ebpf`: `aya-ebpf` gives its tests a `memcpy` in place of the
/// sanitizer's, and Miri interprets them.
const CRATES: [&str; 8] = [
    "balancer-common",
    "balancer-model",
    "balancer-core",
    "balancer-api",
    "balancer-fleet",
    "balancer-engine",
    "balancer-dataplane",
    "balancer-daemon",
];

/// What watches the tests.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Sanitizer {
    /// Memory that is used outside of its bounds, after its end, or never given back.
    Address,
    /// Threads that use the same memory in no order.
    Thread,
}

impl Sanitizer {
    const ALL: [Self; 2] = [Self::Address, Self::Thread];

    /// As the compiler calls it.
    const fn name(self) -> &'static str {
        match self {
            Self::Address => "address",
            Self::Thread => "thread",
        }
    }

    /// Parts of the names of tests that do not run under it.
    const fn skipped(self) -> &'static [&'static str] {
        match self {
            // They play hundreds of fleets until a deliberate mistake shows, by code that other tests run as well. A scheduler
            // that plays races has stacks of its own, which neither sanitizer knows.
            Self::Address => &[
                "simulation::when_a_mistake_is_made_on_purpose_then_the_simulation_finds_it",
                "simulation::when_a_story_goes_wrong_then_it_is_made_short",
                "races::",
                "grace::",
            ],
            // A simulation has one thread, and so have races that a scheduler plays. Snapshots of 20,000 backends take so long
            // on a busy machine that the server's limits of 5 s for a request and 20 s for its answer pass.
            Self::Thread => &[
                "simulation::",
                "races::",
                "grace::",
                "metrics::tests::when_answers_are_not_read_then_their_number_and_time_are_bounded",
            ],
        }
    }
}

/// Runs the host tests under one sanitizer, or first one and then the other.
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
    // ThreadSanitizer must also see how the standard library orders threads. A target that is named spares build scripts
    // and macros.
    command.args(["-Z", "build-std", "--target", &format!("{ARCH}-unknown-linux-gnu")]);
    command.arg("--").args(sanitizer.skipped().iter().map(|name| format!("--skip={name}")));
    command.env("CARGO_TARGET_DIR", built("sanitize")?).env("RUSTFLAGS", format!("-Zsanitizer={}", sanitizer.name()));
    // Few random cases: faults of memory are in the code that they run rather than in rare inputs, and watched code is slow.
    command.env("PROPTEST_CASES", "32").env("FLEET_SEEDS", "20").env("PROPTEST_FAILURE_PERSISTENCE", "off");
    Ok(command)
}
