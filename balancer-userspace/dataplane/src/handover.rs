//! The program that sends what XDP cannot: attached where the kernel takes frames in, beside the XDP program.

use std::{
    mem,
    path::{Path, PathBuf},
};

use anyhow::Context as _;
use aya::{
    Ebpf,
    programs::{
        LinkOrder, SchedClassifier, TcAttachType,
        links::{FdLink, Link as _},
        tc::{self, NlOptions, SchedClassifierLink, TcAttachOptions, TcHandle},
    },
    util::KernelVersion,
};

use super::{link_pins::LinkPins, load::load_with, pinned_link::take_off};

const PROGRAM: &str = "handover";

/// A number that frames handed over are known by. Another one for each load, so that two of these programs can be attached
/// while one takes the other's place.
///
/// # Errors
/// When the kernel has no random numbers.
pub(super) fn draw_key() -> anyhow::Result<u64> {
    Ok(getrandom::u64().context("drawing the key of handed-over frames")? >> 16)
}

/// Has the kernel take the program.
///
/// # Errors
/// With the verifier's log, when it refuses.
pub(super) fn load(ebpf: &mut Ebpf) -> anyhow::Result<()> {
    let program = program(ebpf)?;
    load_with(PROGRAM, || program.load())
}

fn program(ebpf: &mut Ebpf) -> anyhow::Result<&mut SchedClassifier> {
    Ok(ebpf
        .program_mut(PROGRAM)
        .with_context(|| format!("the kernel object holds no program {PROGRAM}"))?
        .try_into()?)
}

/// The program on an interface. It goes off when this is dropped, unless it is pinned.
#[derive(Debug)]
pub(super) struct Handover {
    link: Option<SchedClassifierLink>,
    key: u64,
    kept: Kept,
}

/// What tells this program from an earlier controller's.
#[derive(Debug)]
enum Kept {
    /// A link, pinned here.
    Link(Option<PathBuf>),
    /// A filter, and the priority that another one would have.
    Filter { other: u16 },
}

/// Filters of this program (before Linux 6.6) have one of these priorities, so that one can take the other's place.
const PRIORITIES: [u16; 2] = [0xba10, 0xba11];
const HANDLE: TcHandle = TcHandle::new(0, 1);

/// Whether the kernel has links for programs of this type (Linux 6.6). If not, they are filters.
fn has_links() -> bool {
    KernelVersion::current().is_ok_and(|version| version >= KernelVersion::new(6, 6, 0))
}

impl Handover {
    /// Attaches the program to an interface. An earlier controller's stays beside it, until [`Handover::alone`].
    ///
    /// # Errors
    /// When the kernel refuses.
    pub(super) fn attach(
        ebpf: &mut Ebpf,
        name: &str,
        ifindex: u32,
        key: u64,
        pins: Option<&LinkPins>,
    ) -> anyhow::Result<Self> {
        let program = program(ebpf)?;
        let first = TcAttachOptions::TcxOrder(LinkOrder::first());
        if !has_links() {
            return attach_filter(program, name, key);
        }
        let attached = program.attach_with_options(name, TcAttachType::Ingress, first);
        let id = attached.with_context(|| format!("interface {name}: attaching the program that hands frames over"))?;
        let link = program.take_link(id).with_context(|| format!("interface {name}"))?;
        let mut this = Self { link: Some(link), key, kept: Kept::Link(None) };
        if let Some(pins) = pins {
            this.pin(ifindex, pins)?;
        }
        Ok(this)
    }

    /// Has it outlive this process.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub(super) fn pin(&mut self, ifindex: u32, pins: &LinkPins) -> anyhow::Result<()> {
        let Kept::Link(pin) = &mut self.kept else { return Ok(()) };
        let path = pins.handover(ifindex, self.key);
        let link =
            FdLink::try_from(self.link.take().context("the program is off")?).context("a link of another kind")?;
        let pinned = link.pin(&path).with_context(|| format!("pinning the link to interface {ifindex}"))?;
        self.link = Some(SchedClassifierLink::try_from(FdLink::from(pinned))?);
        *pin = Some(path);
        Ok(())
    }

    /// Its pin is removed, or about to be.
    pub(super) fn forget_pin(&mut self) {
        if let Kept::Link(pin) = &mut self.kept {
            *pin = None;
        }
    }

    /// Takes earlier controllers' programs off the interface.
    pub(super) fn alone(&self, name: &str, ifindex: u32, pins: Option<&LinkPins>) {
        match &self.kept {
            Kept::Link(own) => {
                let pinned = pins.map(|pins| pins.handovers(ifindex)).unwrap_or_default();
                for path in pinned.iter().filter(|path| Some(*path) != own.as_ref()) {
                    remove_pin(path);
                }
            }
            Kept::Filter { other } => remove_filter(name, *other),
        }
    }

    /// Leaves the program where it is.
    pub(super) fn leave(self) {
        // A link is pinned, and a filter stays until it is removed.
        mem::forget(self.link);
    }

    /// Takes the program off.
    pub(super) fn detach(self) {
        if let Kept::Link(Some(path)) = &self.kept {
            remove_pin(path);
        }
    }
}

/// Takes what an earlier controller has left off an interface whose links are not pinned.
pub(super) fn remove_filters(ifindex: u32) {
    if let Ok(name) = nix::net::if_::if_indextoname(ifindex)
        && !has_links()
    {
        PRIORITIES.iter().for_each(|&priority| remove_filter(&name.to_string_lossy(), priority));
    }
}

fn attach_filter(program: &mut SchedClassifier, name: &str, key: u64) -> anyhow::Result<Handover> {
    // If it is there already, that is as well; if it cannot be, attaching says so.
    let _there = tc::qdisc_add_clsact(name);
    let mut attach = |priority| {
        let filter = NlOptions { priority, handle: HANDLE, classid: None };
        program.attach_with_options(name, TcAttachType::Ingress, TcAttachOptions::Netlink(filter))
    };
    let [first, second] = PRIORITIES;
    let (attached, other) = match attach(first) {
        Ok(id) => (Ok(id), second),
        Err(_taken) => {
            remove_filter(name, second);
            (attach(second), first)
        }
    };
    let id = attached.with_context(|| {
        format!(
            "interface {name}: attaching the program that hands frames over, which takes the module cls_bpf \
             (CONFIG_NET_CLS_BPF) before Linux 6.6"
        )
    })?;
    let link = program.take_link(id).with_context(|| format!("interface {name}"))?;
    Ok(Handover { link: Some(link), key, kept: Kept::Filter { other } })
}

fn remove_pin(path: &Path) {
    if let Err(error) = take_off(path) {
        tracing::warn!("{error:#}");
    }
}

/// Removes a filter, if it is there.
fn remove_filter(name: &str, priority: u16) {
    if let Ok(link) = SchedClassifierLink::attached(name, TcAttachType::Ingress, priority, HANDLE, None) {
        let _not_there = link.detach();
    }
}
