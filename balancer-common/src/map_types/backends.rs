//! Rows of backends: how packets reach the backends, and how replies of `nat` backends return.

use core::mem::offset_of;

use bytemuck::{Pod, Zeroable};

use super::{ALL_DOWN, MAX_INTERFACES, Mac, Portless, ServiceKey};

/// The highest id of a backend. The lowest id of a backend is 1.
pub const LAST_BACKEND: u16 = ALL_DOWN - 1;
/// The minimum number of rows in the maps of backends. The controller chooses the number of rows when it loads the
/// kernel program.
pub const FEWEST_BACKEND_ROWS: u32 = 16_384;
/// The maximum number of rows in the maps of backends.
pub const MOST_BACKEND_ROWS: u32 = 65_536;
/// The minimum number of backends that have counters on each CPU; these backends have the lowest ids. All CPUs share
/// the counters of the other backends.
pub const FEWEST_BACKEND_COUNTERS: u32 = 4096;

/// `BackendStanding::flags`: the backend can be reached; without this flag, the program drops the backend's packets as
/// [`crate::verdict::DropReason::NoNextHop`].
pub const BACKEND_REACHABLE: u8 = 1;
/// `BackendStanding::flags`: the backend keeps its known clients.
pub const BACKEND_KEEPS_KNOWN: u8 = 4;
/// `BackendStanding::flags`: the backend has an IPv6 address.
pub const BACKEND_V6: u8 = 8;
/// `BackendStanding::flags`: the backend takes new clients, so a rule may pin clients to this backend, and any QUIC
/// connection ID may open a flow to it.
pub const BACKEND_TAKES_CLIENTS: u8 = 16;
/// `BackendStanding::flags`: the second copy in [`BackendRows`] is in use. The value of this flag is the offset of the
/// second copy, which saves a computation.
pub const BACKEND_SECOND: u8 = size_of::<BackendRow>() as u8;

/// The row of a backend in two copies, by backend id: the controller writes one copy while the kernel program reads the
/// other copy. The [`BackendStanding`] in the first copy applies to both copies and says which copy is in use.
#[repr(C, align(64))]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
pub struct BackendRows {
    /// Both copies of the backend's row.
    pub rows: [BackendRow; 2],
}

/// All data about a backend that forwarding needs, in one cache line.
#[repr(C, align(64))]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
pub struct BackendRow {
    /// The first eight bytes of a frame to the backend: the MAC of the next hop, and two bytes of the egress
    /// interface's MAC. The method [`BackendRow::set_macs`] writes these bytes.
    pub macs_start: u64,
    /// The remaining four bytes of the egress interface's MAC.
    pub macs_end: u32,
    /// The index of the egress interface; 0: this machine is the backend, see [`BackendRow::is_local`].
    pub ifindex: u32,
    /// The backend's address in network order.
    pub address: [u32; 4],
    /// `nat`: the folded sum of the words of the backend's address; the program adds this sum to a complemented
    /// checksum when the backend's address replaces a VIP. `ipip` and `gue` over IPv4: the sum of both addresses of the
    /// outer header.
    pub address_sum: u16,
    /// This field is always zero.
    pub unused: u16,
    /// `nat`: the backend's port for every listener, network order; 0: each listener's own port.
    pub port: u16,
    /// A [`Forwarding`](super::Forwarding), possibly with the bit [`FORWARDING_ASKS`].
    pub forwarding: u8,
    /// `ASKS_*`: the kinds of frames for which the program must consult the map of devices.
    pub asking: u8,
    /// MTU of the egress interface, in bytes.
    pub mtu: u32,
    /// A [`BackendStanding`], which the controller replaces with one store; 0 in the second copy of [`BackendRows`].
    pub standing: u32,
    /// `ipip` and `gue`: the source address of the outer header, in the backend's family, network order.
    pub tunnel_source: [u32; 4],
}

