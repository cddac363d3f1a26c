//! Backends: how they are reached, and how `nat` packets come back.

use core::mem::offset_of;

use bytemuck::{Pod, Zeroable};

use super::{ALL_DOWN, MAX_INTERFACES, Mac, Portless, ServiceKey};

/// The last id that a backend may have. The first one is 1.
pub const LAST_BACKEND: u16 = ALL_DOWN - 1;
/// Rows of the maps of backends, where there are few of them. The controller sets the number when it loads the program.
pub const FEWEST_BACKEND_ROWS: u32 = 16_384;
/// Rows of the maps of backends, at most.
pub const MOST_BACKEND_ROWS: u32 = 65_536;
/// Backends that each CPU counts for itself, at least: those with the first ids. CPUs share the counters of the others.
pub const FEWEST_BACKEND_COUNTERS: u32 = 4096;

/// `BackendStanding::flags`: the row may be used; without it packets are dropped as [`crate::verdict::DropReason::NoNextHop`].
pub const BACKEND_REACHABLE: u8 = 1;
/// `BackendStanding::flags`: known clients stay here.
pub const BACKEND_KEEPS_KNOWN: u8 = 4;
/// `BackendStanding::flags`: the backend's address is IPv6.
pub const BACKEND_V6: u8 = 8;
/// `BackendStanding::flags`: it takes new clients, so that a rule may pin some here.
pub const BACKEND_TAKES_CLIENTS: u8 = 16;
/// `BackendStanding::flags`: the second of [`BackendRows`] is in use. Its offset, so that nothing is left to compute.
pub const BACKEND_SECOND: u8 = size_of::<BackendRow>() as u8;

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
    /// The egress interface; 0: this machine is the backend, see [`BackendRow::is_local`].
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
    /// A [`Forwarding`](super::Forwarding), and perhaps [`FORWARDING_ASKS`].
    pub forwarding: u8,
    /// `ASKS_*`: with [`FORWARDING_ASKS`], of which frames it must be asked.
    pub asking: u8,
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

    /// A [`Forwarding`](super::Forwarding), without [`FORWARDING_ASKS`].
    #[inline(always)]
    #[must_use]
    pub const fn mode(&self) -> u8 {
        self.forwarding & !FORWARDING_ASKS
    }

    /// Whether this machine is the backend: its packets pass to the host. Such a row has [`FORWARDING_ASKS`], so that packets
    /// leave the plain path, and a [`Forwarding`](super::Forwarding) without a tunnel.
    #[inline(always)]
    #[must_use]
    pub const fn is_local(&self) -> bool {
        self.ifindex == 0
    }

    /// Whether it must be asked whether the kernel has to send a frame that came in by `ingress`, with a VLAN tag or
    /// without. A frame without a tag that leaves by the interface it came in by never has to be asked about.
    #[inline(always)]
    #[must_use]
    pub const fn asks(&self, ingress: u32, is_tagged: bool) -> bool {
        self.forwarding & FORWARDING_ASKS != 0
            && (self.ifindex != ingress && self.asking & ASKS_OF_TAGGED == 0
                || is_tagged && self.asking & ASKS_OF_REDIRECTED == 0)
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

/// `BackendRow::forwarding`: with this bit, beside a [`Forwarding`](super::Forwarding), it must be asked whether the kernel
/// has to send its frames, see `DEVICE_*`. Above every `Forwarding` without it.
pub const FORWARDING_ASKS: u8 = 0x80;
/// `BackendRow::asking`: only of frames with a VLAN tag, as the egress interface takes whatever XDP sends.
pub const ASKS_OF_TAGGED: u8 = 1;
/// `BackendRow::asking`: only of frames that leave by another interface, as none carries tags of others.
pub const ASKS_OF_REDIRECTED: u8 = 2;

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
    /// The interfaces that the backend's packets come in by, a bit for each
    /// [`interface_row`](super::interface_row); 0: not known. Replaced with
    /// one store.
    pub interfaces: u64,
}

impl ReturnRow {
    /// The port that replies come from, to clients; `None`: the packet's own.
    #[inline(always)]
    #[must_use]
    pub fn port(&self) -> Option<u16> {
        (self.vip_port != 0).then_some(self.vip_port)
    }
}

const _: () = {
    assert!(size_of::<BackendRow>() == 64 && size_of::<BackendRows>() == 128);
    assert!(size_of::<ReturnRow>() == 64);
    assert!(offset_of!(ReturnRow, interfaces).is_multiple_of(size_of::<u64>()) && MAX_INTERFACES <= u64::BITS);
    assert!(FEWEST_BACKEND_ROWS.is_power_of_two() && MOST_BACKEND_ROWS.is_power_of_two());
    assert!(FEWEST_BACKEND_COUNTERS.is_power_of_two() && FEWEST_BACKEND_COUNTERS <= FEWEST_BACKEND_ROWS);
    assert!((LAST_BACKEND as u32) < MOST_BACKEND_ROWS);
};

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_frames_that_an_interface_may_concern_are_asked_about() {
        let row = |forwarding, asking| BackendRow { ifindex: 7, forwarding, asking, ..BackendRow::zeroed() };
        // By the interface that they leave by or another, without a tag or with one.
        let asked = |row: BackendRow| [(7, false), (8, false), (7, true), (8, true)].map(|(by, tag)| row.asks(by, tag));
        assert_eq!(asked(row(0, 0)), [false; 4]);
        assert_eq!(asked(row(FORWARDING_ASKS, ASKS_OF_TAGGED)), [false, false, true, true]);
        assert_eq!(asked(row(FORWARDING_ASKS, ASKS_OF_REDIRECTED)), [false, true, false, true]);
        assert_eq!(asked(row(FORWARDING_ASKS, 0)), [false, true, true, true]);
        let local = BackendRow { ifindex: 0, ..row(FORWARDING_ASKS, 0) };
        assert!(local.is_local() && asked(local) == [true; 4]);
    }
}
