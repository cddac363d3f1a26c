//! `cargo xtask package`.

use std::{fs, process::Command};

use anyhow::{Context as _, Result};

use crate::{
    build,
    command::{built, cargo, installed, program, root, run},
    setup::{Purpose, cargo_deb, setup},
};

/// Sets up, builds for release, generates manual pages and completions, and makes a Debian package of it all.
pub(crate) fn package() -> Result<()> {
    contents(build::PRODUCT)?;
    run(&mut deb())
}

/// All that a package is made of, and what makes it.
///
/// `programs` are built for release.
pub(crate) fn contents(programs: &[&str]) -> Result<()> {
    setup(Purpose::Build)?;
    build::programs(programs, true)?;
    let directory = root().join("target/package");
    let man = directory.join("man");
    // Not for release: it would compile everything that only tests need once more.
    let mut command = cargo();
    command.args(["run", "--package", "balancer-userspace", "--example", "man-pages", "--"]).arg(&man);
    run(&mut command)?;

    let completions = directory.join("completions");
    fs::create_dir_all(&completions).with_context(|| completions.display().to_string())?;
    for (shell, file) in [("bash", "balancer.bash"), ("zsh", "_balancer"), ("fish", "balancer.fish")] {
        let output = program(built("release")?.join("balancer")).args(["completions", shell]).output()?;
        fs::write(completions.join(file), output.stdout).with_context(|| format!("writing {file}"))?;
    }

    if !installed("cargo-deb") {
        cargo_deb()?;
    }
    Ok(())
}

/// Makes a package of what is there, without its tens of megabytes of debug information.
pub(crate) fn deb() -> Command {
    let mut command = cargo();
    command.args(["deb", "--package", "balancer-userspace", "--no-build", "--locked", "--strip"]);
    command
}
