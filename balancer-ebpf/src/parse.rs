//! Parses the headers of a frame: Ethernet with up to two VLAN tags, IPv4 with options, IPv6 with extension headers,
//! TCP and UDP.
//!
//! The parser reports errors only after the destination is known, because a frame that is not for a VIP passes even if
//! the frame is malformed. [`ip`] reads the headers that every packet has; [`follow`] reads the rarer headers.

use core::mem::offset_of;

use balancer_common::{
    flows::Segment,
    map_types::{FAMILY_V4, FAMILY_V6},
};
use network_types::{
    eth::{EthHdr, EtherType},
    ip::{IpProto, Ipv4Hdr, Ipv6Hdr},
    tcp::TcpHdr,
    udp::UdpHdr,
};

use crate::{order, packet::Packet};

const VLAN_TAG_LEN: usize = 4;
/// The maximum number of VLAN tags that the parser reads.
pub const MAX_VLAN_TAGS: usize = 2;

/// The IANA number of TCP.
pub const TCP: u8 = IpProto::Tcp as u8;
/// The IANA number of UDP.
pub const UDP: u8 = IpProto::Udp as u8;
/// The IANA number of ICMP.
pub const ICMP: u8 = IpProto::Icmp as u8;
/// The IANA number of ICMPv6.
pub const ICMP_V6: u8 = IpProto::Ipv6Icmp as u8;
/// Length of the fixed ICMP header; in an ICMP error, the quoted packet follows this header.
pub const ICMP_HEADER_LEN: usize = 8;
/// Offset of the checksum in the ICMP header.
pub const ICMP_CHECK: usize = 2;
/// The IANA number of IPv6 destination options.
pub const DESTINATION_OPTIONS: u8 = IpProto::Ipv6Opts as u8;
const HOP_BY_HOP: u8 = IpProto::HopOpt as u8;
const ROUTING: u8 = IpProto::Ipv6Route as u8;
pub(crate) const FRAGMENT: u8 = IpProto::Ipv6Frag as u8;

/// The maximum number of IPv6 extension headers; a packet with more extension headers is malformed.
const MAX_EXTENSION_HEADERS: usize = 8;
/// The maximum length of the headers before layer 4; a packet with longer headers is malformed.
const MAX_HEADERS_LENGTH: usize = 2048;

const HEADERS_LENGTH_MASK: u64 = MAX_HEADERS_LENGTH as u64 - 1;
/// The mask that limits the offset of an IP header. The packet that an ICMP error quotes begins within the first 4096
/// bytes of the frame.
pub(crate) const L3_OFFSET_MASK: u64 = 4095;

/// The fragmentation fields of a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fragment {
    /// The offset in units of eight bytes and [`Fragment::MORE`], as in IPv4, in one number, which is 0 for an
    /// unfragmented packet.
    field: u16,
    /// The identification in the packet's byte order. The function [`ip`] leaves this field 0.
    pub id: u32,
}

impl Fragment {
    const MORE: u16 = 0x2000;
    const FIELD_MASK: u16 = 0x3fff;

    /// The value for an unfragmented packet.
    pub(crate) const NONE: Self = Self { field: 0, id: 0 };

    /// The offset in units of eight bytes, and the flag of more fragments, as in the header of IPv4.
    #[inline(always)]
    #[must_use]
    pub const fn as_v4(self) -> u16 {
        self.field
    }

    /// The offset in units of eight bytes, and the flag of more fragments, as in the fragment header of IPv6.
    #[inline(always)]
    #[must_use]
    pub const fn as_v6(self) -> u16 {
        self.offset() << 3 | self.more() as u16
    }

    /// The fragment's offset in units of eight bytes.
    #[inline(always)]
    #[must_use]
    pub const fn offset(self) -> u16 {
        self.field & !Self::MORE
    }

    /// Whether more fragments of the packet follow.
    #[inline(always)]
    #[must_use]
    pub const fn more(self) -> bool {
        self.field & Self::MORE != 0
    }

    /// Whether the packet is a fragment.
    #[inline(always)]
    #[must_use]
    pub const fn is_part(self) -> bool {
        self.field != 0
    }

    /// Whether the packet is a later fragment, which contains no layer-4 header.
    #[inline(always)]
    #[must_use]
    pub const fn is_later(self) -> bool {
        self.offset() != 0
    }

