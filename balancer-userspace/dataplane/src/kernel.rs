//! The data path in the kernel: loads the program, attaches the program, and writes the program's maps.

mod growth;
mod rescan;
mod start;

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    mem::offset_of,
    net::IpAddr,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use anyhow::{Context as _, bail};
use aya::{
    Ebpf,
    maps::{MapData, RingBuf},
    programs::{SchedClassifier, Xdp},
};
use aya_log::EbpfLogger;
use balancer_common::{
    clock::Clock,
    features::Features,
    kept::{BackendHistory, ServiceHistory},
    map_types::{
        BackendStats, CONTROL_DIRECT, CONTROL_FLOWS, CONTROL_PEERS, CONTROL_PORT_WILDCARD, CONTROL_RETURN_WILDCARD,
        CONTROL_RETURNS, Control, DropStats, InterfaceStats, LAST_BACKEND, LAYOUT_VERSION, ListenerRow, ListenerStats,
        NO_BACKEND, RangeRow, ReplyStats, ReturnRow, RuleStats, ServiceRow, ShareStats,
    },
    quic::QuicStats,
    service_table::{TableView, vip_bit},
};
use balancer_control::{
    features::{self, words},
    io::{BackendId, BackendSpec, ListenerId, RuleAction, RuleSpec, ServiceId, ServiceSpec},
    room::Need,
    served::HandshakeCounts,
    snapshot::{MemorySnapshot, Unanswered},
};
use balancer_fleet::clients::Sharing;
use ipnet::IpNet;
use log::Log;

use super::{
    Dataplane, Forgotten, KnownClient, Rescanned, Swept,
    attach::{Attacher, Attachment},
    backend_counters::BackendCounters,
    backends::Backends,
    capacity::Capacity,
    classifiers,
    clients::KnownClients,
    counters::Counters,
    default_hops::DefaultHops,
    denied::DeniedBy,
    devices::{DeviceTable, Devices},
    flows::{FlowMaps, FlowTable, FormerFlows},
    former_clients::FormerClients,
    grace::{Grace, GracePeriods},
    growth::{Growth, Larger},
    halves::Halves,
    handshakes::Handshakes,
    host_changes::HostChanges,
    interfaces::{Interfaces, THIS_MACHINE, WaysIn},
    kept::{Kept, NotesWriter},
    layers::Layers,
    listeners,
    mapped::MappedArray,
    memory::Memory,
    peers::Peers,
    pins::{Notes, Pins},
    programs::{InUse, Programs},
    quic::QuicTable,
    redirects::RedirectErrors,
    reported::Reported,
    rescan::Rescan,
    rows,
    rules::RuleTable,
    seen::Seen,
    signs::SignTable,
    stickiness::Stickiness,
};

/// The number of entries that another thread scans in one part of a sweep: about a millisecond of work.
const SWEEP_PART: usize = 1 << 18;
/// The number of entries processed at a time after a change: about an eighth of a millisecond of work, because this
/// work may delay the handling of a failure.
const CHANGE_PART: usize = 1 << 15;
/// The number of deny-list prefixes written at a time: about a millisecond of work.
const STEPS: usize = 1 << 9;
/// The error message if another caller has already taken the program.
const TAKEN: &str = "the kernel program was handed on before";

