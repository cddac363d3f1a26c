//! `cargo xtask build`.

use anyhow::Result;

use crate::{
    command::{built, cargo, run},
    setup::{Purpose, setup},
};

/// The product.
pub(crate) const PRODUCT: &[&str] = &["balancer"];

/// What tries the package.
pub(crate) const PACKAGE_TRIAL: &[&str] = &["balancer", "try-package"];

/// Sets up and builds the balancer.
pub(crate) fn build(release: bool) -> Result<()> {
    setup(Purpose::Build)?;
    programs(PRODUCT, release)
}

/// Builds programs, side by side.
pub(crate) fn programs(names: &[&str], release: bool) -> Result<()> {
    let mut command = cargo();
    command.args(["build", "--locked", "--package", "balancer-userspace"]);
    if names != PRODUCT {
        command.args(["--package", "balancer-tests"]);
    }
    for name in names {
        command.args(["--bin", name]);
    }
    if release {
        command.arg("--release");
    }
    if !built(if release { "release" } else { "debug" })?.join("balancer").exists() {
        println!("Building {}: the first time this takes minutes", names.join(", "));
    }
    run(&mut command)
}
