//! `cargo xtask bench`.

use anyhow::Result;

use crate::{
    command::{cargo, run},
    setup::setup,
};

/// Sets up and runs the benchmarks.
pub(crate) fn bench() -> Result<()> {
    setup(false)?;
    run(cargo().args(["bench", "--package", "balancer-userspace", "--benches"]))
}
