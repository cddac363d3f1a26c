//! The classifiers beside the XDP program: one at ingress sends frames that XDP cannot send; one at egress translates
//! replies of servers on this machine.

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

/// A classifier, and the hook that it uses.
#[derive(Debug)]
pub(super) struct Classifier {
    program: &'static str,
    at: TcAttachType,
    /// The prefix of the names of its pins.
    pins: &'static str,
    /// The task of the program, as the end of "the program that …" in error messages.
    does: &'static str,
}

/// Sends frames that XDP cannot send.
const HANDOVER: Classifier =
    Classifier { program: "handover", at: TcAttachType::Ingress, pins: "HANDOVER", does: "hands frames over" };
/// Gives replies of servers on this machine the VIP as source.
const LOCAL_REPLIES: Classifier = Classifier {
    program: "local_replies",
    at: TcAttachType::Egress,
    pins: "REPLIES",
    does: "translates replies of this machine",
};
/// The prefixes of all names of pins.
pub(super) const KINDS: [&str; 2] = [HANDOVER.pins, LOCAL_REPLIES.pins];
/// Both classifiers.
pub(super) const CLASSIFIERS: [&Classifier; 2] = [&HANDOVER, &LOCAL_REPLIES];

/// Draws the number that marks frames as handed over. Each load draws another one, so that two classifiers can be
/// attached while one replaces the other.
///
/// # Errors
/// If the kernel has no random numbers.
pub(super) fn draw_key() -> anyhow::Result<u64> {
    Ok(getrandom::u64().context("drawing the key of handed-over frames")? >> 16)
}

/// Loads both programs into the kernel.
///
/// # Errors
/// With the verifier's log, when the kernel refuses.
pub(super) fn load(ebpf: &mut Ebpf) -> anyhow::Result<()> {
    for classifier in CLASSIFIERS {
        let program = program(ebpf, classifier)?;
        load_with(classifier.program, || program.load())?;
    }
    Ok(())
}

fn program<'a>(ebpf: &'a mut Ebpf, classifier: &Classifier) -> anyhow::Result<&'a mut SchedClassifier> {
    Ok(ebpf
        .program_mut(classifier.program)
        .with_context(|| format!("the kernel object holds no program {}", classifier.program))?
        .try_into()?)
}

/// A classifier on an interface. Dropping it detaches the program, unless it is pinned.
#[derive(Debug)]
pub(super) struct OnInterface {
    classifier: &'static Classifier,
    link: Option<SchedClassifierLink>,
    key: u64,
    kept: Kept,
}

/// The object that keeps the program attached: a link or a filter.
#[derive(Debug)]
enum Kept {
    /// A link, with the path of its pin.
    Link(Option<PathBuf>),
    /// A filter. `other` is the priority that the next filter uses.
    Filter { other: u16 },
}

/// Filters of this program (before Linux 6.6) alternate between these priorities, so that one can replace the other.
const PRIORITIES: [u16; 2] = [0xba10, 0xba11];
const HANDLE: TcHandle = TcHandle::new(0, 1);

/// Whether the kernel has links for programs of this type (Linux 6.6). If not, the programs are filters.
fn has_links() -> bool {
    KernelVersion::current().is_ok_and(|version| version >= KernelVersion::new(6, 6, 0))
}

impl OnInterface {
    /// Attaches the program to an interface. An earlier controller's program stays beside it until
    /// [`OnInterface::alone`].
    ///
    /// # Errors
    /// If the kernel refuses.
    pub(super) fn attach(
        ebpf: &mut Ebpf,
        classifier: &'static Classifier,
        (name, ifindex): (&str, u32),
        key: u64,
        pins: Option<&LinkPins>,
    ) -> anyhow::Result<Self> {
        let program = program(ebpf, classifier)?;
        let first = TcAttachOptions::TcxOrder(LinkOrder::first());
        if !has_links() {
            return attach_filter(program, classifier, name, key);
        }
        let attached = program.attach_with_options(name, classifier.at, first);
        let id =
            attached.with_context(|| format!("interface {name}: attaching the program that {}", classifier.does))?;
        let link = program.take_link(id).with_context(|| format!("interface {name}"))?;
        let mut this = Self { classifier, link: Some(link), key, kept: Kept::Link(None) };
        if let Some(pins) = pins {
            this.pin(ifindex, pins)?;
        }
        Ok(this)
    }

