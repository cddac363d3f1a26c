//! The addresses of services: IP addresses, ports and ranges of ports.

use bytemuck::{Pod, Zeroable};

/// The lookup key of a packet: address, port, protocol.
///
/// In the table of listeners, port 0 stands for every port or for ranges of ports, and port 0 with protocol 0 marks the
/// address as a VIP. In the return table the key is the source of a backend's reply.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Pod, Zeroable)]
pub struct ServiceKey {
    /// The address in network byte order; an IPv4 address is in the first word.
    pub address: [u32; 4],
    /// The port in network byte order; 0 for every port.
    pub port: u16,
    /// IANA protocol number: 6, 17, or 0 for a VIP marker.
    pub protocol: u8,
    /// [`FAMILY_V4`](super::FAMILY_V4) or [`FAMILY_V6`](super::FAMILY_V6); 0 in an empty row.
    pub family: u8,
}

impl ServiceKey {
    /// Everything but the address, as one word.
    #[inline(always)]
    #[must_use]
    pub const fn rest(&self) -> u32 {
        let [first, second] = self.port.to_ne_bytes();
        u32::from_ne_bytes([first, second, self.protocol, self.family])
    }
}

/// A row of the table of listeners: the service of packets to an address, port and protocol. It fills half a cache
/// line.
#[repr(C, align(32))]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
pub struct ListenerRow {
    pub key: ServiceKey,
    /// The row of the listener's service. With [`LISTENER_RANGES`], the index of the listener's first [`RangeRow`]. In
    /// a VIP marker, [`VIP_SHARED`] or 0.
    pub service: u32,
    /// A [`Listening`], or in a VIP marker a [`Portless`].
    pub details: u64,
}

impl ListenerRow {
    /// The listener's details beyond its service.
    #[inline(always)]
    #[must_use]
    pub fn listening(&self) -> Listening {
        bytemuck::cast(self.details)
    }

    /// In a VIP marker: whether the host, too, serves clients of the VIP.
    #[inline(always)]
    #[must_use]
    pub const fn is_shared(&self) -> bool {
        self.service == VIP_SHARED
    }

    /// In a VIP marker: the possible services of a fragment without ports.
    #[inline(always)]
    #[must_use]
    pub fn portless(&self) -> &Portless {
        bytemuck::cast_ref(&self.details)
    }
}

/// A listener's details beyond its service.
#[repr(C, align(8))]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct Listening {
    /// `nat`: the port that backends listen on instead, network order; 0: the same port as the packet's.
    pub port: u16,
    /// `LISTENER_*` bits.
    pub flags: u16,
    /// Index of the listener's [`ListenerStats`]. With [`LISTENER_RANGES`]: the number of [`RangeRow`]s.
    pub counters: u32,
}

/// `ListenerRow::service` of a VIP marker: the host, too, serves clients of the VIP, so packets that belong to no
/// particular service pass to it.
pub const VIP_SHARED: u32 = 1;
/// `Listening::flags`: the listener is one of several of its service, so it has its own counters.
pub const LISTENER_COUNTS: u16 = 1;
/// `Listening::flags`: the program looks up ports without a listener of their own in [`RangeRow`]s.
pub const LISTENER_RANGES: u16 = 2;
/// `Listening::flags`: the listener's datagrams are QUIC.
pub const LISTENER_QUIC: u16 = 4;
/// The maximum number of listeners of all services.
pub const MAX_LISTENERS: u32 = 65_536;
/// Number of listeners with counters on each CPU: those with the lowest ids. CPUs share the counters of the others.
pub const LISTENER_COUNTERS: u32 = 1024;
/// Steps of a binary search among the ranges of one address and protocol; there cannot be more ranges than ports.
pub const RANGE_PROBES: u32 = 17;

/// A range of ports of an address and protocol. The ranges of one address and protocol are disjoint and in rising
/// order.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
pub struct RangeRow {
    /// The first port, host order.
    pub first: u16,
    /// The last port, host order.
    pub last: u16,
    /// The row of its service.
    pub service: u32,
    /// The details, as for a listener with one port.
    pub listening: Listening,
}

/// Per-CPU counters of one listener.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct ListenerStats {
    /// Packets with ports that arrived for the listener.
    pub packets: u64,
    /// TCP connections opened to the listener (SYN).
    pub connections: u64,
}

/// The number of services of an address, and the port if there is only one, by protocol: see [`Portless::index`].
#[repr(C, align(8))]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct Portless {
    /// The number of services (or of VIPs as which a `nat` backend answers), at most `u16::MAX`.
    pub services: [u16; 2],
    /// A port of the only service, network order; 0: every port.
    pub port: [u16; 2],
}

impl Portless {
    /// Position of TCP and UDP in the arrays; `None` for another protocol.
    #[inline(always)]
    #[must_use]
    pub const fn index(protocol: u8) -> Option<usize> {
        match protocol {
            6 => Some(0),
            17 => Some(1),
            _ => None,
        }
    }

    /// Adds another service at `port` (network order).
    pub const fn add(&mut self, protocol: u8, port: u16) {
        if let Some(index) = Self::index(protocol) {
            self.services[index] = self.services[index].saturating_add(1);
            self.port[index] = port;
        }
    }

    /// Finds the service of a fragment of `protocol`.
    #[inline(always)]
    #[must_use]
    pub const fn find(&self, protocol: u8) -> PortlessMatch {
        let Some(index) = Self::index(protocol) else { return PortlessMatch::None };
        match self.services[index] {
            0 => PortlessMatch::None,
            1 => PortlessMatch::Only(self.port[index]),
            _ => PortlessMatch::Ambiguous,
        }
    }
}

/// The service of a fragment without ports, judged by address and protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PortlessMatch {
    /// No service has this protocol.
    None,
    /// The only service, at this port (network order).
    Only(u16),
    /// More than one service is possible.
    Ambiguous,
}

const _: () = {
    assert!(size_of::<ListenerRow>() == 32 && size_of::<Listening>() == 8 && size_of::<Portless>() == 8);
    assert!(size_of::<RangeRow>() == 16 && LISTENER_COUNTERS.is_power_of_two());
};
