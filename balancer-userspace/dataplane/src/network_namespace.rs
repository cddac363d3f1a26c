//! The identity of the network namespace in which this thread runs. The kernel reuses the inode of a removed namespace
//! immediately, but never its cookie.

use std::{fs, io, mem::size_of, os::fd::AsRawFd as _, os::unix::fs::MetadataExt as _, path::Path};

use anyhow::Context as _;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};

/// The inode of the machine's first process namespace, in which all processes are visible (`PROC_PID_INIT_INO` of
/// `linux/proc_ns.h`).
const FIRST_PROCESS_NAMESPACE: u64 = 0xefff_fffc;

/// A network namespace, identified by inode and cookie.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct NetworkNamespace {
    pub(super) inode: u64,
    pub(super) cookie: u64,
}

impl NetworkNamespace {
    /// The network namespace of this thread.
    ///
    /// # Errors
    /// Fails if the kernel does not report the inode or the cookie of the namespace.
    pub(super) fn here() -> anyhow::Result<Self> {
        let inode = fs::metadata("/proc/thread-self/ns/net").context("looking at the network namespace")?.ino();
        let cookie = cookie().context("asking for the cookie of the network namespace")?;
        Ok(Self { inode, cookie })
    }
}

fn cookie() -> io::Result<u64> {
    let socket = socket(AddressFamily::Unix, SockType::Datagram, SockFlag::SOCK_CLOEXEC, None)?;
    let mut cookie = 0u64;
    let mut length = size_of::<u64>() as libc::socklen_t;
    // SAFETY: the value has the stated length, and both value and length live until the call returns.
    let result = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_NETNS_COOKIE,
            (&raw mut cookie).cast(),
            &raw mut length,
        )
    };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(cookie) }
}

/// Whether no thread runs in a network namespace with this inode, and no such namespace is mounted. The result is also
/// `false` if this process cannot see all processes and therefore cannot tell.
pub(super) fn is_deserted(inode: u64) -> bool {
    let inode_of = |path: &Path| fs::metadata(path).map(|found| found.ino());
    let sees_all = inode_of(Path::new("/proc/self/ns/pid")).is_ok_and(|found| found == FIRST_PROCESS_NAMESPACE);
    let mounted =
        fs::read_to_string("/proc/self/mountinfo").map_or(true, |mounts| mounts.contains(&format!(" net:[{inode}] ")));
    if !sees_all || mounted {
        return false;
    }
    let Ok(processes) = fs::read_dir("/proc") else { return false };
    // Directory entries that are not processes have no tasks.
    let mut threads = processes
        .flatten()
        .flat_map(|process| fs::read_dir(process.path().join("task")).into_iter().flatten().flatten());
    !threads.any(|thread| match inode_of(&thread.path().join("ns/net")) {
        Ok(found) => found == inode,
        // The process has ended in the meantime.
        Err(error) => error.kind() != io::ErrorKind::NotFound,
    })
}
