//! The balancer's changes to its machine, except for the eBPF maps: attachments of the program, forwarding switches,
//! receive offload and VIPs, with notes about these changes.

mod announce;
mod changes;
mod guard;
pub mod news;
mod plan;
mod switches;
mod target;
mod vips;

use std::{
    collections::{BTreeMap, BTreeSet},
    mem,
    net::IpAddr,
    path::PathBuf,
};

use anyhow::{Context as _, anyhow};
use balancer_common::features::Features;
use balancer_config::config::XdpMode;
use balancer_control::features::words;
use balancer_dataplane::{
    Attached, Attacher, Attachment, Growth, HostChanges, HostEnds, Larger, NotReplaced, NotesWriter, Pins,
    offload::{self, Offload},
    telling::{Filter, Knobs, Ring},
};
use balancer_runtime::events::Events;
use futures_util::{StreamExt as _, stream};
use rtnetlink::Handle;
use tokio::task::block_in_place;
use tracing::warn;

use self::{
    announce::Announcements,
    guard::Guard,
    plan::AttachedInterface,
    switches::Switches,
    vips::{FoundAddress, InterfaceAddress},
};
pub use self::{
    changes::put_back,
    guard::{VERB as GUARD_VIPS, guard_vips},
    target::{MachineState, MachineTarget, WantedVip},
};
use crate::interfaces::{self, Link};

/// The maximum number of addresses that are added or removed at a time.
const AT_ONCE: usize = 64;
/// The maximum number of addresses named in a log line; the line gives only the number of further addresses.
const NAMED: usize = 4;

/// The balancer's changes to this machine, except for the eBPF maps. Dropping this value detaches the program and
/// resets switches; only addresses must be removed with [`remove_vips`](Self::remove_vips).
pub struct Machine {
    handle: Handle,
    announcements: Announcements,
    guard: Guard,
    /// The VIPs that a balancer has added, as of the last round.
    vips: BTreeSet<(IpAddr, String)>,
    attacher: Attacher,
    attached: Vec<Attached>,
    /// The pins of the data path, if the data path may outlive this process.
    pins: Option<Pins>,
    /// Whether the task made the pins for a change that may still be cancelled.
    fresh_pins: bool,
    /// The state file; its path determines the names of pins.
    state_file: PathBuf,
    switches: Switches,
    /// The interfaces on which the balancer may have added addresses.
    vips_on: BTreeSet<u32>,
    /// The interfaces on which an earlier process switched receive offload off; empty after this process has settled.
    receive_offload: Vec<String>,
    /// The interfaces on which an earlier process switched VLAN tag stripping off.
    tag_stripping: Vec<String>,
    /// The counters that interfaces already had before the balancer attached the program, by the interface's index.
    counted: BTreeMap<u32, BTreeSet<u32>>,
    /// This machine's own addresses about which the balancer has [warned](Self::warn_of_own).
    warned: BTreeSet<IpAddr>,
    /// The addresses that this process added before it settled.
    fresh: Vec<InterfaceAddress>,
    notes: NotesWriter,
    events: Events,
    /// The wanted interfaces that have disappeared.
    missed: BTreeSet<String>,
    /// The interfaces that got a new mode for a change that may still be cancelled, each with the previous mode.
    modes_before: Vec<(u32, XdpMode)>,
    /// The current problems by subject. The task reports each problem once.
    troubles: BTreeMap<String, String>,
    /// The problems found in the current round.
    round: BTreeMap<String, String>,
}

impl Machine {
    pub fn new(
        handle: Handle,
        HostEnds { attacher, pins, notes }: HostEnds,
        state_file: PathBuf,
        inherited: HostChanges,
        events: Events,
    ) -> Self {
        let HostChanges { forwarding, vips_on, receive_offload, tag_stripping, counted } = inherited;
        Self {
            handle,
            announcements: Announcements::default(),
            guard: Guard::default(),
            vips: BTreeSet::new(),
            attacher,
            attached: Vec::new(),
            pins,
            fresh_pins: false,
            state_file,
            switches: Switches::new(forwarding),
            vips_on,
            receive_offload,
            tag_stripping,
            counted,
            warned: BTreeSet::new(),
            fresh: Vec::new(),
            notes,
            events,
            missed: BTreeSet::new(),
            modes_before: Vec::new(),
            troubles: BTreeMap::new(),
            round: BTreeMap::new(),
        }
    }