/// The kernel's data path.
pub struct KernelDataplane {
    control: MappedArray<Control>,
    listeners: Halves<ListenerRow>,
    ranges: Halves<RangeRow>,
    services: Halves<ServiceRow>,
    returns: Halves<ReturnRow>,
    pub(super) backends: Backends,
    interfaces: Interfaces,
    ways_in: WaysIn,
    counters: Counters,
    pub(super) stickiness: Stickiness,
    /// The clients that other programs have reported.
    pub(super) reported: Arc<Reported>,
    /// The earlier controller's client table, which is needed until the new program replaces that controller's program.
    former_clients: Option<FormerClients>,
    former_flows: Option<FormerFlows>,
    seen: Seen,
    rules: RuleTable,
    capacity: Capacity,
    /// The total size of the maps in bytes.
    map_bytes: u64,
    pub(super) directory: Vec<ServiceSpec>,
    /// The directory after the last completed change; `None`: no directory was published yet.
    settled: Option<Vec<ServiceSpec>>,
    /// For services whose clocks were set or that were removed since the last completed change: the client memory at
    /// that change.
    former: HashMap<ServiceId, Memory>,
    /// The remaining work in the client table after a change.
    rescan: Option<Rescan>,
    pub(super) elapsed: Duration,
    grace_periods: Arc<GracePeriods>,
    /// The grace period after which the program no longer reads the inactive half of the directory.
    published: Option<Grace>,
    attached: Vec<Attachment>,
    handover_key: u64,
    /// Whether the program sends replies to clients.
    replies: Arc<AtomicBool>,
    devices: DeviceTable,
    peers: Peers,
    redirect_errors: RedirectErrors,
    flows: FlowMaps,
    signs: SignTable,
    handshakes: Handshakes,
    quic: QuicTable,
    kept: Kept,
    /// Records of what the other members of a fleet know about clients; `None`: the balancer belongs to no fleet.
    pub(super) sharing: Option<Sharing>,
    /// The programs, until a caller takes them.
    programs: Option<Programs>,
    /// The features of the programs in use.
    in_use: InUse,
    /// The growth in progress, during which both the program with the present maps and the program with larger maps may
    /// process packets.
    growing: Option<Growth>,
}

/// The method [`KernelDataplane::take_host_ends`] takes these objects.
pub struct HostEnds {
    /// Attaches the program to interfaces.
    pub attacher: Attacher,
    /// The pins that will outlive this process, or that have outlived another process.
    pub pins: Option<Pins>,
    /// Writes the notes for the next controller.
    pub notes: NotesWriter,
}

impl KernelDataplane {
    /// The number of rows of backends; every backend id is below this number.
    #[must_use]
    pub const fn backend_rows(&self) -> u32 {
        self.capacity.backends
    }

    fn check_backend(&self, id: BackendId) -> anyhow::Result<()> {
        let rows = self.backend_rows();
        anyhow::ensure!((1..=LAST_BACKEND).contains(&id.0), "backend id {} is out of range", id.0);
        anyhow::ensure!(u32::from(id.0) < rows, "no room for backend id {} in {rows} rows; a restart makes room", id.0);
        Ok(())
    }

    /// The size of all maps in bytes.
    #[must_use]
    pub const fn map_bytes(&self) -> u64 {
        self.map_bytes
    }

    /// The number of parts in a complete sweep.
    #[must_use]
    pub fn sweep_parts(&self) -> usize {
        self.stickiness.clients.words().len().div_ceil(SWEEP_PART)
    }

    /// Returns the data that outlives this process.
    pub const fn kept(&mut self) -> &mut Kept {
        &mut self.kept
    }

    /// Takes the objects that change this machine: the program, which the caller attaches to interfaces; the pins,
    /// which outlive this process; and the writer of notes for the next controller. The notes contain `instance` and
    /// `state_file`, which identify the controller's saved state. The caller can take these objects only once.
    ///
    /// # Errors
    /// Fails if these objects were taken before.
    pub fn take_host_ends(&mut self, instance: u64, state_file: &Path) -> anyhow::Result<HostEnds> {
        if let Some(former) = &mut self.former_flows {
            former.block(&self.flows.table());
        }
        let notes = Notes {
            layout_version: LAYOUT_VERSION,
            version: env!("CARGO_PKG_VERSION").to_owned(),
            instance,
            interface_multiplier: self.counters.interface_multiplier(),
            flows: self.capacity.flows,
            process: std::process::id(),
            state_file: state_file.to_owned(),
            host: HostChanges::default(),
        };
        let programs = self.programs.take().context(TAKEN)?;
        let (pins, maps) = self.kept.take_pins();
        let links = pins.as_ref().map(Pins::link_pins);
        let numbers = (self.counters.interface_multiplier(), self.handover_key);
        let attacher = Attacher::new(programs, maps, links, numbers, Arc::clone(&self.grace_periods));
        Ok(HostEnds { attacher, pins, notes: self.kept.take_notes(notes)? })
    }

    /// Records the interfaces to which XDP cannot send every frame.
    ///
    /// # Errors
    /// Fails if the kernel refuses a write.
    pub fn set_devices(&mut self, known: &Devices) -> anyhow::Result<()> {
        self.devices.set(known, &self.control, &mut self.backends)
    }

