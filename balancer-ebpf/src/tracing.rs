//! Reports packets on arrival and on departure, with the counters that changed between the two reports. Only the
//! tracing program, which is attached while a user traces or captures packets, contains this code.

mod others;

use core::{hint::black_box, mem::offset_of};

use aya_ebpf::{
    bindings::{BPF_F_NO_PREALLOC, xdp_action::XDP_PASS, xdp_md},
    helpers::{bpf_ktime_get_ns, generated::bpf_xdp_load_bytes},
    macros::map,
    maps::{Array, HashMap, PerCpuArray, PerfEventArray},
    programs::XdpContext,
};
use balancer_common::{
    features::Features,
    map_types::{FAMILY_V4, FAMILY_V6},
    tracing::{
        self, ANSWERED_ECHO, ANSWERED_REJECTED, ANSWERED_TOO_BIG, Address, CAME, Draft, Found, Head, LEFT, MAX_KEPT,
        MAX_VIPS, MAX_WATCHED, MEMORY_EVICTED, MEMORY_FULL, MEMORY_LIMITED, MEMORY_RECORDED, Risen, SCANNED, Settings,
    },
    verdict::DropReason,
};

use crate::{features, ingress::Ingress, quic, stats};

#[map]
static TRACE_SETTINGS: Array<Settings> = Array::with_max_entries(1, 0);

/// The virtual addresses, as keys of this map; the values have no meaning.
#[map]
static TRACE_VIPS: HashMap<Address, u32> = HashMap::with_max_entries(MAX_VIPS, BPF_F_NO_PREALLOC);

/// The ids of backends whose counters the program compares.
#[map]
static TRACE_WATCHED: Array<u32> = Array::with_max_entries(MAX_WATCHED, 0);

#[map]
static TRACE_DRAFT: PerCpuArray<Draft> = PerCpuArray::with_max_entries(1, 0);

/// The digests of the watched backends' counters when the packet arrived.
#[map]
static TRACE_BACKENDS: PerCpuArray<u64> = PerCpuArray::with_max_entries(MAX_WATCHED, 0);

/// A ring buffer for each CPU, which the controller reads. No ring buffer exists while no user traces packets.
#[map]
static TRACE_EVENTS: PerfEventArray<Head> = PerfEventArray::new(0);

/// Reports an arriving packet. This is a global function, so it has its own stack, and the verifier checks it
/// separately.
#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn balancer_came(context: *mut xdp_md) -> u64 {
    u64::from(came(context).is_some())
}

/// Reports the outcome of a packet.
#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn balancer_left(context: *mut xdp_md, action: u64) -> u64 {
    u64::from(left(context, action as u32).is_some())
}

/// Runs `program` between the report of the arrival and the report of the outcome.
#[inline(always)]
pub fn around(context: *mut xdp_md, program: impl FnOnce() -> u32) -> u32 {
    balancer_came(context);
    let action = program();
    balancer_left(context, u64::from(action));
    action
}

#[inline(always)]
fn came(context: *mut xdp_md) -> Option<()> {
    let settings = TRACE_SETTINGS.get(0)?;
    // SAFETY: the row belongs to this CPU; programs on one CPU do not interrupt each other in the receive path.
    let draft = unsafe { &mut *TRACE_DRAFT.get_ptr_mut(0)? };
    draft.begun = 0;
    if is_of_others(context, settings, draft) {
        return None;
    }
    // SAFETY: the helper takes no pointer; the controller writes the word in one store.
    let (now, until) = unsafe { (bpf_ktime_get_ns(), (&raw const settings.until).read_volatile()) };
    if now >= until {
        return None;
    }
    scan(context, draft);
    draft.matches = u32::from(concerns(&draft.found, settings));
    draft.vip = u32::from(is_vip(&draft.found.destination));
    // A reply may carry the client's address only on departure, whereas a packet for a VIP already carries it on
    // arrival.
    if draft.vip != 0 && draft.matches == 0 {
        return None;
    }
    draft.drops = *stats::drops()?;
    draft.replies = *stats::replies()?;
    draft.memory = *stats::memory()?;
    // An earlier packet may have left a result, which this call clears.
    quic::said();
    draft.watched = if draft.vip != 0 { settings.watched } else { 0 };
    each_watched(draft.watched, |place, _, now| {
        if let Some(place) = TRACE_BACKENDS.get_ptr_mut(place) {
            // SAFETY: a row of this CPU.
            unsafe { place.write(now) };
        }
    });
    clear(&raw mut draft.head);
    // SAFETY: the context is the kernel's.
    unsafe {
        draft.head.ifindex = (*context).ingress_ifindex;
        draft.head.queue = (*context).rx_queue_index;
    }
    draft.head.time = now;
    draft.head.stage = CAME;
    draft.begun = 1;
    tell(context, settings, &mut draft.head);
    Some(())
}