    /// Returns the state of the machine as of the last round.
    pub fn present(&self) -> MachineState {
        MachineState {
            features: self.attacher.features(),
            attached: self.attached.iter().map(|attached| attached.at.clone()).collect(),
            vips: self.vips.clone(),
            troubles: self.troubles.values().cloned().collect(),
        }
    }

    /// Makes the additions to the machine that `target` needs, and removes nothing. The interfaces in `must` have to
    /// exist, and `mode_before` is the mode before the change.
    ///
    /// # Errors
    /// Fails with the first problem. After a failure, additions that were already made stay until
    /// [`settle`](Self::settle) removes them.
    pub async fn extend(
        &mut self,
        target: &MachineTarget,
        must: &[String],
        mode_before: XdpMode,
    ) -> anyhow::Result<()> {
        let links = interfaces::links(&self.handle).await?;
        interfaces::select(must, &links)?;
        self.extend_program(target.features)?;
        let names = self.forwarding(target, &links);
        block_in_place(|| {
            self.switches.set(&names, target.v4, target.v6)?;
            self.switches.reserve(&target.reserved)
        })?;
        self.change_modes(target.mode, mode_before)?;
        for (name, ifindex) in self.not_entered(target, &links) {
            let selected = interfaces::select(std::slice::from_ref(&name), &links).map(drop);
            let adopted = selected.and_then(|()| self.attach(&name, ifindex, target.mode))?;
            let how = if adopted { "replaced the program on" } else { "attached to" };
            let mode = self.attached.last().map_or("no", |attached| attached.at.mode());
            self.events.note(&format!("{how} {name} in {mode} mode"));
        }
        // The task records the members of bonds before it reports attachments, because packets arrive on the members
        // from the start.
        self.follow_parts(&links);
        let Places { all: wanted, announced } = self.places(target, &links);
        self.vips_on.extend(wanted.iter().map(|place| place.ifindex));
        self.write_notes()?;
        self.guard(target)?;
        let found = vips::found(&self.handle).await?;
        let mut done = Ok(());
        let mut ours = plan::ours(&wanted, &found);
        for (place, added) in self.add(plan::addresses(&wanted, &found, &BTreeSet::new()).add, &links).await {
            match added {
                Ok(()) => {
                    ours.insert(place);
                    self.announcements.forget(place);
                    self.fresh.push(place);
                }
                Err(error) => done = done.and(Err(error)),
            }
        }
        self.announce(&(&ours & &announced), &found, &links);
        done
    }

    /// Runs the first round of changes to the machine. A missing interface is no error if at least one wanted interface
    /// exists.
    ///
    /// # Errors
    /// Fails in the same cases as [`extend`](Self::extend), or if the program is attached to no interface.
    pub async fn begin(&mut self, target: &MachineTarget) -> anyhow::Result<()> {
        self.extend(target, &[], target.mode).await?;
        let links = interfaces::links(&self.handle).await?;
        for name in &target.interfaces {
            if self.attached.iter().any(|attached| attached.at.name == *name) {
                continue;
            }
            let missing = interfaces::select(std::slice::from_ref(name), &links).err();
            let missing = missing.unwrap_or_else(|| anyhow!("interface {name} has just appeared"));
            if self.attached.is_empty() {
                return Err(missing);
            }
            self.events.warn(&format!("{missing:#}; packets that arrive by it are not steered until it exists"));
            self.missed.insert(name.clone());
        }
        Ok(())
    }

    /// Removes the added addresses after the first round has failed.
    pub async fn undo_first(&mut self) {
        for place in mem::take(&mut self.fresh) {
            if let Err(error) = vips::remove(&self.handle, place).await {
                warn!("{error:#}");
            }
        }
    }

