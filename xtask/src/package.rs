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
    contents(&[])?;
    run(&mut stripped())
}

/// All that a package is made of, and what makes it; and programs of the tests.
pub(crate) fn contents(programs: &[&str]) -> Result<()> {
    setup(Purpose::Build)?;
    build::programs(build::PRODUCT, build::Aim::Release)?;
    accompany(programs)
}

/// Generates manual pages and completions below `target/package`, and installs what makes packages. `programs` are built
/// besides, as tests are.
pub(crate) fn accompany(programs: &[&str]) -> Result<()> {
    // With the features that the whole workspace has, as for tests: nothing is compiled twice.
    let mut command = cargo();
    command.args(["build", "--locked", "--workspace", "--example", "man-pages", "--bin", "balancer"]);
    run(command.args(programs.iter().flat_map(|name| ["--bin", name])))?;
    let built = built("debug")?;

    let directory = root().join("target/package");
    let man = directory.join("man");
    // Pages of commands that are no more would be packed as well.
    if man.exists() {
        fs::remove_dir_all(&man).with_context(|| man.display().to_string())?;
    }
    run(program(built.join("examples/man-pages")).arg(&man))?;

    let completions = directory.join("completions");
    fs::create_dir_all(&completions).with_context(|| completions.display().to_string())?;
    for (shell, file) in [("bash", "balancer.bash"), ("zsh", "_balancer"), ("fish", "balancer.fish")] {
        let text = output(program(built.join("balancer")).args(["completions", shell]));
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
