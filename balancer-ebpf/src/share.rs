//! Services that share their clients with the host: the program passes packets of some clients to the host, and steers
//! packets of the other clients.
//!
//! A client's position in a fixed order determines whether the program or the host serves the client
//! ([`balancer_common::share`]). When a client moves from the program to the host or back, its open TCP connections do
//! not move; the program recognizes the host's connections by their sockets. In services with flows, every connection
//! that has no flow is the host's.

use aya_ebpf::{bindings::BPF_F_MMAPABLE, macros::map, maps::Array};
use balancer_common::{
    client::HashKey,
    features::Features,
    map_types::{FAMILY_V4, ListenerRow, SERVICE_SHARED, ServiceRow, ShareStats},
    share::{self, Side},
    verdict::DropReason,
};

use crate::{
    cpu_rows, features,
    forward::sockets::{self, HostSocket},
    ingress::Ingress,
    memory, rules,
    scratch::{self, Row},
    step::{Kind, Step},
};

/// Packet counters, by index of the service.
#[map]
static SHARE_STATS: Array<ShareStats> = Array::with_max_entries(1, BPF_F_MMAPABLE);

/// How the program treats a client's packets.
#[derive(Clone, Copy)]
pub(crate) struct Treated(u64);

const WATCHED: u64 = 1 << 8;

impl Treated {
    /// The program steers the client's packets as in any other service.
    const STEERED: Self = Self(Side::Steered as u64);

    /// How the program treats a client of `service`.
    #[inline(always)]
    pub(crate) fn of(service: &ServiceRow, family: u8, client: &[u32; 4]) -> Self {
        if !is_shared(service) {
            return Self::STEERED;
        }
        let HashKey { k0, k1 } = service.hash.key();
        let [low, high] = if family == FAMILY_V4 {
            [u64::from(service.masked_v4(client[0])), 0]
        } else {
            service.masked(rules::words(client))
        };
        let [now, least, most] = service.steer;
        let share = u64::from(now) | u64::from(least) << 8 | u64::from(most) << 16 | u64::from(family) << 24;
        Self(balancer_side(k0, k1, low, high, share))
    }

    #[inline(always)]
    const fn is(self, side: Side) -> bool {
        self.0 & 0xff == side as u64
    }

    /// The client's packets pass to the host, and the program counts the decision that it would have made.
    #[inline(always)]
    pub(crate) const fn is_watched(self) -> bool {
        self.0 & WATCHED != 0
    }

    /// All packets of the client pass to the host.
    #[inline(always)]
    pub(crate) const fn is_hosts(self) -> bool {
        self.is(Side::Host) && !self.is_watched()
    }

    /// The program steers the client's new connections.
    #[inline(always)]
    pub(crate) const fn is_steered(self) -> bool {
        self.0 & 0xff <= Side::Came as u64
    }

    /// The client's new connections pass to the host, but the client may have older connections to a backend.
    #[inline(always)]
    pub(crate) const fn has_left(self) -> bool {
        self.is(Side::Left)
    }

    /// The client may have connections that are older than its move from the program to the host or back.
    #[inline(always)]
    pub(crate) const fn has_changed(self) -> bool {
        self.is(Side::Came) || self.is(Side::Left)
    }
}

/// Whether the program or the host serves a client. `share` contains the service's share, and in the bits above it the
/// address family. This is a global function, so the verifier checks it only once.
#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn balancer_side(k0: u64, k1: u64, low: u64, high: u64, share: u64) -> u64 {
    let hash = HashKey { k0, k1 }.begun();
    let hash = if (share >> 24) as u8 == FAMILY_V4 { hash.v4(low as u32) } else { hash.v6([low, high]) };
    let place = share::place((hash >> 32) as u32);
    let (now, least, most) = (share as u8, (share >> 8) as u8, (share >> 16) as u8);
    if place < now {
        return if place < least { Side::Steered as u64 } else { Side::Came as u64 };
    }
    if place < most {
        return Side::Left as u64;
    }
    Side::Host as u64 | if now == 0 { WATCHED } else { 0 }
}

