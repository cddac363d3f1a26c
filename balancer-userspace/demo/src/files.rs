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

/// For more than fits into memory.
const ON_DISK: &str = "/var/tmp";

/// First part of every name, before the owner's process id.
const PREFIX: &str = "balancer-demo-";

/// `balancer-demo-PID`, for root alone. Dropping it removes it and what is in it.
#[derive(Debug)]
pub(crate) struct Files(PathBuf);

impl Files {
    /// Makes it in `/run`, and removes those of processes that are gone.
    pub(crate) fn new() -> Result<Self> {
        [PARENT, ON_DISK].into_iter().for_each(remove_leftovers);
        Self::within(PARENT)
    }

    /// Makes it in `/var/tmp`.
    pub(crate) fn on_disk() -> Result<Self> {
        Self::within(ON_DISK)
    }

    fn within(parent: &str) -> Result<Self> {
        let path = Path::new(parent).join(format!("{PREFIX}{}", process::id()));
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

fn remove_leftovers(parent: &str) {
    let Ok(entries) = fs::read_dir(parent) else { return };
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
