//! `cargo xtask ci`.

use std::{
    fs::{self, File},
    path::PathBuf,
    process::{self, Child},
    time::Instant,
};

use anyhow::{Context as _, Result, bail};
use clap::ValueEnum;

use crate::{
    bench::{PATH, check_paths},
    book::book,
    command::{built, cargo, ensure_root, program, run, shown},
    kernels,
    miri::Miri,
    setup::{Purpose, setup, typos},
    test,
    try_package::{SUITE, try_package},
};

/// How a line begins that says what was left out.
const NOT_RUN: &str = "Not run: ";

/// A half of what a change must pass.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Half {
    /// What looks at the code, loading on older kernels, Miri, and the package.
    Checks,
    /// What runs it.
    Tests,
}

/// Checks everything that a change must pass. Tests wait more than they compute: the checks have what they leave of the
/// processors, and begin when everything is built, as two builds would wait for each other.
pub(crate) fn ci(half: Option<Half>) -> Result<()> {
    ensure_root("the test suite", "ci")?;
    setup(Purpose::Ci)?;
    match half {
        Some(Half::Checks) => return checks(),
        Some(Half::Tests) => {
            test::test(Some(PATH))?;
            return check_paths();
        }
        None => quick_checks()?,
    }
    let tests = test::build(Some(PATH))?;
    let beside = Beside::begin()?;
    let tested = tests.run();
    let checked = beside.end();
    tested.and(checked)?;
    // When nothing runs beside it.
    check_paths()
}

/// What takes a moment, and stops a change soonest.
fn quick_checks() -> Result<()> {
    each(&[&["fmt", "--all", "--check"], &["machete"], &["deny", "--locked", "check", "bans", "licenses", "sources"]])?;
    let mut typos = program(typos()?);
    eprintln!("$ typos");
    run(&mut typos)
}

fn checks() -> Result<()> {
    each(&[
        &["clippy", "--workspace", "--all-targets", "--locked", "--", "-D", "warnings"],
        &["test", "--locked", "--workspace", "--doc", "--quiet"],
        &["doc", "--workspace", "--no-deps", "--locked"],
    ])?;
    book()?;
    kernels::load()?;
    match Miri::install() {
        Ok(miri) => miri.run()?,
        Err(error) => println!("{NOT_RUN}Miri, which cannot be installed: {error:#}"),
    }
    try_package(SUITE)
}

fn each(all: &[&[&str]]) -> Result<()> {
    for arguments in all {
        let begin = Instant::now();
        let mut command = cargo();
        command.args(*arguments);
        eprintln!("$ {}", shown(&command));
        // Cargo's, of this program: with it `cargo machete` takes its own name for a directory.
        command.env_remove("CARGO_PKG_NAME");
        run(command.env("RUSTDOCFLAGS", "-D warnings"))?;
        eprintln!("{} s", begin.elapsed().as_secs());
    }
    Ok(())
}

/// The checks, in a process of their own that gives way to others.
struct Beside {
    process: Child,
    begin: Instant,
}

impl Beside {
    fn log() -> Result<PathBuf> {
        built("ci-checks.log")
    }

    fn begin() -> Result<Self> {
        let log = File::create(Self::log()?).context("cannot write the log of the checks")?;
        // Building the tests may have built this program anew, so that what runs has no path of its own any more.
        let own = format!("/proc/{}/exe", process::id());
        let mut command = program("nice");
        command.args(["-n", "19"]).arg(own).args(["ci", "--only", "checks"]);
        let process = command.stdout(log.try_clone()?).stderr(log).spawn().context("cannot start the checks")?;
        println!("clippy, documentation, book, loading on older kernels, Miri and the package: beside the tests");
        Ok(Self { process, begin: Instant::now() })
    }

    /// Waits for them, and shows what they said if something is wrong.
    fn end(mut self) -> Result<()> {
        let status = self.process.wait().context("waiting for the checks")?;
        let seconds = self.begin.elapsed().as_secs();
        let said = fs::read_to_string(Self::log()?).unwrap_or_default();
        if status.success() {
            println!("the checks beside the tests passed, {seconds} s after these began");
            said.lines().filter(|line| line.starts_with(NOT_RUN)).for_each(|line| println!("{line}"));
            return Ok(());
        }
        eprintln!("{said}");
        bail!("the checks beside the tests failed ({status}); what they said is above")
    }
}

#[cfg(test)]
mod tests {
    /// Nobody has tried an older compiler than the one that builds everything.
    #[test]
    fn the_oldest_compiler_that_is_promised_is_the_one_that_is_used() {
        let value = |text: &'static str, key: &str| {
            let line = text.lines().find_map(|line| line.strip_prefix(key)?.trim_start().strip_prefix('='));
            line.map(|value| value.trim().trim_matches('"'))
        };
        let promised = value(include_str!("../../Cargo.toml"), "rust-version").unwrap();
        let used = value(include_str!("../../rust-toolchain.toml"), "channel").unwrap();
        assert_eq!(used.rsplit_once('.').map(|(minor, _)| minor), Some(promised), "{used}");
    }
}
