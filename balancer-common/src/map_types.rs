//! Keys and values of the kernel maps. Every layout exists here once.
//!
//! Addresses, ports and masks are in memory (network) order; everything else is native. An IPv4 address occupies the
//! first word of its four, the rest is zero.

use core::mem::offset_of;

use bytemuck::{Pod, Zeroable};

use crate::{
    client::BegunHash,
    verdict::{DROP_COUNTERS, Decision, MOVE_COUNTERS, Verdict},
};

/// Version of every layout in this module. A pinned map of another version is not adopted.
pub const LAYOUT_VERSION: u32 = 11;

/// A table entry that names no backend: the service has none configured.
pub const NO_BACKEND: u16 = 0;
/// A table entry that names no backend: all of them are down and the service drops.
pub const ALL_DOWN: u16 = u16::MAX;
/// The last id that a backend may have. The first one is 1.
pub const LAST_BACKEND: u16 = ALL_DOWN - 1;
/// Rows of the maps of backends, where there are few of them. The controller sets the number when it loads the program.
pub const FEWEST_BACKEND_ROWS: u32 = 16_384;
/// Rows of the maps of backends, at most.
pub const MOST_BACKEND_ROWS: u32 = 65_536;

/// Rows of the interface map. A power of two.
pub const MAX_INTERFACES: u32 = 64;

/// Ethernet address.
pub type Mac = [u8; 6];

/// `ServiceKey::family` of IPv4.
pub const FAMILY_V4: u8 = 4;
/// `ServiceKey::family` of IPv6.
pub const FAMILY_V6: u8 = 6;

/// What a packet is looked up by: address, port, protocol.
///
/// In the table of listeners, port 0 stands for every port or for ranges of them, and port 0 with protocol 0 marks the
/// address as a VIP. In the return table it is the source of a backend's reply.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Pod, Zeroable)]
pub struct ServiceKey {
    /// IPv4 in the first word, or IPv6; network order.
    pub address: [u32; 4],
    /// Network order.
    pub port: u16,
    /// IANA protocol number: 6, 17, or 0 for a VIP marker.
    pub protocol: u8,
    /// [`FAMILY_V4`] or [`FAMILY_V6`]; 0 in an empty row.
    pub family: u8,
}

/// How packets reach the backends of a service. What needs an outer header comes last.
#[repr(u8)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "user", derive(serde::Serialize, serde::Deserialize), serde(rename_all = "snake_case"))]
pub enum Forwarding {
    /// Destination MAC rewritten; the reply goes straight to the client.
    Dsr = 1,
    /// Destination address and port rewritten; the reply passes the balancer.
    Nat = 2,
    /// The packet in an IP packet of the backend's family (RFC 2003, RFC 2473, RFC 4213).
    Ipip = 3,
    /// The packet behind UDP to port [`GUE_PORT`]: Generic UDP Encapsulation, variant 1.
    Gue = 4,
}

/// `BackendRow::forwarding`: with this bit, beside a [`Forwarding`], it must be asked whether the kernel has to send its
/// frames, see `DEVICE_*`. Above every [`Forwarding`] without it.
pub const FORWARDING_ASKS: u8 = 0x80;

/// Interfaces of which `DEVICE_*` is known, at most.
pub const MAX_DEVICES: u32 = 4096;
/// What is known of an interface: it takes no frames from XDP (of another interface), so the kernel sends them.
pub const DEVICE_TAKES_NO_FRAMES: u32 = 1;
/// What is known of an interface: there are VLAN interfaces upon it, so a tag says which one a frame came in by, and the
/// one that it leaves by writes its own.
pub const DEVICE_CARRIES_TAGS: u32 = 2;

/// The UDP port of Generic UDP Encapsulation (IANA), in host order.
pub const GUE_PORT: u16 = 6080;

/// One row of the table of listeners: where packets for an address, port and protocol belong. Half a cache line.
#[repr(C, align(32))]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
pub struct ListenerRow {
    /// What it is found by.
    pub key: ServiceKey,
    /// The row of its service. With [`LISTENER_RANGES`]: the first of its [`RangeRow`]s.
    pub service: u32,
    /// [`Listening`], or in a VIP marker [`Portless`].
    pub details: u64,
}

