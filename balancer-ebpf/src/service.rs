//! Finding the service of a packet by its listener.

use aya_ebpf::{bindings::BPF_F_MMAPABLE, macros::map, maps::Array};
use balancer_common::{
    map_types::{
        CONTROL_PORT_WILDCARD, Control, LISTENER_COUNTS, LISTENER_RANGES, ListenerRow, Listening, RANGE_PROBES,
        RangeRow, ServiceKey, ServiceRow,
    },
    service_table::{KeyWords, PublishedView},
};

use crate::{
    parse::{Ip, Ports},
    probe::{self, Keyed},
    stats,
};

/// The table of listeners in two halves, one of which is active. The controller sets the real size of this map when it
/// loads the program.
#[map]
static LISTENERS: Array<ListenerRow> = Array::with_max_entries(1, BPF_F_MMAPABLE);

impl Keyed for ListenerRow {
    #[inline(always)]
    fn rows() -> &'static Array<Self> {
        &LISTENERS
    }

    #[inline(always)]
    fn key(&self) -> &ServiceKey {
        &self.key
    }

    #[inline(always)]
    fn apart(home: u64, low: u64, high: u64, rest: u64) -> u64 {
        balancer_find_listener(home, low, high, rest)
    }
}

#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn balancer_find_listener(home: u64, low: u64, high: u64, rest: u64) -> u64 {
    probe::index_apart::<ListenerRow>(home, low, high, rest)
}

/// Port ranges in two halves; the active half is the same as in the table of listeners.
#[map]
static RANGES: Array<RangeRow> = Array::with_max_entries(1, BPF_F_MMAPABLE);

/// The table of services in two halves; the active half is the same as in the table of listeners.
#[map]
static SERVICES: Array<ServiceRow> = Array::with_max_entries(1, BPF_F_MMAPABLE);

/// A service, and the listener through which the program found the service.
#[derive(Clone, Copy)]
pub(crate) struct Listener {
    pub(crate) service: &'static ServiceRow,
    /// The index of `service` in its map, for [`at`].
    pub(crate) row: u32,
    pub(crate) listening: Listening,
}

impl Listener {
    /// Counts a packet for the listener if its service has several listeners.
    #[inline(always)]
    pub(crate) fn count(self, ports: Ports) {
        if self.listening.flags & LISTENER_COUNTS != 0 {
            stats::count_listener(self.listening.counters, ports.opens());
        }
    }
}

/// The listener at the destination of `ip` and `port`; an exact match takes precedence over a listener for every port
/// or for a range.
#[inline(always)]
pub(crate) fn of_port(control: &'static Control, view: PublishedView, ip: &Ip<'_>, port: u16) -> Option<Listener> {
    of_key(control, view, ServiceKey { address: ip.destination, port, protocol: ip.protocol, family: ip.family })
}

/// The listener of `key`; an exact match takes precedence over a listener for every port or for a range.
#[inline(always)]
pub(crate) fn of_key(control: &'static Control, view: PublishedView, mut key: ServiceKey) -> Option<Listener> {
    let port = u16::from_be(key.port);
    let row = match probe::find::<ListenerRow>(view, &key) {
        Some(row) => row,
        None if control.flags & CONTROL_PORT_WILDCARD == 0 => return None,
        None => {
            key.port = 0;
            probe::find_apart::<ListenerRow>(view, &key)?
        }
    };
    let listening = row.listening();
    if listening.flags & LISTENER_RANGES == 0 {
        return listener(row.service, listening);
    }
    let range = balancer_range(u64::from(row.service), u64::from(listening.counters), u64::from(port));
    let range = RANGES.get(u32::try_from(range).ok()?)?;
    listener(range.service, range.listening)
}

/// The listener of the service in a row that an earlier step found for this packet.
#[inline(always)]
pub(crate) fn listener(service: u32, listening: Listening) -> Option<Listener> {
    Some(Listener { service: at(service)?, row: service, listening })
}

/// The service in a row that an earlier step found for this packet.
#[inline(always)]
pub(crate) fn at(row: u32) -> Option<&'static ServiceRow> {
    SERVICES.get(row)
}

/// The row of the range that contains `port` (host order), among `count` rows from `first`; a result beyond 32 bits
/// means that no range contains the port. This is a global function, so the verifier checks it only once.
#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn balancer_range(first: u64, count: u64, port: u64) -> u64 {
    const NONE: u64 = u64::MAX;
    let (mut at, mut size) = (first as u32, count as u32);
    for _ in 0..RANGE_PROBES {
        if size <= 1 {
            break;
        }
        let half = size / 2;
        let Some(range) = RANGES.get(at.wrapping_add(half)) else { return NONE };
        if u64::from(range.first) <= port {
            at = at.wrapping_add(half);
        }
        size -= half;
    }
    match RANGES.get(at) {
        Some(range) if u64::from(range.first) <= port && port <= u64::from(range.last) => u64::from(at),
        _ => NONE,
    }
}

/// The VIP marker for the destination of `ip`, if this destination is a VIP.
#[inline(always)]
pub(crate) fn vip(view: PublishedView, ip: &Ip<'_>) -> Option<&'static ListenerRow> {
    probe::find(view, &ServiceKey { address: ip.destination, port: 0, protocol: 0, family: ip.family })
}

/// Whether the table contains the VIP marker `key`, so that the address in `key` is a VIP.
#[inline(always)]
pub(crate) fn is_vip(view: PublishedView, key: &ServiceKey) -> bool {
    probe::find_whole::<ListenerRow>(view, KeyWords::of(key)).is_some()
}