    /// Returns the key in the mark of frames that the XDP program hands to the kernel.
    #[must_use]
    pub const fn handover_key(&self) -> u64 {
        self.handover_key
    }

    /// The loaded XDP program.
    ///
    /// # Errors
    /// Fails if the object contains no such program, which would be a broken build, or if the program was taken before.
    pub fn program(&mut self) -> anyhow::Result<&mut Xdp> {
        self.programs.as_mut().context(TAKEN)?.plain()
    }

    /// The loaded classifier that writes the VIP as the source of replies that servers on this machine send.
    ///
    /// # Errors
    /// Fails if the object contains no such program, which would be a broken build, or if the programs were taken
    /// before.
    pub fn local_replies(&mut self) -> anyhow::Result<&mut SchedClassifier> {
        classifiers::local_replies(self.programs.as_mut().context(TAKEN)?.newest())
    }

    /// Loads the tracing program into the kernel.
    ///
    /// # Errors
    /// Fails if the object contains no such program, if the program was taken before, or if the kernel refuses it.
    pub fn load_telling(&mut self) -> anyhow::Result<&mut Xdp> {
        self.programs.as_mut().context(TAKEN)?.telling()
    }

    /// The features of the programs in use.
    #[must_use]
    pub fn features(&self) -> Features {
        self.in_use.get()
    }

    fn object(&mut self) -> Option<&mut Ebpf> {
        self.programs.as_mut().map(Programs::object)
    }

    /// Records the interfaces to which the program is attached.
    pub fn set_attached(&mut self, attached: Vec<Attachment>) {
        if !attached.is_empty() {
            let flows = self.former_flows.take().map(|former| former.replace(&self.flows.table()));
            let clients = self.former_clients.take().map(|former| self.stickiness.catch_up(former));
            for error in flows.into_iter().chain(clients).filter_map(Result::err) {
                tracing::warn!("{error:#}");
            }
        }
        let there: BTreeSet<u32> = attached.iter().flat_map(Attachment::ways_in).collect();
        self.interfaces.remove(|ifindex| !there.contains(&ifindex));
        there.iter().for_each(|&ifindex| self.interfaces.add(ifindex));
        self.counters.count_by_parts(&attached);
        self.write_ways_in();
        self.attached = attached;
    }

    /// Records this machine's network devices, which determine which frames are for this machine and by which
    /// interfaces backends' replies arrive.
    pub fn set_layers(&mut self, layers: Layers) {
        self.interfaces.set_layers(layers);
        self.write_ways_in();
    }

    fn write_ways_in(&self) {
        self.set_ways_in(self.ways_in.all());
    }

    fn set_ways_in(&self, backends: impl IntoIterator<Item = BackendId>) {
        self.ways_in.write(backends, &self.interfaces, &self.returns.rows, &self.flows);
    }

    /// Takes the ring buffer of neighbours for which the program has dropped `nat` replies. The caller can take this
    /// buffer only once.
    ///
    /// # Errors
    /// Fails if the buffer was taken before.
    pub fn take_neighbours_wanted(&mut self) -> anyhow::Result<RingBuf<MapData>> {
        let map = self.object().and_then(|object| object.take_map("NEIGHBOURS_WANTED"));
        let map = map.context("the ring buffer was taken before")?;
        Ok(map.try_into()?)
    }

    /// Takes the writer of the default next hops. The caller can take this writer only once.
    ///
    /// # Errors
    /// Fails if the writer was taken before.
    pub fn take_default_hops(&mut self) -> anyhow::Result<DefaultHops> {
        let replies = Arc::clone(&self.replies);
        DefaultHops::new(self.object().context(TAKEN)?, replies)
    }

    /// Takes the ring buffer of signs that backends may have failed. The caller can take this buffer only once.
    ///
    /// # Errors
    /// Fails if the buffer was taken before.
    pub fn take_suspects(&mut self) -> anyhow::Result<RingBuf<MapData>> {
        let map = self.object().and_then(|object| object.take_map("SUSPECTS"));
        let map = map.context("the ring buffer of suspects was taken before")?;
        Ok(map.try_into()?)
    }

    /// The record of unfinished handshakes, in a form that another thread can read.
    #[must_use]
    pub fn handshake_record(&self) -> Handshakes {
        self.handshakes.clone()
    }

