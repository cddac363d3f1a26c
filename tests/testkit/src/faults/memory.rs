//! A control group that allows no memory allocations.

use std::{
    fs,
    path::{Path, PathBuf},
    process,
};

use anyhow::{Context as _, Result, bail};

/// The directory of control groups and the file with the memory limit, for version 1 and version 2 of cgroups.
const VERSIONS: [(&str, &str); 2] =
    [("/sys/fs/cgroup/memory", "memory.limit_in_bytes"), ("/sys/fs/cgroup", "memory.max")];

/// A control group without spare memory: the kernel kills a process of the group as soon as the process allocates
/// memory. Dropping the value removes the group, which is possible only after all processes in the group have ended.
#[derive(Debug)]
pub struct NoMemory(PathBuf);

impl NoMemory {
    /// Creates a control group with a memory limit of zero.
    ///
    /// # Errors
    /// Fails if the process is not root, or the kernel does not limit the memory of control groups.
    pub fn new() -> Result<Self> {
        for (mount, limit) in VERSIONS {
            let group = Path::new(mount).join(format!("balancer-test-{}", process::id()));
            if fs::create_dir(&group).is_err() {
                continue;
            }
            let this = Self(group);
            let limit = this.0.join(limit);
            if limit.exists() {
                fs::write(&limit, "0").with_context(|| limit.display().to_string())?;
                return Ok(this);
            }
        }
        bail!("no control group with a limit of memory can be made below {} or {}", VERSIONS[0].0, VERSIONS[1].0)
    }

    /// Moves a process into the control group.
    ///
    /// # Errors
    /// Fails if the process has ended.
    pub fn take(&self, process: u32) -> Result<()> {
        fs::write(self.0.join("cgroup.procs"), process.to_string()).context("putting a process into a control group")
    }
}

impl Drop for NoMemory {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_dir(&self.0) {
            eprintln!("{} is left behind: {error}", self.0.display());
        }
    }
}
