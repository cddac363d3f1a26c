//! Chooses a client's backend, and decides whether to read the client table for it.
//!
//! For a slot without exceptions, the live table alone determines the backend of every client, and the program does not
//! read the client's entry.

use core::ptr;

use aya_ebpf::{bindings::BPF_F_MMAPABLE, macros::map, maps::Array};
use balancer_common::{
    client::{self, BegunHash},
    features::Features,
    map_types::{
        ALL_DOWN, Control, FAMILY_V4, LiveTable, NO_BACKEND, SERVICE_FAILBACK, SERVICE_READS_ALWAYS, SERVICE_REJECTS,
        SERVICE_REMEMBERS, SLOT_EXCEPTIONS, SLOT_REFILLED, ServiceRow, SlotLine, SlotPlace, TableSlot,
    },
    query::Query,
    verdict::{Decision, DecisionIndex, DropIndex, DropReason},
};

use crate::{
    cpu_rows,
    debug_log::{self, Oddity},
    features, forward,
    fragments::{self, Way},
    martian, memory,
    parse::{Ip, Ports, UDP},
    rules::{self, Ruled},
    share::{self, Treated},
    step::{Choice, Reject, Step, Unchosen, Watch},
};

/// The live tables of all services, each a run of whole lines.
#[map]
static SLOTS: Array<SlotLine> = Array::with_max_entries(1, BPF_F_MMAPABLE);

/// The backend of the client that sent `ip`, for a service without rules. If no backend takes the client, the result is
/// [`NO_BACKEND`] or [`ALL_DOWN`]; neither can be reached: see [`unreachable`].
#[inline(always)]
pub(crate) fn choose(
    control: &'static Control,
    service: &'static ServiceRow,
    ip: &Ip<'_>,
    ports: Ports,
) -> Result<Choice, DropReason> {
    let packet = Opening::of(ip, ports);
    // A call of the function for IPv6 would take nearly as long as the hash.
    let hash = if ip.family == FAMILY_V4 {
        service.hash.v4(service.masked_v4(ip.source[0]))
    } else {
        service.hash.v6(masked(service, &ip.source))
    };
    by_hash(
        control,
        service,
        hash,
        packet,
        Ruled::NONE,
        |choice| choice,
        |query, nobody| memory::consult(query).ok_or(nobody),
    )
}

/// Sends a packet to the backend of the client that sent `ip`, by `step`, or by [`Step::CONSULT`] if the program must
/// ask the client memory. `treated` says whether the packet passes to the host instead.
#[inline(always)]
pub(crate) fn choose_later(
    control: &'static Control,
    service: &'static ServiceRow,
    ip: &Ip<'_>,
    ports: Ports,
    treated: Treated,
    step: Unchosen,
) -> Step {
    let packet = Opening::of(ip, ports);
    let step = if treated.is_watched() { Watch::unchosen() } else { step };
    // A packet that opens a connection goes where the client's new connections go.
    let hosts = treated.has_changed() && !packet.opens && !packet.datagram;
    if hosts {
        share::ask(service, treated);
    }
    let packet = Opening { hosts, ..packet };
    let next = later(control, service, ip.family, &ip.source, packet, step);
    if packet.hosts { next.unless_hosts() } else { next }
}

/// Sends an error by `step` to the backend that would get a packet of `client` which opens no connection; `port` is the
/// client's port, if known. The program records and counts nothing. If the error is about a TCP `segment`, the host may
/// have the segment's connection.
#[inline(always)]
pub(crate) fn peek_later(
    control: &'static Control,
    service: &'static ServiceRow,
    (family, client): (u8, &[u32; 4]),
    port: Option<u16>,
    segment: bool,
    step: Unchosen,
) -> Step {
    let treated = Treated::of(service, family, client);
    let hosts = treated.has_changed() && segment && port.is_some();
    if !treated.is_steered() && !hosts {
        return Step::PASS;
    }
    if hosts {
        share::ask(service, treated);
    }
    let packet = Opening { port, opens: false, datagram: false, peeks: true, hosts };
    let next = later(control, service, family, client, packet, step);
    if packet.hosts { next.unless_hosts() } else { next }
}

#[inline(always)]
fn later(
    control: &'static Control,
    service: &'static ServiceRow,
    family: u8,
    client: &[u32; 4],
    packet: Opening,
    step: Unchosen,
) -> Step {
    let ruled = rules::find(service, client, packet.peeks);
    let steered = steer(
        control,
        service,
        &Client { family, address: client },
        packet,
        ruled,
        |choice| match candidate(choice.backend) {
            Ok(_) => step.chosen(choice),
            Err(reason) => end(service, packet, step, reason),
        },
        |query, nobody| memory::consult_later(query, step, end(service, packet, step, nobody)).ok_or(nobody),
    );
    match steered {
        Ok(step) => step,
        Err(reason) => end(service, packet, step, reason),
    }
}