/// Whether a packet neither has nor will have the address of a client to report. A reply of a `snat` backend gets the
/// client's address on departure, and its destination is no VIP.
#[inline(always)]
fn is_of_others(context: *mut xdp_md, settings: &Settings, draft: &mut Draft) -> bool {
    // SAFETY: the context is the kernel's.
    let frame = unsafe { Ingress::new(context) }.frame();
    let Some(destination) = others::destination(frame, settings) else { return false };
    if !features::uses(Features::SNAT) {
        return true;
    }
    draft.found.destination = destination;
    is_vip(&draft.found.destination)
}

#[inline(always)]
fn left(context: *mut xdp_md, action: u32) -> Option<()> {
    let settings = TRACE_SETTINGS.get(0)?;
    let draft = TRACE_DRAFT.get_ptr_mut(0)?;
    // SAFETY: as above. `balancer_risen` gets no reference while this one is in use.
    let watched = describe(context, action, settings, unsafe { &mut *draft })?;
    each_watched(watched, |place, id, now| {
        if let Some(&then) = TRACE_BACKENDS.get(place)
            && then != now
        {
            balancer_risen(u64::from(id), then, now);
        }
    });
    // SAFETY: as above.
    tell(context, settings, unsafe { &mut (*draft).head });
    Some(())
}

/// Describes the departing packet without what backends have counted. Returns the number of watched backends; `None`:
/// the packet is not reported.
#[inline(always)]
fn describe(context: *mut xdp_md, action: u32, settings: &Settings, draft: &mut Draft) -> Option<u32> {
    if draft.begun == 0 {
        return None;
    }
    draft.begun = 0;
    scan(context, draft);
    if draft.matches == 0 && !concerns(&draft.found, settings) {
        return None;
    }
    if draft.vip == 0 && !is_vip(&draft.found.source) && (settings.only_vips != 0 || action == XDP_PASS) {
        return None;
    }
    // SAFETY: the helper takes no pointer.
    draft.head.time = unsafe { bpf_ktime_get_ns() };
    draft.head.stage = LEFT;
    draft.head.action = action;
    compare(draft)?;
    Some(draft.watched)
}

/// Sends the packet report and the beginning of the frame to the controller.
#[inline(always)]
fn tell(context: *mut xdp_md, settings: &Settings, head: &mut Head) {
    // SAFETY: the context is the kernel's.
    let length = unsafe { Ingress::new(context) }.frame_length() as u32;
    head.length = length;
    head.kept = length.min(settings.snaplen).min(MAX_KEPT);
    TRACE_EVENTS.output(&XdpContext::new(context), *head, head.kept);
}

#[inline(always)]
fn concerns(found: &Found, settings: &Settings) -> bool {
    settings.family == 0
        || is_client(settings, &found.source)
        || is_client(settings, &found.destination)
        || is_client(settings, &found.quoted)
}

#[inline(always)]
fn is_client(settings: &Settings, address: &Address) -> bool {
    let mut differs = settings.family ^ address.family;
    differs |= (address.words[0] ^ settings.client[0]) & settings.mask[0];
    differs |= (address.words[1] ^ settings.client[1]) & settings.mask[1];
    differs |= (address.words[2] ^ settings.client[2]) & settings.mask[2];
    differs |= (address.words[3] ^ settings.client[3]) & settings.mask[3];
    differs == 0
}

#[inline(always)]
fn is_vip(address: &Address) -> bool {
    address.family != 0 && TRACE_VIPS.get_ptr(address).is_some()
}

/// Finds the source and destination addresses of a frame.
#[inline(always)]
fn scan(context: *mut xdp_md, draft: &mut Draft) {
    clear(&raw mut draft.found);
    clear(&raw mut draft.scanned);
    // SAFETY: the context is the kernel's.
    let length = black_box(unsafe { Ingress::new(context) }.frame_length().min(SCANNED));
    if length == 0 || length > SCANNED {
        return;
    }
    let bytes = (&raw mut draft.scanned).cast::<u8>();
    // SAFETY: the address lies within the row; the helper reads no further than the end of the frame.
    if unsafe { bpf_xdp_load_bytes(context, 0, bytes.cast(), length as u32) } != 0 {
        return;
    }
    // Bytes beyond the end of the frame are 0, which matches no address.
    let packet = Scanned(bytes);
    let mut at = 12;
    for _ in 0..2 {
        if !matches!(packet.u16(at), 0x8100 | 0x88a8) {
            break;
        }
        at += 4;
    }
    match packet.u16(at) {
        0x0800 => v4(packet, at + 2, &mut draft.found),
        0x86dd => v6(packet, at + 2, &mut draft.found),
        _ => {}
    }
}