    /// Completes the first round: this process takes over the changes and pins of an earlier process.
    ///
    /// # Errors
    /// Fails if a pin cannot be removed.
    pub fn take_over(&mut self) -> anyhow::Result<()> {
        self.finish_pins()?;
        self.fresh.clear();
        self.switches.settle();
        for name in mem::take(&mut self.receive_offload) {
            match self.attached.iter_mut().find(|attached| attached.at.name == name) {
                Some(attached) => attached.take_over_receive_offload(),
                None => offload::switch_on(Offload::Merging, name),
            }
        }
        Ok(())
    }

    /// Pins the data path so that it can outlive this process; [`keep`](Self::keep) makes these pins permanent.
    ///
    /// # Errors
    /// Fails if the data path cannot be pinned; no pins remain after a failure.
    pub fn pin(&mut self) -> anyhow::Result<()> {
        if self.pins.is_some() {
            return Ok(());
        }
        let pinned = block_in_place(|| {
            let pins = Pins::create(&self.state_file)?;
            self.attacher.pin(&pins, &mut self.attached)?;
            anyhow::Ok(pins)
        });
        match pinned {
            Ok(pins) => {
                self.pins = Some(pins);
                self.fresh_pins = true;
                Ok(())
            }
            Err(error) => {
                self.attacher.unpin(&mut self.attached);
                Err(error)
            }
        }
    }

    /// Sets whether the data path outlives this process.
    pub fn keep(&mut self, keep: bool) {
        self.fresh_pins = false;
        let done = if keep { self.finish_pins() } else { self.unpin() };
        if let Err(error) = done {
            warn!("{error:#}");
        }
    }

    /// Removes the pins that were made for a cancelled change.
    pub fn undo_pins(&mut self) {
        if mem::take(&mut self.fresh_pins)
            && let Err(error) = self.unpin()
        {
            warn!("{error:#}");
        }
    }

    fn finish_pins(&mut self) -> anyhow::Result<()> {
        let ifindexes: Vec<u32> = self.attached.iter().map(|attached| attached.at.ifindex).collect();
        self.pins.as_mut().map_or(Ok(()), |pins| pins.finish(&ifindexes))
    }

    fn unpin(&mut self) -> anyhow::Result<()> {
        self.attacher.unpin(&mut self.attached);
        self.pins.take().map_or(Ok(()), |mut pins| pins.remove())
    }

    /// Checks whether the program can be attached to the interfaces in `attach`, and whether all interfaces in `there`
    /// exist.
    pub async fn check(&self, attach: &[String], there: &BTreeSet<String>) -> anyhow::Result<()> {
        let links = interfaces::links(&self.handle).await?;
        interfaces::select(attach, &links)?;
        there.iter().try_for_each(|name| interfaces::find(name, &links)).context("assign_vip")
    }

    /// Brings the machine as far as possible to the state of `target`. The function returns whether the machine has
    /// this state completely.
    pub async fn settle(&mut self, target: &MachineTarget) -> bool {
        let links = match interfaces::links(&self.handle).await {
            Ok(links) => links,
            Err(error) => {
                self.trouble("links", &error);
                return self.end_round();
            }
        };
        let renamed = self.attached.iter().filter_map(|attached| {
            let link =
                links.iter().find(|link| link.ifindex == attached.at.ifindex && link.name != attached.called())?;
            Some((attached.called().to_owned(), link.name.clone()))
        });
        self.switches.follow(&renamed.collect::<Vec<_>>());
        let names = self.forwarding(target, &links);
        if let Err(error) = block_in_place(|| self.switches.set(&names, target.v4, target.v6)) {
            self.trouble("forwarding", &error);
        }
        if let Err(error) = block_in_place(|| self.switches.reserve(&target.reserved)) {
            self.trouble("reserved ports", &error);
        }
        if let Err(error) = self.extend_program(target.features) {
            self.trouble("kernel program", &error);
        }
        self.settle_interfaces(target, &links);
        self.follow_parts(&links);
        self.follow_names(&links);
        self.settle_offloads(&links);
        if let Err(error) = self.settle_vips(target, &links).await {
            self.trouble("VIPs", &error);
        }
        if let Err(error) = self.write_notes() {
            self.trouble("notes", &error);
        }
        self.end_round()
    }