impl ListenerRow {
    /// What the program knows of the listener beside its service.
    #[inline(always)]
    #[must_use]
    pub fn listening(&self) -> Listening {
        bytemuck::cast(self.details)
    }

    /// In a VIP marker: what a fragment without ports may belong to.
    #[inline(always)]
    #[must_use]
    pub fn portless(&self) -> &Portless {
        bytemuck::cast_ref(&self.details)
    }
}

/// What the program knows of a listener beside its service.
#[repr(C, align(8))]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct Listening {
    /// `nat`: the port that backends listen on instead, network order; 0: the packet's own.
    pub port: u16,
    /// `LISTENER_*` bits.
    pub flags: u16,
    /// Its row of [`ListenerStats`]. With [`LISTENER_RANGES`]: how many [`RangeRow`]s there are.
    pub counters: u32,
}

/// `Listening::flags`: it is counted, as one of several of its service.
pub const LISTENER_COUNTS: u16 = 1;
/// `Listening::flags`: ports without a listener of their own are looked up in [`RangeRow`]s.
pub const LISTENER_RANGES: u16 = 2;
/// Listeners of all services, at most.
pub const MAX_LISTENERS: u32 = 65_536;
/// Probes of a binary search among the ranges of one address and protocol, which cannot be more than there are ports.
pub const RANGE_PROBES: u32 = 17;

/// A range of ports of one address and protocol. Those of an address and protocol are disjoint and in rising order.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
pub struct RangeRow {
    /// The first port, host order.
    pub first: u16,
    /// The last port, host order.
    pub last: u16,
    /// The row of its service.
    pub service: u32,
    /// As of a listener with one port.
    pub listening: Listening,
}

/// Per-CPU counters of one listener.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct ListenerStats {
    /// Packets with ports that came for it.
    pub packets: u64,
    /// TCP connections that were opened to it (SYN).
    pub connections: u64,
}

/// One row of the table of services: a cache line.
#[repr(C, align(64))]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
pub struct ServiceRow {
    /// Index of the service, below the number of services.
    pub id: u16,
    /// `SERVICE_*` bits.
    pub flags: u16,
    /// The service's clock, in ticks modulo 2^14. Advanced with one store.
    pub tick: u32,
    /// The live table, a [`LiveTable`]. Swapped with one store.
    pub table: u64,
    /// This service's client hash, begun under its key.
    pub hash: BegunHash,
    /// Ticks after which a client is forgotten.
    pub remember: u16,
    /// Ticks after which a datagram counts as a new connection.
    pub idle: u16,
    /// Whether the client prefix is longer than 64 bits, so that `client_mask` is that of the second word of an address.
    pub long_prefix: u32,
    /// The client prefix as a mask of the word of an address in which it ends, in memory order: of the first one, for IPv4 its
    /// first four bytes, unless it is a long one.
    pub client_mask: u64,
}

impl ServiceRow {
    /// Has clients be told apart by this prefix, as a mask of both words of an address; for IPv4 in the first four bytes.
    pub const fn set_client_mask(&mut self, [first, second]: [u64; 2]) {
        self.long_prefix = (second != 0) as u32;
        self.client_mask = if second == 0 { first } else { second };
    }

    /// An IPv4 client, of the first word of an address.
    #[inline(always)]
    #[must_use]
    pub const fn masked_v4(&self, address: u32) -> u32 {
        address & self.client_mask as u32
    }

    /// A client, of both words of an address.
    #[inline(always)]
    #[must_use]
    pub const fn masked(&self, [first, second]: [u64; 2]) -> [u64; 2] {
        if self.long_prefix == 0 { [first & self.client_mask, 0] } else { [first, second & self.client_mask] }
    }
}

/// How many services an address has, and a port of the only one, by protocol: see [`Portless::index`].
#[repr(C, align(8))]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct Portless {
    /// The number of services (or of VIPs that a `nat` backend answers as), at most `u16::MAX`.
    pub services: [u16; 2],
    /// A port of the only one, network order; 0: every port.
    pub port: [u16; 2],
}