impl BackendRow {
    /// Sets the MAC addresses of frames to the backend. The row stores the addresses as words because the compiler
    /// would copy bytes one by one.
    pub const fn set_macs(&mut self, destination: Mac, source: Mac) {
        let [a, b, c, d, e, f] = destination;
        let [g, h, i, j, k, l] = source;
        self.macs_start = u64::from_ne_bytes([a, b, c, d, e, f, g, h]);
        self.macs_end = u32::from_ne_bytes([i, j, k, l]);
    }

    /// The [`Forwarding`](super::Forwarding) mode without the bit [`FORWARDING_ASKS`].
    #[inline(always)]
    #[must_use]
    pub const fn mode(&self) -> u8 {
        self.forwarding & !FORWARDING_ASKS
    }

    /// Whether this machine is the backend, so that the backend's packets pass to the host. The row of such a backend
    /// has the bit [`FORWARDING_ASKS`], which takes the backend's packets off the path of most packets, and a
    /// [`Forwarding`](super::Forwarding) mode without a tunnel.
    #[inline(always)]
    #[must_use]
    pub const fn is_local(&self) -> bool {
        self.ifindex == 0
    }

    /// Whether the program must check if only the kernel can send a frame that came in by `ingress`, with or without a
    /// VLAN tag. A frame without a VLAN tag that leaves by its ingress interface never needs this check.
    #[inline(always)]
    #[must_use]
    pub const fn asks(&self, ingress: u32, is_tagged: bool) -> bool {
        self.forwarding & FORWARDING_ASKS != 0
            && (self.ifindex != ingress && self.asking & ASKS_OF_TAGGED == 0
                || is_tagged && self.asking & ASKS_OF_REDIRECTED == 0)
    }

    /// Whether there are frames to the backend for which the program must check if only the kernel can send them.
    #[inline(always)]
    #[must_use]
    pub const fn asks_of_some(&self) -> bool {
        self.forwarding & FORWARDING_ASKS != 0 || self.asking & ASKS_OF_PARTS != 0
    }
}

/// The state of a backend, in a word that the program can read without the rest of the row: [`BackendRow::standing`].
#[repr(C, align(4))]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
pub struct BackendStanding {
    /// Index of the backend's service.
    pub service: u16,
    /// The index of a [`crate::verdict::MoveCause`]: why known clients leave the backend, if the backend does not keep
    /// them.
    pub cause: u8,
    /// The flags: `BACKEND_*` bits.
    pub flags: u8,
}

impl BackendStanding {
    /// Packs the backend's state into one 32-bit word.
    #[must_use]
    pub fn to_word(self) -> u32 {
        bytemuck::cast(self)
    }

    /// Unpacks the backend's state from its word.
    #[inline(always)]
    #[must_use]
    pub fn from_word(word: u32) -> Self {
        bytemuck::cast(word)
    }
}

/// `BackendRow::forwarding`: a bit that is stored together with a [`Forwarding`](super::Forwarding) mode. If the bit is
/// set, the program must check whether only the kernel can send the frames (see `DEVICE_*`). The value of this bit is
/// greater than every value of `Forwarding`.
pub const FORWARDING_ASKS: u8 = 0x80;
/// `BackendRow::asking`: the program must check only frames with a VLAN tag, because the egress interface accepts all
/// other frames from XDP.
pub const ASKS_OF_TAGGED: u8 = 1;
/// `BackendRow::asking`: the program must check only frames that leave by another interface than they arrived by,
/// because no interface carries VLAN interfaces.
pub const ASKS_OF_REDIRECTED: u8 = 2;
/// `BackendRow::asking`: the program must check frames in several buffers that leave by another interface than they
/// arrived by, with or without [`FORWARDING_ASKS`]. The path of most packets handles no frames in several buffers.
pub const ASKS_OF_PARTS: u8 = 4;

