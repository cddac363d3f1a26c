//! Attaches the program to interfaces, and reports why an attachment fails.

mod larger;

use std::{
    collections::{BTreeMap, BTreeSet},
    io, mem,
    path::{Path, PathBuf},
    sync::Arc,
};

use anyhow::{Context as _, anyhow, bail};
use aya::{
    maps::MapData,
    programs::{
        ProgramError, Xdp, XdpMode as Mode,
        links::{FdLink, PinnedLink},
        xdp::{XdpLink, XdpLinkId},
    },
};
use balancer_common::{features::Features, map_types::interface_row};
use balancer_config::config::XdpMode;
use balancer_control::features::words;
use tracing::{info, warn};

use super::{
    classifiers::{CLASSIFIERS, OnInterface},
    grace::GracePeriods,
    growth::Growth,
    link_pins::{LinkPin, LinkPins},
    offload::{Offload, SwitchedOff},
    pinned_link::take_off,
    pins::Pins,
    programs::{Programs, Richer},
    telling::{self, Filter, Knobs, Ring},
};

/// The attachment of the program to an interface.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Attachment {
    pub name: String,
    /// The index of the interface.
    pub ifindex: u32,
    /// Whether the driver runs the program; if not, the generic hook of the kernel runs it.
    pub native: bool,
    /// The indices of the members of a bond or team; packets may arrive by these members.
    pub parts: BTreeSet<u32>,
    /// The present and former members of a bond or team. The interface's counters include the counters of these
    /// members, so that they never fall when a member leaves.
    pub counted: BTreeSet<u32>,
}

/// The maximum number of former members whose counters the interface's counters include. If there are more former
/// members, the most recent ones remain.
const COUNTED_PARTS: usize = 32;

impl Attachment {
    /// Updates the list of members whose counters are included. `counting` contains the ingress indices of all
    /// attachments: a former member in this set now belongs to another attachment.
    pub fn count_parts(&mut self, counting: &BTreeSet<u32>) {
        let Self { parts, counted, .. } = self;
        counted.retain(|part| !parts.contains(part) && !counting.contains(part));
        while counted.len() > COUNTED_PARTS {
            counted.pop_first();
        }
        counted.extend(&*parts);
    }

    /// The name of the XDP mode: `native` or `generic`.
    #[must_use]
    pub const fn mode(&self) -> &'static str {
        if self.native { "native" } else { "generic" }
    }

    /// The ingress interface indices of the packets that the program sees through this attachment.
    pub fn ways_in(&self) -> impl Iterator<Item = u32> {
        std::iter::once(self.ifindex).chain(self.parts.iter().copied())
    }
}

/// An interface to which the program is attached.
#[derive(Debug)]
pub struct Attached {
    pub at: Attachment,
    /// Whether an earlier controller attached its program, so that this controller only replaced the program.
    pub adopted: bool,
    /// The current name of the interface.
    called: String,
    /// The link that attaches the program. If the link is not pinned, closing the link detaches the program from the
    /// interface.
    link: Option<XdpLink>,
    pin: Option<PathBuf>,
    /// Generic receive offload, which does not work with a program in generic mode and is off while such a program is
    /// attached.
    offload: Option<SwitchedOff>,
    /// The stripping of VLAN tags, by interface (this interface or its lower devices); the stripping is off while the
    /// program is attached. `None`: the stripping was already off, or cannot be switched off.
    tags: BTreeMap<u32, Option<SwitchedOff>>,
    /// The classifiers, which are attached before the XDP program and detached after it.
    classifiers: Vec<OnInterface>,
}

impl Attached {
    /// Returns the current name of the interface.
    #[must_use]
    pub fn called(&self) -> &str {
        &self.called
    }

    /// Records the new name of the interface.
    pub fn call(&mut self, name: String) {
        if let Some(offload) = &mut self.offload {
            offload.follow(&name);
        }
        self.called = name;
    }

    /// Whether this process has switched off the interface's receive offload, or has taken over this state from an
    /// earlier process.
    #[must_use]
    pub const fn receive_offload_off(&self) -> bool {
        self.offload.is_some()
    }

