//! The classifiers that run in addition to the XDP program: one classifier at ingress sends frames that XDP cannot
//! send, and one at egress translates replies of servers on this machine.

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

/// A classifier, identified by its task, and the hook that it uses.
#[derive(Debug)]
pub(super) struct Classifier {
    program: &'static str,
    at: TcAttachType,
    /// The prefix for the names of this classifier's pins.
    pins: &'static str,
    /// The task of the program, in a form that continues "the program that …" in error messages.
    does: &'static str,
    /// Whether the program reads maps that larger maps can replace.
    reads_rows: bool,
}

/// This classifier sends frames that XDP cannot send.
const HANDOVER: Classifier = Classifier {
    program: "handover",
    at: TcAttachType::Ingress,
    pins: "HANDOVER",
    does: "hands frames over",
    reads_rows: false,
};
/// This classifier writes the VIP as the source of replies that servers on this machine send.
const LOCAL_REPLIES: Classifier = Classifier {
    program: "local_replies",
    at: TcAttachType::Egress,
    pins: "REPLIES",
    does: "translates replies of this machine",
    reads_rows: true,
};
/// The prefixes for the names of both classifiers' pins.
pub(super) const KINDS: [&str; 2] = [HANDOVER.pins, LOCAL_REPLIES.pins];
pub(super) const CLASSIFIERS: [&Classifier; 2] = [&HANDOVER, &LOCAL_REPLIES];

/// Draws the random number by which the XDP program marks frames that the kernel must send. Each load draws another
/// number, so that an old and a new classifier can be attached at the same time during a replacement.
///
/// # Errors
/// Fails if the kernel provides no random numbers.
pub(super) fn draw_key() -> anyhow::Result<u64> {
    Ok(getrandom::u64().context("drawing the key of handed-over frames")? >> 16)
}

/// Loads both programs into the kernel.
///
/// # Errors
/// Fails, with the verifier's log, if the kernel refuses the programs.
pub(super) fn load(ebpf: &mut Ebpf) -> anyhow::Result<()> {
    for classifier in CLASSIFIERS {
        let program = program(ebpf, classifier)?;
        load_with(classifier.program, || program.load())?;
    }
    Ok(())
}

/// Loads the programs that read maps which larger maps can replace.
///
/// # Errors
/// Fails, with the verifier's log, if the kernel refuses a program.
pub(super) fn load_that_read_rows(ebpf: &mut Ebpf) -> anyhow::Result<()> {
    for classifier in CLASSIFIERS.into_iter().filter(|classifier| classifier.reads_rows) {
        let program = program(ebpf, classifier)?;
        load_with(classifier.program, || program.load())?;
    }
    Ok(())
}

/// Unloads the programs that read maps which larger maps have replaced. Attached programs stay attached.
pub(super) fn unload_that_read_rows(ebpf: &mut Ebpf) {
    for classifier in CLASSIFIERS.into_iter().filter(|classifier| classifier.reads_rows) {
        if let Ok(program) = program(ebpf, classifier) {
            // A program that is not loaded needs no memory either.
            let _not_loaded = program.unload();
        }
    }
}

/// The classifier that writes the VIP as the source of replies that servers on this machine send.
///
/// # Errors
/// Fails if the object contains no such program, which would be a broken build.
pub(super) fn local_replies(ebpf: &mut Ebpf) -> anyhow::Result<&mut SchedClassifier> {
    program(ebpf, &LOCAL_REPLIES)
}

fn program<'a>(ebpf: &'a mut Ebpf, classifier: &Classifier) -> anyhow::Result<&'a mut SchedClassifier> {
    Ok(ebpf
        .program_mut(classifier.program)
        .with_context(|| format!("the kernel object holds no program {}", classifier.program))?
        .try_into()?)
}

/// A classifier that is attached to an interface. If the program is not pinned, dropping this value detaches the
/// program.
#[derive(Debug)]
pub(super) struct OnInterface {
    classifier: &'static Classifier,
    link: Option<SchedClassifierLink>,
    key: u64,
    kept: Kept,
}

/// The kernel object that keeps the program attached: a link or a filter.
#[derive(Debug)]
enum Kept {
    /// A link, with the path of the link's pin.
    Link(Option<PathBuf>),
    /// A traffic-control filter without a link. `other` is the priority for the next filter.
    Filter { other: u16 },
}

/// Before Linux 6.6, filters with this program alternate between these two priorities, so that one filter can replace
/// the other.
const PRIORITIES: [u16; 2] = [0xba10, 0xba11];
const HANDLE: TcHandle = TcHandle::new(0, 1);

/// Whether the kernel has links for programs of this type (Linux 6.6). Without such links, the programs are attached as
/// filters.
fn has_links() -> bool {
    KernelVersion::current().is_ok_and(|version| version >= KernelVersion::new(6, 6, 0))
}

impl Classifier {
    /// Whether the program reads maps that larger maps can replace.
    pub(super) const fn reads_rows(&self) -> bool {
        self.reads_rows
    }
}

impl OnInterface {
    /// Attaches the same program of another object, which has other maps, to the same interface. Both programs stay
    /// attached: after one of them has translated a frame, the other one leaves the frame alone. `None`: the program reads
    /// no map that larger maps can replace.
    ///
    /// # Errors
    /// Fails if the kernel refuses the attachment.
    pub(super) fn again(
        &self,
        ebpf: &mut Ebpf,
        on: (&str, u32),
        pins: Option<&LinkPins>,
    ) -> anyhow::Result<Option<Self>> {
        if !self.classifier.reads_rows {
            return Ok(None);
        }
        // The key gives the pin another name; only the other program marks frames with its key.
        Self::attach(ebpf, self.classifier, on, draw_key()?, pins).map(Some)
    }

    /// Attaches the program to an interface. The program of an earlier controller stays attached, in addition to the
    /// new program, until [`OnInterface::alone`].
    ///
    /// # Errors
    /// Fails if the kernel refuses the attachment.
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

    /// Whether the other value is attached by the same classifier.
    pub(super) fn is_like(&self, other: &Self) -> bool {
        self.classifier.program == other.classifier.program
    }

    /// Pins the link, so that it outlives this process.
    ///
    /// # Errors
    /// Fails if the kernel refuses the pin.
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

    /// Forgets the pin, which the caller removes or has removed.
    pub(super) fn forget_pin(&mut self) {
        if let Kept::Link(pin) = &mut self.kept {
            *pin = None;
        }
    }

    /// Detaches the programs of earlier controllers from the interface.
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

    /// Leaves the program attached when this process ends.
    pub(super) fn leave(self) {
        // A link is pinned, whereas a filter stays attached until it is removed.
        mem::forget(self.link);
    }

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
    // The qdisc may already exist; if it cannot be created, the attachment of the filter fails and reports the error.
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

fn remove_filter(classifier: &Classifier, name: &str, priority: u16) {
    if let Ok(link) = SchedClassifierLink::attached(name, classifier.at, priority, HANDLE, None) {
        let _not_there = link.detach();
    }
}
