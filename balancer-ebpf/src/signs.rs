//! Signs that a backend may have failed: see [`balancer_common::signs`]. On such a sign, the controller immediately
//! checks the backend.

use aya_ebpf::{
    bindings::{BPF_F_MMAPABLE, xdp_md},
    helpers::bpf_ktime_get_coarse_ns,
    macros::map,
    maps::{Array, RingBuf},
};
use balancer_common::{
    map_types::{Control, SIGN_PERIOD, Sign, Signs},
    signs::{HANDSHAKES as PLACES, Handshake, Handshaker},
    verdict::Signal,
};

use crate::{
    control,
    cpu_rows::{add_shared, add_shared_u32},
    found::Found,
    ingress::Ingress,
    parse::{self, Ip, Ports, TCP},
};

/// The signs of each backend, by backend id. The controller sets the real number of rows of this map when it loads the
/// program.
#[map]
static SIGNS: Array<Signs> = Array::with_max_entries(1, BPF_F_MMAPABLE);

#[map]
static HANDSHAKES: Array<u64> = Array::with_max_entries(PLACES, BPF_F_MMAPABLE);

/// The buffer of signs that the program sends to the controller. If the buffer is full, the program reports the sign
/// again with the next packet.
#[map]
static SUSPECTS: RingBuf = RingBuf::with_byte_size(64 * 1024, 0);

/// Whether the program watches the handshakes of the client that sent a segment. Under heavy traffic, the program
/// watches only some of the clients.
#[inline(always)]
pub(crate) fn watches(control: &'static Control, ports: Ports) -> bool {
    u32::from(ports.source()) & unsampled(control) == 0
}

#[inline(always)]
fn unsampled(control: &'static Control) -> u32 {
    // SAFETY: a Rust reference is always valid for reads; the controller replaces the word in one store.
    unsafe { (&raw const control.unsampled).read_volatile() }
}

/// Records a packet to `backend` from a client whose handshakes are watched.
#[inline(always)]
pub(crate) fn watch(ip: &Ip<'_>, ports: Ports, backend: u16) {
    if !ports.is_segment() {
        return;
    }
    let client = Handshaker::new(&ip.source, ports.source());
    balancer_watch(client.word(), u64::from(backend) | u64::from(ports.opens()) << 16);
}

/// Records a packet to `backend`, if the packet is a segment of a client whose handshakes are watched.
#[inline(always)]
pub(crate) fn watch_any(found: &Found, backend: u16) {
    let Found { ingress, ip, .. } = found;
    if ip.protocol == TCP
        && let (Some(control), Some(source)) = (control::words(), ip.l4.load::<u16>(0))
        && u32::from(source) & unsampled(control) == 0
    {
        balancer_watch_any(ingress.context(), backend.into());
    }
}

/// This function reads the headers again, so that the verifier does not follow its caller for each kind of packet.
#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn balancer_watch_any(context: *mut xdp_md, backend: u64) -> u64 {
    // SAFETY: `watch_any` passes the program's context.
    let Some(Found { ip, .. }) = Found::again(unsafe { Ingress::new(context) }) else { return 0 };
    if let Some(ports) = parse::ports(&ip) {
        watch(&ip, ports, backend as u16);
    }
    0
}

/// This is a global function: the verifier checks it only once, and its callers need fewer instructions.
#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn balancer_watch(client: u64, what: u64) -> u64 {
    let client = Handshaker::of_word(client);
    let Some(place) = HANDSHAKES.get_ptr_mut(client.place()) else { return 0 };
    // SAFETY: the pointer points to a map value, which other CPUs replace in one store.
    let handshake = Handshake(unsafe { place.read_volatile() });
    let is_there = handshake.is_of(client);
    let opens = what >> 16 != 0;
    if !opens && !is_there {
        return 0;
    }
    let now = now();
    let new = if opens { Handshake::new(client, what as u16, now) } else { Handshake::NONE };
    if !opens {
        // SAFETY: the pointer points to a map value, which other CPUs replace in one store.
        unsafe { place.write_volatile(new.0) };
        answered(handshake.backend(), handshake.age(now));
        return 0;
    }
    let same = is_there && handshake.backend() == new.backend();
    let again = same && handshake.comes_again(now);
    if !same {
        // SAFETY: the pointer points to a map value, which other CPUs replace in one store.
        unsafe { place.write_volatile(new.0) };
    }
    begun(new.backend(), now, again);
    0
}