/// What a fragment without ports belongs to, going by its address and protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PortlessMatch {
    /// Nothing: there is no service with this protocol.
    None,
    /// The only one there is, at this port (network order).
    Only(u16),
    /// One of several.
    Ambiguous,
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

    /// What a fragment of `protocol` belongs to.
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

/// `ServiceRow::flags`: clients are remembered.
pub const SERVICE_REMEMBERS: u16 = 1;
/// `ServiceRow::flags`: clients that were moved away go home with a new connection.
pub const SERVICE_FAILBACK: u16 = 2;
/// `ServiceRow::flags`: it has rules for client prefixes.
pub const SERVICE_RULES: u16 = 4;
/// `ServiceRow::flags`: the memory is so short that every packet reads its client's entry.
pub const SERVICE_READS_ALWAYS: u16 = 8;

/// `ServiceRow::flags`: what nobody takes is answered.
pub const SERVICE_REJECTS: u16 = 16;

/// Where a live table lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LiveTable {
    /// Its first slot in the map of slots.
    pub first: u32,
    /// Number of slots, M.
    pub size: u32,
}

impl LiveTable {
    /// Packs it into the word of [`ServiceRow::table`].
    #[must_use]
    pub const fn to_word(self) -> u64 {
        (self.size as u64) << 32 | self.first as u64
    }

    /// Unpacks the word.
    #[inline(always)]
    #[must_use]
    pub const fn from_word(word: u64) -> Self {
        Self { first: word as u32, size: (word >> 32) as u32 }
    }
}

/// One slot of a live table.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
pub struct TableSlot {
    /// Backend id, [`NO_BACKEND`] or [`ALL_DOWN`].
    pub backend: u16,
    /// `SLOT_*` bits.
    pub flags: u16,
}

/// `TableSlot::flags`: some known client of this slot may be at another backend, so its entry must be read.
pub const SLOT_EXCEPTIONS: u16 = 1;
/// `TableSlot::flags`: the slot's backend is not the one of the base table.
pub const SLOT_REFILLED: u16 = 2;

/// Slots in one element of the map of slots (a cache line); a power of two.
pub const SLOTS_PER_LINE: u32 = 16;

/// One element of the map of slots.
#[repr(C, align(64))]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
pub struct SlotLine {
    /// Consecutive slots.
    pub slots: [TableSlot; SLOTS_PER_LINE as usize],
}

/// `BackendStanding::flags`: the row may be used; without it packets are dropped as [`crate::verdict::DropReason::NoNextHop`].
pub const BACKEND_REACHABLE: u8 = 1;
/// `BackendStanding::flags`: known clients stay here.
pub const BACKEND_KEEPS_KNOWN: u8 = 4;
/// `BackendStanding::flags`: the backend's address is IPv6.
pub const BACKEND_V6: u8 = 8;
/// `BackendStanding::flags`: it takes new clients, so that a rule may pin some here.
pub const BACKEND_TAKES_CLIENTS: u8 = 16;

/// `BackendStanding::flags`: the second of [`BackendRows`] is in use.
pub const BACKEND_SECOND: u8 = 32;

/// A backend's row, found by backend id: twice, so that the one that is not in use can be written while packets read the
/// other. The [`BackendStanding`] of the first holds for both, and says which is in use.
#[repr(C, align(64))]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
pub struct BackendRows {
    /// Both.
    pub rows: [BackendRow; 2],
}

