//! Parses those fields of a frame's headers on which decisions depend.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

pub(crate) const ICMP: u8 = 1;
pub(crate) const TCP: u8 = 6;
pub(crate) const UDP: u8 = 17;
pub(crate) const ICMP_V6: u8 = 58;
pub(crate) const DESTINATION_OPTIONS: u8 = 60;
const HOP_BY_HOP: u8 = 0;
const ROUTING: u8 = 43;
const FRAGMENT: u8 = 44;

/// An IP packet and the positions of the packet's headers in the frame.
#[derive(Clone, Debug)]
pub(crate) struct Packet {
    /// The position of the IP header in the frame.
    pub(crate) start: usize,
    pub(crate) v6: bool,
    pub(crate) protocol: u8,
    pub(crate) ttl: u8,
    pub(crate) traffic_class: u8,
    pub(crate) source: IpAddr,
    pub(crate) destination: IpAddr,
    /// The length that the IP header states, which includes the IP header.
    pub(crate) length: usize,
    /// The length of all headers before layer 4.
    pub(crate) headers: usize,
    /// The fragment's offset, in units of eight bytes.
    pub(crate) fragment_offset: u16,
    pub(crate) more_fragments: bool,
    pub(crate) id: u32,
    /// Whether the packet has the flag that forbids routers to fragment packets. Routers never fragment IPv6 packets.
    pub(crate) dont_fragment: bool,
    /// Whether all fields of the IP header are consistent.
    sound: bool,
}

impl Packet {
    pub(crate) fn is_fragment(&self) -> bool {
        self.more_fragments || self.fragment_offset != 0
    }

    pub(crate) fn is_first_fragment(&self) -> bool {
        self.more_fragments && self.fragment_offset == 0
    }

    pub(crate) fn is_later_fragment(&self) -> bool {
        self.fragment_offset != 0
    }

    /// The position of layer 4 in the frame.
    pub(crate) fn l4(&self) -> usize {
        self.start + self.headers
    }

    /// Returns the length of layer 4, in bytes.
    pub(crate) fn l4_length(&self) -> usize {
        self.length - self.headers
    }

    /// The position of the packet's end in the frame. The link may have appended bytes after the packet.
    pub(crate) fn end(&self) -> usize {
        self.start + self.length
    }
}

pub(crate) enum Parsed {
    /// The frame contains no IP packet, or the frame is too short to contain the packet's destination.
    NotIp,
    /// The packet has a source route that continues beyond the balancer.
    Waypoint,
    Broken {
        destination: IpAddr,
    },
    Packet(Packet),
}

pub(crate) fn word(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_be_bytes(bytes.get(at..at + 2)?.try_into().ok()?))
}

/// Parses the IP packet in a frame.
pub(crate) fn frame(frame: &[u8]) -> Parsed {
    let Some(mut ether_type) = word(frame, 12) else { return Parsed::NotIp };
    let mut start = 14;
    for _ in 0..2 {
        if ether_type != 0x8100 && ether_type != 0x88a8 {
            break;
        }
        let Some(next) = word(frame, start + 2) else { return Parsed::NotIp };
        ether_type = next;
        start += 4;
    }
    let packet = match ether_type {
        0x0800 => v4(frame, start),
        0x86dd => v6(frame, start),
        _ => None,
    };
    let Some(mut packet) = packet else { return Parsed::NotIp };
    let destination = packet.destination;
    if !packet.sound || packet.end() > frame.len() {
        return Parsed::Broken { destination };
    }
    match follow(frame, &mut packet) {
        Followed::Layer4 => Parsed::Packet(packet),
        Followed::Broken => Parsed::Broken { destination },
        Followed::Waypoint => Parsed::Waypoint,
    }
}

/// Parses the packet that the ICMP error `error` quotes. Returns `None` if the quote is malformed, or too short to
/// identify the packet's connection.
pub(crate) fn quoted(frame: &[u8], error: &Packet) -> Option<Packet> {
    let start = error.l4() + 8;
    let mut inner = if error.v6 { v6(frame, start) } else { v4(frame, start) }?;
    if !inner.sound {
        return None;
    }
    let Followed::Layer4 = follow(frame, &mut inner) else { return None };
    let ports = if inner.is_later_fragment() { 0 } else { 4 };
    (inner.l4() + ports <= error.end()).then_some(inner)
}

