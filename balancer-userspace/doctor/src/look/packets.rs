//! Builds and parses the packets of probes, without side effects.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use crate::facts::{Mac, Said};

const V4: usize = 20;
const V6: usize = 40;
const TCP: usize = 20;
const ECHO: usize = 8;
const UDP: usize = 8;
const ARP: usize = 28;
const TTL: u8 = 64;
const DONT_FRAGMENT: u16 = 0x4000;
/// The bits of the fragment offset in an IPv4 header, and the bit for more fragments.
const FRAGMENT: u16 = 0x3fff;
/// The UDP port of GUE.
const GUE_PORT: u16 = 6080;

/// The protocol numbers in IP headers.
const ICMP: u8 = 1;
const IPV4: u8 = 4;
pub(super) const PROTO_TCP: u8 = 6;
pub(super) const PROTO_UDP: u8 = 17;
const IPV6: u8 = 41;
const ICMPV6: u8 = 58;

/// The TCP flag SYN.
pub(super) const SYN: u8 = 0x02;
/// The TCP flag RST.
pub(super) const RST: u8 = 0x04;
/// The TCP flag ACK.
pub(super) const ACK: u8 = 0x10;

/// A received packet, as far as it matters to probes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Heard {
    /// A host's ARP answer for an address.
    Arp { address: Ipv4Addr, mac: Mac },
    /// A TCP segment between two addresses.
    Tcp { from: SocketAddr, to: SocketAddr, flags: u8, checksum_right: bool },
    /// An echo reply, which answers a ping.
    Echo { from: IpAddr, to: IpAddr, id: u16, sequence: u16 },
    /// An ICMP error, by which `from` reports that a packet to `target` with this protocol did not reach its host or
    /// port. `port` is the source port of that packet, if the protocol has ports.
    Unreachable { from: IpAddr, target: IpAddr, protocol: u8, port: Option<u16>, said: Said },
}

/// The outer header in which the balancer encapsulates packets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Outer {
    None,
    Ipip,
    Gue,
}

impl Outer {
    /// Returns the outer header of a forwarding mode.
    pub(super) fn of(forwarding: &str) -> Self {
        match forwarding {
            "ipip" => Self::Ipip,
            "gue" => Self::Gue,
            _ => Self::None,
        }
    }

    /// Whether a packet with this protocol number may have this outer header.
    pub(super) const fn is(self, protocol: u8) -> bool {
        match self {
            Self::None => false,
            Self::Ipip => matches!(protocol, IPV4 | IPV6),
            Self::Gue => protocol == PROTO_UDP,
        }
    }

    /// The number of bytes that the outer header adds to packets for a backend of this address family.
    pub(super) const fn length(self, backend_v4: bool) -> usize {
        let ip = if backend_v4 { V4 } else { V6 };
        match self {
            Self::None => 0,
            Self::Ipip => ip,
            Self::Gue => ip + UDP,
        }
    }

    /// Encapsulates `packet` in the outer header, from `source` to `backend`.
    pub(super) fn put_on(self, packet: &[u8], source: IpAddr, backend: IpAddr, port: u16) -> Vec<u8> {
        let inner = if is_v4(packet) { IPV4 } else { IPV6 };
        match self {
            Self::None => packet.to_vec(),
            Self::Ipip => ip(source, backend, inner, packet),
            Self::Gue => {
                let length = (UDP + packet.len()) as u16;
                // The outer UDP header has no checksum, because the inner packet has its own checksum.
                let header = [port, GUE_PORT, length, 0].map(u16::to_be_bytes);
                ip(source, backend, PROTO_UDP, &[header.as_flattened(), packet].concat())
            }
        }
    }
}

fn is_v4(packet: &[u8]) -> bool {
    packet.first().is_none_or(|byte| byte >> 4 == 4)
}

