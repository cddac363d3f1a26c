//! `cargo xtask test`.

use std::{
    env,
    fs::{self, File},
    num::NonZero,
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};

use crate::{
    command::{built, cargo, ensure_root, run},
    setup::{Purpose, setup},
};

/// Sets up and runs every test, with a program built beside them. The test runner's summary is the last thing printed.
pub(crate) fn test(beside: Option<&str>) -> Result<()> {
    ensure_root("the test suite", "test")?;
    setup(Purpose::Test)?;
    run(cargo().args(["test", "--locked", "--workspace", "--doc", "--quiet"]))?;
    build(beside)?.run()
}

/// Every test but those in documentation, built. Runs without another look by cargo, which would wait for other builds.
pub(crate) struct Tests {
    programs: PathBuf,
    packages: PathBuf,
}

/// Builds them, and a program that is needed after them, which is so built with what they are.
pub(crate) fn build(beside: Option<&str>) -> Result<Tests> {
    let directory = built("tests")?;
    fs::create_dir_all(&directory).with_context(|| format!("cannot make {}", directory.display()))?;
    let (programs, packages) = (directory.join("programs.json"), directory.join("packages.json"));
    let to = |file: &Path| File::create(file).with_context(|| format!("cannot write {}", file.display()));
    let beside = beside.iter().flat_map(|name| ["--bin", name]);
    run(cargo().args(["build", "--locked", "--workspace", "--tests"]).args(beside))?;
    let list =
        ["nextest", "list", "--locked", "--workspace", "--list-type", "binaries-only", "--message-format", "json"];
    run(cargo().args(list).stdout(to(&programs)?))?;
    run(cargo().args(["metadata", "--locked", "--format-version", "1", "--all-features"]).stdout(to(&packages)?))?;
    Ok(Tests { programs, packages })
}

impl Tests {
    /// Runs them all.
    pub(crate) fn run(&self) -> Result<()> {
        const AT_ONCE: &str = "NEXTEST_TEST_THREADS";
        let mut command = cargo();
        command.args(["nextest", "run", "--no-fail-fast", "--binaries-metadata"]).arg(&self.programs);
        if env::var_os(AT_ONCE).is_none() {
            // They wait more than they compute.
            let processors = thread::available_parallelism().map_or(1, NonZero::get);
            command.env(AT_ONCE, (processors + processors.div_ceil(2)).to_string());
        }
        run(command.arg("--cargo-metadata").arg(&self.packages))
    }
}

/// How long a whole site is worn out, in minutes, if nothing else is said.
const WHOLE_SYSTEM: u64 = 20;

/// Fleets between two lines that say how far it has come.
const FLEETS_AT_ONCE: u64 = 2_000;

/// Has several processors send packets of the same clients for ten minutes, against everything that a controller does; wears
/// out a whole site for as long as `minutes` say, or 20; plays
/// a hundred thousand random sequences of events against the controller's model, which takes the optimiser, and the lives of
/// so many fleets. Fails with the first one in which something goes wrong, whose story is printed.
pub(crate) fn soak(seeds: u64, first: u64, minutes: Option<u64>) -> Result<()> {
    ensure_root("the kernel program under packets", "soak")?;
    setup(Purpose::Test)?;
    // The test itself, as nextest ends what takes so long.
    let contention = ["test", "--locked", "--quiet", "-p", "balancer-tests", "--test", "dataplane", "contention::"];
    run(cargo().args(contention).args(["--", "--nocapture"]).env("CONTENTION_SECONDS", "600"))?;
    let seconds = (60 * minutes.unwrap_or(WHOLE_SYSTEM)).to_string();
    run(cargo().args(["build", "--locked", "--quiet", "-p", "balancer-userspace"]))?;
    let wear = ["test", "--locked", "--quiet", "-p", "balancer-tests", "--test", "e2e", "wear::"];
    run(cargo().args(wear).args(["--", "--nocapture", "--include-ignored"]).env("SOAK_SECONDS", seconds))?;
    // Four tests of as many cases each.
    let model = ["nextest", "run", "--locked", "--release", "-p", "balancer-core", "--lib", "model_test::"];
    run(cargo().args(model).env("PROPTEST_CASES", "25000"))?;
    let (begin, mut lived) = (Instant::now(), 0);
    let limit = minutes.map(|minutes| Duration::from_secs(60 * minutes));
    while lived < seeds && limit.is_none_or(|limit| begin.elapsed() < limit) {
        let some = FLEETS_AT_ONCE.min(seeds - lived);
        let fleet = ["test", "--locked", "--release", "--quiet", "-p", "balancer-fleet", "members_agree"];
        let from = (first + lived).to_string();
        run(cargo().args(fleet).env("FLEET_SEEDS", some.to_string()).env("FLEET_FIRST_SEED", from))?;
        lived += some;
        println!("{lived} of {seeds} fleets, {} s", begin.elapsed().as_secs());
    }
    Ok(())
}
