//! Attaching the program to interfaces, and saying what stands in the way.

use std::io;

use anyhow::{anyhow, bail};
use aya::programs::{ProgramError, Xdp, XdpMode as Mode, xdp::XdpLinkId};
use tracing::warn;

use super::offload::ReceiveOffload;
use crate::config::model::XdpMode;

/// An interface with the program on it.
#[derive(Debug)]
pub struct Attached {
    /// The interface's name.
    pub name: String,
    /// Its index.
    pub ifindex: u32,
    /// Whether the driver runs the program; otherwise the kernel's generic hook does.
    pub native: bool,
    link: XdpLinkId,
    /// What generic mode must not have, until the program is off.
    _offload: Option<ReceiveOffload>,
}

impl Attached {
    /// `native` or `generic`.
    #[must_use]
    pub const fn mode(&self) -> &'static str {
        if self.native { "native" } else { "generic" }
    }
}

/// Attaches `program` to an interface.
///
/// # Errors
/// When another program is attached, or no allowed mode works: one line that says what to do.
pub(super) fn attach(program: &mut Xdp, name: &str, ifindex: u32, mode: XdpMode) -> anyhow::Result<Attached> {
    let attached = |native, link| {
        let offload = if native { None } else { ReceiveOffload::off(name) };
        Attached { name: name.to_owned(), ifindex, native, link, _offload: offload }
    };
    if mode != XdpMode::Generic {
        match program.attach_to_if_index(ifindex, Mode::Driver) {
            Ok(link) => return Ok(attached(true, link)),
            Err(error) => {
                let error = explain(name, &error, true);
                if mode == XdpMode::Native || in_use(&error) {
                    return Err(error);
                }
                warn!("{error}; using generic mode, which is several times slower");
            }
        }
    }
    match program.attach_to_if_index(ifindex, Mode::Skb) {
        Ok(link) => Ok(attached(false, link)),
        Err(error) => Err(explain(name, &error, false)),
    }
}

/// Takes the program off an interface.
///
/// # Errors
/// When the kernel refuses.
pub(super) fn detach(program: &mut Xdp, attached: Attached) -> anyhow::Result<()> {
    match program.detach(attached.link) {
        Ok(()) => Ok(()),
        Err(error) => bail!("detaching from {}: {error}", attached.name),
    }
}

#[derive(Debug, thiserror::Error)]
#[error(
    "interface {0} already has an XDP program: another balancer, or another tool's (`ip -details link show dev {0}`); \
     stop that one, or, if nothing runs that owns it, take it off with `ip link set dev {0} xdp off`"
)]
struct InUse(String);

fn in_use(error: &anyhow::Error) -> bool {
    error.is::<InUse>()
}

fn explain(name: &str, error: &ProgramError, native: bool) -> anyhow::Error {
    let code = if let ProgramError::SyscallError(error) = error {
        error.io_error.raw_os_error()
    } else {
        std::error::Error::source(error)
            .and_then(|source| source.downcast_ref::<io::Error>())
            .and_then(io::Error::raw_os_error)
    };
    match code {
        Some(libc::EBUSY | libc::EEXIST) => InUse(name.to_owned()).into(),
        Some(libc::ENODEV) => anyhow!("interface {name} is gone"),
        Some(libc::EPERM | libc::EACCES) => {
            anyhow!("interface {name}: not allowed to attach: the capability CAP_NET_ADMIN is missing")
        }
        Some(libc::EOPNOTSUPP) if native => anyhow!(
            "interface {name} takes no native XDP: its driver has none, or an offload stands in the way (`ethtool -K \
             {name} lro off rx-gro-hw off`); xdp_mode = \"generic\" works everywhere"
        ),
        Some(code) => anyhow!("interface {name}: attaching failed: {}", io::Error::from_raw_os_error(code)),
        None => anyhow!("interface {name}: attaching failed: {error}"),
    }
}