/// Passes a packet of a client that the host serves to the host.
#[inline(always)]
pub(crate) fn unsteered(service: u16) -> Step {
    count(service, |stats| {
        // SAFETY: the field belongs to a map value.
        unsafe { &raw mut (*stats).unsteered }
    });
    Step::PASS
}

#[inline(always)]
fn count(service: u16, field: impl Fn(*mut ShareStats) -> *mut u64) {
    if let Some(stats) = SHARE_STATS.get_ptr_mut(u32::from(service)) {
        // SAFETY: the pointer points to a word of a map value.
        unsafe { cpu_rows::add_shared(field(stats), 1) };
    }
}

/// Whether the host serves clients of a service, or may still have connections of clients that the program steers.
#[inline(always)]
pub(crate) fn is_shared(service: &ServiceRow) -> bool {
    features::uses(Features::SHARE) && service.flags & SERVICE_SHARED != 0
}

/// Passes a steered client's packet to the host, which has the packet's connection.
#[inline(always)]
pub(crate) fn host_connection(service: u16) -> Step {
    count(service, |stats| {
        // SAFETY: the field belongs to a map value.
        unsafe { &raw mut (*stats).host_connections }
    });
    Step::PASS
}

/// Decides about a packet to the VIP of `marker` that belongs to no service: the program drops the packet, unless the
/// host serves clients of this VIP.
#[inline(always)]
pub(crate) fn refused(marker: &ListenerRow, reason: DropReason) -> Step {
    if marker.is_shared() { Step::PASS } else { Step::drop(reason) }
}

/// The connection that the program looks up among the host's sockets.
#[repr(C)]
#[derive(Clone, Copy)]
struct Asked {
    service: u16,
    /// Whether the client has moved from the service to the host.
    left: bool,
}

/// Stores the connection to look up if the chosen step depends on [whether the host has the
/// connection](Step::unless_hosts).
#[inline(always)]
pub(crate) fn ask(service: &ServiceRow, treated: Treated) {
    if let Some(asked) = scratch::place::<Asked>(Row::Shared) {
        // SAFETY: the row belongs to this CPU; programs on one CPU do not interrupt each other in the receive path.
        unsafe { asked.write(Asked { service: service.id, left: treated.has_left() }) };
    }
}

/// Uses the host's sockets to decide about a TCP segment that opens no connection; the client has moved from the
/// program to the host or back. The segment passes if the host has the segment's connection; otherwise the packet
/// continues with `next`.
///
/// If the host has no socket for the VIP's port (because the host forwards the packets, possibly by IPVS), the sockets
/// do not show the host's connections. In this case, the program treats a connection of an unknown client as a
/// connection of the host.
///
/// A socket in TIME-WAIT belongs to a connection that the host has closed first, and whose client may not have closed
/// its end. A client whose new connections pass to the host has this connection with the host. A client whose new
/// connections go to a backend may have opened another connection from the same port.
#[inline(always)]
pub(crate) fn decide(ingress: Ingress, next: Step) -> Step {
    let Some(asked) = scratch::place::<Asked>(Row::Shared) else { return Step::PASS };
    // SAFETY: the row belongs to this CPU; programs on one CPU do not interrupt each other in the receive path.
    let Asked { service, left } = unsafe { asked.read() };
    let socket = sockets::of_host(ingress);
    let hosts = match socket {
        HostSocket::Connection => true,
        HostSocket::Ended | HostSocket::None => left,
        HostSocket::Listener => false,
    };
    if hosts {
        return if left { unsteered(service) } else { host_connection(service) };
    }
    if next.is(Kind::Consult) && (left || socket == HostSocket::None) {
        memory::ask_for_known();
    }
    next
}