    /// Takes the ring buffer of sampled packets. The caller can take this buffer only once.
    ///
    /// # Errors
    /// Fails if the buffer was taken before.
    pub fn take_samples(&mut self) -> anyhow::Result<RingBuf<MapData>> {
        let map = self.object().and_then(|object| object.take_map("SAMPLES"));
        let map = map.context("the ring buffer of samples was taken before")?;
        Ok(map.try_into()?)
    }

    /// Takes the kernel program's log, for the `log` crate; the log is empty unless the program was loaded with
    /// logging. The caller can take this log only once.
    ///
    /// # Errors
    /// Fails if the log was taken before.
    pub fn take_log<T: Log>(&mut self, logger: T) -> anyhow::Result<EbpfLogger<T>> {
        EbpfLogger::init_with_logger(self.object().context(TAKEN)?, logger).context("the log of the kernel program")
    }

    /// Sets the average interval between samples; with 0, the program samples no packet.
    pub fn sample_every(&self, interval: u32) {
        self.control.word32(0, offset_of!(Control, sample_interval)).store(interval, Ordering::Release);
    }

    /// Publishes these tables, so that the program uses them for packets.
    fn publish(&mut self, listeners: TableView, returns: TableView, flags: u32, vips: u64) {
        // Until the program sees the new listeners, the VIP filter must contain the VIPs of both tables.
        let known = self.control.word64(0, offset_of!(Control, vips));
        known.store(known.load(Ordering::Acquire) | vips, Ordering::Release);
        // Between these two stores, the program may see the new table of listeners with the old return table. Either
        // order of the stores is safe for a connection that exists in both states; the replies of a new service are
        // sent only after its first packet.
        self.control.word64(0, offset_of!(Control, returns)).store(returns.to_word(), Ordering::Release);
        // A flag makes the program do an additional lookup. The controller sets a flag before the lookup is needed, and
        // clears it after the lookup is no longer needed.
        let looks = self.control.word32(0, offset_of!(Control, flags));
        looks.store(looks.load(Ordering::Acquire) | flags, Ordering::Release);
        self.replies.store(flags & (CONTROL_RETURNS | CONTROL_FLOWS) != 0, Ordering::Release);
        self.control.word64(0, offset_of!(Control, listeners)).store(listeners.to_word(), Ordering::Release);
        looks.store(flags, Ordering::Release);
        self.control.word64(0, offset_of!(Control, vips)).store(vips, Ordering::Release);
        self.listeners.activate();
        self.ranges.activate();
        self.services.activate();
        self.returns.activate();
    }

    /// Sets the clock of every service.
    fn advance(&mut self, elapsed: Duration) {
        let elapsed = self.kept.elapsed_before() + elapsed;
        if elapsed.as_secs() == self.elapsed.as_secs() {
            return;
        }
        self.elapsed = elapsed;
        self.kept.keep_elapsed(elapsed);
        let settled = self.ways_in.expire(elapsed);
        self.set_ways_in(settled);
        // If the counters cannot be read, the period does not end early.
        let counted = self.counters.memory().unwrap_or_default();
        if let Some(salt) = self.seen.advance(elapsed, counted, rows::only_openers(&self.directory)) {
            self.begin_period(salt);
        }
        for (id, memory) in &mut self.stickiness.memories {
            memory.tick = memory.tick_at(elapsed);
            self.kept.keep_tick(*id, memory.tick);
            if let Some(row) = self.stickiness.tables.row(*id) {
                self.services.rows.store32(row as usize, offset_of!(ServiceRow, tick), memory.tick.into());
            }
        }
    }

    /// Starts a period with `salt`, which determines clients' bits in the filter of seen clients. At the start of the
    /// period, the filter shows no client as seen.
    fn begin_period(&self, salt: u64) {
        self.control.word64(0, offset_of!(Control, seen_salt)).store(salt, Ordering::Release);
        self.seen.clear();
    }
}

impl Dataplane for KernelDataplane {
    fn require(&mut self, features: Features) -> anyhow::Result<()> {
        let present = self.in_use.get();
        if present.has(features) {
            return Ok(());
        }
        let Some(programs) = &mut self.programs else {
            bail!("the kernel program that runs has no code for {}", words(features.without(present)))
        };
        if let Some(richer) = programs.richer(features, false)? {
            programs.adopt(richer);
        }
        Ok(())
    }

