//! QUIC: if a server has issued a connection ID to its client, this ID determines the backend of the client's packets,
//! whatever source address the packets have.

use aya_ebpf::{
    bindings::{BPF_F_MMAPABLE, BPF_F_NO_PREALLOC},
    macros::map,
    maps::{Array, HashMap, PerCpuArray},
};
use balancer_common::{
    aes::Block,
    features::Features,
    map_types::{SERVICE_FLOWS, SERVICE_REMEMBERS, ServiceRow, SlotPlace},
    query::Query,
    quic::{
        CIPHER_NONE, Cipher, IdWords, MAX_QUIC_SERVICES, QUIC_LEARNS, QUIC_ROWS, QUIC_SECRET, QuicFormat, QuicRow,
        QuicServer, QuicStats,
    },
    tracing::{QUIC_GONE, QUIC_NAMED, QUIC_NO_ID, QUIC_TAUGHT, QUIC_UNKNOWN},
    verdict::{Decision, DecisionIndex, DropReason},
};

use crate::{
    backends, connection_id, control, features,
    found::Found,
    ingress::Ingress,
    martian, memory, parse,
    rules::{self, Ruled},
    scratch::{self, Row},
    service,
    share::Treated,
    steer,
    step::{Carries, Choice, FlowThere, Going, OpenFlow, Packed, Quic, QuicFlow, QuicNamed, Step, ToBackend, Watch},
};

/// The formats of QUIC connection IDs, by [`ServiceRow::quic`](balancer_common::map_types::ServiceRow::quic).
#[map]
static QUIC: Array<QuicRow> = Array::with_max_entries(QUIC_ROWS, BPF_F_MMAPABLE);

/// The ids of backends, by the server IDs in connection IDs. The controller sets the real number of rows of this map
/// when it loads the program.
#[map]
static QUIC_SERVERS: HashMap<QuicServer, u32> = HashMap::with_max_entries(1, BPF_F_NO_PREALLOC);

#[map]
static QUIC_STATS: PerCpuArray<QuicStats> = PerCpuArray::with_max_entries(MAX_QUIC_SERVICES as u32 + 1, 0);

/// A connection ID that one step stores for the packet's next step.
#[repr(C)]
#[derive(Clone, Copy)]
struct Asked {
    id: IdWords,
    /// The number of the ID's bytes in the datagram; 0: the datagram has no ID that a server has issued.
    length: u32,
    /// The row of the service, as in [`Quic::service`].
    service: u32,
    /// The backend's port, as in [`Quic::port`].
    port: u16,
    /// The value of [`ServiceRow::id`](balancer_common::map_types::ServiceRow::id).
    service_id: u16,
    /// The value of [`ServiceRow::quic`](balancer_common::map_types::ServiceRow::quic).
    row: u8,
    /// The result of reading the ID so far, which a packet trace shows: `QUIC_*` of [`balancer_common::tracing`], or 0.
    said: u8,
    reserved: [u8; 2],
}

const NONE: QuicNamed = QuicNamed { backend: 0, issued: false, teaches: false, flow: None };

/// Stores the connection ID of a datagram for the packet's next step, if a server has issued this ID to its client.
#[inline(always)]
pub(crate) fn read(found: &Found, packed: Packed<Quic>) -> Step {
    let Quic { service, port, unchecked } = packed.get();
    let (Some(control), Some(row)) = (control::words(), service::at(service)) else { return Step::PASS };
    if unchecked && (martian::is_source(&found.ip) || martian::is_vip(control, &found.ip)) {
        // The next step knows whether the host serves the client.
        let flows = features::uses(Features::SNAT) && row.flags & SERVICE_FLOWS != 0;
        return if flows { Step::FLOW } else { Step::drop(DropReason::Martian) };
    }
    let Some(asked) = scratch::place::<Asked>(Row::Quic) else { return Step::PASS };
    let (id, length) = connection_id::read(&found.ip).unwrap_or(([0; 3], 0));
    let (length, service_id, row) = (length as u32, row.id, row.quic);
    // SAFETY: the row belongs to this CPU; programs on one CPU do not interrupt each other in the receive path.
    unsafe { asked.write(Asked { id, length, service, port, service_id, row, said: QUIC_NO_ID, reserved: [0; 2] }) };
    if length == 0 { Step::to(NONE) } else { Step::QUIC_SERVER }
}