/// Everything forwarding needs of one backend: a cache line.
#[repr(C, align(64))]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
pub struct BackendRow {
    /// The first eight bytes of a frame: the next hop's MAC, and two bytes of the egress interface's. See
    /// [`BackendRow::set_macs`].
    pub macs_start: u64,
    /// The other four bytes of the egress interface's MAC.
    pub macs_end: u32,
    /// The egress interface.
    pub ifindex: u32,
    /// The backend's address, network order.
    pub address: [u32; 4],
    /// `nat`: the sum of the address's words, folded: what it adds to a complemented checksum in place of a VIP. `ipip`
    /// and `gue` over IPv4: that of both addresses of the outer header.
    pub address_sum: u16,
    /// Zero.
    pub unused: u16,
    /// `nat`: the backend's port for every listener, network order; 0: what the listener says.
    pub port: u16,
    /// A [`Forwarding`], and perhaps [`FORWARDING_ASKS`].
    pub forwarding: u8,
    /// Zero.
    pub reserved: u8,
    /// MTU of the egress interface, in bytes.
    pub mtu: u32,
    /// A [`BackendStanding`], which is replaced in one piece; 0 in the second of [`BackendRows`].
    pub standing: u32,
    /// `ipip` and `gue`: the source of the outer header, of the backend's family, network order.
    pub tunnel_source: [u32; 4],
}

impl BackendRow {
    /// Has frames go to the MAC `destination`, from `source`. Kept in words, as the compiler copies bytes one by one.
    pub const fn set_macs(&mut self, destination: Mac, source: Mac) {
        let [a, b, c, d, e, f] = destination;
        let [g, h, i, j, k, l] = source;
        self.macs_start = u64::from_ne_bytes([a, b, c, d, e, f, g, h]);
        self.macs_end = u32::from_ne_bytes([i, j, k, l]);
    }

    /// A [`Forwarding`], without [`FORWARDING_ASKS`].
    #[inline(always)]
    #[must_use]
    pub const fn mode(&self) -> u8 {
        self.forwarding & !FORWARDING_ASKS
    }
}

/// What of a backend is read without the rest of its row, in one word: [`BackendRow::standing`].
#[repr(C, align(4))]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
pub struct BackendStanding {
    /// Index of the service it belongs to.
    pub service: u16,
    /// A [`crate::verdict::MoveCause`] index: why known clients are moved, where they are not kept.
    pub cause: u8,
    /// `BACKEND_*` bits.
    pub flags: u8,
}

impl BackendStanding {
    /// Packs it into the word.
    #[must_use]
    pub fn to_word(self) -> u32 {
        bytemuck::cast(self)
    }

    /// Unpacks the word.
    #[inline(always)]
    #[must_use]
    pub fn from_word(word: u32) -> Self {
        bytemuck::cast(word)
    }
}

/// One row of the return table: how a `nat` backend's reply becomes the VIP's. A cache line.
#[repr(C, align(64))]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
pub struct ReturnRow {
    /// The backend's address, port (0: every port, unchanged) and protocol.
    pub key: ServiceKey,
    /// The VIP, network order.
    pub vip: [u32; 4],
    /// The service's port, network order; 0 leaves the port alone.
    pub vip_port: u16,
    /// The backend's id.
    pub backend: u16,
    /// What replacing the backend's address by the VIP adds to a complemented checksum, folded.
    pub address_delta: u16,
    /// The same for address and port together.
    pub l4_delta: u16,
    /// With port 0: 1 if only ports that a listener of the VIP has are the VIP's, 0 if all are.
    pub listeners_only: u32,
    /// In a marker of a backend's address (port and protocol 0): what a reply's fragment without ports may belong to.
    pub portless: Portless,
    /// The interfaces that the backend's packets come in by, a bit for each [`interface_row`]; 0: not known. Replaced with
    /// one store.
    pub interfaces: u64,
}

/// Words that the controller publishes and the kernel program reads on every packet.
#[repr(C, align(64))]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
pub struct Control {
    /// The active table of listeners, a [`crate::service_table::TableView`].
    pub listeners: u64,
    /// The active return table, a [`crate::service_table::TableView`].
    pub returns: u64,
    /// Which bit of the filter is a client's, see [`crate::seen`].
    pub seen_salt: u64,
    /// `CONTROL_*` bits.
    pub flags: u32,
    /// [`LAYOUT_VERSION`].
    pub layout_version: u32,
    /// Newcomers of one service that may be recorded in a period, whatever the others do: see [`NewcomerBudget`].
    pub newcomers_own: u32,
    /// Newcomers that may be recorded in a period beyond that, of all services together.
    pub newcomers_common: u32,
    /// One in so many forwarded packets is sampled, on average; 0: none.
    pub sample_interval: u32,
    /// Zero.
    pub reserved: u32,
    /// Bit `ifindex % 64`: something may be known of that interface, see `DEVICE_*`.
    pub devices: u64,
    /// A bit for each VIP, see [`crate::service_table::vip_bit`].
    pub vips: u64,
}