    fn growth(&self, need: &Need) -> Option<Growth> {
        self.growth_for(need)
    }

    fn make_room(&mut self, need: &Need) -> anyhow::Result<()> {
        self.make_room_for(need)
    }

    fn begin_growth(&mut self, larger: Larger) -> anyhow::Result<()> {
        self.write_to_both(larger)
    }

    fn end_growth(&mut self, is_used: bool) {
        self.write_to_one(is_used);
    }

    fn write_backend(&mut self, backend: &BackendSpec) -> anyhow::Result<()> {
        let id = backend.id;
        self.check_backend(id)?;
        self.require(features::of_row(backend))?;
        let begins = self.counters.begin(id);
        if begins {
            self.kept.forget_backend(id);
            self.quic.begin(id);
        }
        self.signs.set(id, backend.passive, begins);
        self.stickiness.clients.belongs(id, Some(backend.service));
        // The controller records the egress interface before the program sends the first packet to the new next hop.
        let egress = backend.next_hop.map(|hop| if hop.local { THIS_MACHINE } else { hop.ifindex });
        if self.ways_in.moved(id, egress, self.elapsed) || begins {
            self.set_ways_in([id]);
        }
        let (standing, row) = rows::backend(backend);
        self.backends.write(id, standing, self.devices.asking(row));
        self.peers.set(backend)
    }

    fn retire_backend(&mut self, id: BackendId) -> anyhow::Result<()> {
        self.check_backend(id)?;
        self.backends.retire(id);
        self.ways_in.forget(id);
        self.peers.forget(id)?;
        self.counters.end(id);
        self.stickiness.clients.belongs(id, None);
        self.sharing.iter_mut().for_each(|sharing| sharing.forget_backend(id.0));
        Ok(())
    }

    fn swap_table(&mut self, service: ServiceId, table: Arc<[u16]>, home: Option<Arc<[u16]>>) -> anyhow::Result<()> {
        let is_new = !self.stickiness.memories.contains_key(&service);
        // If the caller undoes a change, it lists a service again which the change had removed; the clients of this
        // service are still at their backends.
        let former = self.former.get(&service).filter(|_| is_new).cloned();
        let adopted = self.kept.adopted() || former.is_some();
        let begin = || {
            former.unwrap_or_else(|| {
                if !self.directory.is_empty() {
                    // An earlier controller may have used this id for another service.
                    self.kept.forget_service(service);
                }
                Memory::new(self.kept.tick(service))
            })
        };
        let rows = &self.services.rows;
        self.stickiness.swap(service, (table, home.as_deref()), adopted, begin, |row, table| {
            rows.store64(row as usize, offset_of!(ServiceRow, table), table.to_word());
        })
    }