    /// Whether the packet is the first of several fragments.
    #[inline(always)]
    #[must_use]
    pub const fn is_first(self) -> bool {
        self.field == Self::MORE
    }
}

/// The fields of an IP header whose addresses could be read.
#[derive(Clone, Copy, Debug)]
pub struct Ip<'a> {
    /// The frame, beginning with the IP header.
    pub header: Packet<'a>,
    /// The frame, beginning with the layer-4 header.
    pub l4: Packet<'a>,
    /// The number of bytes before the IP header.
    pub l3_offset: usize,
    /// The family: [`FAMILY_V4`] or [`FAMILY_V6`].
    pub family: u8,
    /// The layer-4 protocol of the packet.
    pub protocol: u8,
    /// The fragmentation fields; 0 in an unfragmented packet.
    pub fragment: Fragment,
    /// Whether the fields of the header are consistent with each other and with the length of the frame.
    pub well_formed: bool,
    /// Length of the IP packet in bytes, as the header says.
    pub length: usize,
    /// The number of header bytes from the IP header to layer 4.
    pub headers_length: usize,
    /// The source address in network order; an IPv4 address is in the first word.
    pub source: [u32; 4],
    /// The destination address in network order; an IPv4 address is in the first word.
    pub destination: [u32; 4],
}

impl<'a> Ip<'a> {
    /// Whether routers may fragment the packet: IPv4 without "don't fragment".
    #[inline(always)]
    #[must_use]
    pub fn may_be_fragmented(&self) -> bool {
        const DONT_FRAGMENT: u16 = 0x4000;
        let flags = self.header.load::<u16>(offset_of!(Ipv4Hdr, frags)).unwrap_or_default();
        self.family == FAMILY_V4 && u16::from_be(flags) & DONT_FRAGMENT == 0
    }

    /// TTL or hop limit. This function reads the value from the packet, because most packets do not need the value.
    #[inline(always)]
    #[must_use]
    pub fn ttl(&self) -> u8 {
        let [hop_limit, _]: [u8; 2] = if self.family == FAMILY_V4 {
            self.header.load(offset_of!(Ipv4Hdr, ttl))
        } else {
            self.header.load(offset_of!(Ipv6Hdr, hop_limit))
        }
        .unwrap_or_default();
        hop_limit
    }

    /// TOS or traffic class: DSCP and congestion bits.
    #[inline(always)]
    #[must_use]
    pub fn traffic_class(&self) -> Option<u8> {
        let [first, second]: [u8; 2] = self.header.load(0)?;
        Some(if self.family == FAMILY_V4 { second } else { first << 4 | second >> 4 })
    }

    /// The address family according to the version field of the packet. When the family was a constant of each path on
    /// the stack, Linux 6.18.15 took the IPv4 branch on all paths; the verifier makes no assumption about a value that
    /// the program reads from the packet. The function reads two bytes because Linux 6.1 does not understand a bounds
    /// check of a single byte.
    #[inline(always)]
    #[must_use]
    pub fn version(&self) -> Option<u8> {
        let [first, _]: [u8; 2] = self.header.load(0)?;
        Some(first >> 4)
    }

    /// The positions of the headers and the result of [`follow`], packed into a number for [`Ip::put`].
    #[inline(always)]
    #[must_use]
    pub const fn place(&self) -> u64 {
        self.l3_offset as u64 & L3_OFFSET_MASK
            | (self.headers_length as u64 & HEADERS_LENGTH_MASK) << 16
            | (self.protocol as u64) << 32
            | (self.fragment.field as u64) << 40
    }

    /// The unfragmented packet in `frame`, rebuilt from `place`, the result of [`Ip::place`], with the fields that
    /// rewriting needs. In the result, addresses and length are missing.
    #[inline(always)]
    #[must_use]
    pub fn placed(frame: Packet<'a>, place: u64) -> Option<Self> {
        let mut ip = Self {
            header: frame,
            l4: frame,
            l3_offset: 0,
            family: 0,
            protocol: 0,
            fragment: Fragment::NONE,
            well_formed: true,
            length: 0,
            headers_length: 0,
            source: [0; 4],
            destination: [0; 4],
        };
        ip.put(frame, place);
        ip.family = if ip.version()? == 4 { FAMILY_V4 } else { FAMILY_V6 };
        Some(ip)
    }

