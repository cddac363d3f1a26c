//! `cargo xtask build`.

use anyhow::Result;

use crate::{
    command::{built, cargo, run},
    setup::{Purpose, setup},
};

/// The programs that users install, except the program for Kubernetes clusters.
pub(crate) const PRODUCT: &[&str] = &["balancer"];

/// The name of the program for Kubernetes clusters, and of the program's package.
pub(crate) const KUBERNETES: &str = "balancer-kubernetes";

/// The name of the session lab, and of its package.
pub(crate) const LAB: &str = "balancer-lab";

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Aim {
    /// A quick look, with the fastest build. Every build optimises the kernel program.
    Demo,
    /// Tests, which run long simulations and start many balancers.
    Test,
    /// Production and measurements.
    Release,
}

/// The packages that the test profile in Cargo.toml optimises.
const OPTIMISED: [&str; 9] = [
    "balancer-common",
    "balancer-proof",
    "balancer-control",
    "balancer-fleet",
    "balancer-config",
    "aya",
    "aya-obj",
    "object",
    "balancer-dataplane",
];

impl Aim {
    fn options(self) -> Vec<String> {
        match self {
            Self::Demo => {
                let unoptimised = OPTIMISED.map(|package| format!("profile.dev.package.{package}.opt-level=0"));
                let quick = ["profile.dev.debug=false", "profile.dev.incremental=false"].map(str::to_owned);
                quick.into_iter().chain(unoptimised).flat_map(|option| ["--config".to_owned(), option]).collect()
            }
            Self::Test => Vec::new(),
            Self::Release => vec!["--release".to_owned()],
        }
    }

    /// Returns Cargo's name for the profile.
    pub(crate) const fn profile(self) -> &'static str {
        match self {
            Self::Demo | Self::Test => "dev",
            Self::Release => "release",
        }
    }

    /// The subdirectory of the target directory for the built programs.
    const fn folder(self) -> &'static str {
        match self {
            Self::Demo | Self::Test => "debug",
            Self::Release => "release",
        }
    }
}

/// Sets up and builds the balancer.
pub(crate) fn build(release: bool) -> Result<()> {
    setup(Purpose::Build)?;
    programs(PRODUCT, if release { Aim::Release } else { Aim::Test })
}

/// Builds programs in parallel.
pub(crate) fn programs(names: &[&str], aim: Aim) -> Result<()> {
    let mut command = cargo();
    command.args(["build", "--locked", "--package", "balancer-userspace"]).args(aim.options());
    for name in names.iter().filter(|name| !PRODUCT.contains(name)) {
        command.args(["--package", package(name)]);
    }
    for name in names {
        command.args(["--bin", name]);
    }
    if !built(aim.folder())?.join("balancer").exists() {
        println!("Building {}: the first time this takes minutes", names.join(", "));
    }
    run(&mut command)
}

/// The package of a program that users do not install.
fn package(program: &str) -> &str {
    match program {
        KUBERNETES | LAB => program,
        _ if program.starts_with("bench-") => "balancer-bench",
        _ => "balancer-tests",
    }
}

#[cfg(test)]
mod tests {
    use super::OPTIMISED;

    #[test]
    fn when_packages_are_optimised_for_tests_then_the_list_has_them() {
        let manifest = include_str!("../../Cargo.toml");
        let optimised =
            manifest.lines().filter_map(|line| line.strip_prefix("[profile.dev.package.")?.strip_suffix(']'));
        let optimised: Vec<&str> = optimised.filter(|package| !package.starts_with('"')).collect();
        assert_eq!(optimised, OPTIMISED);
    }
}
