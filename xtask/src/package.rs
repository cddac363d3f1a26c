//! `cargo xtask package`.

use std::{fs, process::Command};

use anyhow::{Context as _, Result};

use crate::{
    build,
    command::{built, cargo, installed, output, program, root, run},
    setup::{Purpose, cargo_deb, setup},
};

/// Sets up, builds for release, generates manual pages and completions, and makes a Debian package of it all.
pub(crate) fn package() -> Result<()> {
    contents(build::PRODUCT)?;
    run(&mut stripped())
}

/// All that a package is made of, and what makes it.
///
/// `programs` are built for release.
pub(crate) fn contents(programs: &[&str]) -> Result<()> {
    setup(Purpose::Build)?;
    build::programs(programs, build::Aim::Release)?;
    accompany()
}

/// Generates manual pages and completions below `target/package`, and installs what makes packages.
pub(crate) fn accompany() -> Result<()> {
    let directory = root().join("target/package");
    let man = directory.join("man");
    // Pages of commands that are no more would be packed as well.
    if man.exists() {
        fs::remove_dir_all(&man).with_context(|| man.display().to_string())?;
    }
    // Not for release: it would compile everything that only tests need once more.
    let mut command = cargo();
    command.args(["run", "--locked", "--package", "balancer-userspace", "--example", "man-pages", "--"]);
    run(command.arg(&man))?;

    build::programs(build::PRODUCT, build::Aim::Test)?;
    let completions = directory.join("completions");
    fs::create_dir_all(&completions).with_context(|| completions.display().to_string())?;
    for (shell, file) in [("bash", "balancer.bash"), ("zsh", "_balancer"), ("fish", "balancer.fish")] {
        let text = output(program(built("debug")?.join("balancer")).args(["completions", shell]));
        let text = text.with_context(|| format!("`balancer completions {shell}` failed"))?;
        fs::write(completions.join(file), text + "\n").with_context(|| format!("writing {file}"))?;
    }

    if !installed("cargo-deb") {
        cargo_deb()?;
    }
    Ok(())
}

/// Makes a package of what is there, without its tens of megabytes of debug information.
pub(crate) fn stripped() -> Command {
    let mut command = deb();
    command.arg("--strip");
    command
}

/// Makes a package of what is there.
pub(crate) fn deb() -> Command {
    let mut command = cargo();
    command.args(["deb", "--quiet", "--package", "balancer-userspace", "--no-build", "--locked"]);
    command
}