    /// The interfaces whose VLAN tag stripping this process has switched off, or where it has taken over this state
    /// from an earlier process.
    pub fn keep_tags(&self) -> impl Iterator<Item = &str> {
        self.tags.values().flatten().map(SwitchedOff::interface)
    }

    /// Switches off the offloads that merge packets or strip tags, and keeps these offloads off; `tagged` are the
    /// interfaces that carry VLANs, by index and name. Takes over, and removes from `inherited`, interfaces whose tag
    /// stripping an earlier process has switched off.
    pub fn settle_offloads(&mut self, tagged: &BTreeMap<u32, String>, inherited: &mut Vec<String>) {
        match &self.offload {
            Some(offload) => offload.again(),
            None if !self.at.native => self.offload = SwitchedOff::new(Offload::Merging, &self.called),
            None => {}
        }
        self.tags.retain(|ifindex, _| tagged.contains_key(ifindex));
        for (&ifindex, name) in tagged {
            match self.tags.get_mut(&ifindex) {
                Some(Some(offload)) => {
                    offload.follow(name);
                    offload.again();
                }
                Some(None) => {}
                None => {
                    let left = inherited.iter().position(|left| left == name).map(|left| inherited.remove(left));
                    let left = left.map(|name| SwitchedOff::left_off(Offload::TagStripping, name));
                    let off = left.or_else(|| SwitchedOff::new(Offload::TagStripping, name));
                    self.tags.insert(ifindex, off);
                }
            }
        }
    }

    /// Takes over the receive offload that an earlier process switched off. If the XDP mode is no longer generic,
    /// switches the offload on again.
    pub fn take_over_receive_offload(&mut self) {
        if self.offload.is_none() {
            let offload = SwitchedOff::left_off(Offload::Merging, self.called.clone());
            self.offload = (!self.at.native).then_some(offload);
        }
    }

    /// Replaces the running program by another program in a single step.
    fn replace(&mut self, program: &mut Xdp) -> anyhow::Result<()> {
        let name = &self.at.name;
        let link = self.link.take().with_context(|| format!("the program of {name} is off"))?;
        let replaced = program.attach_to_link(link);
        let id = match (&replaced, &self.pin) {
            (Ok(_), _) => replaced?,
            // The failed replacement has consumed the link, so this process opens the link again from its pin.
            (Err(_), Some(pin)) => {
                self.link = Some(open_link(pin, name)?);
                return replaced.map(drop).with_context(|| format!("replacing the program of {name}"));
            }
            (Err(error), None) => {
                warn!("interface {name}: the program could not be replaced, and is attached anew: {error}");
                let mode = if self.at.native { Mode::Driver } else { Mode::Skb };
                program.attach_to_if_index(self.at.ifindex, mode)?
            }
        };
        self.link = Some(program.take_link(id)?);
        Ok(())
    }

    /// Leaves programs and offloads as they are for the next controller.
    pub fn leave(self) {
        self.classifiers.into_iter().for_each(OnInterface::leave);
        self.offload.into_iter().chain(self.tags.into_values().flatten()).for_each(SwitchedOff::leave_off);
    }

    /// Detaches the program from the interface.
    ///
    /// # Errors
    /// Fails if the kernel refuses to detach the program.
    pub fn detach(self) -> anyhow::Result<()> {
        let off =
            self.pin.as_deref().map_or(Ok(()), take_off).with_context(|| format!("detaching from {}", self.at.name));
        drop(self.link);
        self.classifiers.into_iter().for_each(OnInterface::detach);
        off
    }

    /// Pins the link, so that it outlives this process.
    fn pin(&mut self, links: &LinkPins) -> anyhow::Result<()> {
        let link = self.link.take().context("the program is off")?;
        let path = links.link(self.at.ifindex, self.at.native);
        self.link =
            Some(pinned(link, &path).with_context(|| format!("pinning the link to interface {}", self.at.name))?);
        self.pin = Some(path);
        self.classifiers.iter_mut().try_for_each(|classifier| classifier.pin(self.at.ifindex, links))
    }