    fn publish_services(&mut self, services: &[ServiceSpec]) -> anyhow::Result<()> {
        self.require(services.iter().map(features::of_published).fold(Features::NONE, |all, one| all | one))?;
        self.rescan_all();
        // The controller sets the clocks only after the last step that can fail.
        let mut memories = Vec::with_capacity(services.len());
        let mut clocked = Vec::with_capacity(services.len());
        for spec in services {
            let (Some(table), Some(memory)) =
                (self.stickiness.tables.location(spec.id), self.stickiness.memories.get(&spec.id))
            else {
                bail!("service {} has no table", spec.id.0)
            };
            let mut memory = memory.clone();
            memory.retime(spec.clock(), self.elapsed);
            clocked.push((table, memory.published(), memory.tick));
            memories.push((spec.id, memory));
        }
        let mut return_rows: Vec<_> = services.iter().flat_map(rows::returns).collect();
        for row in &mut return_rows {
            row.interfaces = self.ways_in.word(BackendId(row.backend), &self.interfaces);
        }
        let return_wildcard = return_rows.iter().any(|row| row.key.port == 0);
        return_rows.extend(rows::return_markers(&return_rows));

        // The program may still read the inactive halves, which were active until the last change.
        if let Some(published) = self.published {
            self.grace_periods.wait(published);
        }
        let quic = self.quic.prepare(services)?;
        let service_rows: Vec<_> = services
            .iter()
            .zip(clocked)
            .map(|(spec, (table, clock, tick))| rows::service(spec, table, quic.row(spec.id), (clock, tick)))
            .collect();
        let first_service = self.services.fill_densely(&service_rows, "services")?;
        let found = listeners::rows(services, first_service, self.ranges.inactive_base());
        self.ranges.fill_densely(&found.ranges, "ranges of ports")?;
        let keys: Vec<_> = found.listeners.iter().map(|row| row.key).collect();
        let placed_listeners = self.listeners.fill(&found.listeners, &keys)?;
        let keys: Vec<_> = return_rows.iter().map(|row| row.key).collect();
        let placed_returns = self.returns.fill(&return_rows, &keys)?;

        self.peers.publish(services)?;
        let mut flags = 0;
        if self.flows.publish(services)? {
            flags |= CONTROL_FLOWS;
        }
        if found.wildcard {
            flags |= CONTROL_PORT_WILDCARD;
        }
        if !return_rows.is_empty() {
            flags |= CONTROL_RETURNS;
        }
        if self.peers.any() {
            flags |= CONTROL_PEERS;
        }
        if services.iter().any(rows::has_direct_connections) {
            flags |= CONTROL_DIRECT;
        }
        if return_wildcard {
            flags |= CONTROL_RETURN_WILDCARD;
        }
        for (id, memory) in memories {
            if let Some(before) = self.stickiness.memories.insert(id, memory)
                && self.directory.iter().any(|spec| spec.id == id)
            {
                self.former.entry(id).or_insert(before);
            }
        }
        self.settled.get_or_insert_with(|| services.to_vec());
        let counted = services.iter().flat_map(|spec| &spec.listeners).filter(|listener| listener.counted);
        self.counters.listen(counted.map(|listener| listener.id).collect());
        let vips = found.listeners.iter().fold(0, |bits, row| bits | vip_bit(&row.key.address));
        self.publish(placed_listeners.view, placed_returns.view, flags, vips);
        let backends = return_rows.iter().map(|row| BackendId(row.backend)).zip(placed_returns.rows);
        self.ways_in.published(backends.filter(|(backend, _)| backend.0 != NO_BACKEND));
        self.published = Some(self.grace_periods.begin());
        self.quic.published(quic)?;

        let remembering = services.iter().filter(|spec| !spec.remember.is_zero()).count();
        let (own, common) = self.capacity.newcomers(remembering);
        self.control.word32(0, offset_of!(Control, newcomers_own)).store(own, Ordering::Release);
        self.control.word32(0, offset_of!(Control, newcomers_common)).store(common, Ordering::Release);
        let period = services.iter().filter_map(rows::seen_period).min();
        if let Some(salt) = self.seen.set_period(period, self.elapsed) {
            self.begin_period(salt);
        }
        self.counters.share(services.iter().map(|spec| spec.id).collect());
        self.directory = services.to_vec();
        let listed: HashMap<_, _> = services.iter().map(|spec| spec.id).zip(first_service..).collect();
        for gone in self.stickiness.tables.published(&listed) {
            if let Some(memory) = self.stickiness.memories.remove(&gone) {
                self.former.entry(gone).or_insert(memory);
            }
        }
        for spec in services {
            if pins_in_part(&self.rules, spec) {
                self.stickiness.flag_all(spec.id);
            }
        }
        self.rules.keep(|id| listed.contains_key(&id), &self.kept)
    }

    fn abandon(&mut self) {
        self.stickiness.discard_unpublished();
    }

    fn complete(&mut self) {
        self.begin_rereading();
    }

    fn rescan(&mut self) -> Rescanned {
        self.rescan_part()
    }

    fn set_rules(&mut self, service: ServiceId, rules: &[RuleSpec]) -> anyhow::Result<()> {
        let pins = |rule: &&RuleSpec| matches!(rule.action, RuleAction::Pin(_));
        let wanted: BTreeSet<IpNet> = rules.iter().filter(pins).map(|rule| rule.prefix).collect();
        let pinned: BTreeSet<IpNet> = self.rules.pinned(service).collect();
        let spec = self.directory.iter().find(|spec| spec.id == service);
        let in_part = spec.is_some_and(|spec| wanted.iter().any(|&prefix| is_part(prefix, spec)));
        if in_part || !pinned.is_subset(&wanted) {
            // The controller sets the flags before a client that is no longer pinned could go to the backend in the
            // table; known clients stay at their backends. While rules pin the whole client, the program reads the
            // client's entry for each of its packets. If rules pin only some of a client's addresses, the flag makes
            // the program read the client's entry.
            self.stickiness.flag_all(service);
        }
        let set = self.rules.set(service, rules, &self.kept);
        if !wanted.is_empty() || !pinned.is_empty() {
            // The program may still use the old rules for a packet in progress.
            self.stickiness.distrust(service);
        }
        set
    }