    fn settle_interfaces(&mut self, target: &MachineTarget, links: &[Link]) {
        for (name, ifindex) in self.not_entered(target, links) {
            let selected = interfaces::select(std::slice::from_ref(&name), links).map(drop);
            match selected.and_then(|()| self.attach(&name, ifindex, target.mode)) {
                Ok(_) => {
                    let mode = self.attached.last().map_or("no", |attached| attached.at.mode());
                    let how = if self.missed.remove(&name) { "is back: " } else { "" };
                    self.events.note(&format!("interface {name} {how}attached to it in {mode} mode"));
                }
                Err(error) => {
                    let how = if self.missed.contains(&name) { "is back, but" } else { "is" };
                    self.trouble(&name, &error.context(format!("interface {name} {how} not steered")));
                }
            }
        }
        let there = names(links);
        let on = self.on();
        let leave = plan::interfaces(&target.interfaces, &borrowed(&on), &there).leave;
        self.missed.retain(|name| target.interfaces.contains(name));
        for left in self.attached.extract_if(.., |attached| leave.contains(&attached.at.ifindex)).collect::<Vec<_>>() {
            let name = left.at.name.clone();
            match block_in_place(|| left.detach()) {
                Ok(()) => self.events.note(&format!("detached from {name}")),
                Err(error) => warn!("{error:#}"),
            }
        }
    }

