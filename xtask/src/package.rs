//! `cargo xtask package`.

use std::{fs, process::Command};

use anyhow::{Context as _, Result};

use crate::{
    build::{self, Aim, KUBERNETES},
    command::{built, cargo, output, program, root, run},
    setup::{Purpose, cargo_deb, setup},
};

/// The crate of the command, which makes the balancer's package.
pub(crate) const BALANCER: &str = "balancer-userspace";

/// The crates that each make a Debian package.
pub(crate) const PACKAGES: [&str; 2] = [BALANCER, KUBERNETES];

/// Sets up, builds for release, generates manual pages and completions, and makes the Debian packages.
pub(crate) fn package() -> Result<()> {
    contents(Aim::Release, &[])?;
    for package in PACKAGES {
        run(&mut stripped(package, Aim::Release))?;
    }
    Ok(())
}

/// Builds everything that a package of programs for `aim` needs, including the packaging tool, and programs of the
/// tests.
pub(crate) fn contents(aim: Aim, programs: &[&str]) -> Result<()> {
    setup(Purpose::Build)?;
    if aim == Aim::Release {
        build::programs(&[build::PRODUCT, &[KUBERNETES]].concat(), aim)?;
    }
    accompany(aim, programs)
}

/// Generates manual pages and completions below `target/package`, and installs the packaging tool. Also builds
/// `programs`, with the same settings as the tests.
pub(crate) fn accompany(aim: Aim, programs: &[&str]) -> Result<()> {
    let mut command = cargo();
    command.args(["build", "--locked", "--workspace", "--example", "man-pages", "--bin", "balancer"]);
    if aim == Aim::Test {
        // Build with the tests, whose programs exist already: without the tests, the dependencies would have different
        // features, and cargo would rebuild them.
        command.arg("--tests");
    }
    run(command.args(programs.iter().flat_map(|name| ["--bin", name])))?;
    let built = built("debug")?;

    let directory = root().join("target/package");
    let man = directory.join("man");
    // Remove old manual pages, because the package would otherwise contain the pages of removed commands.
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

    cargo_deb()
}

/// Returns the command that makes a crate's package of the programs for `aim`, without their large debug information.
pub(crate) fn stripped(package: &str, aim: Aim) -> Command {
    let mut command = deb(package);
    command.args(["--strip", "--profile", aim.profile()]);
    if aim == Aim::Test {
        // Do not compress a trial's packages well: nobody downloads them, and good compression of two packages would
        // take a minute.
        command.arg("--fast");
    }
    command
}

/// Returns the command that makes a crate's package from the existing files.
pub(crate) fn deb(package: &str) -> Command {
    let mut command = cargo();
    command.args(["deb", "--quiet", "--package", package, "--no-build", "--locked"]);
    command
}