/// Passes a packet of a client that the host serves to the host, and [remembers](remember_later) the client.
#[inline(always)]
pub(crate) fn pass_unsteered(
    control: &'static Control,
    service: &'static ServiceRow,
    ip: &Ip<'_>,
    ports: Ports,
) -> Step {
    if ip.fragment.is_first() {
        fragments::remember(ip, Way::Passed);
    }
    let step = share::unsteered(service.id);
    if martian::is_source(ip) { step } else { remember_later(control, service, ip, ports) }
}

/// The step for a packet that passes to the host: the client memory records the client at the backend in the live table,
/// or keeps the client's entry, so that the client is known before the program steers the client. Rules have no effect.
#[inline(always)]
fn remember_later(control: &'static Control, service: &'static ServiceRow, ip: &Ip<'_>, ports: Ports) -> Step {
    if !features::uses(Features::MEMORY) || service.flags & SERVICE_REMEMBERS == 0 {
        return Step::PASS;
    }
    let hash = client_hash(service, ip.family, &ip.source);
    let Some(slot) = live_slot(service, hash) else { return Step::PASS };
    let always = has_exceptions(service, slot);
    if !always && !ports.opens() && memory::seen(control, hash) {
        return Step::PASS;
    }
    memory::remember_alone(&Query {
        hash,
        service: service.id,
        live: candidate(slot.backend).ok(),
        live_is_home: slot.flags & SLOT_REFILLED == 0,
        pinned: false,
        migrates: false,
        opens: ports.opens(),
        datagram: ip.protocol == UDP,
        failback: service.flags & SERVICE_FAILBACK != 0,
        peeks: false,
        marks: !always,
        now: now(service),
        remember: service.remember,
        idle: service.idle,
    })
}

/// The step for a packet whose backend, chosen by [`choose`], cannot be reached.
#[inline(always)]
pub(crate) fn unreachable(service: &'static ServiceRow, choice: Choice) -> Step {
    match candidate(choice.backend) {
        Ok(_) => forward::no_way_to(choice),
        Err(reason) => nobody(service, reason),
    }
}

/// The step for a packet of a client that no backend takes.
#[inline(always)]
pub(crate) fn nobody(service: &'static ServiceRow, reason: DropReason) -> Step {
    if service.flags & SERVICE_REJECTS != 0 && features::uses(Features::REJECT) {
        Step::to(Reject { reason: DropIndex(reason as u8) })
    } else {
        Step::drop(reason)
    }
}

/// Like [`nobody`], but also for packets that are only watched or that only quote a client's packet.
#[inline(always)]
fn end(service: &'static ServiceRow, packet: Opening, step: Unchosen, reason: DropReason) -> Step {
    if step.watches() {
        Step::PASS
    } else if packet.peeks {
        Step::drop(reason)
    } else {
        nobody(service, reason)
    }
}

/// The connection-related properties of a packet.
#[derive(Clone, Copy)]
struct Opening {
    /// The client's port; a fragment may have no port.
    port: Option<u16>,
    /// Whether the packet opens a connection.
    opens: bool,
    /// Whether the packet is a datagram, which may open a connection.
    datagram: bool,
    /// Whether the packet only quotes a packet of the client, who did not send it: the program then records and counts
    /// nothing.
    peeks: bool,
    /// Whether the host may have the connection.
    hosts: bool,
}

impl Opening {
    #[inline(always)]
    fn of(ip: &Ip<'_>, ports: Ports) -> Self {
        Self {
            port: Some(ports.source()),
            opens: ports.opens(),
            datagram: ip.protocol == UDP,
            peeks: false,
            hosts: false,
        }
    }
}

/// The client that a packet belongs to.
struct Client<'a> {
    family: u8,
    address: &'a [u32; 4],
}

#[inline(always)]
fn steer<Answer>(
    control: &'static Control,
    service: &'static ServiceRow,
    client: &Client<'_>,
    packet: Opening,
    ruled: Ruled,
    chosen: impl Fn(Choice) -> Answer,
    ask: impl FnOnce(&Query, DropReason) -> Result<Answer, DropReason>,
) -> Result<Answer, DropReason> {
    if ruled.denies() {
        return Err(DropReason::Denied);
    }
    let hash = if ruled.spreads() {
        let port = packet.port.ok_or(DropReason::FragmentUnknown)?;
        rules::connection_hash(service, masked(service, client.address), port)
    } else {
        client_hash(service, client.family, client.address)
    };
    by_hash(control, service, hash, packet, ruled, chosen, ask)
}

