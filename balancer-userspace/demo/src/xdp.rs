//! Attaches XDP programs to interfaces. A program of two instructions makes a veth end poll, or keeps other programs
//! from being attached.

use std::{
    io,
    os::fd::{AsFd as _, AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd, RawFd},
};

use anyhow::{Context as _, Result};
use nix::net::if_::if_nametoindex;

use crate::namespace::Namespace;

const BPF_PROG_LOAD: libc::c_long = 5;
const BPF_LINK_CREATE: libc::c_long = 28;
const BPF_PROG_TYPE_XDP: u32 = 6;
/// The attach type of XDP programs.
const BPF_XDP: u32 = 37;
/// The instructions `r0 = XDP_PASS; exit`.
const PASS: [Instruction; 2] = [[0xb7, 0, 0, 0, 2, 0, 0, 0], [0x95, 0, 0, 0, 0, 0, 0, 0]];

/// The kernel's `struct bpf_insn`.
pub type Instruction = [u8; 8];

/// The hook of an interface at which the kernel runs a program.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hook {
    /// The kernel's flag `XDP_FLAGS_SKB_MODE`.
    Generic = 1 << 1,
    /// The kernel's flag `XDP_FLAGS_DRV_MODE`.
    Native = 1 << 2,
}

/// An XDP program that passes every frame to the kernel. The program stays attached until this value is dropped.
#[derive(Debug)]
pub struct Passer {
    _link: OwnedFd,
}

impl Passer {
    /// Attaches a program that passes every frame.
    ///
    /// # Errors
    /// Fails if the interface does not exist, or if the program cannot be attached.
    pub fn attach(namespace: &Namespace, interface: &str, hook: Hook) -> Result<Self> {
        let link = namespace.run_in_thread(|| attach(load(&PASS, 0)?.as_fd(), interface, hook))?;
        let link = link.with_context(|| format!("a passing program on {interface} of {}", namespace.name()))?;
        Ok(Self { _link: link })
    }
}

/// The fields of `union bpf_attr` that `BPF_LINK_CREATE` reads.
#[repr(C)]
#[derive(Default)]
struct Link {
    prog_fd: u32,
    target_ifindex: u32,
    attach_type: u32,
    flags: u32,
}

/// Attaches a program to an interface in the calling thread's namespace, until the returned descriptor is dropped.
///
/// # Errors
/// Fails if the interface does not exist, or if the program cannot be attached.
pub fn attach(program: BorrowedFd<'_>, interface: &str, hook: Hook) -> io::Result<OwnedFd> {
    let mut link = Link {
        prog_fd: program.as_raw_fd().cast_unsigned(),
        target_ifindex: if_nametoindex(interface)?,
        attach_type: BPF_XDP,
        flags: hook as u32,
    };
    // SAFETY: the attributes contain no pointers.
    descriptor(unsafe {
        libc::syscall(libc::SYS_bpf, BPF_LINK_CREATE, &raw mut link, size_of::<Link>() as libc::c_uint)
    })
}

/// The fields of `union bpf_attr` that `BPF_PROG_LOAD` reads.
#[repr(C)]
#[derive(Default)]
struct Load {
    prog_type: u32,
    insn_cnt: u32,
    insns: u64,
    license: u64,
    log_level: u32,
    log_size: u32,
    log_buf: u64,
    kern_version: u32,
    prog_flags: u32,
    prog_name: [u8; 16],
    prog_ifindex: u32,
    expected_attach_type: u32,
}

/// Loads an XDP program; `flags` are the flags of `BPF_PROG_LOAD`.
///
/// # Errors
/// Fails if the program cannot be loaded.
pub fn load(instructions: &[Instruction], flags: u32) -> io::Result<OwnedFd> {
    let mut attributes = Load {
        prog_type: BPF_PROG_TYPE_XDP,
        insn_cnt: u32::try_from(instructions.len()).map_err(io::Error::other)?,
        insns: instructions.as_ptr() as u64,
        license: c"GPL".as_ptr() as u64,
        prog_flags: flags,
        expected_attach_type: BPF_XDP,
        ..Load::default()
    };
    // SAFETY: the attributes point to the instructions and to a string, and both outlive the call.
    descriptor(unsafe {
        libc::syscall(libc::SYS_bpf, BPF_PROG_LOAD, &raw mut attributes, size_of::<Load>() as libc::c_uint)
    })
}

/// Returns the descriptor that the system call `bpf` has returned.
///
/// # Errors
/// Fails with the last error of the calling thread if the system call has failed.
pub fn descriptor(result: libc::c_long) -> io::Result<OwnedFd> {
    let descriptor = RawFd::try_from(result).map_err(io::Error::other)?;
    if descriptor < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel has just created the descriptor for this process, and no other code has it.
    Ok(unsafe { OwnedFd::from_raw_fd(descriptor) })
}
