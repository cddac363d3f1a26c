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
    /// Installs it, if it is not there.
    pub(crate) fn install() -> Result<Self> {
        let nightly = nightly()?;
        run(program("rustup").args(["component", "add", "--toolchain", &nightly, "miri"]))
            .with_context(|| format!("Miri for {nightly}"))?;
        Ok(Self { nightly })
    }

    /// Interprets the host tests of what kernel program and controller share, and of the kernel program's parsing: it finds
    /// what is undefined behaviour, whether or not it has an effect.
    pub(crate) fn run(&self) -> Result<()> {
        let mut command = cargo_of(&self.nightly);
        command.args(["miri", "test", "--locked", "--lib", "-p", "balancer-common", "-p", "balancer-ebpf"]);
        // Frames lie where numbers say, as the kernel gives them; random cases are few, as each takes a hundred times as long.
        command.env("MIRIFLAGS", "-Zmiri-disable-isolation -Zmiri-permissive-provenance").env("PROPTEST_CASES", "4");
        run(command.env("PROPTEST_FAILURE_PERSISTENCE", "off"))
    }
}