    /// The packet rebuilt from the result of [`Ip::place`], with its addresses, its length and its fragment
    /// identification.
    #[inline(always)]
    #[must_use]
    pub fn kept(frame: Packet<'a>, place: u64, fragment: u32) -> Option<Self> {
        let mut ip = Self::placed(frame, place)?;
        ip.fragment.id = fragment;
        if ip.family == FAMILY_V4 {
            let [source, destination]: [u32; 2] = ip.header.load(offset_of!(Ipv4Hdr, src_addr))?;
            ip.source = [source, 0, 0, 0];
            ip.destination = [destination, 0, 0, 0];
            ip.length = order::length(ip.header.load(offset_of!(Ipv4Hdr, tot_len))?);
        } else {
            [ip.source, ip.destination] = ip.header.load(offset_of!(Ipv6Hdr, src_addr))?;
            ip.length = Ipv6Hdr::LEN + order::length(ip.header.load(offset_of!(Ipv6Hdr, payload_len))?);
        }
        Some(ip)
    }

    /// Sets the header positions of this packet in `frame` from the result of [`Ip::place`].
    #[inline(always)]
    pub fn put(&mut self, frame: Packet<'a>, place: u64) {
        let headers_length = (place >> 16 & HEADERS_LENGTH_MASK) as usize;
        self.l3_offset = (place & L3_OFFSET_MASK) as usize;
        self.header = frame.skip(self.l3_offset);
        self.l4 = self.header.skip(headers_length);
        self.headers_length = headers_length;
        self.protocol = (place >> 32) as u8;
        self.fragment.field = (place >> 40) as u16 & Fragment::FIELD_MASK;
    }

    /// The same packet in `frame`, which is another view of the packet's frame. With such a view, the program keeps
    /// fewer values on the stack.
    #[inline(always)]
    #[must_use]
    pub fn again(&self, frame: Packet<'a>) -> Self {
        let header = frame.skip(self.l3_offset);
        Self { header, l4: header.skip(self.headers_length), ..*self }
    }

    /// The offset of the layer-4 header in the frame.
    #[inline(always)]
    #[must_use]
    pub const fn l4_offset(&self) -> usize {
        self.l3_offset + self.headers_length
    }

    /// Length of the layer-4 part in bytes, as the headers say.
    #[inline(always)]
    #[must_use]
    pub const fn l4_length(&self) -> usize {
        self.length.wrapping_sub(self.headers_length)
    }
}

/// The ports of a TCP or UDP header, and the flags that the program uses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ports {
    /// Both ports as one word in the packet's byte order; the compiler keeps this word in one register.
    ends: u32,
    /// The flags SYN, RST and ACK as in a TCP header, or [`Ports::DATAGRAM`]. If the field were a boolean, the compiler
    /// would compute the value early, for every packet.
    opening: u32,
}

impl Ports {
    /// The source port in network order.
    #[inline(always)]
    #[must_use]
    pub const fn source(&self) -> u16 {
        let [a, b, ..] = self.ends.to_ne_bytes();
        u16::from_ne_bytes([a, b])
    }

    /// The destination port in network order.
    #[inline(always)]
    #[must_use]
    pub const fn destination(&self) -> u16 {
        let [.., a, b] = self.ends.to_ne_bytes();
        u16::from_ne_bytes([a, b])
    }

    const OPENS: u32 = SYN as u32;
    const HANDSHAKE: u32 = (SYN | ACK) as u32;
    const RESETS: u32 = RST as u32;
    /// A value that no segment has. One comparison distinguishes packets that may open a connection from all others,
    /// because this value contains SYN and not ACK.
    const DATAGRAM: u32 = 0x100 | Self::OPENS;

    /// Whether the packet is a TCP segment that opens a connection: SYN without ACK.
    #[inline(always)]
    #[must_use]
    pub const fn opens(&self) -> bool {
        self.opening & (Self::HANDSHAKE | Self::DATAGRAM) == Self::OPENS
    }

    /// Whether the packet is a TCP segment that ends or refuses a connection.
    #[inline(always)]
    #[must_use]
    pub const fn resets(&self) -> bool {
        self.opening & Self::RESETS != 0
    }

    /// Both ports as one 32-bit word in the packet's byte order.
    #[inline(always)]
    #[must_use]
    pub const fn ends(&self) -> u32 {
        self.ends
    }

    /// Whether the packet is a TCP segment.
    #[inline(always)]
    #[must_use]
    pub const fn is_segment(&self) -> bool {
        self.opening != Self::DATAGRAM
    }

