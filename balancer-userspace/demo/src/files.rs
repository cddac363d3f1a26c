//! A directory that goes away with its owner.

use std::{
    fs::{self, DirBuilder},
    os::unix::fs::DirBuilderExt as _,
    path::{Path, PathBuf},
    process,
};

use anyhow::{Context as _, Result};

/// Only root writes here.
const PARENT: &str = "/run";

/// First part of every name, before the owner's process id.
const PREFIX: &str = "balancer-demo-";

/// `/run/balancer-demo-PID`, for root alone. Dropping it removes it and what is in it.
#[derive(Debug)]
pub(crate) struct Files(PathBuf);

impl Files {
    /// Makes it, and removes those of processes that are gone.
    pub(crate) fn new() -> Result<Self> {
        remove_leftovers();
        let path = Path::new(PARENT).join(format!("{PREFIX}{}", process::id()));
        DirBuilder::new().mode(0o700).create(&path).with_context(|| path.display().to_string())?;
        Ok(Self(path))
    }

    pub(crate) fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Files {
    fn drop(&mut self) {
        remove(&self.0);
    }
}

fn remove_leftovers() {
    let Ok(entries) = fs::read_dir(PARENT) else { return };
    for entry in entries.flatten() {
        if entry
            .file_name()
            .to_str()
            .and_then(owner)
            .is_some_and(|pid| !Path::new("/proc").join(pid.to_string()).exists())
        {
            remove(&entry.path());
        }
    }
}

fn remove(path: &Path) {
    if let Err(error) = fs::remove_dir_all(path) {
        eprintln!("{} is left behind: {error}", path.display());
    }
}

/// The process id in a name made by [`Files::new`].
fn owner(name: &str) -> Option<u32> {
    name.strip_prefix(PREFIX)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::owner;

    #[test]
    fn only_own_names_have_an_owner() {
        assert_eq!(owner("balancer-demo-4711"), Some(4711));
        for other in ["balancer", "balancer-demo-", "balancer-demo-x", "balancer-demo-1-2"] {
            assert_eq!(owner(other), None, "{other}");
        }
    }
}
