//! The BPF file system, in which maps and links outlive the process that made them.
//!
//! Under `ip netns exec`, `/sys` is a mount private to that process. This mount disappears with the process, including
//! all file systems mounted below it. A process with its own mount namespace therefore uses the file system in the
//! namespace from which it was started, and mounts it there if necessary; a descriptor of the directory gives access
//! from any namespace.

use std::{
    fs::{self, File},
    io,
    os::fd::{AsFd as _, AsRawFd as _, OwnedFd},
    path::{Path, PathBuf},
    thread,
};

use anyhow::{Context as _, anyhow};
use nix::{
    fcntl::{OFlag, open},
    mount::{MsFlags, mount},
    sched::{CloneFlags, setns, unshare},
    sys::{
        stat::Mode,
        statfs::{FsType, statfs},
    },
};

/// The customary mount point of the BPF file system.
const MOUNT_POINT: &str = "/sys/fs/bpf";
/// The balancer's own directory in the BPF file system.
pub(crate) const DIRECTORY: &str = "balancer";
/// The value of `BPF_FS_MAGIC` in `linux/magic.h`.
const MAGIC: FsType = FsType(0xcafe_4a11);

/// The root of a mounted BPF file system.
#[derive(Debug)]
pub(crate) struct Bpffs {
    root: OwnedFd,
}

impl Bpffs {
    /// Finds the BPF file system, if it is mounted. `None`: the file system is mounted nowhere, so no controller has
    /// left pins in it.
    pub(crate) fn find() -> Option<Self> {
        look(false).ok().flatten()
    }

    /// Finds the BPF file system, or mounts it.
    ///
    /// # Errors
    /// Fails if the file system is not mounted and cannot be mounted; the error tells the user the command for mounting
    /// it.
    pub(crate) fn find_or_mount() -> anyhow::Result<Self> {
        look(true)?.context("no BPF file system")
    }

    /// A path to a file below the root, which is valid only in this process, but in every mount namespace.
    pub(crate) fn path(&self, below: impl AsRef<Path>) -> PathBuf {
        Path::new("/proc/self/fd").join(self.root.as_raw_fd().to_string()).join(below)
    }
}

fn look(may_mount: bool) -> anyhow::Result<Option<Bpffs>> {
    if let Some(here) = here() {
        return Ok(Some(here));
    }
    match outer_mount_namespace() {
        // A separate thread enters the mount namespace, because a thread cannot return from there, and the other
        // threads must stay outside.
        Some(outer) => thread::spawn(move || {
            unshare(CloneFlags::CLONE_FS).context("leaving the shared working directory")?;
            setns(outer.as_fd(), CloneFlags::CLONE_NEWNS).context("entering the outer mount namespace")?;
            here().map_or_else(|| if may_mount { mounted().map(Some) } else { Ok(None) }, |here| Ok(Some(here)))
        })
        .join()
        .map_err(|_| anyhow!("looking for the BPF file system failed"))?,
        None if may_mount => mounted().map(Some),
        None => Ok(None),
    }
}

/// The file system at the customary mount point in this thread's mount namespace. If a service manager hides the rest
/// of the file system from this process, the result is only the balancer's own directory in it.
fn here() -> Option<Bpffs> {
    let is_bpffs = |path: &Path| statfs(path).is_ok_and(|found| found.filesystem_type() == MAGIC);
    let root = Path::new(MOUNT_POINT);
    if !is_bpffs(root) && !is_bpffs(&root.join(DIRECTORY)) {
        return None;
    }
    let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
    Some(Bpffs { root: open(MOUNT_POINT, flags, Mode::empty()).ok()? })
}

fn mounted() -> anyhow::Result<Bpffs> {
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    mount(Some("bpf"), MOUNT_POINT, Some("bpf"), flags, Some("mode=0700")).map_err(|error| {
        anyhow!(
            "on_exit = \"keep\" needs the BPF file system, and it cannot be mounted ({error}); run `mount -t bpf bpf \
             {MOUNT_POINT}` before the start"
        )
    })?;
    here().with_context(|| format!("{MOUNT_POINT} is no BPF file system"))
}

/// The mount namespace of the nearest ancestor process whose mount namespace differs from that of this process.
fn outer_mount_namespace() -> Option<File> {
    let own = fs::read_link("/proc/self/ns/mnt").ok()?;
    let mut process = parent("self").ok()?;
    while process > 1 {
        let path = format!("/proc/{process}/ns/mnt");
        if fs::read_link(&path).ok()? != own {
            return File::open(path).ok();
        }
        process = parent(&process.to_string()).ok()?;
    }
    None
}

fn parent(process: &str) -> io::Result<u32> {
    let status = fs::read_to_string(format!("/proc/{process}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("PPid:"));
    line.and_then(|id| id.trim().parse().ok()).ok_or_else(|| io::ErrorKind::InvalidData.into())
}