/// A row of the return table: how to turn a `nat` backend's reply into a packet from the VIP. One row fills a cache
/// line.
#[repr(C, align(64))]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
pub struct ReturnRow {
    /// The backend's address, its port (0: a row for every port, which stays unchanged) and the protocol.
    pub key: ServiceKey,
    /// The VIP in network order.
    pub vip: [u32; 4],
    /// The service's port, network order; 0: the port stays unchanged.
    pub vip_port: u16,
    /// The id of the backend.
    pub backend: u16,
    /// The amount, folded to 16 bits, that replacing the backend's address by the VIP adds to a complemented checksum.
    pub address_delta: u16,
    /// The amount, folded to 16 bits, that replacing the backend's address and port adds to a complemented checksum.
    pub l4_delta: u16,
    /// If the row is for every port: 1 means that the program translates only ports with a listener of the VIP; 0 means
    /// that it translates all ports.
    pub listeners_only: u32,
    /// In the marker row of a backend's address (port and protocol 0): the service to which a reply's fragments without
    /// ports belong.
    pub portless: Portless,
    /// The interfaces on which the backend's packets may arrive, one bit for each
    /// [`interface_row`](super::interface_row); 0: unknown. The controller replaces this 64-bit word with one store.
    pub interfaces: u64,
}

/// The number of words in a [`DirectLine`], which fills a cache line.
pub const DIRECT_PER_LINE: usize = 8;

/// A line of the table of direct connections: the words of eight connections, see [`crate::direct`], or the key.
#[repr(C, align(64))]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct DirectLine {
    /// The words of connections. In the last line: the two words of the key, which the controller draws once.
    pub words: [u64; DIRECT_PER_LINE],
}

impl ReturnRow {
    /// The source port that clients see; `None`: the packet keeps its source port.
    #[inline(always)]
    #[must_use]
    pub fn port(&self) -> Option<u16> {
        (self.vip_port != 0).then_some(self.vip_port)
    }
}

const _: () = {
    assert!(size_of::<BackendRow>() == 64 && size_of::<BackendRows>() == 128);
    assert!(size_of::<ReturnRow>() == 64 && size_of::<DirectLine>() == 64);
    assert!(offset_of!(ReturnRow, interfaces).is_multiple_of(size_of::<u64>()) && MAX_INTERFACES <= u64::BITS);
    assert!(FEWEST_BACKEND_ROWS.is_power_of_two() && MOST_BACKEND_ROWS.is_power_of_two());
    assert!(FEWEST_BACKEND_COUNTERS.is_power_of_two() && FEWEST_BACKEND_COUNTERS <= FEWEST_BACKEND_ROWS);
    assert!((LAST_BACKEND as u32) < MOST_BACKEND_ROWS);
};

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn when_a_frame_uses_an_interface_without_special_devices_then_no_check_is_needed() {
        let row = |forwarding, asking| BackendRow { ifindex: 7, forwarding, asking, ..BackendRow::zeroed() };
        // The frames leave by their ingress interface or by another interface, without and with a VLAN tag.
        let asked = |row: BackendRow| [(7, false), (8, false), (7, true), (8, true)].map(|(by, tag)| row.asks(by, tag));
        assert_eq!(asked(row(0, 0)), [false; 4]);
        assert_eq!(asked(row(FORWARDING_ASKS, ASKS_OF_TAGGED)), [false, false, true, true]);
        assert_eq!(asked(row(FORWARDING_ASKS, ASKS_OF_REDIRECTED)), [false, true, false, true]);
        assert_eq!(asked(row(FORWARDING_ASKS, 0)), [false, true, true, true]);
        assert_eq!(asked(row(0, ASKS_OF_PARTS)), [false; 4], "these frames have one buffer");
        let some = [(0, 0), (0, ASKS_OF_PARTS), (FORWARDING_ASKS, ASKS_OF_TAGGED)];
        assert_eq!(some.map(|(forwarding, asking)| row(forwarding, asking).asks_of_some()), [false, true, true]);
        let local = BackendRow { ifindex: 0, ..row(FORWARDING_ASKS, 0) };
        assert!(local.is_local() && asked(local) == [true; 4]);
    }
}