/// Zeroes a value word by word, because a constant would need a map of its own.
#[inline(always)]
fn clear<T>(place: *mut T) {
    for index in 0..size_of::<T>() / 4 {
        // SAFETY: the address lies within the value, for which every bit pattern is valid.
        unsafe { place.cast::<u32>().add(index).write_volatile(0) };
    }
}

#[inline(always)]
fn v4(packet: Scanned, ip: usize, found: &mut Found) {
    packet.v4(ip + 12, &mut found.source);
    packet.v4(ip + 16, &mut found.destination);
    if packet.u8(ip + 9) == 1 {
        let header = usize::from(packet.u8(ip) & 15) * 4;
        packet.v4(ip + header + 8 + 16, &mut found.quoted);
    }
}

#[inline(always)]
fn v6(packet: Scanned, ip: usize, found: &mut Found) {
    packet.v6(ip + 8, &mut found.source);
    packet.v6(ip + 24, &mut found.destination);
    if packet.u8(ip + 6) == 58 {
        packet.v6(ip + 40 + 8 + 24, &mut found.quoted);
    }
}

/// The first [`SCANNED`] bytes of a frame. No caller reads beyond the first [`SCANNED`] bytes.
#[derive(Clone, Copy)]
struct Scanned(*const u8);

impl Scanned {
    #[inline(always)]
    fn u8(self, at: usize) -> u8 {
        // SAFETY: the address lies within the row.
        unsafe { self.0.add(at).read() }
    }

    #[inline(always)]
    fn u16(self, at: usize) -> u16 {
        // SAFETY: the address lies within the row.
        u16::from_be(unsafe { self.0.add(at).cast::<u16>().read_unaligned() })
    }

    #[inline(always)]
    fn u32(self, at: usize) -> u32 {
        // SAFETY: the address lies within the row.
        unsafe { self.0.add(at).cast::<u32>().read_unaligned() }
    }

    #[inline(always)]
    fn v4(self, at: usize, address: &mut Address) {
        address.words[0] = self.u32(at);
        address.family = FAMILY_V4 as u32;
    }

    #[inline(always)]
    fn v6(self, at: usize, address: &mut Address) {
        for word in 0..4 {
            address.words[word] = self.u32(at + 4 * word);
        }
        address.family = FAMILY_V6 as u32;
    }
}

/// Calls `look` with each watched backend's position, its id, and the digest of its counters on this CPU.
#[inline(always)]
fn each_watched(watched: u32, mut look: impl FnMut(u32, u32, u64)) {
    for place in 0..MAX_WATCHED {
        if place >= watched {
            break;
        }
        let Some(&id) = TRACE_WATCHED.get(place) else { break };
        look(place, id, balancer_digest(u64::from(id)));
    }
}

/// The digest of a backend's counters. As a global function it is verified once, and not for each watched backend.
#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn balancer_digest(backend: u64) -> u64 {
    stats::of_backend(backend as u16).map_or(0, tracing::digest)
}

/// Adds the counters of a backend that have risen to this CPU's draft.
#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn balancer_risen(backend: u64, before: u64, after: u64) -> u64 {
    let Some(draft) = TRACE_DRAFT.get_ptr_mut(0) else { return 0 };
    // SAFETY: a row of this CPU. `left` uses no reference to it during the call.
    let head = unsafe { &mut (*draft).head };
    Risen::between(before, after).describe(backend as u16, head);
    1
}

/// Records the counters of this CPU that have risen since the packet arrived.
#[inline(always)]
fn compare(draft: &mut Draft) -> Option<()> {
    let head = &mut draft.head;
    let drops = stats::drops()?;
    for index in 0..DropReason::COUNT {
        if drops.reasons[index] != draft.drops.reasons[index] {
            head.drop = index as u8 + 1;
        }
    }
    let replies = stats::replies()?;
    if replies.echo != draft.replies.echo {
        head.answered = ANSWERED_ECHO;
    }
    if replies.too_big != draft.replies.too_big {
        head.answered = ANSWERED_TOO_BIG;
    }
    if replies.rejected != draft.replies.rejected {
        head.answered = ANSWERED_REJECTED;
    }
    let memory = stats::memory()?;
    head.memory |= if memory.inserted == draft.memory.inserted { 0 } else { MEMORY_RECORDED };
    head.memory |= if memory.evicted == draft.memory.evicted { 0 } else { MEMORY_EVICTED };
    head.memory |= if memory.full == draft.memory.full { 0 } else { MEMORY_FULL };
    head.memory |= if memory.limited == draft.memory.limited { 0 } else { MEMORY_LIMITED };
    head.quic = quic::said();
    Some(())
}

const _: () = assert!(offset_of!(Draft, head) == 0);
