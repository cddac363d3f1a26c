//! `cargo xtask miri`.

use anyhow::{Context as _, Result};

use crate::{
    command::{cargo_of, program, run},
    setup::nightly,
};

/// A toolchain with Miri.
pub(crate) struct Miri {
    nightly: String,
}

impl Miri {
    /// Installs a toolchain with Miri if it is missing.
    pub(crate) fn install() -> Result<Self> {
        let nightly = nightly()?;
        run(program("rustup").args(["component", "add", "--toolchain", &nightly, "miri"]))
            .with_context(|| format!("Miri for {nightly}"))?;
        Ok(Self { nightly })
    }

    /// Interprets the unit tests of the code that kernel program and controller share, and of the kernel program's
    /// parser. Miri finds undefined behaviour even if the behaviour has no effect.
    pub(crate) fn run(&self) -> Result<()> {
        let mut command = cargo_of(&self.nightly);
        command.args(["miri", "test", "--locked", "--lib", "-p", "balancer-common", "-p", "balancer-ebpf"]);
        // The kernel program gets the addresses of frames as integers, so the tests' frames also have integer
        // addresses. The tests run few random cases under Miri, because Miri takes a hundred times as long.
        command.env("MIRIFLAGS", "-Zmiri-disable-isolation -Zmiri-permissive-provenance").env("PROPTEST_CASES", "4");
        run(command.env("PROPTEST_FAILURE_PERSISTENCE", "off"))
    }
}