/// `Control::flags`: some listener has port 0 or a range, so a miss is looked up a second time.
pub const CONTROL_PORT_WILDCARD: u32 = 1;
/// `Control::flags`: some service is `nat`, so a miss is looked up in the return table.
pub const CONTROL_RETURNS: u32 = 2;
/// `Control::flags`: some `nat` service has a listener with port 0 or a range.
pub const CONTROL_RETURN_WILDCARD: u32 = 4;

/// Per-CPU counters of one interface.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct InterfaceStats {
    /// Packets by [`Verdict`].
    pub verdicts: [u64; Verdict::COUNT],
}

/// Counters of one backend on one CPU: two cache lines, of which a packet that opens nothing needs the second.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct BackendStats {
    /// Known clients moved from here, by [`crate::verdict::MoveCause`].
    pub moves: [u64; MOVE_COUNTERS],
    /// New connections by [`Decision`], those that could not be forwarded as well.
    pub decisions: [u64; Decision::COUNT],
    /// New connections (TCP SYN) forwarded to the backend.
    pub connections: u64,
    /// Packets forwarded to the backend.
    pub packets: u64,
    /// Bytes of those packets, from the Ethernet header on.
    pub bytes: u64,
    /// The packet to sample next, by its number in `packets`; 0: not drawn yet. Means nothing but to its CPU.
    pub next_sample: u64,
}

impl core::ops::AddAssign<&Self> for BackendStats {
    /// Adds up counters, not what means nothing but to its CPU.
    fn add_assign(&mut self, other: &Self) {
        self.packets += other.packets;
        self.bytes += other.bytes;
        self.connections += other.connections;
        let counters = other.decisions.iter().chain(&other.moves);
        for (sum, value) in self.decisions.iter_mut().chain(&mut self.moves).zip(counters) {
            *sum += value;
        }
    }
}

/// A packet forwarded to a backend, one of many: sent to the controller, to tell heavy clients by.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
pub struct Sample {
    /// Its source, unmasked; network order, IPv4 in the first word.
    pub source: [u32; 4],
    /// Bytes, from the Ethernet header on.
    pub bytes: u32,
    /// Index of the service.
    pub service: u16,
    /// The backend's id.
    pub backend: u16,
    /// [`FAMILY_V4`] or [`FAMILY_V6`].
    pub family: u32,
    /// Zero.
    pub reserved: u32,
}

/// Per-CPU counters of samples.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct SampleStats {
    /// Sent to the controller.
    pub sent: u64,
    /// Lost: the controller was behind.
    pub lost: u64,
}

/// One in so many forwarded packets is sampled, unless the configuration says otherwise.
pub const SAMPLE_INTERVAL: u32 = 1024;

/// Per-CPU counters of the client table.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct MemoryStats {
    /// Clients recorded.
    pub inserted: u64,
    /// Clients forgotten to make room for others.
    pub evicted: u64,
    /// Newcomers not recorded because their bucket was full of established clients.
    pub full: u64,
    /// Newcomers not recorded because there were too many at once.
    pub limited: u64,
}

/// Newcomers recorded in a period: of a service, or beyond the services' own shares. All CPUs share the row.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct NewcomerBudget {
    /// Number of the period, by the kernel's clock: nobody need run for newcomers to be recorded.
    pub period: u64,
    /// How many.
    pub used: u64,
}

/// Rows of [`NewcomerBudget`]s of services, by id modulo this; one more is for what is beyond.
pub const NEWCOMER_ROWS: u32 = 1024;
/// A period is 2^this nanoseconds, about a second.
pub const NEWCOMER_PERIOD_BITS: u32 = 30;

