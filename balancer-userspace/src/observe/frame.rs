//! Parses those fields of a frame that affect the program's decision.

use std::{
    fmt,
    net::{IpAddr, SocketAddr},
};

use balancer_common::map_types::GUE_PORT;
use balancer_config::config::Protocol;
use etherparse::{IpNumber, LaxNetSlice, LaxSlicedPacket, TransportSlice};
use serde::Serialize;

/// The IP packet in a frame.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub(crate) struct Frame {
    /// The VLAN ids, beginning with the outer id.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(crate) vlans: Vec<u16>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) source: Option<IpAddr>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) destination: Option<IpAddr>,
    /// The protocol of the packet: `tcp`, `udp`, `icmp`, `icmpv6`, or a number.
    pub(crate) protocol: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) source_port: Option<u16>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) destination_port: Option<u16>,
    /// The TCP flags that are set, such as `SYN,ACK`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) flags: Option<String>,
    /// The type and code of an ICMP message.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) icmp: Option<[u8; 2]>,
    /// The TTL or hop limit.
    pub(crate) ttl: u8,
    #[serde(skip_serializing_if = "is_false")]
    pub(crate) fragment: bool,
    /// The inner packet, if the packet is a tunnel packet.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) inside: Option<Box<Self>>,
    /// The quoted packet, if the packet is an ICMP error.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) about: Option<Box<Self>>,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde calls it")]
const fn is_false(value: &bool) -> bool {
    !*value
}

impl Frame {
    /// Parses the IP packet in an Ethernet frame, which may be truncated; `None` if the frame contains no IP packet.
    pub(crate) fn parse(frame: &[u8]) -> Option<Self> {
        let sliced = LaxSlicedPacket::from_ethernet(frame).ok()?;
        let vlans = sliced.vlan_ids().iter().map(|id| id.value()).collect();
        Some(Self { vlans, ..Self::of(&sliced, true)? })
    }

    fn of(sliced: &LaxSlicedPacket<'_>, deeper: bool) -> Option<Self> {
        let mut this = Self::default();
        let (number, payload) = match sliced.net.as_ref()? {
            LaxNetSlice::Ipv4(ip) => {
                this.source = Some(ip.header().source_addr().into());
                this.destination = Some(ip.header().destination_addr().into());
                this.ttl = ip.header().ttl();
                this.fragment = ip.is_payload_fragmented();
                (ip.payload_ip_number(), ip.payload().payload)
            }
            LaxNetSlice::Ipv6(ip) => {
                this.source = Some(ip.header().source_addr().into());
                this.destination = Some(ip.header().destination_addr().into());
                this.ttl = ip.header().hop_limit();
                this.fragment = ip.is_payload_fragmented();
                (ip.payload().ip_number, ip.payload().payload)
            }
            LaxNetSlice::Arp(_) => return None,
        };
        this.protocol = match number {
            IpNumber::TCP => "tcp".to_owned(),
            IpNumber::UDP => "udp".to_owned(),
            IpNumber::ICMP => "icmp".to_owned(),
            IpNumber::IPV6_ICMP => "icmpv6".to_owned(),
            other => other.0.to_string(),
        };
        let inner = |bytes: &[u8]| {
            let sliced = LaxSlicedPacket::from_ip(bytes).ok()?;
            Self::of(&sliced, false).map(Box::new)
        };
        if deeper && matches!(number, IpNumber::IPV4 | IpNumber::IPV6) {
            this.inside = inner(payload);
        }
        match sliced.transport.as_ref() {
            Some(TransportSlice::Tcp(tcp)) => {
                (this.source_port, this.destination_port) = (Some(tcp.source_port()), Some(tcp.destination_port()));
                let flags = [
                    (tcp.syn(), "SYN"),
                    (tcp.fin(), "FIN"),
                    (tcp.rst(), "RST"),
                    (tcp.psh(), "PSH"),
                    (tcp.ack(), "ACK"),
                ];
                let set: Vec<&str> = flags.into_iter().filter(|(set, _)| *set).map(|(_, name)| name).collect();
                this.flags = Some(set.join(","));
            }
            Some(TransportSlice::Udp(udp)) => {
                (this.source_port, this.destination_port) = (Some(udp.source_port()), Some(udp.destination_port()));
                if deeper && udp.destination_port() == GUE_PORT {
                    this.inside = inner(udp.payload());
                }
            }
            Some(TransportSlice::Icmpv4(icmp)) => {
                this.icmp = Some([icmp.type_u8(), icmp.code_u8()]);
                if deeper && matches!(icmp.type_u8(), 3 | 4 | 11 | 12) {
                    this.about = inner(icmp.payload());
                }
            }
            Some(TransportSlice::Icmpv6(icmp)) => {
                this.icmp = Some([icmp.type_u8(), icmp.code_u8()]);
                if deeper && icmp.type_u8() < 128 {
                    this.about = inner(icmp.payload());
                }
            }
            // Even a truncated packet contains its ports.
            Some(TransportSlice::Igmp(_)) | None => this.ports(number, payload),
        }
        Some(this)
    }

