//! Checks privileges and programs before the demo or the lab creates anything.

use std::{
    env,
    path::{Path, PathBuf},
};

use anyhow::{Result, ensure};
use nix::unistd::geteuid;

/// The programs that a lab starts, with their Debian packages.
const SERVERS: [(&str, &str); 3] = [("etcd", "etcd-server"), ("bird", "bird2"), ("keepalived", "keepalived")];

/// Fails if this process may not create network namespaces.
pub(crate) fn of_the_demo() -> Result<()> {
    ensure!(geteuid().is_root(), "the demo needs root, for network namespaces and XDP: sudo balancer demo");
    ensure!(
        is_installed("ip"),
        "the demo needs the program `ip`: install the package iproute2 (on Fedora and its kin iproute)"
    );
    Ok(())
}

/// Fails if one of these programs is not installed.
pub(crate) fn programs(wanted: &[&str]) -> Result<()> {
    let missing: Vec<(&str, &str)> =
        SERVERS.into_iter().filter(|(program, _)| wanted.contains(program) && !is_installed(program)).collect();
    let list = |of: fn(&(&'static str, &'static str)) -> &'static str, between: &str| {
        missing.iter().map(of).collect::<Vec<_>>().join(between)
    };
    ensure!(
        missing.is_empty(),
        "the lab needs {}: apt-get install --no-install-recommends {}",
        list(|&(program, _)| program, " and "),
        list(|&(_, package)| package, " ")
    );
    Ok(())
}

/// Whether the program is in one of the directories for commands.
#[must_use]
pub fn is_installed(program: &str) -> bool {
    let path = env::var_os("PATH").unwrap_or_default();
    env::split_paths(&path).any(|directory: PathBuf| Path::is_file(&directory.join(program)))
}