/// Per-CPU counters of dropped packets.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct DropStats {
    /// Packets by [`crate::verdict::DropReason`].
    pub reasons: [u64; DROP_COUNTERS],
}

/// Per-CPU counters of packets that the program answers itself, whose verdict is `tx`, and of what it does not remember.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct ReplyStats {
    /// Echo requests to a VIP that were answered.
    pub echo: u64,
    /// Packets too big for their way that were answered with fragmentation-needed or packet-too-big.
    pub too_big: u64,
    /// First fragments whose way was not remembered, as there were too many at once. They are forwarded.
    pub fragments_not_remembered: u64,
    /// Packets that nobody takes, answered with a reset or "unreachable".
    pub rejected: u64,
}

/// How often a CPU has done something that somebody from outside can have it do.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct Budget {
    /// The period that `used` counts in.
    pub period: u64,
    /// Times in that period.
    pub used: u64,
}

/// Kinds of [`Budget`], at most.
pub const BUDGETS: u32 = 4;

/// What a datagram's fragments have in common: all but IPv6 (RFC 8200) names the protocol.
#[repr(C, align(8))]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Pod, Zeroable)]
pub struct FragmentKey {
    /// Network order.
    pub source: [u32; 4],
    /// Network order.
    pub destination: [u32; 4],
    /// The identification, as it is in the packet.
    pub id: u32,
    /// IANA protocol number; 0 for IPv6.
    pub protocol: u8,
    /// [`FAMILY_V4`] or [`FAMILY_V6`].
    pub family: u8,
    /// Zero.
    pub reserved: u16,
}

/// Where a datagram's first fragment went.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
pub struct FragmentRow {
    /// Nanoseconds on the kernel's monotonic clock.
    pub seen: u64,
    /// `FRAGMENT_*`.
    pub way: u16,
    /// What that needs: a backend's id, or a port.
    pub value: u16,
    /// The layer-4 protocol, which a later IPv6 fragment need not name.
    pub protocol: u8,
    /// Zero.
    pub reserved: [u8; 3],
}

/// `FragmentRow::way`: to the kernel.
pub const FRAGMENT_PASSED: u16 = 1;
/// `FragmentRow::way`: to the backend with this id.
pub const FRAGMENT_TO_BACKEND: u16 = 2;
/// `FragmentRow::way`: to the client of the `nat` backend that the return table has under this port (network order).
pub const FRAGMENT_TO_CLIENT: u16 = 3;
/// Datagrams whose fragments are remembered; the oldest make room.
pub const MAX_FRAGMENTS: u32 = 8192;
/// How long, in nanoseconds: as long as receivers wait for the rest (60 s, RFC 8200 section 4.5).
pub const FRAGMENT_LIFETIME: u64 = 60_000_000_000;

/// Rules of all services together, at most.
pub const MAX_RULES: u32 = 65_536;

/// What a rule is found by: service and client prefix. The data of a key of a longest-prefix-match trie, whose length
/// counts from [`RULE_PREFIX_BASE`].
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Pod, Zeroable)]
pub struct RuleKey {
    /// Index of the service, whose VIP says which family the address is of.
    pub service: u16,
    /// Zero.
    pub reserved: u16,
    /// The client's address or the prefix, network order; IPv4 in the first word.
    pub address: [u32; 4],
}

/// Bits of a [`RuleKey`] before its address.
pub const RULE_PREFIX_BASE: u32 = 32;
/// Bits of a whole [`RuleKey`].
pub const RULE_KEY_BITS: u32 = RULE_PREFIX_BASE + 128;

/// What a rule says.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
pub struct RuleRow {
    /// `RULE_*`.
    pub action: u16,
    /// [`RULE_PIN`]: the backend's id, or [`NO_BACKEND`] while there is none of that name.
    pub backend: u16,
    /// Its counters, below [`MAX_RULES`].
    pub counters: u32,
}

