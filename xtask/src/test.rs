//! `cargo xtask test`.

use std::time::{Duration, Instant};

use anyhow::Result;

use crate::{
    command::{cargo, ensure_root, run},
    setup::{Purpose, setup},
};

/// Sets up and runs every test. The test runner's summary is the last thing printed.
pub(crate) fn test() -> Result<()> {
    ensure_root("the test suite", "test")?;
    setup(Purpose::Test)?;
    run(cargo().args(["test", "--locked", "--workspace", "--doc", "--quiet"]))?;
    run(cargo().args(["nextest", "run", "--locked", "--workspace", "--no-fail-fast"]))
}

/// Fleets between two lines that say how far it has come.
const FLEETS_AT_ONCE: u64 = 2_000;

/// Has several processors send packets of the same clients for ten minutes, against everything that a controller does; plays
/// a hundred thousand random sequences of events against the controller's model, which takes the optimiser, and the lives of
/// so many fleets. Fails with the first one in which something goes wrong, whose story is printed.
pub(crate) fn soak(seeds: u64, first: u64, minutes: Option<u64>) -> Result<()> {
    ensure_root("the kernel program under packets", "soak")?;
    setup(Purpose::Test)?;
    // The test itself, as nextest ends what takes so long.
    let contention = ["test", "--locked", "--quiet", "-p", "balancer-tests", "--test", "dataplane", "contention::"];
    run(cargo().args(contention).args(["--", "--nocapture"]).env("CONTENTION_SECONDS", "600"))?;
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