fn v4(frame: &[u8], start: usize) -> Option<Packet> {
    let header: &[u8; 20] = frame.get(start..start + 20)?.try_into().ok()?;
    let address = |at: usize| Ipv4Addr::new(header[at], header[at + 1], header[at + 2], header[at + 3]);
    let headers = usize::from(header[0] & 15) * 4;
    let length = usize::from(word(header, 2)?);
    let fragment = word(header, 6)?;
    Some(Packet {
        start,
        v6: false,
        protocol: header[9],
        ttl: header[8],
        traffic_class: header[1],
        source: address(12).into(),
        destination: address(16).into(),
        length,
        headers,
        fragment_offset: fragment & 0x1fff,
        more_fragments: fragment & 0x2000 != 0,
        id: u32::from(word(header, 4)?),
        dont_fragment: fragment & 0x4000 != 0,
        sound: header[0] >> 4 == 4 && headers >= 20 && length >= headers,
    })
}

fn v6(frame: &[u8], start: usize) -> Option<Packet> {
    let header: &[u8; 40] = frame.get(start..start + 40)?.try_into().ok()?;
    let address = |at: usize| -> Option<Ipv6Addr> {
        let bytes: [u8; 16] = header.get(at..at + 16)?.try_into().ok()?;
        Some(bytes.into())
    };
    Some(Packet {
        start,
        v6: true,
        protocol: header[6],
        ttl: header[7],
        traffic_class: header[0] << 4 | header[1] >> 4,
        source: address(8)?.into(),
        destination: address(24)?.into(),
        length: 40 + usize::from(word(header, 4)?),
        headers: 40,
        fragment_offset: 0,
        more_fragments: false,
        id: 0,
        dont_fragment: true,
        sound: header[0] >> 4 == 6,
    })
}

enum Followed {
    Layer4,
    Broken,
    Waypoint,
}

/// Parses the extension headers of an IPv6 packet.
///
/// The program's choice: the program accepts at most eight extension headers, and less than 2048 bytes of headers
/// before layer 4. The program still recognizes a ninth extension header that is a source route.
fn follow(frame: &[u8], packet: &mut Packet) -> Followed {
    if !packet.v6 {
        return Followed::Layer4;
    }
    for index in 0..9 {
        let kind = packet.protocol;
        let extension = matches!(kind, ROUTING | DESTINATION_OPTIONS | FRAGMENT) || kind == HOP_BY_HOP && index == 0;
        if !extension || packet.is_later_fragment() {
            return if packet.headers <= packet.length { Followed::Layer4 } else { Followed::Broken };
        }
        let Some(header) = frame.get(packet.l4()..) else { return Followed::Broken };
        let needed = if kind == FRAGMENT { 8 } else { 4 };
        if header.len() < needed {
            return Followed::Broken;
        }
        if kind == ROUTING && header[3] != 0 {
            let whole = packet.headers + 8 + usize::from(header[1]) * 8 <= packet.length;
            return if whole { Followed::Waypoint } else { Followed::Broken };
        }
        packet.protocol = header[0];
        if kind == FRAGMENT {
            let field = u16::from_be_bytes([header[2], header[3]]);
            packet.fragment_offset = field >> 3;
            packet.more_fragments = field & 1 != 0;
            packet.id = u32::from_be_bytes([header[4], header[5], header[6], header[7]]);
            packet.headers += 8;
        } else {
            packet.headers += 8 + usize::from(header[1]) * 8;
        }
        if packet.headers >= 2048 {
            return Followed::Broken;
        }
    }
    Followed::Broken
}

/// The ports of a TCP or UDP packet.
pub(crate) struct Ports {
    pub(crate) source: u16,
    pub(crate) destination: u16,
    /// The packet is a SYN without ACK.
    pub(crate) opens: bool,
}

/// Parses the ports of a packet that is not a later fragment. Returns `None` if the header is missing or inconsistent.
/// A first fragment needs only the fixed part of the header.
pub(crate) fn ports(frame: &[u8], packet: &Packet) -> Option<Ports> {
    let segment = frame.get(packet.l4()..packet.end())?;
    let (fixed, promised) = if packet.protocol == TCP {
        (20, usize::from(segment.get(12)? >> 4) * 4)
    } else {
        (8, usize::from(word(segment, 4)?))
    };
    if segment.len() < fixed || promised < fixed || promised > segment.len() && !packet.is_first_fragment() {
        return None;
    }
    let flags = if packet.protocol == TCP { segment[13] } else { 0 };
    Some(Ports { source: word(segment, 0)?, destination: word(segment, 2)?, opens: flags & 0x12 == 0x02 })
}