    /// Pins the link, so that it outlives this process.
    ///
    /// # Errors
    /// If the kernel refuses.
    pub(super) fn pin(&mut self, ifindex: u32, pins: &LinkPins) -> anyhow::Result<()> {
        let Kept::Link(pin) = &mut self.kept else { return Ok(()) };
        let path = pins.classifier(self.classifier.pins, ifindex, self.key);
        let link =
            FdLink::try_from(self.link.take().context("the program is off")?).context("a link of another kind")?;
        let pinned = link.pin(&path).with_context(|| format!("pinning the link to interface {ifindex}"))?;
        self.link = Some(SchedClassifierLink::try_from(FdLink::from(pinned))?);
        *pin = Some(path);
        Ok(())
    }

    /// Forgets the pin, which the caller has removed or is about to remove.
    pub(super) fn forget_pin(&mut self) {
        if let Kept::Link(pin) = &mut self.kept {
            *pin = None;
        }
    }

    /// Detaches earlier controllers' programs from the interface.
    pub(super) fn alone(&self, name: &str, ifindex: u32, pins: Option<&LinkPins>) {
        match &self.kept {
            Kept::Link(own) => {
                let pinned = pins.map(|pins| pins.classifiers(self.classifier.pins, ifindex)).unwrap_or_default();
                for path in pinned.iter().filter(|path| Some(*path) != own.as_ref()) {
                    remove_pin(path);
                }
            }
            Kept::Filter { other } => remove_filter(self.classifier, name, *other),
        }
    }

    /// Leaves the program attached.
    pub(super) fn leave(self) {
        // A link is pinned, and a filter stays until it is removed.
        mem::forget(self.link);
    }

    /// Detaches the program.
    pub(super) fn detach(self) {
        if let Kept::Link(Some(path)) = &self.kept {
            remove_pin(path);
        }
    }
}

/// Removes the filters that an earlier controller left on an interface, if links are not pinned.
pub(super) fn remove_filters(ifindex: u32) {
    if let Ok(name) = nix::net::if_::if_indextoname(ifindex)
        && !has_links()
    {
        for classifier in CLASSIFIERS {
            PRIORITIES.iter().for_each(|&priority| remove_filter(classifier, &name.to_string_lossy(), priority));
        }
    }
}

fn attach_filter(
    program: &mut SchedClassifier,
    classifier: &'static Classifier,
    name: &str,
    key: u64,
) -> anyhow::Result<OnInterface> {
    // The qdisc may exist already; if it cannot be created, the attachment fails and reports the error.
    let _there = tc::qdisc_add_clsact(name);
    let mut attach = |priority| {
        let filter = NlOptions { priority, handle: HANDLE, classid: None };
        program.attach_with_options(name, classifier.at, TcAttachOptions::Netlink(filter))
    };
    let [first, second] = PRIORITIES;
    let (attached, other) = match attach(first) {
        Ok(id) => (Ok(id), second),
        Err(_taken) => {
            remove_filter(classifier, name, second);
            (attach(second), first)
        }
    };
    let id = attached.with_context(|| {
        format!(
            "interface {name}: attaching the program that {}, which takes the module cls_bpf (CONFIG_NET_CLS_BPF) \
             before Linux 6.6",
            classifier.does
        )
    })?;
    let link = program.take_link(id).with_context(|| format!("interface {name}"))?;
    Ok(OnInterface { classifier, link: Some(link), key, kept: Kept::Filter { other } })
}

fn remove_pin(path: &Path) {
    if let Err(error) = take_off(path) {
        tracing::warn!("{error:#}");
    }
}

/// Removes a filter if it exists.
fn remove_filter(classifier: &Classifier, name: &str, priority: u16) {
    if let Ok(link) = SchedClassifierLink::attached(name, classifier.at, priority, HANDLE, None) {
        let _not_there = link.detach();
    }
}