/// Chooses the backend for a packet of a client with this hash.
#[inline(always)]
fn by_hash<Answer>(
    control: &'static Control,
    service: &'static ServiceRow,
    hash: u64,
    packet: Opening,
    ruled: Ruled,
    chosen: impl Fn(Choice) -> Answer,
    ask: impl FnOnce(&Query, DropReason) -> Result<Answer, DropReason>,
) -> Result<Answer, DropReason> {
    let slot = live_slot(service, hash).ok_or(DropReason::NoBackend)?;
    let pin = ruled.pin();
    let backend = pin.unwrap_or(slot.backend);
    if service.flags & SERVICE_REMEMBERS == 0 || !features::uses(Features::MEMORY) || ruled.spreads() {
        let decision = if pin.is_some() { Decision::Pinned } else { Decision::Stateless };
        let decision = DecisionIndex::from(packet.opens.then_some(decision));
        return Ok(chosen(Choice { backend, decision }));
    }
    let always = pin.is_some() || ruled.falls() || packet.peeks || has_exceptions(service, slot);
    if !always && !packet.opens && memory::seen(control, hash) {
        return Ok(chosen(Choice { backend, decision: DecisionIndex::NONE }));
    }
    let (live, nobody) = match candidate(backend) {
        Ok(live) => (Some(live), DropReason::AllDown),
        Err(reason) => (None, reason),
    };
    let query = Query {
        hash,
        service: service.id,
        live,
        live_is_home: slot.flags & SLOT_REFILLED == 0,
        pinned: pin.is_some(),
        migrates: false,
        opens: packet.opens,
        datagram: packet.datagram,
        failback: service.flags & SERVICE_FAILBACK != 0,
        peeks: packet.peeks,
        marks: !always,
        now: now(service),
        remember: service.remember,
        idle: service.idle,
    };
    ask(&query, nobody)
}

/// The backend in a slot, or the reason why the slot has none.
#[inline(always)]
const fn candidate(backend: u16) -> Result<u16, DropReason> {
    match backend {
        NO_BACKEND => Err(DropReason::NoBackend),
        ALL_DOWN => Err(DropReason::AllDown),
        backend => Ok(backend),
    }
}

#[inline(always)]
pub(crate) fn now(service: &'static ServiceRow) -> u16 {
    // SAFETY: a reference is valid for reads; the controller advances the clock with one store.
    unsafe { ptr::read_volatile(&raw const service.tick) as u16 }
}

/// The slot of a client's hash. The other bits of the flags belong to other slots.
#[inline(always)]
fn live_slot(service: &'static ServiceRow, hash: u64) -> Option<TableSlot> {
    placed_slot(service, hash).map(|(_, slot)| slot)
}

/// The slot of a client's hash, and the slot's place.
#[inline(always)]
pub(crate) fn placed_slot(service: &'static ServiceRow, hash: u64) -> Option<(SlotPlace, TableSlot)> {
    // The program reads this word once, because the controller replaces the table with one store to this word. SAFETY:
    // a reference is valid for reads.
    let table = LiveTable::from_word(unsafe { ptr::read_volatile(&raw const service.table) });
    let place = table.place(client::slot(hash, table.size));
    let Some(line) = SLOTS.get(place.line) else {
        debug_log::tell(Oddity::BeyondTables, place.line);
        return None;
    };
    // SAFETY: a reference is valid for reads; the controller replaces this word with one store.
    let flags = unsafe { ptr::read_volatile(&raw const line.flags) };
    // The verifier does not know that the index is below the number of slots.
    let index = (place.index % (size_of::<SlotLine>() / size_of::<u16>()) as u32) as usize;
    // SAFETY: the index lies within the line. While packets may read the line, only its flags change.
    let backend = unsafe { ptr::from_ref(line).cast::<u16>().add(index).read() };
    Some((place, TableSlot { backend, flags: flags >> index }))
}

/// Whether known clients of a slot may be at backends other than the backend in the table.
#[inline(always)]
pub(crate) const fn has_exceptions(service: &ServiceRow, slot: TableSlot) -> bool {
    (slot.flags as u16 | service.flags) & SERVICE_READS_ALWAYS != 0
}

/// Flags a slot, so that packets read the entries of its clients from now on.
#[inline(always)]
pub(crate) fn except(line: u32, index: u32) {
    if let Some(line) = SLOTS.get_ptr_mut(line) {
        // SAFETY: the pointer points to a map value; other CPUs and the controller change single bits of its flags.
        unsafe { cpu_rows::set_shared(&raw mut (*line).flags, SLOT_EXCEPTIONS << (index & 31)) };
    }
}

#[inline(always)]
pub(crate) fn client_hash(service: &ServiceRow, family: u8, client: &[u32; 4]) -> u64 {
    if family == FAMILY_V4 {
        service.hash.v4(service.masked_v4(client[0]))
    } else {
        let [first, second] = masked(service, client);
        balancer_hash_v6(&raw const service.hash, first, second)
    }
}

/// The hash of an IPv6 address. This is a global function, so the verifier checks it only once.
#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn balancer_hash_v6(begun: *const BegunHash, first: u64, second: u64) -> u64 {
    // SAFETY: the callers pass a part of a map value; the verifier does not know that the pointer is never null.
    unsafe { begun.as_ref() }.map_or(0, |begun| begun.v6([first, second]))
}

#[inline(always)]
fn masked(service: &ServiceRow, client: &[u32; 4]) -> [u64; 2] {
    service.masked(rules::words(client))
}