/// Builds an IP packet. Source and target must be of the same address family.
fn ip(source: IpAddr, target: IpAddr, protocol: u8, payload: &[u8]) -> Vec<u8> {
    let mut packet = Vec::with_capacity(V6 + payload.len());
    match (source, target) {
        (IpAddr::V4(source), IpAddr::V4(target)) => {
            packet.extend([0x45, 0]);
            packet.extend([(V4 + payload.len()) as u16, 0, DONT_FRAGMENT].map(u16::to_be_bytes).as_flattened());
            packet.extend([TTL, protocol, 0, 0]);
            packet.extend(source.octets());
            packet.extend(target.octets());
            let sum = (!folded(&packet, 0)).to_be_bytes();
            packet[10..12].copy_from_slice(&sum);
        }
        (source, target) => {
            packet.extend([0x60, 0, 0, 0]);
            packet.extend((payload.len() as u16).to_be_bytes());
            packet.extend([protocol, TTL]);
            packet.extend(octets(source));
            packet.extend(octets(target));
        }
    }
    packet.extend(payload);
    packet
}

fn octets(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(address) => address.octets().to_vec(),
        IpAddr::V6(address) => address.octets().to_vec(),
    }
}

/// The Internet checksum (RFC 1071) before it is complemented.
fn folded(bytes: &[u8], begin: u32) -> u16 {
    let words = bytes.chunks(2).map(|pair| u32::from(pair[0]) << 8 | u32::from(pair.get(1).copied().unwrap_or(0)));
    let mut sum = words.fold(begin, u32::wrapping_add);
    while sum >> 16 != 0 {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    sum as u16
}

/// The sum over the pseudo-header of TCP or ICMPv6.
fn pseudo(source: IpAddr, target: IpAddr, protocol: u8, length: usize) -> u32 {
    let addresses = [octets(source), octets(target)].concat();
    u32::from(folded(&addresses, u32::from(protocol) + length as u32))
}

/// Builds a TCP segment that acknowledges nothing. Data of zeros fill the packet up to `length` bytes; there are none if
/// the headers are longer.
pub(super) fn tcp(from: SocketAddr, to: SocketAddr, sequence: u32, flags: u8, length: usize) -> Vec<u8> {
    let header = if to.is_ipv4() { V4 } else { V6 };
    let mut segment = Vec::with_capacity(TCP.max(length));
    segment.extend([from.port(), to.port()].map(u16::to_be_bytes).as_flattened());
    segment.extend([sequence, 0].map(u32::to_be_bytes).as_flattened());
    segment.extend([(TCP as u8 / 4) << 4, flags]);
    segment.extend([0xffff_u16, 0, 0].map(u16::to_be_bytes).as_flattened());
    segment.resize(length.saturating_sub(header).max(TCP), 0);
    let sum = !folded(&segment, pseudo(from.ip(), to.ip(), PROTO_TCP, segment.len()));
    segment[16..18].copy_from_slice(&sum.to_be_bytes());
    ip(from.ip(), to.ip(), PROTO_TCP, &segment)
}

/// Builds a UDP datagram without data.
pub(super) fn datagram(from: SocketAddr, to: SocketAddr) -> Vec<u8> {
    let mut datagram = [from.port(), to.port(), UDP as u16, 0].map(u16::to_be_bytes).as_flattened().to_vec();
    let sum = !folded(&datagram, pseudo(from.ip(), to.ip(), PROTO_UDP, UDP));
    // A sum of zero would say that there is no checksum.
    let sum = if sum == 0 { u16::MAX } else { sum };
    datagram[6..8].copy_from_slice(&sum.to_be_bytes());
    ip(from.ip(), to.ip(), PROTO_UDP, &datagram)
}

/// Builds a ping of `length` bytes, or of the smallest possible size if `length` is smaller.
pub(super) fn echo(source: IpAddr, target: IpAddr, id: u16, sequence: u16, length: usize) -> Vec<u8> {
    let (protocol, kind, header) = if target.is_ipv4() { (ICMP, 8, V4) } else { (ICMPV6, 128, V6) };
    let mut message = vec![kind, 0, 0, 0];
    message.extend([id, sequence].map(u16::to_be_bytes).as_flattened());
    message.resize(length.saturating_sub(header).max(ECHO), 0);
    let begin = if target.is_ipv4() { 0 } else { pseudo(source, target, ICMPV6, message.len()) };
    let sum = !folded(&message, begin);
    message[2..4].copy_from_slice(&sum.to_be_bytes());
    ip(source, target, protocol, &message)
}

/// Builds an ARP request for an address. The request has no sender address, so that it changes no neighbour table.
pub(super) fn who_has(own: Mac, target: Ipv4Addr) -> Vec<u8> {
    let mut question = vec![0, 1, 8, 0, 6, 4, 0, 1];
    question.extend(own);
    question.extend([0; 10]);
    question.extend(target.octets());
    question
}

/// The packet in an Ethernet frame, behind its VLAN tags.
pub(super) fn packet(frame: &[u8]) -> Option<&[u8]> {
    const TAGS: [u16; 2] = [0x8100, 0x88a8];
    let mut at = 12;
    while TAGS.contains(&word(frame, at)?) {
        at += 4;
    }
    frame.get(at + 2..)
}

/// Parses an ARP packet; `None` if the packet is not a complete reply for IPv4 over Ethernet.
pub(super) fn arp(packet: &[u8]) -> Option<Heard> {
    const REPLY: [u8; 2] = [0, 2];
    let packet = packet.get(..ARP)?;
    let mac = Mac::try_from(&packet[8..14]).ok()?;
    let address = <[u8; 4]>::try_from(&packet[14..18]).ok()?;
    (packet[..6] == [0, 1, 8, 0, 6, 4] && packet[6..8] == REPLY).then(|| Heard::Arp { address: address.into(), mac })
}

/// Parses an IP packet with TCP, an echo reply or an ICMP error; `None` if the packet is incomplete or of another kind.
pub(super) fn heard(packet: &[u8]) -> Option<Heard> {
    let header = Header::read(packet)?;
    let payload = packet.get(header.length..header.end.min(packet.len()))?;
    match header.protocol {
        PROTO_TCP => {
            let ports = payload.get(..4)?;
            let sum = folded(payload, pseudo(header.source, header.target, PROTO_TCP, payload.len()));
            Some(Heard::Tcp {
                from: SocketAddr::new(header.source, word(ports, 0)?),
                to: SocketAddr::new(header.target, word(ports, 2)?),
                flags: *payload.get(13)?,
                checksum_right: sum == 0xffff,
            })
        }
        ICMP | ICMPV6 => {
            const REPLY: u8 = 0;
            const REPLY_V6: u8 = 129;
            match (header.protocol, *payload.first()?) {
                (ICMP, REPLY) | (ICMPV6, REPLY_V6) => Some(Heard::Echo {
                    from: header.source,
                    to: header.target,
                    id: word(payload, 4)?,
                    sequence: word(payload, 6)?,
                }),
                (_, kind) => {
                    let said = said(header.protocol, kind, *payload.get(1)?)?;
                    let inner = payload.get(ECHO..)?;
                    let Header { target, protocol, length, .. } = Header::read(inner)?;
                    let ports = matches!(protocol, PROTO_TCP | PROTO_UDP);
                    let port = word(inner, length).filter(|_| ports);
                    Some(Heard::Unreachable { from: header.source, target, protocol, port, said })
                }
            }
        }
        _ => None,
    }
}

/// The reason for which a packet did not arrive, from an ICMP error; `None` for all other messages, among them those about
/// packets that are too large.
const fn said(protocol: u8, kind: u8, code: u8) -> Option<Said> {
    const UNREACHABLE: u8 = 3;
    const EXCEEDED: u8 = 11;
    const UNREACHABLE_V6: u8 = 1;
    const EXCEEDED_V6: u8 = 3;
    /// The ICMPv6 type of messages by which a host reports an unknown header.
    const PARAMETER_V6: u8 = 4;
    match (protocol, kind, code) {
        (ICMP, UNREACHABLE, 2) | (ICMPV6, PARAMETER_V6, _) => Some(Said::ProtocolUnreachable),
        (ICMP, UNREACHABLE, 3) | (ICMPV6, UNREACHABLE_V6, 4) => Some(Said::PortUnreachable),
        (ICMP, UNREACHABLE, 4) => None,
        (ICMP, UNREACHABLE, 9 | 10 | 13) | (ICMPV6, UNREACHABLE_V6, 1 | 5 | 6) => Some(Said::Prohibited),
        (ICMP, UNREACHABLE, _) | (ICMPV6, UNREACHABLE_V6, _) => Some(Said::HostUnreachable),
        (ICMP, EXCEEDED, 0) | (ICMPV6, EXCEEDED_V6, 0) => Some(Said::HopLimitExceeded),
        _ => None,
    }
}

fn word(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_be_bytes(bytes.get(at..at + 2)?.try_into().ok()?))
}