    /// The interfaces on which packets arrive: those wanted interfaces that exist, and their lower devices.
    fn forwarding<'a>(&self, target: &MachineTarget, links: &'a [Link]) -> Vec<&'a str> {
        let wanted = |link: &&Link| {
            let attached = self.attached.iter().find(|attached| attached.at.ifindex == link.ifindex);
            let name = attached.map_or(&link.name, |attached| &attached.at.name);
            target.interfaces.contains(name)
        };
        let wanted = links.iter().filter(wanted);
        let with_parts = wanted.flat_map(|link| std::iter::once(link).chain(interfaces::parts(link.ifindex, links)));
        with_parts.map(|link| link.name.as_str()).collect::<BTreeSet<_>>().into_iter().collect()
    }

    /// Switches off the offloads that merge packets or strip VLAN tags before the program receives packets.
    fn settle_offloads(&mut self, links: &[Link]) {
        for attached in &mut self.attached {
            let tagged = interfaces::tagged(attached.at.ifindex, links);
            block_in_place(|| attached.settle_offloads(&tagged, &mut self.tag_stripping));
        }
        for name in mem::take(&mut self.tag_stripping) {
            offload::switch_on(Offload::TagStripping, name);
        }
    }

    /// Warns if a service takes every port of one of this machine's own addresses, because the balancer would also
    /// steer the connections of other programs on this machine.
    fn warn_of_own(&mut self, target: &MachineTarget, found: &[FoundAddress], links: &[Link]) {
        let own = found.iter().filter(|found| {
            let link = links.iter().find(|link| link.ifindex == found.place.ifindex);
            found.subnet && target.whole.contains(&found.place.address) && link.is_some_and(|link| !link.loopback)
        });
        let own: BTreeMap<IpAddr, u32> = own.map(|found| (found.place.address, found.place.ifindex)).collect();
        for (address, ifindex) in own.iter().filter(|(address, _)| !self.warned.contains(address)) {
            self.events.warn(&format!(
                "{address} is this machine's own address on {}, and a service listens on all of its ports: packets \
                 for this machine, ssh included, go to backends; give the service an address of its own, or name its \
                 ports",
                named(*ifindex, links)
            ));
        }
        self.warned = own.into_keys().collect();
    }

    /// Reports each interface whose current name differs from the configured name, because the next start will look for
    /// the configured name.
    fn follow_names(&mut self, links: &[Link]) {
        let mut troubles = Vec::new();
        for attached in &mut self.attached {
            let now = named(attached.at.ifindex, links);
            let before = &attached.at.name;
            if now != *before && links.iter().any(|link| link.ifindex == attached.at.ifindex) {
                let trouble = anyhow!(
                    "interface {before} was renamed {now} and is still steered; write {now} in `interfaces`, because \
                     the next start looks for that name"
                );
                troubles.push((before.clone(), trouble));
            }
            attached.call(now);
        }
        for (name, trouble) in troubles {
            self.trouble(&name, &trouble);
        }
    }

    /// Records the current members of bonds and teams.
    fn follow_parts(&mut self, links: &[Link]) {
        let mut taken: Vec<u32> = self.attached.iter().map(|attached| attached.at.ifindex).collect();
        let mut troubles = Vec::new();
        for attached in &mut self.attached {
            attached.at.parts.clear();
            for part in interfaces::parts(attached.at.ifindex, links) {
                if taken.contains(&part.ifindex) {
                    continue;
                }
                match self.attacher.tell_apart(&part.name, part.ifindex, &taken) {
                    Ok(()) => {
                        taken.push(part.ifindex);
                        attached.at.parts.insert(part.ifindex);
                    }
                    Err(error) => troubles.push((part.name.clone(), error)),
                }
            }
        }
        self.counted.retain(|&ifindex, _| links.iter().any(|link| link.ifindex == ifindex));
        let counting = self.attached.iter().flat_map(|attached| attached.at.ways_in()).collect();
        for attached in &mut self.attached {
            attached.at.counted.append(&mut self.counted.remove(&attached.at.ifindex).unwrap_or_default());
            attached.at.count_parts(&counting);
        }
        for (name, error) in troubles {
            self.trouble(&name, &error);
        }
    }

    /// Forgets removed interfaces, records new names of interfaces, and returns the interfaces to which the program
    /// must be attached.
    fn not_entered(&mut self, target: &MachineTarget, links: &[Link]) -> Vec<(String, u32)> {
        let (there, on) = (names(links), self.on());
        let plan::InterfacePlan { gone, leave: _, enter, renamed } =
            plan::interfaces(&target.interfaces, &borrowed(&on), &there);
        for gone in self.attached.extract_if(.., |attached| gone.contains(&attached.at.ifindex)).collect::<Vec<_>>() {
            let name = gone.at.name.clone();
            gone.let_go();
            self.events.warn(&format!(
                "interface {name} is gone: packets that arrive by it are not steered until it \
                                       is back"
            ));
            self.missed.insert(name);
        }
        for AttachedInterface { name, ifindex } in renamed {
            for attached in self.attached.iter_mut().filter(|attached| attached.at.ifindex == ifindex) {
                name.clone_into(&mut attached.at.name);
            }
        }
        enter.into_iter().map(|on| (on.name.to_owned(), on.ifindex)).collect()
    }

    /// Attaches the program to an interface. The function returns whether an earlier controller had attached a program.
    fn attach(&mut self, name: &str, ifindex: u32, mode: XdpMode) -> anyhow::Result<bool> {
        let others: Vec<u32> = self.attached.iter().map(|attached| attached.at.ifindex).collect();
        let attached = block_in_place(|| self.attacher.attach(name, ifindex, mode, &others))?;
        let adopted = attached.adopted;
        self.attached.push(attached);
        Ok(adopted)
    }

    /// Makes sure that the program has `features`, by replacing the program on all interfaces if necessary.
    pub fn extend_program(&mut self, features: Features) -> anyhow::Result<()> {
        if let Some(all) = block_in_place(|| self.attacher.extend(&mut self.attached, features))? {
            self.events.note(&format!("the kernel program is replaced by one for {}", words(all)));
        }
        Ok(())
    }

    /// Loads the program with larger maps beside the present program.
    ///
    /// # Errors
    /// Fails if the kernel refuses a map or a program.
    pub fn load_larger(&mut self, growth: Growth) -> anyhow::Result<Larger> {
        block_in_place(|| self.attacher.load_larger(growth))
    }

    /// Replaces the program by the one with larger maps on all interfaces.
    ///
    /// # Errors
    /// Fails if the kernel refuses the replacement.
    pub fn use_larger(&mut self) -> Result<(), NotReplaced> {
        let larger = block_in_place(|| self.attacher.use_larger(&mut self.attached))?;
        self.events.note(&format!("the kernel's maps have grown: they have room for {larger}"));
        Ok(())
    }

    /// Starts the tracing of packets.
    pub fn trace(&mut self, filter: &Filter) -> anyhow::Result<(Vec<Ring>, Knobs)> {
        block_in_place(|| self.attacher.tell(&mut self.attached, filter))
    }

    /// Stops the tracing of packets.
    pub fn trace_no_more(&mut self) {
        block_in_place(|| self.attacher.tell_no_more(&mut self.attached));
    }

    /// Reattaches the program to each interface on which the program has the wrong mode.
    fn change_modes(&mut self, mode: XdpMode, before: XdpMode) -> anyhow::Result<()> {
        let wrong = |attached: &Attached| plan::wrong_mode(attached.at.native, mode, before);
        let wrong: Vec<u32> =
            self.attached.iter().filter(|attached| wrong(attached)).map(|attached| attached.at.ifindex).collect();
        for ifindex in wrong {
            self.change_mode(ifindex, mode)?;
        }
        Ok(())
    }

    fn change_mode(&mut self, ifindex: u32, mode: XdpMode) -> anyhow::Result<()> {
        let Some(index) = self.attached.iter().position(|attached| attached.at.ifindex == ifindex) else {
            return Ok(());
        };
        let Attachment { name, native, counted, .. } = self.attached[index].at.clone();
        self.counted.insert(ifindex, counted);
        let before = if native { XdpMode::Native } else { XdpMode::Generic };
        block_in_place(|| self.attached.remove(index).detach())?;
        if let Err(error) = self.attach(&name, ifindex, mode) {
            return Err(match self.attach(&name, ifindex, before) {
                Ok(_) => error,
                Err(after) => anyhow!("{error:#}; packets that arrive by {name} are not steered now: {after:#}"),
            });
        }
        let mode = self.attached.last().map_or("no", |attached| attached.at.mode());
        self.events.note(&format!("interface {name}: attached anew, in {mode} mode"));
        self.modes_before.push((ifindex, before));
        Ok(())
    }

    /// Makes the changed modes of interfaces permanent.
    pub fn keep_modes(&mut self) {
        self.modes_before.clear();
    }

    /// Restores the previous modes of interfaces.
    pub fn undo_modes(&mut self) {
        for (ifindex, mode) in mem::take(&mut self.modes_before) {
            if let Err(error) = self.change_mode(ifindex, mode) {
                warn!("{error:#}");
            }
        }
        self.modes_before.clear();
    }

    async fn settle_vips(&mut self, target: &MachineTarget, links: &[Link]) -> anyhow::Result<()> {
        let Places { all: wanted, announced } = self.places(target, links);
        self.vips_on.retain(|&ifindex| links.iter().any(|link| link.ifindex == ifindex));
        let before = self.vips_on.len();
        self.vips_on.extend(wanted.iter().map(|place| place.ifindex));
        if before != self.vips_on.len() {
            // The task writes a note of every change that must be undone later before it makes the change.
            self.write_notes()?;
        }
        if let Err(error) = self.guard(target) {
            self.trouble("guard", &error);
        }
        let found = vips::found(&self.handle).await?;
        self.warn_of_own(target, &found, links);
        let plan = plan::addresses(&wanted, &found, &self.vips_on);
        let mut ours = plan::ours(&wanted, &found);
        let mut stay = BTreeSet::new();
        for (place, removed) in self.remove(plan.remove, links).await {
            if let Err(error) = removed {
                stay.insert(place);
                self.trouble(&place.address.to_string(), &error);
            }
        }
        for (place, added) in self.add(plan.add, links).await {
            match added {
                Ok(()) => {
                    ours.insert(place);
                    self.announcements.forget(place);
                }
                Err(error) => self.trouble(&place.address.to_string(), &error),
            }
        }
        self.vips = (&ours | &stay).iter().map(|place| (place.address, named(place.ifindex, links))).collect();
        for name in target.vips.iter().filter(|vip| !vip.announced).map(|vip| &vip.interface).collect::<BTreeSet<_>>() {
            if let Err(error) = interfaces::find(name, links).context("assign_vip") {
                self.trouble(name, &error);
            }
        }
        self.announce(&(&ours & &announced), &found, links);
        if self.round.is_empty() {
            self.vips_on = wanted.iter().map(|place| place.ifindex).collect();
        }
        Ok(())
    }

    /// The wanted addresses whose interfaces exist.
    fn places(&self, target: &MachineTarget, links: &[Link]) -> Places {
        let ifindex = |name: &String| {
            let attached = self.attached.iter().find(|attached| attached.at.name == *name);
            let link = || links.iter().find(|link| link.name == *name).map(|link| link.ifindex);
            attached.map(|attached| attached.at.ifindex).or_else(link)
        };
        let mut places = Places::default();
        for vip in &target.vips {
            let Some(ifindex) = ifindex(&vip.interface) else { continue };
            let place = InterfaceAddress { ifindex, address: vip.address };
            places.all.insert(place);
            if vip.announced {
                places.announced.insert(place);
            }
        }
        places
    }

    async fn add(&self, places: Vec<InterfaceAddress>, links: &[Link]) -> Vec<(InterfaceAddress, anyhow::Result<()>)> {
        let adding = places.into_iter().map(async |place| (place, self.add_one(place, links).await));
        let added: Vec<(InterfaceAddress, anyhow::Result<()>)> = stream::iter(adding).buffered(AT_ONCE).collect().await;
        self.tell(&added, "added to", links);
        added
    }

    async fn add_one(&self, place: InterfaceAddress, links: &[Link]) -> anyhow::Result<()> {
        let interface = named(place.ifindex, links);
        vips::add(&self.handle, place).await.with_context(|| format!("interface {interface}"))
    }

    /// Reports added or removed addresses with one line for each interface.
    fn tell(&self, done: &[(InterfaceAddress, anyhow::Result<()>)], what: &str, links: &[Link]) {
        let mut by_interface: BTreeMap<u32, Vec<String>> = BTreeMap::new();
        for (place, _) in done.iter().filter(|(_, done)| done.is_ok()) {
            by_interface.entry(place.ifindex).or_default().push(place.address.to_string());
        }
        for (ifindex, addresses) in by_interface {
            let (named_ones, others) = addresses.split_at(addresses.len().min(NAMED));
            let more = if others.is_empty() { String::new() } else { format!(" and {} more", others.len()) };
            let interface = named(ifindex, links);
            self.events.note(&format!("VIP {}{more} {what} {interface} (assign_vip)", named_ones.join(", ")));
        }
    }

    /// Announces addresses that the neighbours do not know yet.
    fn announce(&mut self, ours: &BTreeSet<InterfaceAddress>, found: &[FoundAddress], links: &[Link]) {
        let native = |ifindex| {
            let attached = self.attached.iter().find(|attached| attached.at.ifindex == ifindex);
            attached.map(|attached| attached.at.native)
        };
        let others = found.iter().filter(|found| found.settled && native(found.place.ifindex).is_some());
        let others: BTreeSet<InterfaceAddress> =
            others.map(|found| found.place).filter(|place| !ours.contains(place)).collect();
        self.announcements.tell(ours, &others, links, native);
    }

    async fn remove(
        &self,
        places: Vec<InterfaceAddress>,
        links: &[Link],
    ) -> Vec<(InterfaceAddress, anyhow::Result<()>)> {
        let removing = places.into_iter().map(async |place| {
            let interface = named(place.ifindex, links);
            let removed = vips::remove(&self.handle, place).await.with_context(|| format!("interface {interface}"));
            (place, removed)
        });
        let removed: Vec<(InterfaceAddress, anyhow::Result<()>)> =
            stream::iter(removing).buffered(AT_ONCE).collect().await;
        self.tell(&removed, "removed from", links);
        removed
    }

    /// Prepares the helper process to remove the addresses if this process is killed.
    fn guard(&mut self, target: &MachineTarget) -> anyhow::Result<()> {
        let none = BTreeSet::new();
        let on = if target.guarded { &self.vips_on } else { &none };
        block_in_place(|| self.guard.watch(on))
    }

    /// Removes every address that the balancer has added.
    pub async fn remove_vips(&mut self) {
        let removed = async {
            let links = interfaces::links(&self.handle).await?;
            let found = vips::found(&self.handle).await?;
            let places = plan::addresses(&BTreeSet::new(), &found, &self.vips_on).remove;
            self.remove(places, &links).await.into_iter().try_for_each(|(_, removed)| removed)
        };
        if let Err(error) = removed.await {
            warn!("cannot remove the VIPs: {error:#}");
        }
    }

    /// Detaches the program from every interface, and undoes all other changes to the machine.
    pub async fn detach(mut self) -> anyhow::Result<()> {
        self.remove_vips().await;
        let detached = self.attached.drain(..).map(Attached::detach).fold(Ok(()), anyhow::Result::and);
        let unpinned = self.pins.take().map_or(Ok(()), |mut pins| pins.remove());
        detached.and(unpinned)
    }

    /// Leaves the program attached and all changes in effect for the next controller.
    pub fn leave(self) {
        self.attached.into_iter().for_each(Attached::leave);
        self.switches.leave();
    }

    fn write_notes(&mut self) -> anyhow::Result<()> {
        let off = self.attached.iter().filter(|attached| attached.receive_offload_off());
        let mut receive_offload = self.receive_offload.clone();
        receive_offload.extend(off.map(|attached| attached.called().to_owned()));
        let mut tag_stripping = self.tag_stripping.clone();
        tag_stripping.extend(self.attached.iter().flat_map(Attached::keep_tags).map(str::to_owned));
        self.notes.write(HostChanges {
            forwarding: self.switches.changes().to_vec(),
            vips_on: self.vips_on.clone(),
            receive_offload,
            tag_stripping,
            counted: self
                .attached
                .iter()
                .filter(|attached| !attached.at.counted.is_empty())
                .map(|attached| (attached.at.ifindex, attached.at.counted.clone()))
                .chain(self.counted.clone())
                .collect(),
        })
    }

    fn on(&self) -> Vec<(String, u32)> {
        self.attached.iter().map(|attached| (attached.at.name.clone(), attached.at.ifindex)).collect()
    }

    fn trouble(&mut self, about: &str, error: &anyhow::Error) {
        let text = format!("{error:#}");
        if self.troubles.get(about) != Some(&text) {
            self.events.warn(&text);
        }
        self.round.insert(about.to_owned(), text);
    }

    fn end_round(&mut self) -> bool {
        self.troubles = mem::take(&mut self.round);
        self.troubles.is_empty()
    }
}

/// The wanted addresses with their interfaces.
#[derive(Debug, Default)]
struct Places {
    all: BTreeSet<InterfaceAddress>,
    /// The addresses that the balancer announces to neighbours.
    announced: BTreeSet<InterfaceAddress>,
}

fn names(links: &[Link]) -> Vec<(String, u32)> {
    links.iter().map(|link| (link.name.clone(), link.ifindex)).collect()
}

fn borrowed(on: &[(String, u32)]) -> Vec<AttachedInterface<'_>> {
    on.iter().map(|(name, ifindex)| AttachedInterface { name, ifindex: *ifindex }).collect()
}

fn named(ifindex: u32, links: &[Link]) -> String {
    let link = links.iter().find(|link| link.ifindex == ifindex);
    link.map_or_else(|| format!("number {ifindex}"), |link| link.name.clone())
}
