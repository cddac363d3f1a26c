//! Detaches a program whose link is pinned from its interface.

use std::{
    ffi::CString,
    fs, io,
    mem::size_of,
    os::{
        fd::{AsFd as _, AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd, RawFd},
        unix::ffi::OsStrExt as _,
    },
    path::Path,
};

use anyhow::Context as _;
use tracing::warn;

/// The commands of the system call `bpf`, from `linux/bpf.h`.
const BPF_OBJ_GET: libc::c_int = 7;
const BPF_OBJ_GET_INFO_BY_FD: libc::c_int = 15;
const BPF_LINK_DETACH: libc::c_int = 34;

/// Detaches the program from its interface, and removes the link's pin. When this function returns, the kernel has
/// detached the program. If the function removed only the pin, the program would continue to steer packets, and would
/// block other programs, until the kernel detaches it some time later.
///
/// # Errors
/// Fails if the pin cannot be removed.
pub(super) fn take_off(pin: &Path) -> anyhow::Result<()> {
    if let Err(error) = open(pin).and_then(|link| detach(link.as_fd())) {
        warn!("the program of {} goes off its interface later: {error}", pin.display());
    }
    fs::remove_file(pin).with_context(|| format!("removing the pin of a link, {}", pin.display()))
}

/// Whether the interface of a pinned link no longer exists.
///
/// # Errors
/// Fails if the kernel does not return the information.
pub(super) fn is_defunct(pin: &Path) -> io::Result<bool> {
    let link = open(pin)?;
    let mut info = LinkInfo { kind: 0, id: 0, program: 0, padding: 0, ifindex: 0, rest: [0; 11] };
    let question = InfoQuestion {
        bpf_fd: link.as_raw_fd().cast_unsigned(),
        info_len: size_of::<LinkInfo>() as u32,
        info: (&raw mut info) as u64,
    };
    // SAFETY: the request points to a buffer with the stated length, and both live until the call returns.
    let done = unsafe {
        libc::syscall(
            libc::SYS_bpf,
            BPF_OBJ_GET_INFO_BY_FD,
            &raw const question,
            size_of::<InfoQuestion>() as libc::c_uint,
        )
    };
    if done < 0 { Err(io::Error::last_os_error()) } else { Ok(info.ifindex == 0) }
}

/// The fields of `union bpf_attr` that the command `BPF_OBJ_GET_INFO_BY_FD` reads.
#[repr(C)]
struct InfoQuestion {
    bpf_fd: u32,
    info_len: u32,
    info: u64,
}

/// The kernel's `struct bpf_link_info` for a program on an interface.
#[repr(C, align(8))]
struct LinkInfo {
    kind: u32,
    id: u32,
    program: u32,
    padding: u32,
    ifindex: u32,
    rest: [u32; 11],
}

/// The fields of `union bpf_attr` that the command `BPF_OBJ_GET` reads.
#[repr(C)]
struct ObjectPath {
    pathname: u64,
    bpf_fd: u32,
    file_flags: u32,
}

fn open(pin: &Path) -> io::Result<OwnedFd> {
    let path = CString::new(pin.as_os_str().as_bytes())?;
    let attributes = ObjectPath { pathname: path.as_ptr() as u64, bpf_fd: 0, file_flags: 0 };
    // SAFETY: the attributes point to a string that lives until the call returns.
    let opened = unsafe {
        libc::syscall(libc::SYS_bpf, BPF_OBJ_GET, &raw const attributes, size_of::<ObjectPath>() as libc::c_uint)
    };
    if opened < 0 {
        return Err(io::Error::last_os_error());
    }
    let descriptor = RawFd::try_from(opened).map_err(io::Error::other)?;
    // SAFETY: the kernel has just created this descriptor for this process, and nothing else uses it.
    Ok(unsafe { OwnedFd::from_raw_fd(descriptor) })
}

fn detach(link: BorrowedFd<'_>) -> io::Result<()> {
    let link_fd = link.as_raw_fd();
    // SAFETY: the attributes contain only a descriptor and no pointers.
    let done = unsafe {
        libc::syscall(libc::SYS_bpf, BPF_LINK_DETACH, &raw const link_fd, size_of::<RawFd>() as libc::c_uint)
    };
    if done < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}
