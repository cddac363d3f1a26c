//! `cargo xtask build`.

use anyhow::Result;

use crate::{
    command::{cargo, run},
    setup::setup,
};

/// Sets up and builds the programs.
pub(crate) fn build(release: bool) -> Result<()> {
    setup(false)?;
    programs(release)
}

/// Builds the balancer, the lab and the demo backend, side by side.
pub(crate) fn programs(release: bool) -> Result<()> {
    let mut command = cargo();
    command.args(["build", "--package", "balancer-userspace", "--package", "balancer-tests", "--bins"]);
    if release {
        command.arg("--release");
    }
    run(&mut command)
}