    fn set_list(&mut self, denied: &DeniedBy) -> anyhow::Result<()> {
        self.rules.set_list(denied)
    }

    fn step_lists(&mut self) -> anyhow::Result<bool> {
        self.rules.step(STEPS)
    }

    fn drop_list(&mut self, service: ServiceId) -> anyhow::Result<()> {
        self.rules.drop_list(service)
    }

    fn forget_left_lists(&mut self, spared: &HashSet<ServiceId>) -> anyhow::Result<()> {
        self.rules.forget_left_lists(|service| spared.contains(&service))
    }

    fn denied(&self, service: ServiceId) -> (usize, u64) {
        self.rules.denied(service)
    }

    fn rule_stats(&self, service: ServiceId, prefix: IpNet) -> anyhow::Result<RuleStats> {
        Ok(self.rules.stats(service, prefix))
    }

    fn rule_fallbacks(&self, service: ServiceId) -> anyhow::Result<u64> {
        Ok(self.rules.fallbacks(service))
    }

    fn adopt(
        &mut self,
        backends: &[(BackendId, ServiceId)],
        listeners: &[ListenerId],
        ruled: &[ServiceId],
    ) -> anyhow::Result<()> {
        listeners.iter().for_each(|&id| self.counters.adopt_listener(id));
        for &(id, service) in backends {
            self.counters.adopt(id);
            self.stickiness.clients.belongs(id, Some(service));
        }
        self.stickiness.clients.forget_strangers();
        if self.rules.pinned_before() {
            // In this controller's tables, all flags are set at first; until the program reads these tables, it reads
            // the previous controller's tables.
            self.stickiness.tables.flag_everything();
        }
        self.rules.forget_left(|service| ruled.contains(&service), &self.kept)
    }

    fn keep_backend_history(&self, id: BackendId, history: &BackendHistory) {
        self.kept.keep_backend(id, history);
    }

    fn keep_service_history(&self, id: ServiceId, history: &ServiceHistory) {
        self.kept.keep_service(id, history);
    }

    fn backend_stats(&self, id: BackendId) -> anyhow::Result<BackendStats> {
        self.check_backend(id)?;
        Ok(self.counters.backend(id))
    }

    fn listener_stats(&self, id: ListenerId) -> anyhow::Result<ListenerStats> {
        Ok(self.counters.listener(id))
    }

    fn share_stats(&self, id: ServiceId) -> ShareStats {
        self.counters.shared(id)
    }

    fn quic_stats(&self, id: ServiceId) -> anyhow::Result<QuicStats> {
        self.quic.stats(id)
    }

    fn migrated(&self, id: BackendId) -> u64 {
        self.quic.migrated(id)
    }

    fn works(&self, id: BackendId) {
        if self.check_backend(id).is_ok() {
            self.signs.works(id);
        }
    }

    fn withhold_again(&self, id: BackendId) {
        if self.check_backend(id).is_ok() {
            self.signs.withhold_again(id);
        }
    }

    fn withheld(&self, id: BackendId) -> u64 {
        if self.check_backend(id).is_ok() { self.signs.withheld(id) } else { 0 }
    }

    fn egress(&self, id: BackendId) -> Option<u32> {
        self.ways_in.egress(id)
    }

    fn missed(&self) -> BTreeSet<u32> {
        self.ways_in.missed(&self.interfaces)
    }

    fn unanswered(&self, id: BackendId) -> Option<Unanswered> {
        self.check_backend(id).ok().and_then(|_| self.signs.unanswered(id))
    }

    fn handshakes(&mut self, ids: &[BackendId]) -> BTreeMap<BackendId, HandshakeCounts> {
        self.signs.handshakes(ids)
    }

    fn watch_handshakes(&mut self, elapsed: Duration) {
        let stats = self.attached.iter().filter_map(|attached| self.counters.interface(attached.ifindex).ok());
        let packets = stats.flat_map(|stats| stats.verdicts).sum();
        let unsampled = self.signs.unsampled(packets, elapsed);
        self.control.word32(0, offset_of!(Control, unsampled)).store(unsampled, Ordering::Relaxed);
    }

