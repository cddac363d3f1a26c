//! The rows by which the program finds the services of packets: a row for each listener with one port, and for each
//! address and protocol a row for every port or for ranges of ports.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    net::{IpAddr, SocketAddr},
};

use balancer_common::map_types::{
    LISTENER_COUNTS, LISTENER_QUIC, LISTENER_RANGES, ListenerRow, Listening, Portless, RangeRow, VIP_SHARED,
};
use balancer_config::{config::Protocol, listeners::PortRange};
use balancer_control::io::{ListenerSpec, ServiceId, ServiceSpec};

use super::rows;

/// The rows that belong in one half of the maps.
#[derive(Debug, Default)]
pub(super) struct Rows {
    pub(super) listeners: Vec<ListenerRow>,
    pub(super) ranges: Vec<RangeRow>,
    /// Whether the program must look up ports for which there is no listener with exactly this port.
    pub(super) wildcard: bool,
}

/// A listener for more than one port.
struct Wide<'a> {
    spec: &'a ListenerSpec,
    service: u32,
}

/// The rows for the listeners of `services`, whose own rows begin at `first_service` and have the same order. The rows
/// of ranges begin at `first_range`.
#[must_use]
pub(super) fn rows(services: &[ServiceSpec], first_service: u32, first_range: u32) -> Rows {
    let mut rows = Rows::default();
    let mut wide: BTreeMap<(IpAddr, u8), Vec<Wide<'_>>> = BTreeMap::new();
    for (service, spec) in (first_service..).zip(services) {
        for listener in &spec.listeners {
            let (place, protocol) = (listener.listener, listener.listener.protocol.number());
            if place.ports.single().is_some() {
                rows.listeners.push(row(place.socket(), protocol, service, listening(listener)));
            } else {
                wide.entry((place.address, protocol)).or_default().push(Wide { spec: listener, service });
            }
        }
    }
    rows.wildcard = !wide.is_empty();
    for ((address, protocol), mut all) in wide {
        let every_port = SocketAddr::new(address, 0);
        if let [only] = all.as_slice()
            && only.spec.listener.ports == PortRange::EVERY
        {
            rows.listeners.push(row(every_port, protocol, only.service, listening(only.spec)));
            continue;
        }
        all.sort_by_key(|wide| (wide.spec.listener.ports.first, u16::MAX - wide.spec.listener.ports.last));
        let first = first_range + rows.ranges.len() as u32;
        let ports: Vec<PortRange> = all.iter().map(|wide| wide.spec.listener.ports).collect();
        let before = rows.ranges.len();
        rows.ranges.extend(disjoint(&ports).into_iter().filter_map(|(ports, index)| {
            let wide = all.get(index)?;
            let PortRange { first, last } = ports;
            Some(RangeRow { first, last, service: wide.service, listening: listening(wide.spec) })
        }));
        let counters = (rows.ranges.len() - before) as u32;
        let ranges = Listening { flags: LISTENER_RANGES, counters, port: 0 };
        rows.listeners.push(row(every_port, protocol, first, ranges));
    }
    rows.listeners.extend(markers(services));
    rows
}

fn row(at: SocketAddr, protocol: u8, service: u32, listening: Listening) -> ListenerRow {
    ListenerRow { key: rows::key(at, protocol), service, details: bytemuck::cast(listening) }
}

fn listening(spec: &ListenerSpec) -> Listening {
    Listening {
        port: spec.backend_port.to_be(),
        flags: if spec.counted { LISTENER_COUNTS } else { 0 }
            | if spec.listener.protocol == Protocol::Quic { LISTENER_QUIC } else { 0 },
        counters: u32::from(spec.id.0),
    }
}

/// The rows that mark addresses of `services` as VIPs.
fn markers(services: &[ServiceSpec]) -> impl Iterator<Item = ListenerRow> {
    let mut vips: HashMap<IpAddr, (Portless, u32)> = HashMap::new();
    let mut known: HashSet<(IpAddr, u8, ServiceId)> = HashSet::new();
    for spec in services {
        for listener in spec.listeners.iter().map(|spec| spec.listener) {
            let protocol = listener.protocol.number();
            let (portless, shared) = vips.entry(listener.address).or_default();
            if !spec.share.is_all() {
                *shared = VIP_SHARED;
            }
            if known.insert((listener.address, protocol, spec.id)) {
                portless.add(protocol, listener.ports.first.to_be());
            }
        }
    }
    vips.into_iter().map(|(address, (portless, shared))| ListenerRow {
        key: rows::key(SocketAddr::new(address, 0), 0),
        service: shared,
        details: bytemuck::cast(portless),
    })
}

/// Splits ranges into disjoint ranges in ascending order, each with the index of the narrowest of the `ranges` that
/// contains it. The input is in ascending order of first ports, with wider ranges first; any two ranges are disjoint or
/// nested.
fn disjoint(ranges: &[PortRange]) -> Vec<(PortRange, usize)> {
    let mut found = Vec::new();
    let mut open: Vec<(u16, usize)> = Vec::new();
    let mut at = 0u32;
    let mut close = |at: &mut u32, up_to: u32, index: usize| {
        if *at <= up_to {
            found.push((PortRange { first: *at as u16, last: up_to as u16 }, index));
        }
        *at = up_to + 1;
    };
    for (index, range) in ranges.iter().enumerate() {
        let first = u32::from(range.first);
        while let Some(&(last, top)) = open.last().filter(|(last, _)| u32::from(*last) < first) {
            close(&mut at, u32::from(last), top);
            open.pop();
        }
        if let Some(&(_, top)) = open.last().filter(|_| first > 0) {
            close(&mut at, first - 1, top);
        }
        at = first;
        open.push((range.last, index));
    }
    while let Some((last, top)) = open.pop() {
        close(&mut at, u32::from(last), top);
    }
    found
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Makes ranges by halving, so that any two of them are disjoint or nested.
    fn laminar(bits: &[bool], first: u16, last: u16, found: &mut Vec<PortRange>) {
        let [keep, rest @ ..] = bits else { return };
        if first == last {
            return;
        }
        if *keep {
            found.push(PortRange { first, last });
        }
        let (middle, half) = (first + (last - first) / 2, rest.len() / 2);
        laminar(&rest[..half], first, middle, found);
        laminar(&rest[half..], middle + 1, last, found);
    }

    proptest! {
        #[test]
        fn when_ranges_are_nested_then_each_port_has_the_narrowest(bits in prop::collection::vec(any::<bool>(), 0..200), last in 1u16..) {
            let mut ranges = Vec::new();
            laminar(&bits, 1, last, &mut ranges);
            ranges.sort_by_key(|range| (range.first, u16::MAX - range.last));
            let found = disjoint(&ranges);
            prop_assert!(found.windows(2).all(|pair| pair[0].0.last < pair[1].0.first));
            for port in (0..=u16::MAX).step_by(7).chain(ranges.iter().flat_map(|range| [range.first, range.last])) {
                let around = (0..ranges.len()).filter(|&index| ranges[index].contains(port));
                let expected = around.min_by_key(|&index| ranges[index].width());
                let given = found.iter().find(|(range, _)| range.contains(port)).map(|&(_, index)| index);
                prop_assert_eq!(given, expected, "port {}", port);
            }
        }
    }
}