/// Finds the backend that the stored connection ID names. Counts a connection ID that names no backend.
#[inline(always)]
pub(crate) fn find(ingress: Ingress) -> Step {
    let Some(asked) = scratch::place::<Asked>(Row::Quic) else { return Step::to(NONE) };
    // SAFETY: the row belongs to this CPU, and nothing writes the value while this reference exists.
    let asked = unsafe { &*asked };
    // This condition on the frame is never true. Without an access to the frame, the compiler would leave out the
    // argument, and the verifier would refuse the call.
    if ingress.frame().is_empty() {
        return Step::to(NONE);
    }
    let row = u32::from(asked.row);
    let Some(named) = server(asked, row) else {
        count(asked.row, |stats| stats.unknown += 1);
        say(QUIC_UNKNOWN);
        return Step::to(NONE);
    };
    // A backend that is down or has drained keeps no clients.
    let keeps =
        backends::facts(named.backend).is_some_and(|facts| facts.keeps_known && facts.service == asked.service_id);
    if keeps && backends::reachable(named.backend).is_some() {
        let flows = features::uses(Features::SNAT)
            && service::at(asked.service).is_some_and(|service| service.flags & SERVICE_FLOWS != 0);
        return if flows { Step::to(QuicFlow(named)) } else { Step::to(named) };
    }
    say(QUIC_GONE);
    Step::to(NONE)
}

/// The service of the stored connection ID.
#[inline(always)]
pub(crate) fn service() -> Option<&'static ServiceRow> {
    let asked = scratch::place::<Asked>(Row::Quic)?;
    // SAFETY: the row belongs to this CPU; programs on one CPU do not interrupt each other in the receive path.
    service::at(unsafe { (*asked).service })
}

/// Records that the stored connection ID names a backend to which the datagram does not go.
#[inline(always)]
pub(crate) fn say_gone() {
    say(QUIC_GONE);
}

/// Stores the result of reading the connection ID.
#[inline(always)]
fn say(word: u8) {
    if let Some(asked) = scratch::place::<Asked>(Row::Quic) {
        // SAFETY: the row belongs to this CPU; programs on one CPU do not interrupt each other in the receive path.
        unsafe { (&raw mut (*asked).said).write(word) };
    }
}

/// Returns the result that was stored since the last call, and clears it: `QUIC_*` of [`balancer_common::tracing`], or
/// 0.
#[inline(always)]
pub(crate) fn said() -> u8 {
    let Some(asked) = scratch::place::<Asked>(Row::Quic) else { return 0 };
    // SAFETY: the row belongs to this CPU; programs on one CPU do not interrupt each other in the receive path.
    let word = unsafe { (&raw const (*asked).said).read() };
    say(0);
    word
}

#[inline(always)]
fn server(asked: &Asked, row: u32) -> Option<QuicNamed> {
    let row = QUIC.get(row)?;
    let format = row.format((asked.id[0] >> 56) as u8)?;
    if (asked.length as usize) < format.id_length() {
        return None;
    }
    let id = format.server_by(asked.id, |cipher, block| ciphered(format, cipher, block));
    let key = QuicServer { id, service: asked.service_id, length: u16::from(format.server), reserved: 0 };
    // SAFETY: the program copies the value immediately.
    let backend = *unsafe { QUIC_SERVERS.get(key) }? as u16;
    let is = |flag: u32| format.cipher != CIPHER_NONE && row.flags & flag != 0;
    Some(QuicNamed { backend, issued: is(QUIC_SECRET), teaches: is(QUIC_LEARNS), flow: None })
}

/// Does what [`QuicFormat::ciphered`] does.
#[inline(always)]
fn ciphered(format: &QuicFormat, cipher: Cipher, [first, second]: Block) -> Block {
    if balancer_cipher(format, u64::from(cipher == Cipher::Decrypt), first, second) == 0 {
        return [0; 2];
    }
    // SAFETY: the row belongs to this CPU; programs on one CPU do not interrupt each other in the receive path.
    scratch::place::<Block>(Row::Block).map_or([0; 2], |place| unsafe { place.read() })
}

/// Encrypts or decrypts a block, and stores the result in the scratch row. This is a global function, so the verifier,
/// which follows all rounds, checks it only once.
#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn balancer_cipher(format: *const QuicFormat, decrypts: u64, first: u64, second: u64) -> u64 {
    let cipher = if decrypts == 0 { Cipher::Encrypt } else { Cipher::Decrypt };
    // SAFETY: the callers pass a part of a map value; the verifier does not know that the pointer is never null.
    let (Some(format), Some(place)) = (unsafe { format.as_ref() }, scratch::place::<Block>(Row::Block)) else {
        return 0;
    };
    // SAFETY: the row belongs to this CPU; programs on one CPU do not interrupt each other in the receive path.
    unsafe { place.write(format.ciphered(cipher, [first, second])) };
    1
}

