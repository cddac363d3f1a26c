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
    bench::{PATH, build_baseline, check_paths, program_may_differ},
    book::book,
    build::Aim,
    command::{built, cargo, ensure_root, program, run, shown},
    kernels,
    miri::Miri,
    setup::{Purpose, setup, typos},
    test::{self, Tier},
    times::Times,
    try_package::{SUITE, try_package},
};

/// The beginning of an output line that names skipped checks.
const NOT_RUN: &str = "Not run: ";

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Part {
    /// The checks of the code, and the loading on older kernels if the kernel program may have changed.
    Checks,
    /// The baseline's kernel program, for the comparison of speed.
    Baseline,
    /// The tests that a change must pass, which run the program, and the comparison of speed.
    Tests,
    /// For releases: Miri.
    Miri,
    /// For releases: the loading on older kernels, whatever has changed, because the kernels change as well.
    Kernels,
    /// For releases: the package with the programs of the tests, because release programs would need minutes of all
    /// processors.
    Package,
}

/// Runs one part of the checks.
pub(crate) fn only(part: Part) -> Result<()> {
    prepare(Purpose::Ci)?;
    match part {
        Part::Checks => checks(),
        Part::Baseline => build_baseline(),
        Part::Tests => {
            test::test(Some(PATH))?;
            build_baseline()?;
            check_paths()
        }
        Part::Miri => miri(),
        Part::Kernels => kernels::load(),
        Part::Package => try_package(SUITE, Aim::Test),
    }
}

fn prepare(purpose: Purpose) -> Result<()> {
    ensure_root("the test suite", "ci")?;
    setup(purpose)
}

/// Runs all checks that a change must pass. Tests mostly wait, so all remaining checks run at the same time, in the
/// processor time that the tests leave. The remaining checks begin when everything is built, because two builds at once
/// would wait for each other.
pub(crate) fn landing() -> Result<()> {
    let mut times = Times::default();
    times.of("set-up", || prepare(Purpose::Ci))?;
    times.of("format, spelling, dependencies and licences", quick_checks)?;
    let tests = times.of("build of the tests", || test::build(Some(PATH)))?;
    let checks = Beside::begin(Part::Checks, "clippy, documentation, book and loading on older kernels")?;
    let baseline = Beside::begin(Part::Baseline, "the kernel program of the baseline")?;
    let tested = times.of("tests", || tests.run(Tier::Landing));
    let beside = times.of("the rest of the checks beside the tests", || checks.end().and(baseline.end()));
    // The comparison of speed runs alone, after all other checks.
    let all = tested.and(beside).and_then(|()| times.of("comparison of speed", check_paths));
    all.and(times.report(Tier::Landing.profile()))
}

/// Runs the checks that a release must pass and that a change need not pass. Like the tests, the trial of the package
/// mostly waits.
pub(crate) fn release() -> Result<()> {
    let mut times = Times::default();
    times.of("set-up", || prepare(Purpose::Release))?;
    let tests = times.of("build of the tests", || test::build(None))?;
    let miri = Beside::begin(Part::Miri, "Miri")?;
    let kernels = Beside::begin(Part::Kernels, "loading on older kernels")?;
    let package = Beside::begin(Part::Package, "the package on a Debian of its own")?;
    let tested = times.of("tests", || tests.run(Tier::Release));
    let beside =
        times.of("the rest of the checks beside the tests", || miri.end().and(kernels.end()).and(package.end()));
    tested.and(beside).and(times.report(Tier::Release.profile()))
}

/// Runs the quick checks, which find most mistakes early.
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
    if program_may_differ() {
        return kernels::load();
    }
    println!("{NOT_RUN}the loading on older kernels, because the kernel program is that of the baseline");
    Ok(())
}

fn miri() -> Result<()> {
    match Miri::install() {
        Ok(miri) => miri.run(),
        Err(error) => {
            println!("{NOT_RUN}Miri, which cannot be installed: {error:#}");
            Ok(())
        }
    }
}

fn each(all: &[&[&str]]) -> Result<()> {
    for arguments in all {
        let begin = Instant::now();
        let mut command = cargo();
        command.args(*arguments);
        eprintln!("$ {}", shown(&command));
        run(command.env("RUSTDOCFLAGS", "-D warnings"))?;
        eprintln!("{} s", begin.elapsed().as_secs());
    }
    Ok(())
}

/// A separate process that runs a part of the checks at low priority.
struct Beside {
    what: &'static str,
    log: PathBuf,
    process: Child,
    begin: Instant,
}

impl Beside {
    fn begin(part: Part, what: &'static str) -> Result<Self> {
        let name = part.to_possible_value().context("every part has a name")?;
        let path = built(&format!("ci-{}.log", name.get_name()))?;
        let log = File::create(&path).with_context(|| format!("cannot write {}", path.display()))?;
        // The build of the tests may have replaced this program's file, so the running program uses its /proc entry.
        let own = format!("/proc/{}/exe", process::id());
        let mut command = program("nice");
        command.args(["-n", "19"]).arg(own).args(["ci", "--only", name.get_name()]);
        let process =
            command.stdout(log.try_clone()?).stderr(log).spawn().with_context(|| format!("cannot start {what}"))?;
        println!("{what}: beside the tests");
        Ok(Self { what, log: path, process, begin: Instant::now() })
    }

    /// Waits for the process to end, and shows the output of a failed process.
    fn end(mut self) -> Result<()> {
        let what = self.what;
        let status = self.process.wait().with_context(|| format!("waiting for {what}"))?;
        let seconds = self.begin.elapsed().as_secs();
        let said = fs::read_to_string(&self.log).unwrap_or_default();
        if status.success() {
            println!("{what}: passed, {seconds} s after the tests began");
            said.lines().filter(|line| line.starts_with(NOT_RUN)).for_each(|line| println!("{line}"));
            return Ok(());
        }
        eprintln!("{said}");
        bail!("{what}: failed ({status}); what was said is above")
    }
}

#[cfg(test)]
mod tests {
    /// No test uses an older compiler than rust-toolchain.toml names, so the promised version must be that version.
    #[test]
    fn when_a_compiler_version_is_promised_then_it_is_the_one_in_use() {
        let value = |text: &'static str, key: &str| {
            let line = text.lines().find_map(|line| line.strip_prefix(key)?.trim_start().strip_prefix('='));
            line.map(|value| value.trim().trim_matches('"'))
        };
        let promised = value(include_str!("../../Cargo.toml"), "rust-version").unwrap();
        let used = value(include_str!("../../rust-toolchain.toml"), "channel").unwrap();
        assert_eq!(used.rsplit_once('.').map(|(minor, _)| minor), Some(promised), "{used}");
    }
}