    /// Forgets the attachment to an interface that no longer exists.
    pub fn let_go(mut self) {
        if let Some(Err(error)) = self.pin.as_deref().map(take_off) {
            warn!("interface {}: {error:#}", self.at.name);
        }
        mem::take(&mut self.classifiers).into_iter().for_each(OnInterface::detach);
        self.leave();
    }
}

/// The loaded program, ready to be attached to interfaces. A driver may take a while to attach a program, so this type
/// is separate from the code that writes maps.
pub struct Attacher {
    programs: Programs,
    /// Whether the tracing program is attached.
    tells: bool,
    /// The maps that must be pinned if the data path is to outlive this process.
    maps: Vec<(&'static str, MapData)>,
    /// The directory for pinned links, if this type pins links.
    links: Option<LinkPins>,
    interface_multiplier: u32,
    handover_key: u64,
    grace_periods: Arc<GracePeriods>,
    /// Loaded programs with larger maps, which are about to replace the present ones.
    larger: Option<(Growth, Richer)>,
}

impl Attacher {
    pub(super) const fn new(
        programs: Programs,
        maps: Vec<(&'static str, MapData)>,
        links: Option<LinkPins>,
        (interface_multiplier, handover_key): (u32, u64),
        grace_periods: Arc<GracePeriods>,
    ) -> Self {
        Self { programs, tells: false, maps, links, interface_multiplier, handover_key, grace_periods, larger: None }
    }

    /// Pins the maps, the links in `attached` and all later links in a new directory for pins.
    ///
    /// # Errors
    /// Fails if the kernel refuses a pin; the caller must then call [`unpin`](Self::unpin).
    pub fn pin(&mut self, pins: &Pins, attached: &mut [Attached]) -> anyhow::Result<()> {
        for (name, map) in &self.maps {
            map.pin(pins.map(name)).with_context(|| format!("pinning the map {name}"))?;
        }
        let links = self.links.insert(pins.link_pins());
        attached.iter_mut().try_for_each(|attached| attached.pin(links))
    }

    /// Forgets the pins, which the caller removes or has removed.
    pub fn unpin(&mut self, attached: &mut [Attached]) {
        self.links = None;
        for attached in attached {
            attached.pin = None;
            attached.classifiers.iter_mut().for_each(OnInterface::forget_pin);
        }
    }

    /// Attaches the program to an interface. `others` are the indices of the interfaces to which the program is already
    /// attached.
    ///
    /// # Errors
    /// Fails if another program is attached, or if no allowed mode works; the error is one line that tells the user
    /// what to do.
    pub fn attach(&mut self, name: &str, ifindex: u32, mode: XdpMode, others: &[u32]) -> anyhow::Result<Attached> {
        self.tell_apart(name, ifindex, others)?;
        let Self { programs, links, handover_key, .. } = self;
        let links = links.as_ref();
        let classifiers: Vec<_> = CLASSIFIERS
            .into_iter()
            .map(|classifier| {
                let object = if classifier.reads_rows() { programs.newest() } else { programs.object() };
                OnInterface::attach(object, classifier, (name, ifindex), *handover_key, links)
            })
            .collect::<anyhow::Result<_>>()?;
        let attached = attach(self.programs.plain()?, name, ifindex, mode, links)?;
        classifiers.iter().for_each(|classifier| classifier.alone(name, ifindex, links));
        Ok(Attached { classifiers, ..attached })
    }

    /// Replaces the program by the tracing program on all these interfaces. Returns a ring buffer for each CPU, and the
    /// settings of the tracing program.
    ///
    /// # Errors
    /// Fails if the kernel refuses the program or provides no ring buffers. After a failure, the plain program stays
    /// attached.
    pub fn tell(&mut self, attached: &mut [Attached], filter: &Filter) -> anyhow::Result<(Vec<Ring>, Knobs)> {
        let prepared = telling::prepare(self.programs.object(), filter)?;
        let program = self.programs.telling()?;
        self.tells = true;
        match attached.iter_mut().try_for_each(|attached| attached.replace(program)) {
            Ok(()) => Ok(prepared),
            Err(error) => {
                self.tell_no_more(attached);
                Err(error)
            }
        }
    }

    /// Replaces the tracing program by the plain program.
    pub fn tell_no_more(&mut self, attached: &mut [Attached]) {
        self.tells = false;
        let replaced = self.programs.plain().and_then(|program| replace_all(attached, program));
        // A tracing program that could not be replaced also stops reporting, because the controller no longer extends
        // its deadline.
        if let Err(error) = replaced {
            warn!("the program that tells of packets stays: {error:#}");
        }
    }

    #[must_use]
    pub fn features(&self) -> Features {
        self.programs.in_use().get()
    }

    /// Makes sure that the attached programs have `features`: loads richer programs, and replaces the attached ones on
    /// all these interfaces. Packets are steered all the time. Returns all features of the richer programs; `None`: the
    /// attached ones have these features.
    ///
    /// # Errors
    /// Fails if the kernel refuses a program. After a failure, the present programs stay attached.
    pub fn extend(&mut self, attached: &mut [Attached], features: Features) -> anyhow::Result<Option<Features>> {
        let loaded = self.programs.richer(features, self.tells);
        let Some(mut richer) = loaded.with_context(|| format!("a kernel program with {}", words(features)))? else {
            return Ok(None);
        };
        self.replace(attached, &mut richer).map_err(|failed| failed.error)?;
        // The programs before may still process packets, and have no code for what is published next.
        self.grace_periods.wait(self.grace_periods.begin());
        self.programs.adopt(richer);
        Ok(Some(self.features()))
    }

    /// Replaces the programs on all these interfaces by these programs, or on none.
    fn replace(&mut self, attached: &mut [Attached], by: &mut Richer) -> Result<(), NotReplaced> {
        let failed = |error| NotReplaced { error, is_back: true };
        let program = by.program(self.tells).map_err(failed)?;
        let Err(error) = attached.iter_mut().try_for_each(|attached| attached.replace(program)) else { return Ok(()) };
        let present = if self.tells { self.programs.telling() } else { self.programs.plain() };
        Err(match present.and_then(|program| replace_all(attached, program)) {
            Ok(()) => failed(error),
            Err(after) => NotReplaced {
                error: anyhow!("{error:#}; and the program before is not back everywhere: {after:#}"),
                is_back: false,
            },
        })
    }

    /// Checks whether an interface can have counters separate from those of the interfaces `others`.
    ///
    /// # Errors
    /// Fails if the interface cannot have separate counters.
    pub fn tell_apart(&self, name: &str, ifindex: u32, others: &[u32]) -> anyhow::Result<()> {
        let row = |ifindex| interface_row(ifindex, self.interface_multiplier);
        if others.iter().any(|&other| row(other) == row(ifindex)) {
            bail!("interface {name} cannot be told from another in counters: restart the balancer");
        }
        Ok(())
    }
}

/// The reason why programs do not replace the present ones.
#[derive(Debug, thiserror::Error)]
#[error("{error:#}")]
pub struct NotReplaced {
    error: anyhow::Error,
    /// Whether the present programs, and no others, are attached.
    pub is_back: bool,
}

impl NotReplaced {
    /// The reason if the process is about to end, so that no more packets matter to it.
    #[must_use]
    pub fn ends() -> Self {
        Self { error: anyhow!("the balancer ends"), is_back: false }
    }
}

/// Replaces the program on all these interfaces as far as possible, and returns the first failure.
fn replace_all(attached: &mut [Attached], program: &mut Xdp) -> anyhow::Result<()> {
    attached.iter_mut().map(|attached| attached.replace(program)).fold(Ok(()), Result::and)
}

/// Attaches `program` to an interface. With `pins`, this function takes over the link that an earlier controller has
/// pinned and replaces the running program in one step, or pins the new link.
///
/// # Errors
/// Fails if another program is attached, or if no allowed mode works; the error is one line that tells the user what to
/// do.
pub(super) fn attach(
    program: &mut Xdp,
    name: &str,
    ifindex: u32,
    mode: XdpMode,
    pins: Option<&LinkPins>,
) -> anyhow::Result<Attached> {
    let attached = |native, adopted, link, pin| Attached {
        at: Attachment { name: name.to_owned(), ifindex, native, parts: BTreeSet::new(), counted: BTreeSet::new() },
        adopted,
        called: name.to_owned(),
        link: Some(link),
        pin,
        offload: if native { None } else { SwitchedOff::new(Offload::Merging, name) },
        tags: BTreeMap::new(),
        classifiers: Vec::new(),
    };
    for pin in pins.into_iter().flat_map(LinkPins::links).filter(|pin| pin.ifindex == ifindex) {
        if mode == XdpMode::Native && !pin.native || mode == XdpMode::Generic && pin.native {
            info!("interface {name}: attaching anew, in the mode that xdp_mode now says");
            take_off(&pin.path)?;
        } else if let Some(link) = adopt(program, name, &pin)? {
            let LinkPin { native, path, .. } = pin;
            return Ok(attached(native, true, link, Some(path)));
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
    Ok(attached(native, false, link, pin))
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

/// Replaces the program that a pinned link attaches. `None`: the interface of the link no longer exists, and this
/// function has removed the pin.
fn adopt(program: &mut Xdp, name: &str, pin: &LinkPin) -> anyhow::Result<Option<XdpLink>> {
    let link = open_link(&pin.path, name)?;
    match program.attach_to_link(link) {
        Ok(id) => Ok(Some(program.take_link(id).with_context(|| format!("interface {name}"))?)),
        // The link's interface no longer exists; the present interface is another one with the same index.
        Err(error) if errno(&error) == Some(libc::ENOLINK) => {
            take_off(&pin.path)?;
            Ok(None)
        }
        Err(error) => Err(error).with_context(|| format!("interface {name}: replacing the program that runs")),
    }
}

fn open_link(pin: &Path, name: &str) -> anyhow::Result<XdpLink> {
    let link = PinnedLink::from_pin(pin).with_context(|| format!("opening the pinned link of {name}"))?;
    XdpLink::try_from(FdLink::from(link)).with_context(|| format!("the pinned link of {name}"))
}

fn pinned(link: XdpLink, path: &Path) -> anyhow::Result<XdpLink> {
    let link = FdLink::try_from(link).context("this kernel has no links for XDP programs")?;
    Ok(XdpLink::try_from(FdLink::from(link.pin(path)?))?)
}

/// Detaches the program from all these interfaces.
///
/// # Errors
/// Returns the first failure, after it has tried to detach the program from each interface.
pub(super) fn detach_all(attached: &mut Vec<Attached>) -> anyhow::Result<()> {
    attached.drain(..).map(Attached::detach).fold(Ok(()), anyhow::Result::and)
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn when_a_part_leaves_a_bond_then_what_it_counted_stays_the_bonds_unless_it_counts_elsewhere() {
        let mut bond = Attachment {
            name: "bond0".to_owned(),
            ifindex: 9,
            native: true,
            parts: BTreeSet::new(),
            counted: BTreeSet::new(),
        };
        for (parts, others, counted) in [
            (&[2, 3][..], &[][..], &[2, 3][..]),
            (&[3], &[], &[2, 3]),
            (&[3, 4], &[], &[2, 3, 4]),
            (&[3, 4], &[2], &[3, 4]),
            (&[4], &[10, 3], &[4]),
        ] {
            bond.parts = parts.iter().copied().collect();
            let counting = bond.ways_in().chain(others.iter().copied()).collect();
            bond.count_parts(&counting);
            assert_eq!(bond.counted, counted.iter().copied().collect(), "{parts:?} beside {others:?}");
        }
    }

    #[test]
    fn when_parts_come_and_go_for_ever_then_those_that_left_last_are_counted() {
        let mut bond = Attachment {
            name: "bond0".to_owned(),
            ifindex: 1,
            native: true,
            parts: BTreeSet::new(),
            counted: BTreeSet::new(),
        };
        for part in 2..1000 {
            bond.parts = BTreeSet::from([part]);
            bond.count_parts(&bond.ways_in().collect());
        }
        assert_eq!(bond.counted.len(), COUNTED_PARTS + 1);
        assert_eq!(bond.counted.last(), Some(&999));
    }
}
