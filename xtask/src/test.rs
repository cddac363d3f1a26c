//! `cargo xtask test`.

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

/// Plays a hundred thousand random sequences of events against the controller's model, which takes the optimiser, and the
/// lives of so many fleets.
pub(crate) fn soak(fleets: u64, first: u64) -> Result<()> {
    setup(Purpose::Test)?;
    // Four tests of as many cases each.
    let model = ["nextest", "run", "--locked", "--release", "-p", "balancer-core", "--lib", "model_test::"];
    run(cargo().args(model).env("PROPTEST_CASES", "25000"))?;
    let fleet = ["test", "--locked", "--release", "-p", "balancer-fleet", "members_agree", "--", "--nocapture"];
    run(cargo().args(fleet).env("FLEET_SEEDS", fleets.to_string()).env("FLEET_FIRST_SEED", first.to_string()))
}
