//! Listeners: the IP addresses, ports and port ranges of services.

use bytemuck::{Pod, Zeroable};

/// The key by which the program looks up a packet: address, port and protocol.
///
/// In the table of listeners, port 0 stands for every port or for ranges of ports, and port 0 with protocol 0 marks the
/// address as a VIP. In the return table, the key is the source of a backend's reply.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Pod, Zeroable)]
pub struct ServiceKey {
    /// The address in network order; an IPv4 address is in the first word.
    pub address: [u32; 4],
    /// The port in network order; 0 for every port.
    pub port: u16,
    /// IANA protocol number: 6, 17, or 0 for a VIP marker.
    pub protocol: u8,
    /// The family: [`FAMILY_V4`](super::FAMILY_V4) or [`FAMILY_V6`](super::FAMILY_V6); 0 in an empty row.
    pub family: u8,
}

impl ServiceKey {
    /// All fields of the key except the address, as one 32-bit word.
    #[inline(always)]
    #[must_use]
    pub const fn rest(&self) -> u32 {
        let [first, second] = self.port.to_ne_bytes();
        u32::from_ne_bytes([first, second, self.protocol, self.family])
    }
}

/// A row of the table of listeners: the service for packets to an address, port and protocol. One row fills half a
/// cache line.
#[repr(C, align(32))]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
pub struct ListenerRow {
    pub key: ServiceKey,
    /// The row of the listener's service; with [`LISTENER_RANGES`], the index of the listener's first [`RangeRow`]; in
    /// a VIP marker, [`VIP_SHARED`] or 0.
    pub service: u32,
    /// A [`Listening`] value, or in a VIP marker a [`Portless`] value.
    pub details: u64,
}

impl ListenerRow {
    /// The data of a listener besides its service.
    #[inline(always)]
    #[must_use]
    pub fn listening(&self) -> Listening {
        bytemuck::cast(self.details)
    }

    /// In a VIP marker: whether the host also serves clients of the VIP.
    #[inline(always)]
    #[must_use]
    pub const fn is_shared(&self) -> bool {
        self.service == VIP_SHARED
    }

    /// In a VIP marker: the services that a fragment without ports may belong to.
    #[inline(always)]
    #[must_use]
    pub fn portless(&self) -> &Portless {
        bytemuck::cast_ref(&self.details)
    }
}

/// The data of a listener besides its service.
#[repr(C, align(8))]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct Listening {
    /// `nat`: the port on which backends listen in place of the listener's port, network order; 0: the packet keeps its
    /// own port.
    pub port: u16,
    /// The flags: `LISTENER_*` bits.
    pub flags: u16,
    /// Index of the listener's [`ListenerStats`]; with [`LISTENER_RANGES`], the number of [`RangeRow`]s.
    pub counters: u32,
}

/// `ListenerRow::service` of a VIP marker: the host also serves clients of the VIP, so packets that belong to no
/// service pass to the host.
pub const VIP_SHARED: u32 = 1;
/// `Listening::flags`: the service has several listeners, so this listener has its own counters.
pub const LISTENER_COUNTS: u16 = 1;
/// `Listening::flags`: the program looks up a port that has no listener of its own in the [`RangeRow`]s.
pub const LISTENER_RANGES: u16 = 2;
/// `Listening::flags`: the listener's datagrams are QUIC.
pub const LISTENER_QUIC: u16 = 4;
/// The maximum number of listeners of all services.
pub const MAX_LISTENERS: u32 = 65_536;
/// The number of listeners that have counters on each CPU; these listeners have the lowest indexes of
/// [`ListenerStats`]. All CPUs share the counters of the other listeners.
pub const LISTENER_COUNTERS: u32 = 1024;
/// The number of steps of a binary search among the ranges of one address and protocol; this number suffices for as
/// many ranges as there are ports.
pub const RANGE_PROBES: u32 = 17;

/// A range of ports of one address and protocol. The ranges of one address and protocol are disjoint and in rising
/// order.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
pub struct RangeRow {
    /// The first port of the range in host order.
    pub first: u16,
    /// The last port of the range in host order.
    pub last: u16,
    pub service: u32,
    /// The data of the range's listener, as for a listener with one port.
    pub listening: Listening,
}

/// Counters of one listener on one CPU.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct ListenerStats {
    /// The number of packets with ports that arrived for the listener.
    pub packets: u64,
    /// The number of TCP connections (SYN) that clients opened to the listener.
    pub connections: u64,
}

/// For each protocol, the number of services of an address, and the port of the service if there is only one: see
/// [`Portless::index`].
#[repr(C, align(8))]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct Portless {
    /// The number of services (in the return table: the number of VIPs as which a `nat` backend answers), at most
    /// `u16::MAX`.
    pub services: [u16; 2],
    /// The port of the only service in network order; 0: every port.
    pub port: [u16; 2],
}

impl Portless {
    /// The position of TCP or UDP in the arrays; `None` for any other protocol.
    #[inline(always)]
    #[must_use]
    pub const fn index(protocol: u8) -> Option<usize> {
        match protocol {
            6 => Some(0),
            17 => Some(1),
            _ => None,
        }
    }

    /// Adds a service at `port` (network order) to the count of `protocol`.
    pub const fn add(&mut self, protocol: u8, port: u16) {
        if let Some(index) = Self::index(protocol) {
            self.services[index] = self.services[index].saturating_add(1);
            self.port[index] = port;
        }
    }

    /// Finds the service that a fragment of `protocol` belongs to.
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

/// The service of a fragment without ports, as far as address and protocol show it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PortlessMatch {
    /// No service at the address has this protocol.
    None,
    /// The address has only one service of this protocol, at this port (network order).
    Only(u16),
    /// The fragment may belong to more than one service.
    Ambiguous,
}

const _: () = {
    assert!(size_of::<ListenerRow>() == 32 && size_of::<Listening>() == 8 && size_of::<Portless>() == 8);
    assert!(size_of::<RangeRow>() == 16 && LISTENER_COUNTERS.is_power_of_two());
};
