//! A directory that is removed when its owner is dropped.

use std::{
    fs::{self, DirBuilder},
    os::unix::fs::DirBuilderExt as _,
    path::{Path, PathBuf},
    process,
};

use anyhow::{Context as _, Result};

/// The parent directory for the demo's files, in which only root can write.
const PARENT: &str = "/run";

/// The parent directory for data that does not fit into memory.
const ON_DISK: &str = "/var/tmp";

/// The prefix of every directory name, which the owner's process id follows.
const PREFIX: &str = "balancer-demo-";

/// The directory `balancer-demo-PID`, accessible only for root. Dropping the value removes the directory with its
/// contents.
#[derive(Debug)]
pub(crate) struct Files(PathBuf);

impl Files {
    /// Creates the directory in `/run`, and removes the directories of processes that have ended.
    pub(crate) fn new() -> Result<Self> {
        [PARENT, ON_DISK].into_iter().for_each(remove_leftovers);
        Self::within(PARENT)
    }

    /// Creates the directory in `/var/tmp`.
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

/// The process id in a directory name that [`Files::new`] has made.
fn owner(name: &str) -> Option<u32> {
    name.strip_prefix(PREFIX)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::owner;

    #[test]
    fn when_a_directory_has_another_name_then_it_has_no_owner() {
        assert_eq!(owner("balancer-demo-4711"), Some(4711));
        for other in ["balancer", "balancer-demo-", "balancer-demo-x", "balancer-demo-1-2"] {
            assert_eq!(owner(other), None, "{other}");
        }
    }
}