/// `RuleRow::action`: to one backend, while that takes clients.
pub const RULE_PIN: u16 = 1;
/// `RuleRow::action`: each connection for itself, by its source port as well.
pub const RULE_SPREAD: u16 = 2;
/// `RuleRow::action`: dropped.
pub const RULE_DENY: u16 = 3;

/// Per-CPU counters of one rule.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct RuleStats {
    /// Packets that the rule decided about, but for fragments without ports and ICMP errors.
    pub packets: u64,
    /// Packets steered as without the rule, as the backend that it names took no clients.
    pub fallbacks: u64,
}

/// A local address of a machine that strips tunnel headers.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Pod, Zeroable)]
pub struct DecapKey {
    /// Network order; IPv4 in the first word.
    pub address: [u32; 4],
    /// [`FAMILY_V4`] or [`FAMILY_V6`].
    pub family: u32,
    /// Zero.
    pub reserved: u32,
}

/// Local addresses of a machine that strips tunnel headers, at most.
pub const MAX_DECAP_ADDRESSES: u32 = 4096;
/// An address of a machine that strips tunnel headers: a VIP, which packets inside are for.
pub const DECAP_VIP: u32 = 1;
/// An address of a machine that strips tunnel headers: its own, which tunnels end at.
pub const DECAP_OWN: u32 = 2;

/// A prefix that tunnels may come from. The data of a key of a longest-prefix-match trie, whose length counts from
/// [`DECAP_PREFIX_BASE`].
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Pod, Zeroable)]
pub struct DecapPrefix {
    /// [`FAMILY_V4`] or [`FAMILY_V6`].
    pub family: u32,
    /// Network order; IPv4 in the first word.
    pub address: [u32; 4],
}

/// Bits of a [`DecapPrefix`] before its address.
pub const DECAP_PREFIX_BASE: u32 = 32;
/// Bits of a whole [`DecapPrefix`].
pub const DECAP_PREFIX_BITS: u32 = DECAP_PREFIX_BASE + 128;
/// Prefixes that tunnels may come from, at most.
pub const MAX_DECAP_PREFIXES: u32 = 1024;

/// Per-CPU counters of the program that strips tunnel headers. Their sum is the packets seen.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct DecapStats {
    /// Stripped and handed to the kernel.
    pub stripped: u64,
    /// Dropped: the inner destination is no local VIP, the outer source none that tunnels may come from, or the outer
    /// header says congestion and the inner sender does not understand that (RFC 6040).
    pub refused: u64,
    /// Dropped: a tunnel packet that contradicts itself.
    pub malformed: u64,
    /// No tunnel packet, or one that does not end here: handed to the kernel unchanged.
    pub passed: u64,
}

/// A neighbour that a `nat` reply needs and the kernel has not resolved: sent to the controller, if it stays so.
#[repr(C, align(8))]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Pod, Zeroable)]
pub struct NeighbourWanted {
    /// Network order.
    pub address: [u32; 4],
    /// The interface it is a neighbour on.
    pub ifindex: u32,
    /// [`FAMILY_V4`] or [`FAMILY_V6`].
    pub family: u32,
}

/// Destinations of frames that an attached interface takes: a cache line, found by [`interface_row`].
#[repr(C, align(64))]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
pub struct InterfaceRow {
    /// [`station`] of its own MAC, then of those of the devices above it; places left over repeat the first.
    pub stations: [u64; STATIONS],
    /// Its index. Where this is another's, or 0, every frame is taken.
    pub ifindex: u32,
    /// Zero.
    pub reserved: u32,
}

/// MACs that are told apart on one interface.
pub const STATIONS: usize = 7;
/// What of the first eight bytes of a frame is its destination.
pub const STATION_MASK: u64 = u64::from_ne_bytes([0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0, 0]);
/// The bit of a [`station`] that says that it is a group's.
pub const STATION_GROUP: u64 = u64::from_ne_bytes([1, 0, 0, 0, 0, 0, 0, 0]);

/// A MAC as the word that a frame for it begins with, under [`STATION_MASK`].
#[must_use]
pub const fn station([a, b, c, d, e, f]: Mac) -> u64 {
    u64::from_ne_bytes([a, b, c, d, e, f, 0, 0])
}

