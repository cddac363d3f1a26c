//! Installs the npm packages of the session lab's Node servers.

use std::fs;

use anyhow::{Context as _, Result};

use super::install::Installer;
use crate::command::{program, root};

/// The files that list the npm packages with their exact versions.
const FILES: [&str; 2] = ["package.json", "package-lock.json"];
/// npm writes this file when all packages are installed.
const DONE: &str = "node_modules/.package-lock.json";

/// Installs the packages in `target/lab/node`, if they are missing or outdated.
pub(super) fn modules(installer: &mut Installer) -> Result<()> {
    let (from, to) = (root().join("balancer-userspace/lab/parts/node"), root().join("target/lab/node"));
    let same =
        |name: &str| fs::read(from.join(name)).is_ok_and(|text| fs::read(to.join(name)).is_ok_and(|old| old == text));
    if FILES.into_iter().all(same) && to.join(DONE).is_file() {
        return Ok(());
    }
    fs::create_dir_all(&to).with_context(|| to.display().to_string())?;
    for name in FILES {
        fs::copy(from.join(name), to.join(name)).with_context(|| from.join(name).display().to_string())?;
    }
    let mut command = program("npm");
    command.args(["ci", "--ignore-scripts", "--no-audit", "--no-fund", "--loglevel=error"]).current_dir(&to);
    installer
        .step("the session lab's Node packages", None, &mut command)
        .context("npm cannot install them: is its registry within reach?")
}