#[inline(always)]
fn begun(backend: u16, now: u64, again: bool) {
    let Some(signs) = SIGNS.get_ptr_mut(backend.into()) else { return };
    // SAFETY: the pointer points to a map value; other CPUs write the same words, and the next packet repeats a value
    // that one of them overwrites.
    let (waiting, is_sign) = unsafe { signs.read_volatile() }.waiting().begin(now, again);
    // SAFETY: the pointer points to a map value, whose words other CPUs write as well.
    unsafe {
        (&raw mut (*signs).waiting_since).write_volatile(waiting.since);
        (&raw mut (*signs).begun).write_volatile(waiting.begun);
    }
    if is_sign {
        tell(signs, backend, Signal::Unanswered, now);
    }
}

#[inline(always)]
fn answered(backend: u16, took: u16) {
    let Some(signs) = SIGNS.get_ptr_mut(backend.into()) else { return };
    // SAFETY: the pointer points to a map value; other CPUs write the same words, and the next packet repeats a value
    // that one of them overwrites.
    let waiting = unsafe { signs.read_volatile() }.waiting().end(took);
    // SAFETY: the pointer points to a map value; other CPUs write the same words, and the next packet repeats a value
    // that one of them overwrites.
    unsafe {
        (&raw mut (*signs).waiting_since).write_volatile(waiting.since);
        (&raw mut (*signs).begun).write_volatile(waiting.begun);
        (&raw mut (*signs).usual).write_volatile(waiting.usual);
        add_shared_u32(&raw mut (*signs).completed, 1);
    }
}

/// Records that a `nat` backend has refused a connection by a reset. Returns whether the program must withhold the
/// reset from the client.
#[inline(always)]
pub(crate) fn withholds(backend: u16) -> bool {
    balancer_refused(backend.into()) != 0
}

#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn balancer_refused(backend: u64) -> u64 {
    let backend = backend as u16;
    let Some(signs) = SIGNS.get_ptr_mut(backend.into()) else { return 0 };
    let now = now();
    // SAFETY: the pointer points to a map value; other CPUs write the same words, and the next packet repeats a value
    // that one of them overwrites.
    let row = unsafe { signs.read_volatile() };
    let (refusals, withheld) = row.refusals().refuse(now, row.withhold);
    // SAFETY: the pointer points to a map value; one instruction increments the counter.
    unsafe {
        (&raw mut (*signs).refused_since).write_volatile(refusals.since);
        (&raw mut (*signs).passed).write_volatile(refusals.passed);
        if withheld {
            add_shared(&raw mut (*signs).withheld, 1);
        }
    }
    tell(signs, backend, Signal::Refused, now);
    withheld.into()
}

/// Records that the backend cannot be reached, as an ICMP error says.
#[inline(always)]
pub(crate) fn unreachable(backend: u16) {
    balancer_unreachable(backend.into());
}

#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn balancer_unreachable(backend: u64) -> u64 {
    let backend = backend as u16;
    if let Some(signs) = SIGNS.get_ptr_mut(backend.into()) {
        tell(signs, backend, Signal::Unreachable, now());
    }
    0
}

/// Reports a sign to the controller, at most once in a period for each backend.
#[inline(always)]
fn tell(signs: *mut Signs, backend: u16, signal: Signal, now: u64) {
    // SAFETY: the pointer points to a map value; other CPUs write the same words, and the next packet repeats a value
    // that one of them overwrites.
    let (tells, told) =
        unsafe { ((&raw const (*signs).tells).read_volatile(), (&raw const (*signs).told).read_volatile()) };
    if tells == 0 || now.wrapping_sub(told) < SIGN_PERIOD {
        return;
    }
    // SAFETY: the pointer points to a map value; other CPUs write the same words, and the next packet repeats a value
    // that one of them overwrites.
    unsafe { (&raw mut (*signs).told).write_volatile(now) };
    if let Some(mut entry) = SUSPECTS.reserve::<Sign>(0) {
        entry.write(Sign { backend, signal: signal as u16 });
        entry.submit(0);
    }
}

#[inline(always)]
fn now() -> u64 {
    // SAFETY: the helper takes no pointer.
    unsafe { bpf_ktime_get_coarse_ns() }
}