    /// Reads the ports of a packet whose end is missing, because it is quoted or truncated.
    fn ports(&mut self, number: IpNumber, payload: &[u8]) {
        if let (IpNumber::TCP | IpNumber::UDP, false, [a, b, c, d, ..]) = (number, self.fragment, payload) {
            self.source_port = Some(u16::from_be_bytes([*a, *b]));
            self.destination_port = Some(u16::from_be_bytes([*c, *d]));
        }
    }

    /// The protocol of the packet, if it is TCP or UDP.
    pub(crate) fn layer4(&self) -> Option<Protocol> {
        match self.protocol.as_str() {
            "tcp" => Some(Protocol::Tcp),
            "udp" => Some(Protocol::Udp),
            _ => None,
        }
    }
}

/// Formats a packet as `10.1.0.1:40000 > 10.2.0.10:80 tcp SYN`.
impl fmt::Display for Frame {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let end = |address: Option<IpAddr>, port: Option<u16>| match (address, port) {
            (Some(address), Some(port)) => SocketAddr::new(address, port).to_string(),
            (Some(address), None) => address.to_string(),
            (None, _) => "?".to_owned(),
        };
        for vlan in &self.vlans {
            write!(f, "vlan {vlan} ")?;
        }
        let (source, destination) = (end(self.source, self.source_port), end(self.destination, self.destination_port));
        write!(f, "{source} > {destination} {}", self.protocol)?;
        if let Some(flags) = self.flags.as_deref().filter(|flags| !flags.is_empty()) {
            write!(f, " {flags}")?;
        }
        if let Some([kind, code]) = self.icmp {
            write!(f, " type {kind} code {code}")?;
        }
        if self.fragment {
            f.write_str(" fragment")?;
        }
        if let Some(inside) = &self.inside {
            write!(f, " ({inside})")?;
        }
        if let Some(about) = &self.about {
            write!(f, " about ({about})")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use etherparse::PacketBuilder;

    use super::*;

    fn tcp() -> Vec<u8> {
        let builder = PacketBuilder::ethernet2([2; 6], [4; 6]).ipv4([10, 1, 0, 1], [10, 2, 0, 10], 64);
        let mut frame = Vec::new();
        builder.tcp(40_000, 80, 1, 1000).syn().write(&mut frame, b"hello").unwrap();
        frame
    }

    #[test]
    fn when_a_frame_is_whole_or_cut_off_then_its_ends_are_read() {
        let whole = tcp();
        let frame = Frame::parse(&whole).unwrap();
        assert_eq!(frame.to_string(), "10.1.0.1:40000 > 10.2.0.10:80 tcp SYN");
        assert_eq!(frame.layer4(), Some(Protocol::Tcp));
        let cut = Frame::parse(&whole[..40]).unwrap();
        assert_eq!(cut.to_string(), "10.1.0.1:40000 > 10.2.0.10:80 tcp");
        for length in 0..whole.len() {
            let _ = Frame::parse(&whole[..length]);
        }
        assert_eq!(Frame::parse(&[0; 60]), None);
    }

    #[test]
    fn when_a_packet_is_in_a_tunnel_then_both_headers_are_read() {
        let inner = &tcp()[14..];
        let mut frame = Vec::new();
        let builder = PacketBuilder::ethernet2([2; 6], [4; 6]).ipv4([10, 0, 0, 1], [10, 0, 0, 11], 64);
        builder.write(&mut frame, IpNumber::IPV4, inner).unwrap();
        let text = Frame::parse(&frame).unwrap().to_string();
        assert_eq!(text, "10.0.0.1 > 10.0.0.11 4 (10.1.0.1:40000 > 10.2.0.10:80 tcp SYN)");
    }

    #[test]
    fn when_an_error_comes_then_it_is_told_about_which_packet() {
        let quoted = &tcp()[14..14 + 28];
        let mut frame = Vec::new();
        let builder = PacketBuilder::ethernet2([2; 6], [4; 6]).ipv4([10, 9, 0, 1], [10, 2, 0, 10], 64);
        let unreachable =
            etherparse::Icmpv4Type::DestinationUnreachable(etherparse::icmpv4::DestUnreachableHeader::Host);
        builder.icmpv4(unreachable).write(&mut frame, quoted).unwrap();
        let text = Frame::parse(&frame).unwrap().to_string();
        assert_eq!(text, "10.9.0.1 > 10.2.0.10 icmp type 3 code 1 about (10.1.0.1:40000 > 10.2.0.10:80 tcp)");
    }
}