/// The fields of a complete packet's IP header.
struct Header {
    source: IpAddr,
    target: IpAddr,
    protocol: u8,
    length: usize,
    end: usize,
}

impl Header {
    fn read(packet: &[u8]) -> Option<Self> {
        if is_v4(packet) {
            let address = |at| Some(IpAddr::from(<[u8; 4]>::try_from(packet.get(at..at + 4)?).ok()?));
            let is_whole = word(packet, 6)? & FRAGMENT == 0;
            return is_whole.then_some(Self {
                source: address(12)?,
                target: address(16)?,
                protocol: *packet.get(9)?,
                length: usize::from(packet.first()? & 15) * 4,
                end: word(packet, 2)?.into(),
            });
        }
        let address = |at| Some(IpAddr::from(<[u8; 16]>::try_from(packet.get(at..at + 16)?).ok()?));
        Some(Self {
            source: address(8)?,
            target: address(24)?,
            protocol: *packet.get(6)?,
            length: V6,
            end: V6 + usize::from(word(packet, 4)?),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(text: &str) -> SocketAddr {
        text.parse().unwrap()
    }

    #[test]
    fn when_a_probe_is_read_then_it_says_what_was_written() {
        for (from, to) in [("192.0.2.1:40000", "192.0.2.9:80"), ("[2001:db8::1]:40000", "[2001:db8::9]:80")] {
            let (from, to) = (at(from), at(to));
            let segment = tcp(from, to, 7, SYN, 0);
            assert_eq!(heard(&segment), Some(Heard::Tcp { from, to, flags: SYN, checksum_right: true }));
            let mut broken = segment;
            let last = broken.len() - 5;
            broken[last] ^= 1;
            assert_eq!(heard(&broken), Some(Heard::Tcp { from, to, flags: SYN, checksum_right: false }));
        }
    }

    #[test]
    fn when_a_frame_has_vlan_tags_then_its_packet_is_behind_them() {
        let inner = tcp(at("192.0.2.1:40000"), at("192.0.2.9:80"), 7, SYN, 0);
        for tags in [&[][..], &[0x81, 0, 0, 5], &[0x88, 0xa8, 0, 5, 0x81, 0, 0, 6]] {
            let frame = [&[2; 12], tags, &[8, 0], &inner].concat();
            assert_eq!(packet(&frame), Some(&inner[..]));
            for length in 0..13 + tags.len() {
                assert_eq!(packet(&frame[..length]), None, "{length} bytes");
            }
        }
    }

    #[test]
    fn when_a_ping_is_answered_then_its_number_is_read() {
        for (source, target, reply) in [("192.0.2.1", "192.0.2.9", 0), ("2001:db8::1", "2001:db8::9", 129)] {
            let (source, target): (IpAddr, IpAddr) = (source.parse().unwrap(), target.parse().unwrap());
            let mut packet = echo(source, target, 5, 6, 1400);
            assert_eq!(packet.len(), 1400);
            let header = if source.is_ipv4() { V4 } else { V6 };
            let begin = if source.is_ipv4() { 0 } else { pseudo(source, target, ICMPV6, 1400 - V6) };
            assert_eq!(folded(&packet[header..], begin), 0xffff, "the checksum is right");
            packet[header] = reply;
            assert_eq!(heard(&packet), Some(Heard::Echo { from: source, to: target, id: 5, sequence: 6 }));
        }
    }

    #[test]
    fn when_an_outer_header_is_put_on_then_it_has_the_length_that_is_said() {
        let inner = tcp(at("192.0.2.1:4000"), at("192.0.2.9:80"), 0, SYN, 0);
        for (source, backend) in [("192.0.2.1", "192.0.2.7"), ("2001:db8::1", "2001:db8::7")] {
            let (source, backend): (IpAddr, IpAddr) = (source.parse().unwrap(), backend.parse().unwrap());
            for outer in [Outer::None, Outer::Ipip, Outer::Gue] {
                let packet = outer.put_on(&inner, source, backend, 4000);
                assert_eq!(packet.len(), inner.len() + outer.length(source.is_ipv4()), "{outer:?}");
                assert!(packet.ends_with(&inner));
                let protocol = packet[if source.is_ipv4() { 9 } else { 6 }];
                assert_eq!(outer.is(protocol), outer != Outer::None);
            }
        }
    }

    #[test]
    fn when_a_host_has_nothing_for_an_outer_header_then_its_complaint_is_understood() {
        let (own, backend): (IpAddr, IpAddr) = ("192.0.2.1".parse().unwrap(), "192.0.2.7".parse().unwrap());
        let inner = tcp(at("192.0.2.1:4000"), at("192.0.2.9:80"), 0, SYN, 0);
        let sent = Outer::Gue.put_on(&inner, own, backend, 4000);
        let complaint = ip(backend, own, ICMP, &[&[3, 3, 0, 0, 0, 0, 0, 0], &sent[..28]].concat());
        let expected = Heard::Unreachable {
            from: backend,
            target: backend,
            protocol: PROTO_UDP,
            port: Some(4000),
            said: Said::PortUnreachable,
        };
        assert_eq!(heard(&complaint), Some(expected));
    }

    #[test]
    fn when_a_host_rejects_a_probe_then_its_reason_is_read() {
        let (own, backend) = (at("192.0.2.1:4000"), at("192.0.2.7:80"));
        let sent = [tcp(own, backend, 0, SYN, 0), datagram(own, backend)];
        for (kind, code, said) in [
            (3, 1, Some(Said::HostUnreachable)),
            (3, 2, Some(Said::ProtocolUnreachable)),
            (3, 3, Some(Said::PortUnreachable)),
            (3, 4, None),
            (3, 10, Some(Said::Prohibited)),
            (3, 13, Some(Said::Prohibited)),
            (11, 0, Some(Said::HopLimitExceeded)),
            (5, 1, None),
        ] {
            for packet in &sent {
                let error =
                    ip(backend.ip(), own.ip(), ICMP, &[&[kind, code, 0, 0, 0, 0, 0, 0], &packet[..28]].concat());
                let read = heard(&error).map(|heard| {
                    let Heard::Unreachable { port, said, .. } = heard else { panic!("{heard:?}") };
                    (port, said)
                });
                assert_eq!(read, said.map(|said| (Some(4000), said)), "{kind}/{code}");
            }
        }
    }

    #[test]
    fn when_a_segment_is_filled_up_then_its_length_and_checksum_are_right() {
        for (from, to) in [("192.0.2.1:40000", "192.0.2.9:80"), ("[2001:db8::1]:40000", "[2001:db8::9]:80")] {
            let (from, to) = (at(from), at(to));
            let segment = tcp(from, to, 7, SYN, 1500);
            assert_eq!(segment.len(), 1500);
            assert_eq!(heard(&segment), Some(Heard::Tcp { from, to, flags: SYN, checksum_right: true }));
        }
    }

    #[test]
    fn when_an_arp_reply_comes_then_its_sender_is_known() {
        let mut packet = who_has([2, 0, 0, 0, 0, 1], Ipv4Addr::new(192, 0, 2, 9));
        assert_eq!(packet.len(), ARP);
        assert_eq!(arp(&packet), None, "a question is no answer");
        packet[7] = 2;
        packet[14..18].copy_from_slice(&[192, 0, 2, 9]);
        let expected = Heard::Arp { address: Ipv4Addr::new(192, 0, 2, 9), mac: [2, 0, 0, 0, 0, 1] };
        assert_eq!(arp(&packet), Some(expected));
    }

    #[test]
    fn when_a_packet_is_cut_anywhere_then_nothing_breaks() {
        let inner = tcp(at("192.0.2.1:4000"), at("192.0.2.9:80"), 0, SYN, 0);
        let ping = echo("::1".parse().unwrap(), "::2".parse().unwrap(), 1, 1, 90);
        for packet in [inner, ping] {
            for length in 0..packet.len() {
                heard(&packet[..length]);
                arp(&packet[..length]);
            }
        }
    }
}