/// Sends a datagram to the backend that its connection ID names; without a named backend, steers the datagram by its
/// source address.
#[inline(always)]
pub(crate) fn choose(found: &Found, packed: Packed<QuicNamed>) -> Step {
    let ip = &found.ip;
    let Some(asked) = scratch::place::<Asked>(Row::Quic) else { return Step::PASS };
    // SAFETY: the row belongs to this CPU; programs on one CPU do not interrupt each other in the receive path.
    let (service, port) = unsafe { ((*asked).service, (*asked).port) };
    let Some(service) = service::at(service) else { return Step::PASS };
    let Some(control) = control::words() else { return Step::PASS };
    let Some(ports) = parse::ports(ip) else { return Step::PASS };
    let flows = features::uses(Features::SNAT) && service.flags & SERVICE_FLOWS != 0;
    let treated = Treated::of(service, ip.family, &ip.source);
    let step = if flows { OpenFlow::unchosen(port, true) } else { ToBackend::unchosen(Carries::Header, port) };
    let QuicNamed { backend, teaches, flow, .. } = packed.get();
    let ruled = if backend == 0 { Ruled::NONE } else { rules::find(service, &ip.source, true) };
    // Without a flow, the host gets the datagrams of the clients that it serves.
    let is_hosts = flows && flow.is_none() && !treated.is_steered() && !treated.is_watched();
    if backend == 0 || ruled.denies() || is_hosts {
        if flows {
            return Step::FLOW;
        }
        return steer::choose_later(control, service, ip, ports, treated, step);
    }
    count(service.quic, |stats| stats.steered += 1);
    say(QUIC_NAMED);
    let step = if treated.is_watched() { Watch::unchosen() } else { step };
    // The connection ID shows that a known client opens this flow.
    let decision = if flows && !treated.is_watched() { Some(Decision::Kept) } else { None };
    let step = match flow {
        Some(flow) => Step::to(FlowThere(Going { flow, decision: DecisionIndex::NONE })),
        None => step.chosen(Choice { backend, decision: DecisionIndex::from(decision) }),
    };
    if service.flags & SERVICE_REMEMBERS == 0 || !ruled.is_none() {
        return step;
    }
    let hash = steer::client_hash(service, ip.family, &ip.source);
    let Some((place, slot)) = steer::placed_slot(service, hash) else { return step };
    let unlike = slot.backend != backend;
    // The program need not read the entry of a known client that can only be at the backend named by the ID.
    let is_settled = !teaches || !unlike && !steer::has_exceptions(service, slot);
    if is_settled && memory::seen(control, hash) {
        return step;
    }
    let query = Query {
        hash,
        service: service.id,
        live: Some(backend),
        live_is_home: false,
        pinned: teaches,
        migrates: teaches,
        opens: false,
        datagram: false,
        failback: false,
        peeks: false,
        marks: true,
        now: steer::now(service),
        remember: service.remember,
        idle: service.idle,
    };
    memory::remember_later(&query, step, migration(service.quic, place, unlike)).unwrap_or(step)
}

const EXCEPTION: u64 = 1 << 62;

/// The value that the program passes to [`note`] after it has recorded a client at the backend of the client's
/// connection. The value contains the row of formats, the client's slot, and whether the slot needs an `exception`.
/// This value is never 0.
#[inline(always)]
fn migration(row: u8, place: SlotPlace, exception: bool) -> u64 {
    let exception = if exception { EXCEPTION } else { 0 };
    1 << 63 | exception | u64::from(place.line) | u64::from(place.index & 31) << 32 | u64::from(row) << 40
}

/// Counts a client that the program has recorded at the backend of the client's connection.
#[inline(always)]
pub(crate) fn note(migration: u64) {
    balancer_migrated(migration);
}

/// This is a separate function, so that its stack does not add to that of its callers.
#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn balancer_migrated(migration: u64) -> u64 {
    count((migration >> 40) as u8, |stats| stats.migrated += 1);
    say(QUIC_TAUGHT);
    if migration & EXCEPTION != 0 {
        steer::except(migration as u32, (migration >> 32 & 31) as u32);
    }
    0
}

/// Changes the QUIC counters of the service that uses a row of formats.
#[inline(always)]
fn count(row: u8, change: impl FnOnce(&mut QuicStats)) {
    if let Some(row) = QUIC.get(u32::from(row))
        && let Some(stats) = QUIC_STATS.get_ptr_mut(row.counters)
    {
        // SAFETY: the row belongs to this CPU; programs on one CPU do not interrupt each other in the receive path.
        change(unsafe { &mut *stats });
    }
}