/// For how long a neighbour has been asked for.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
pub struct NeighbourAsked {
    /// The first packet for it, in nanoseconds on the kernel's monotonic clock.
    pub first: u64,
    /// The last one.
    pub last: u64,
}

/// Neighbours that are asked for, at most; the oldest make room.
pub const MAX_ASKED: u32 = 4096;

/// The row of an interface in the interface map: a perfect hash, whose multiplier the controller chooses at load.
#[inline(always)]
#[must_use]
pub const fn interface_row(ifindex: u32, multiplier: u32) -> u32 {
    ifindex.wrapping_mul(multiplier) >> (32 - MAX_INTERFACES.trailing_zeros())
}

const _: () = {
    assert!(size_of::<ListenerRow>() == 32 && size_of::<Listening>() == 8 && size_of::<Portless>() == 8);
    assert!(size_of::<RangeRow>() == 16);
    assert!(size_of::<ServiceRow>() == 64);
    assert!(size_of::<BackendRow>() == 64 && size_of::<BackendRows>() == 128);
    assert!(size_of::<BackendStats>() == 128 && offset_of!(BackendStats, connections) >= 64);
    assert!(offset_of!(BackendStats, moves) == 0 && MOVE_COUNTERS <= 8);
    assert!(size_of::<ReturnRow>() == 64);
    assert!(size_of::<InterfaceRow>() == 64);
    assert!(offset_of!(ReturnRow, interfaces).is_multiple_of(size_of::<u64>()) && MAX_INTERFACES <= u64::BITS);
    assert!(size_of::<FragmentKey>() == 40);
    assert!(size_of::<FragmentRow>() == 16);
    assert!(size_of::<SlotLine>() == 64);
    assert!(size_of::<RuleKey>() == 20);
    assert!(size_of::<RuleRow>() == 8);
    assert!(size_of::<DecapPrefix>() == 20);
    assert!(MAX_RULES.is_power_of_two());
    assert!(size_of::<Control>() == 64);
    assert!(size_of::<Sample>() == 32);
    assert!(size_of::<NeighbourWanted>() == 24);
    assert!(FEWEST_BACKEND_ROWS.is_power_of_two() && MOST_BACKEND_ROWS.is_power_of_two());
    assert!((LAST_BACKEND as u32) < MOST_BACKEND_ROWS);
};

#[cfg(feature = "user")]
mod user {
    use super::*;

    macro_rules! pod {
        ($($type:ty),+ $(,)?) => {$(
            // SAFETY: `bytemuck::Pod` is derived: no padding, every bit pattern valid.
            unsafe impl aya::Pod for $type {}
        )+};
    }

    pod!(
        ListenerRow,
        ListenerStats,
        RangeRow,
        ServiceRow,
        SlotLine,
        BackendRows,
        ReturnRow,
        Control,
        InterfaceRow,
        InterfaceStats,
        BackendStats,
        DropStats,
        MemoryStats,
        NewcomerBudget,
        SampleStats,
        ReplyStats,
        Budget,
        RuleKey,
        RuleRow,
        RuleStats,
        DecapKey,
        DecapPrefix,
        DecapStats
    );
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::client::{mask_v4, mask_v6};

    proptest! {
        #[test]
        fn a_row_masks_as_the_prefix_does(prefix4 in 0u8..=32, prefix6 in 0u8..=128, address: [u64; 2]) {
            let mut row = ServiceRow::zeroed();
            let mask = mask_v6(prefix6);
            row.set_client_mask(mask);
            prop_assert_eq!(row.masked(address), [address[0] & mask[0], address[1] & mask[1]]);
            let mask = mask_v4(prefix4);
            row.set_client_mask([u64::from(mask), 0]);
            prop_assert_eq!(row.masked_v4(address[0] as u32), address[0] as u32 & mask);
            prop_assert_eq!(row.masked([u64::from(address[0] as u32), 0]), [u64::from(address[0] as u32 & mask), 0]);
        }
    }
}
