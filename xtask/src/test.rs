//! `cargo xtask test`.

use std::{
    env,
    fs::{self, File},
    num::NonZero,
    path::{Path, PathBuf},
    process::Command,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};

use crate::{
    build::LAB,
    command::{built, cargo, ensure_root, run},
    setup::{Purpose, setup},
};

/// Sets up the machine, builds the tests and the program `beside` in one step, and runs the tests that each change must
/// pass. The test runner prints its summary last.
pub(crate) fn test(beside: Option<&str>) -> Result<()> {
    ensure_root("the test suite", "test")?;
    setup(Purpose::Test)?;
    println!("On two processors the tests take about 20 minutes, and their first build 10 more");
    run(cargo().args(["test", "--locked", "--workspace", "--doc", "--quiet"]))?;
    build(beside)?.run(Tier::Landing)
}

/// Sets up the machine, builds all tests and all programs that tests start, and runs the tests whose names contain one
/// of the texts. A text with `release::` also selects tests that run only before a release.
pub(crate) fn some(names: &[String]) -> Result<()> {
    ensure_root("the test suite", "test")?;
    setup(Purpose::Test)?;
    let mut command = build(None)?.command(Tier::Landing);
    if names.iter().any(|name| name.contains("release::")) {
        command.arg("--ignore-default-filter");
    }
    run(command.arg("--").args(names))
}

/// The tests that run together; each test belongs to one tier by the module in which it is.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Tier {
    /// The tests that each change must pass.
    Landing,
    /// The tests in modules named `release`, which a release must pass in addition.
    Release,
}

impl Tier {
    /// The profile in `.config/nextest.toml`.
    pub(crate) const fn profile(self) -> &'static str {
        match self {
            Self::Landing => "default",
            Self::Release => "release",
        }
    }
}

/// All tests except the tests in documentation, already built. nextest runs the tests without cargo, because cargo
/// would wait for other builds.
pub(crate) struct Tests {
    programs: PathBuf,
    packages: PathBuf,
}

/// Builds the tests, the programs that tests start, and in the same step a program that the caller needs later.
pub(crate) fn build(beside: Option<&str>) -> Result<Tests> {
    let directory = built("tests")?;
    fs::create_dir_all(&directory).with_context(|| format!("cannot make {}", directory.display()))?;
    let (programs, packages) = (directory.join("programs.json"), directory.join("packages.json"));
    let to = |file: &Path| File::create(file).with_context(|| format!("cannot write {}", file.display()));
    let beside = beside.into_iter().chain([LAB]).flat_map(|name| ["--bin", name]);
    run(cargo().args(["build", "--locked", "--workspace", "--tests"]).args(beside))?;
    let list =
        ["nextest", "list", "--locked", "--workspace", "--list-type", "binaries-only", "--message-format", "json"];
    run(cargo().args(list).stdout(to(&programs)?))?;
    run(cargo().args(["metadata", "--locked", "--format-version", "1", "--all-features"]).stdout(to(&packages)?))?;
    Ok(Tests { programs, packages })
}

impl Tests {
    /// Runs all tests of a tier. nextest writes a report to `target/nextest`.
    pub(crate) fn run(&self, tier: Tier) -> Result<()> {
        run(&mut self.command(tier))
    }

    fn command(&self, tier: Tier) -> Command {
        const AT_ONCE: &str = "NEXTEST_TEST_THREADS";
        let mut command = cargo();
        command.args(["nextest", "run", "--profile", tier.profile(), "--no-fail-fast"]);
        command.arg("--binaries-metadata").arg(&self.programs);
        if env::var_os(AT_ONCE).is_none() {
            // The tests mostly wait: on two processors, a test uses a third of a processor on average.
            let processors = thread::available_parallelism().map_or(1, NonZero::get);
            command.env(AT_ONCE, (2 * processors).to_string());
        }
        command.arg("--cargo-metadata").arg(&self.packages);
        command
    }
}

/// The default duration of the test of a whole site, in minutes.
const WHOLE_SYSTEM: u64 = 20;

/// The number of fleets between two lines of progress.
const FLEETS_AT_ONCE: u64 = 2_000;

/// Runs the long tests. For ten minutes, several processors process packets of the same clients, while a controller
/// carries out all its actions. A whole site runs under random faults for `minutes`, or for 20 minutes. A hundred
/// thousand random sequences of events run against the controller's model, with optimisation. Finally, `seeds`
/// simulated fleets run. The first failure ends the run and prints the steps that led to the failure.
pub(crate) fn soak(seeds: u64, first: u64, minutes: Option<u64>) -> Result<()> {
    ensure_root("the kernel program under packets", "soak")?;
    setup(Purpose::Test)?;
    // Run the test program itself, because nextest would end such a long test.
    let contention = ["test", "--locked", "--quiet", "-p", "balancer-tests", "--test", "dataplane", "contention::"];
    run(cargo().args(contention).args(["--", "--nocapture"]).env("CONTENTION_SECONDS", "600"))?;
    let seconds = (60 * minutes.unwrap_or(WHOLE_SYSTEM)).to_string();
    run(cargo().args(["build", "--locked", "--quiet", "-p", "balancer-userspace"]))?;
    let wear = ["test", "--locked", "--quiet", "-p", "balancer-tests", "--test", "e2e", "wear::"];
    run(cargo().args(wear).args(["--", "--nocapture", "--include-ignored"]).env("SOAK_SECONDS", seconds))?;
    // Four tests run this number of cases each.
    let model = ["nextest", "run", "--locked", "--release", "-p", "balancer-control", "--lib", "model_test::"];
    run(cargo().args(model).env("PROPTEST_CASES", "25000"))?;
    let (begin, mut lived) = (Instant::now(), 0);
    let limit = minutes.map(|minutes| Duration::from_secs(60 * minutes));
    while lived < seeds && limit.is_none_or(|limit| begin.elapsed() < limit) {
        let some = FLEETS_AT_ONCE.min(seeds - lived);
        let fleet = ["test", "--locked", "--release", "--quiet", "-p", "balancer-fleet", "simulation::when_anything"];
        let from = (first + lived).to_string();
        run(cargo().args(fleet).env("FLEET_SEEDS", some.to_string()).env("FLEET_FIRST_SEED", from))?;
        lived += some;
        println!("{lived} of {seeds} fleets, {} s", begin.elapsed().as_secs());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    #[test]
    fn when_the_tiers_are_defined_then_each_test_is_in_exactly_one() {
        let config = include_str!("../../.config/nextest.toml");
        let filters: Vec<&str> =
            config.lines().filter_map(|line| line.strip_prefix("default-filter = \"")?.strip_suffix('"')).collect();
        assert_eq!(filters.len(), 2, "{filters:?}");
        assert_eq!(filters.first().map(ToString::to_string), filters.last().map(|release| format!("not ({release})")));
    }
}