    fn flows(&self) -> Arc<FlowTable> {
        self.flows.table()
    }

    fn backend_counters(&self) -> Arc<BackendCounters> {
        self.counters.many_backends()
    }

    fn attached(&self) -> &[Attachment] {
        &self.attached
    }

    fn interface_stats(&self, ifindex: u32) -> anyhow::Result<InterfaceStats> {
        self.counters.interface(ifindex)
    }

    fn sweep(&mut self, elapsed: Duration) -> Swept {
        self.advance(elapsed);
        // Some ages in entries may still be in ticks of earlier clocks.
        if self.rescan.is_some() {
            return Swept::Rests;
        }
        let Self { stickiness, rules, directory, quic, growing, .. } = self;
        // While the maps grow, the program sets a flag in one of two maps.
        let keeps =
            |service| growing.is_some() || directory.iter().any(|spec| spec.id == service && pins_in_part(rules, spec));
        // If the kernel refuses the read, this number differs each time, so the sweep clears no flag.
        let unread = elapsed.as_nanos() as u64;
        stickiness.sweep(SWEEP_PART, keeps, |service| quic.stats(service).map_or(unread, |stats| stats.migrated))
    }

    fn client(&self, service: ServiceId, address: IpAddr) -> Option<KnownClient> {
        let spec = self.directory.iter().find(|spec| spec.id == service)?;
        let (index, entry) = self.stickiness.clients.find(rows::client_hash(spec, address)?)?;
        let is_rescanned = self.rescan.as_ref().is_none_or(|rescan| rescan.has_read(index));
        self.stickiness.memories.get(&service)?.known(entry, is_rescanned, self.elapsed)
    }

    fn known_clients(&mut self) -> Option<KnownClients> {
        self.rescan_all();
        let clocks: HashMap<ServiceId, (Clock, u16)> = self
            .stickiness
            .memories
            .iter()
            .filter_map(|(&id, memory)| Some((id, (memory.clock?, memory.tick))))
            .collect();
        (!clocks.is_empty()).then(|| self.stickiness.clients.known(&clocks, Arc::clone(&self.reported)))
    }

    fn forget(&mut self, service: ServiceId, address: IpAddr) -> Forgotten {
        self.rescan_all();
        let spec = self.directory.iter().find(|spec| spec.id == service);
        let Some(hash) = spec.and_then(|spec| rows::client_hash(spec, address)) else { return Forgotten::default() };
        let forgotten = self.stickiness.forget(service, hash);
        // With the client's next packet, the program records the client at the backend of this packet.
        self.seen.forget(hash);
        forgotten
    }

    fn forget_all(&mut self, backend: BackendId, from: usize) -> (Forgotten, Option<usize>) {
        self.rescan_all();
        let part = self.stickiness.forget_all(backend, from, CHANGE_PART);
        if part.1.is_none() {
            let salt = self.seen.next(self.elapsed);
            self.begin_period(salt);
        }
        part
    }

    fn memory(&self) -> anyhow::Result<MemorySnapshot> {
        Ok(MemorySnapshot {
            capacity: u64::from(self.capacity.clients),
            entries: self.stickiness.sweep.entries(),
            exceptions: self.stickiness.tables.exceptions(),
            stats: self.counters.memory()?,
            samples: self.counters.samples()?,
        })
    }

    fn reply_stats(&self) -> anyhow::Result<ReplyStats> {
        self.counters.replies()
    }

    fn redirect_errors(&self) -> anyhow::Result<BTreeMap<u32, u64>> {
        self.redirect_errors.read()
    }

    fn drop_stats(&self) -> anyhow::Result<DropStats> {
        self.counters.drops()
    }
}

/// Whether a rule of a service pins only some of a client's addresses; if so, the client's entry belongs to the other
/// addresses.
fn pins_in_part(rules: &RuleTable, spec: &ServiceSpec) -> bool {
    rules.pinned(spec.id).any(|prefix| is_part(prefix, spec))
}

/// Whether a prefix contains only some of the addresses that a service treats as one client.
fn is_part(prefix: IpNet, spec: &ServiceSpec) -> bool {
    prefix.prefix_len() > spec.client_prefix
}
