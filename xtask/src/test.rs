//! `cargo xtask test`.

use anyhow::Result;

use crate::{
    build::programs,
    command::{cargo, ensure_root, run},
    setup::setup,
};

/// Sets up and runs every test. The test runner's summary is the last thing printed.
pub(crate) fn test() -> Result<()> {
    ensure_root("the test suite", "test")?;
    setup(false)?;
    // The tests start these as a user would.
    programs(false)?;
    run(cargo().args(["test", "--workspace", "--doc", "--quiet"]))?;
    run(cargo().args(["nextest", "run", "--workspace", "--no-fail-fast"]))
}