    /// Whether the packet opens a connection ([`Self::opens`]) or is a datagram, which may open one.
    #[inline(always)]
    #[must_use]
    pub const fn may_open(&self) -> bool {
        self.opening & Self::HANDSHAKE == Self::OPENS
    }
}

/// The IP header of a frame. `None`: the frame is not IP, or is too short to contain a destination.
#[inline(always)]
#[must_use]
pub fn ip(frame: Packet<'_>) -> Option<Ip<'_>> {
    let (l3_offset, ether_type) = ethernet(frame)?;
    let header = frame.skip(l3_offset);
    if ether_type == EtherType::Ipv4 as u16 {
        ipv4(header, l3_offset)
    } else if ether_type == EtherType::Ipv6 as u16 {
        ipv6(header, l3_offset)
    } else {
        None
    }
}

/// Calls `then` with the header of an unfragmented, well-formed IPv6 packet or IPv4 packet without options. The
/// compiler compiles `then` for each family separately, so constants that depend on the family cost nothing at run
/// time. For any other IP frame, the result is `otherwise`. `None`: the frame is not IP.
///
/// `forget` returns its first argument, the offset of the IP header in a frame with tags, unchanged; in the kernel
/// program, it makes the offset unknown to the verifier, which knows as little about the second argument.
#[inline(always)]
#[must_use]
pub fn with_plain_ip<'a, Then>(
    frame: Packet<'a>,
    forget: impl Fn(usize, u16) -> usize,
    then: impl Fn(Ip<'a>) -> Then,
    otherwise: Then,
) -> Option<Then> {
    let mut l3_offset = EthHdr::LEN;
    let mut ether_type: u16 = frame.load(offset_of!(EthHdr, ether_type))?;
    // With the tests in this order, most frames need only one comparison.
    if ether_type != EtherType::Ipv4 as u16 && ether_type != EtherType::Ipv6 as u16 {
        (l3_offset, ether_type) = ethernet(frame)?;
        l3_offset = forget(l3_offset, frame.load(EthHdr::LEN)?);
    }
    let header = frame.skip(l3_offset);
    if ether_type == EtherType::Ipv4 as u16 {
        if let Some(ip) = plain_ipv4(header, l3_offset) {
            return Some(then(ip));
        }
    } else if ether_type == EtherType::Ipv6 as u16 {
        if let Some(ip) = plain_ipv6(header, l3_offset) {
            return Some(then(ip));
        }
    } else {
        return None;
    }
    Some(otherwise)
}

/// The length of the link-layer headers, and the type of the header that follows them (in memory order, as the variants
/// of [`EtherType`]).
#[inline(always)]
fn ethernet(frame: Packet<'_>) -> Option<(usize, u16)> {
    let mut offset = EthHdr::LEN;
    let mut ether_type: u16 = frame.load(offset_of!(EthHdr, ether_type))?;
    for _ in 0..MAX_VLAN_TAGS {
        if ether_type != EtherType::Ieee8021q as u16 && ether_type != EtherType::Ieee8021ad as u16 {
            break;
        }
        ether_type = frame.load(offset + 2)?;
        offset += VLAN_TAG_LEN;
    }
    Some((offset, ether_type))
}

/// Like [`ipv4`], for an unfragmented packet without options.
#[inline(always)]
fn plain_ipv4(header: Packet<'_>, l3_offset: usize) -> Option<Ip<'_>> {
    // The mask covers version, header length and fragmentation.
    const LOOKED_AT: u64 = u64::from_ne_bytes([0xff, 0, 0, 0, 0, 0, 0x3f, 0xff]);
    const PLAIN: u64 = u64::from_ne_bytes([0x45, 0, 0, 0, 0, 0, 0, 0]);
    let [source, destination]: [u32; 2] = header.load(offset_of!(Ipv4Hdr, src_addr))?;
    let start: u64 = header.load(0)?;
    let [_ttl, protocol]: [u8; 2] = header.load(offset_of!(Ipv4Hdr, ttl))?;
    let length = order::length(bytemuck::cast::<u64, [u16; 4]>(start)[1]);
    let plain = start & LOOKED_AT == PLAIN && length >= Ipv4Hdr::LEN;
    plain.then_some(Ip {
        header,
        l4: header.skip(Ipv4Hdr::LEN),
        l3_offset,
        family: FAMILY_V4,
        protocol,
        fragment: Fragment::NONE,
        well_formed: true,
        length,
        headers_length: Ipv4Hdr::LEN,
        source: [source, 0, 0, 0],
        destination: [destination, 0, 0, 0],
    })
}

/// Like [`ipv6`], for a well-formed packet.
#[inline(always)]
fn plain_ipv6(header: Packet<'_>, l3_offset: usize) -> Option<Ip<'_>> {
    let ip = ipv6(header, l3_offset)?;
    ip.well_formed.then_some(Ip { well_formed: true, ..ip })
}

#[inline(always)]
fn ipv4(header: Packet<'_>, l3_offset: usize) -> Option<Ip<'_>> {
    let [source, destination]: [u32; 2] = header.load(offset_of!(Ipv4Hdr, src_addr))?;
    let [version_ihl, _tos]: [u8; 2] = header.load(0)?;
    let length = order::length(header.load(offset_of!(Ipv4Hdr, tot_len))?);
    let field = u16::from_be(header.load(offset_of!(Ipv4Hdr, frags))?) & Fragment::FIELD_MASK;
    let [_ttl, protocol]: [u8; 2] = header.load(offset_of!(Ipv4Hdr, ttl))?;
    let header_length = ((version_ihl & 0xf) as usize) * 4;
    Some(Ip {
        header,
        l4: header.skip(header_length),
        l3_offset,
        family: FAMILY_V4,
        protocol,
        fragment: Fragment { field, id: 0 },
        well_formed: version_ihl >> 4 == 4 && header_length >= Ipv4Hdr::LEN && length >= header_length,
        length,
        headers_length: header_length,
        source: [source, 0, 0, 0],
        destination: [destination, 0, 0, 0],
    })
}

#[inline(always)]
fn ipv6(header: Packet<'_>, l3_offset: usize) -> Option<Ip<'_>> {
    let [source, destination]: [[u32; 4]; 2] = header.load(offset_of!(Ipv6Hdr, src_addr))?;
    let [version, _flow]: [u8; 2] = header.load(0)?;
    let payload_length = order::length(header.load(offset_of!(Ipv6Hdr, payload_len))?);
    let [protocol, _hop_limit]: [u8; 2] = header.load(offset_of!(Ipv6Hdr, next_hdr))?;
    Some(Ip {
        header,
        l4: header.skip(Ipv6Hdr::LEN),
        l3_offset,
        family: FAMILY_V6,
        protocol,
        fragment: Fragment::NONE,
        well_formed: version >> 4 == 6,
        length: Ipv6Hdr::LEN + payload_length,
        headers_length: Ipv6Hdr::LEN,
        source,
        destination,
    })
}

/// The reason why [`follow`] found no layer-4 header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stopped {
    /// The extension headers extend beyond the packet, number more than eight, or are longer than 2047 bytes.
    Malformed,
    /// A routing header has segments left, so the packet's destination address is not the final destination.
    Waypoint,
}

/// Finds in `frame` the layer-4 header of a packet, behind IPv6 extension headers, and the identification of a
/// fragment. In a later fragment, the protocol may still be that of an extension header.
///
/// `forget` returns its argument unchanged; in the kernel program, it makes the number unknown to the verifier.
///
/// # Errors
/// An error is one of the variants of [`Stopped`].
#[inline(always)]
pub fn follow<'a>(frame: Packet<'a>, ip: &mut Ip<'a>, forget: impl Fn(u64) -> Option<u64>) -> Result<(), Stopped> {
    if ip.family == FAMILY_V4 {
        let id: u16 = ip.header.load(offset_of!(Ipv4Hdr, id)).ok_or(Stopped::Malformed)?;
        ip.fragment.id = u32::from(id);
        ip.put(frame, forget(ip.place()).ok_or(Stopped::Malformed)?);
        return Ok(());
    }
    for index in 0..=MAX_EXTENSION_HEADERS {
        ip.put(frame, forget(ip.place()).ok_or(Stopped::Malformed)?);
        let protocol = ip.protocol;
        let options = protocol == ROUTING || protocol == DESTINATION_OPTIONS || index == 0 && protocol == HOP_BY_HOP;
        if !options && protocol != FRAGMENT || ip.fragment.is_later() {
            return if ip.headers_length <= ip.length { Ok(()) } else { Err(Stopped::Malformed) };
        }
        let [next, length]: [u8; 2] = ip.l4.load(0).ok_or(Stopped::Malformed)?;
        let mut header_length = 8;
        if options {
            let segments_left: u8 = ip.l4.load(3).ok_or(Stopped::Malformed)?;
            header_length += length as usize * 8;
            if protocol == ROUTING && segments_left != 0 {
                let whole = ip.headers_length + header_length <= ip.length;
                return Err(if whole { Stopped::Waypoint } else { Stopped::Malformed });
            }
        } else {
            let field = u16::from_be(ip.l4.load(2).ok_or(Stopped::Malformed)?);
            let id: u32 = ip.l4.load(4).ok_or(Stopped::Malformed)?;
            let more = if field & 1 == 0 { 0 } else { Fragment::MORE };
            ip.fragment = Fragment { field: field >> 3 | more, id };
        }
        ip.protocol = next;
        ip.headers_length += header_length;
        if ip.headers_length >= MAX_HEADERS_LENGTH {
            return Err(Stopped::Malformed);
        }
    }
    Err(Stopped::Malformed)
}

/// The IP header at offset `l3_offset` of `frame`; its packet lies inside another packet or is quoted in an ICMP error.
/// The lengths come from this header and may exceed the frame. `None`: the frame is too short, or the header is not of
/// the given family.
#[inline(always)]
#[must_use]
pub fn inner(frame: Packet<'_>, l3_offset: usize, family: u8) -> Option<Ip<'_>> {
    let bytes = frame.skip(l3_offset);
    let ip = if family == FAMILY_V4 { ipv4(bytes, l3_offset) } else { ipv6(bytes, l3_offset) }?;
    ip.well_formed.then_some(ip)
}

/// The FIN bit of a TCP header.
pub const FIN: u8 = 0x01;
pub(crate) const SYN: u8 = 0x02;
pub(crate) const RST: u8 = 0x04;
/// The ACK bit of a TCP header.
pub(crate) const ACK: u8 = 0x10;

/// The properties of a packet with known [`ports`] that change the state of the packet's flow, without the time stamp.
#[inline(always)]
#[must_use]
pub fn segment(ip: &Ip<'_>, by_client: bool) -> Segment {
    if ip.protocol != TCP {
        return Segment { by_client, datagram: true, ..Segment::default() };
    }
    let [_, sequence, acknowledgement, control, _] = ip.l4.load::<[[u8; 4]; 5]>(0).unwrap_or_default();
    let [offset, flags, ..] = control;
    let has = |flag: u8| flags & flag != 0;
    Segment {
        by_client,
        datagram: false,
        syn: has(SYN),
        fin: has(FIN),
        rst: has(RST),
        ack: has(ACK),
        sequence: u32::from_be_bytes(sequence),
        acknowledgement: u32::from_be_bytes(acknowledgement),
        length: (ip.l4_length() as u32).wrapping_sub(u32::from(offset >> 4) * 4),
        stamp: 0,
    }
}

/// The ports of a TCP or UDP packet. `None`: the packet has another protocol, or its header is missing or inconsistent.
#[inline(always)]
#[must_use]
pub fn ports(ip: &Ip<'_>) -> Option<Ports> {
    let first_fragment = ip.fragment.is_first();
    if ip.protocol == TCP {
        // The whole fixed header must be present, because the program may have to rewrite the checksum.
        let [ends, _, _, control, _]: [[u8; 4]; 5] = ip.l4.load(0)?;
        let [offset, control, ..] = control;
        let header_length = (offset >> 4) as usize * 4;
        let fits = header_length >= TcpHdr::LEN && (header_length <= ip.l4_length() || first_fragment);
        let opening = u32::from(control & (SYN | RST | ACK));
        let ports = Ports { ends: u32::from_ne_bytes(ends), opening };
        (fits && ip.l4_length() >= TcpHdr::LEN).then_some(ports)
    } else if ip.protocol == UDP {
        let [ends, rest]: [u32; 2] = ip.l4.load(0)?;
        let [length, ..]: [u16; 2] = bytemuck::cast(rest);
        let length = order::length(length);
        let fits = length >= UdpHdr::LEN && (length <= ip.l4_length() || first_fragment);
        (fits && ip.l4_length() >= UdpHdr::LEN).then_some(Ports { ends, opening: Ports::DATAGRAM })
    } else {
        None
    }
}
