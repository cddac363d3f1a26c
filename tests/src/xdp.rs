//! A program of two instructions on an interface: one that makes a veth end poll, or one that is in another's way.

use std::{
    io,
    os::fd::{AsRawFd as _, OwnedFd},
};

use anyhow::{Context as _, Result};
use nix::net::if_::if_nametoindex;

use crate::{
    asm::{self, BPF_XDP, descriptor},
    namespace::Namespace,
};

const BPF_LINK_CREATE: libc::c_long = 28;
const XDP_PASS: i32 = 2;

/// Where the kernel runs a program.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hook {
    /// `XDP_FLAGS_SKB_MODE`.
    Generic = 1 << 1,
    /// `XDP_FLAGS_DRV_MODE`.
    Native = 1 << 2,
}

/// A program that passes every frame, attached to an interface until this is dropped.
#[derive(Debug)]
pub struct Passer {
    _link: OwnedFd,
}

impl Passer {
    /// Attaches it.
    ///
    /// # Errors
    /// When there is no such interface, or the kernel refuses.
    pub fn attach(namespace: &Namespace, interface: &str, hook: Hook) -> Result<Self> {
        let link = namespace.run_in_thread(|| attach(interface, hook))?;
        let link = link.with_context(|| format!("a passing program on {interface} of {}", namespace.name()))?;
        Ok(Self { _link: link })
    }
}

/// The part of `union bpf_attr` that `BPF_LINK_CREATE` reads here.
#[repr(C)]
#[derive(Default)]
struct Link {
    prog_fd: u32,
    target_ifindex: u32,
    attach_type: u32,
    flags: u32,
}

fn attach(interface: &str, hook: Hook) -> io::Result<OwnedFd> {
    let program = asm::constant(XDP_PASS).load_xdp()?;
    let mut link = Link {
        prog_fd: program.as_raw_fd().cast_unsigned(),
        target_ifindex: if_nametoindex(interface)?,
        attach_type: BPF_XDP,
        flags: hook as u32,
    };
    // SAFETY: the attributes hold no pointers.
    descriptor(unsafe {
        libc::syscall(libc::SYS_bpf, BPF_LINK_CREATE, &raw mut link, size_of::<Link>() as libc::c_uint)
    })
}
