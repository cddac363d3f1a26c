//! Attaching the program to interfaces, and saying what stands in the way.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, anyhow};
use aya::programs::{
    ProgramError, Xdp, XdpMode as Mode,
    links::{FdLink, PinnedLink},
    xdp::{XdpLink, XdpLinkId},
};
use tracing::{info, warn};

use super::{
    offload::ReceiveOffload,
    pins::{LinkPin, Pins},
};
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
    /// Whether it was attached by an earlier controller, and only the program was replaced.
    pub adopted: bool,
    /// Closed when this is dropped: the program is then off the interface, unless the link is pinned.
    _link: XdpLink,
    pin: Option<PathBuf>,
    /// What generic mode must not have, until the program is off.
    offload: Option<ReceiveOffload>,
}

impl Attached {
    /// `native` or `generic`.
    #[must_use]
    pub const fn mode(&self) -> &'static str {
        if self.native { "native" } else { "generic" }
    }

    /// Whether this process switched the interface's receive offload off.
    pub(super) const fn receive_offload_off(&self) -> bool {
        self.offload.is_some()
    }

    /// Leaves everything as it is for the next controller.
    pub(super) fn leave(self) {
        if let Some(offload) = self.offload {
            offload.leave_off();
        }
    }
}

/// Attaches `program` to an interface. With `pins`, the link that an earlier controller left there is taken over, and the
/// program that runs is replaced in one step; a new link is pinned.
///
/// # Errors
/// When another program is attached, or no allowed mode works: one line that says what to do.
pub(super) fn attach(
    program: &mut Xdp,
    name: &str,
    ifindex: u32,
    mode: XdpMode,
    pins: Option<&Pins>,
) -> anyhow::Result<Attached> {
    let off = |native| if native { None } else { ReceiveOffload::off(name) };
    for pin in pins.into_iter().flat_map(Pins::links).filter(|pin| pin.ifindex == ifindex) {
        if mode == XdpMode::Native && !pin.native || mode == XdpMode::Generic && pin.native {
            info!("interface {name}: attaching anew, in the mode that xdp_mode now says");
            unpin(&pin.path)?;
        } else if let Some(link) = adopt(program, name, &pin)? {
            let LinkPin { native, path, .. } = pin;
            return Ok(Attached {
                name: name.to_owned(),
                ifindex,
                native,
                adopted: true,
                _link: link,
                pin: Some(path),
                offload: off(native),
            });
        }
    }
    let (native, link) = attach_new(program, name, ifindex, mode)?;
    let link = program.take_link(link).with_context(|| format!("interface {name}"))?;
    let (link, pin) = match pins {
        Some(pins) => {
            let path = pins.link(ifindex, native);
            (pinned(link, &path).with_context(|| format!("pinning the link to interface {name}"))?, Some(path))
        }
        None => (link, None),
    };
    Ok(Attached { name: name.to_owned(), ifindex, native, adopted: false, _link: link, pin, offload: off(native) })
}

fn attach_new(program: &mut Xdp, name: &str, ifindex: u32, mode: XdpMode) -> anyhow::Result<(bool, XdpLinkId)> {
    if mode != XdpMode::Generic {
        match program.attach_to_if_index(ifindex, Mode::Driver) {
            Ok(link) => return Ok((true, link)),
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
        Ok(link) => Ok((false, link)),
        Err(error) => Err(explain(name, &error, false)),
    }
}

/// Replaces the program behind a pinned link. `None`: its interface is gone, and the pin with it.
fn adopt(program: &mut Xdp, name: &str, pin: &LinkPin) -> anyhow::Result<Option<XdpLink>> {
    let link = PinnedLink::from_pin(&pin.path).with_context(|| format!("opening the pinned link of {name}"))?;
    let link = XdpLink::try_from(FdLink::from(link)).with_context(|| format!("the pinned link of {name}"))?;
    match program.attach_to_link(link) {
        Ok(id) => Ok(Some(program.take_link(id).with_context(|| format!("interface {name}"))?)),
        // The interface it was made for is gone; this is another one with its index.
        Err(error) if errno(&error) == Some(libc::ENOLINK) => {
            unpin(&pin.path)?;
            Ok(None)
        }
        Err(error) => Err(error).with_context(|| format!("interface {name}: replacing the program that runs")),
    }
}

fn pinned(link: XdpLink, path: &Path) -> anyhow::Result<XdpLink> {
    let link = FdLink::try_from(link).context("this kernel has no links for XDP programs")?;
    Ok(XdpLink::try_from(FdLink::from(link.pin(path)?))?)
}

/// Takes the program off an interface.
///
/// # Errors
/// When the kernel refuses.
fn detach(attached: Attached) -> anyhow::Result<()> {
    attached.pin.as_deref().map_or(Ok(()), unpin).with_context(|| format!("detaching from {}", attached.name))
}

/// Lets go of the interfaces that are `gone`; gives their names.
pub(super) fn let_go(attached: &mut Vec<Attached>, gone: impl Fn(u32) -> bool) -> Vec<String> {
    let gone = attached.extract_if(.., |attached| gone(attached.ifindex));
    gone.map(|gone| {
        if let Some(Err(error)) = gone.pin.as_deref().map(unpin) {
            warn!("interface {}: {error:#}", gone.name);
        }
        if let Some(offload) = gone.offload {
            offload.leave_off();
        }
        gone.name
    })
    .collect()
}

/// Takes the program off all these interfaces.
///
/// # Errors
/// The first failure, after all were tried.
pub(super) fn detach_all(attached: &mut Vec<Attached>) -> anyhow::Result<()> {
    attached.drain(..).map(detach).fold(Ok(()), anyhow::Result::and)
}

/// Removes a pin. The program goes off the interface if nobody else holds the link.
pub(super) fn unpin(path: &Path) -> anyhow::Result<()> {
    fs::remove_file(path).context("removing the pin of a link")
}

#[derive(Debug, thiserror::Error)]
#[error(
    "interface {0} already has an XDP program: another balancer, or another tool's (`ip -details link show dev {0}`); \
     stop that one, or, if nothing runs that owns it, take it off with `balancer detach` or `ip link set dev {0} xdp off`"
)]
struct InUse(String);

fn in_use(error: &anyhow::Error) -> bool {
    error.is::<InUse>()
}

fn errno(error: &ProgramError) -> Option<i32> {
    if let ProgramError::SyscallError(error) = error {
        return error.io_error.raw_os_error();
    }
    std::error::Error::source(error)
        .and_then(|source| source.downcast_ref::<io::Error>())
        .and_then(io::Error::raw_os_error)
}

fn explain(name: &str, error: &ProgramError, native: bool) -> anyhow::Error {
    match errno(error) {
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
