//! Builds network frames from a description. The module computes all checksums from scratch, so that tests can check
//! the kernel program's incremental updates.

use std::net::{IpAddr, SocketAddr};

use etherparse::{
    EtherType, Ethernet2Header, IpFragOffset, IpNumber, Ipv4Header, Ipv4Options, Ipv6FlowLabel, Ipv6Header,
    SingleVlanHeader, TcpHeader, UdpHeader, VlanId,
};

pub type Mac = [u8; 6];

/// An IP packet in an Ethernet frame.
#[derive(Clone, Debug)]
pub struct Frame {
    pub destination_mac: Mac,
    pub source_mac: Mac,
    /// The ids of the VLAN tags, from the outermost tag inward.
    pub vlans: Vec<u16>,
    /// The source address and port of the packet.
    pub source: SocketAddr,
    /// The destination address and port of the packet.
    pub destination: SocketAddr,
    /// The TTL or hop limit of the packet.
    pub ttl: u8,
    /// The traffic class: DSCP and ECN.
    pub tos: u8,
    /// The IPv4 header's identification field.
    pub id: u16,
    /// IPv4 options, a multiple of four bytes.
    pub options: Vec<u8>,
    /// The flow label of IPv6.
    pub flow_label: u32,
    /// The extension headers of IPv6.
    pub extensions: Vec<Extension>,
    /// The IPv4 bit that forbids fragmentation.
    pub dont_fragment: bool,
    /// The IPv4 bit that announces more fragments.
    pub more_fragments: bool,
    /// The IPv4 fragment offset, in units of eight bytes. If the offset is not 0, `payload` follows the IP header
    /// directly.
    pub fragment_offset: u16,
    /// The header of layer 4.
    pub transport: Transport,
    /// The sequence number of a TCP segment.
    pub sequence: u32,
    /// The acknowledgement number of a TCP segment; 0 if the segment does not have the flag ACK.
    pub acknowledgement: u32,
    /// The value of the time stamp option of a TCP segment. `None`: the segment has no options.
    pub stamp: Option<u32>,
    /// The bytes after the last header.
    pub payload: Vec<u8>,
}

/// The sequence number of the first byte after the SYN of either end, unless a test sets another one.
pub const FIRST_BYTE: u32 = 0x0102_0304;

/// The layer-4 header of a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transport {
    /// TCP with the given flag bits (FIN 1, SYN 2, RST 4, PSH 8, ACK 16).
    Tcp(u8),
    /// UDP with a checksum.
    Udp,
    /// UDP without a checksum: the field is 0.
    UdpWithoutChecksum,
    /// ICMP or ICMPv6, with the type, the code and the rest of the header.
    Icmp(u8, u8, [u8; 4]),
    /// No layer-4 header: `payload` follows the IP header, which contains the given protocol number.
    Raw(u8),
}

/// The TCP flag SYN.
pub const SYN: u8 = 2;
/// The TCP flag ACK.
pub const ACK: u8 = 16;

/// The type of the hop-by-hop options header.
pub const HOP_BY_HOP: u8 = 0;
/// The type of the routing header.
pub const ROUTING: u8 = 43;
/// The type of the fragment header.
pub const FRAGMENT: u8 = 44;
/// The type of the destination options header.
pub const DESTINATION_OPTIONS: u8 = 60;

/// An IPv6 extension header: its type and its bytes. [`Frame::packet`] sets the first byte, which names the type of the
/// next header.
pub type Extension = (u8, Vec<u8>);

/// A header with hop-by-hop or destination options: `units` × 8 bytes, filled with padding.
#[must_use]
pub fn options(kind: u8, units: usize) -> Extension {
    let mut bytes = vec![0; units * 8];
    bytes[1] = (units - 1) as u8;
    // A PadN option has at most 257 bytes, so a long header needs several PadN options.
    let mut at = 2;
    while at < bytes.len() {
        let length = (bytes.len() - at - 2).min(255);
        bytes[at] = 1;
        bytes[at + 1] = length as u8;
        at += 2 + length;
    }
    (kind, bytes)
}

/// A routing header with the given number of segments left.
#[must_use]
pub fn routing(segments_left: u8) -> Extension {
    (ROUTING, vec![0, 0, 4, segments_left, 0, 0, 0, 0])
}

/// Returns an IPv6 fragment header. The argument `offset` is in units of eight bytes.
#[must_use]
pub fn fragment(offset: u16, more: bool, id: u32) -> Extension {
    let mut bytes = vec![0, 0];
    bytes.extend((offset << 3 | u16::from(more)).to_be_bytes());
    bytes.extend(id.to_be_bytes());
    (FRAGMENT, bytes)
}

impl Frame {
    /// A TCP segment with `flags` and a short payload.
    #[must_use]
    pub fn tcp(source: &str, destination: &str, flags: u8) -> Self {
        Self::new(source, destination, Transport::Tcp(flags))
    }

    /// A UDP datagram with a short payload.
    #[must_use]
    pub fn udp(source: &str, destination: &str) -> Self {
        Self::new(source, destination, Transport::Udp)
    }

    /// # Panics
    /// Panics if an address does not parse.
    #[must_use]
    pub fn new(source: &str, destination: &str, transport: Transport) -> Self {
        let address = |text: &str| -> SocketAddr {
            match text.parse() {
                Ok(address) => address,
                #[expect(clippy::panic, reason = "a test's own description is wrong")]
                Err(error) => panic!("{text}: {error}"),
            }
        };
        Self {
            destination_mac: [2, 0, 0, 0, 0, 1],
            source_mac: [2, 0, 0, 0, 0, 9],
            vlans: Vec::new(),
            source: address(source),
            destination: address(destination),
            ttl: 64,
            tos: 0,
            id: 0x1234,
            options: Vec::new(),
            flow_label: 0,
            extensions: Vec::new(),
            dont_fragment: true,
            more_fragments: false,
            fragment_offset: 0,
            transport,
            sequence: FIRST_BYTE - u32::from(matches!(transport, Transport::Tcp(flags) if flags & SYN != 0)),
            acknowledgement: if matches!(transport, Transport::Tcp(flags) if flags & ACK != 0) {
                FIRST_BYTE
            } else {
                0
            },
            stamp: None,
            payload: b"sixteen bytes 16".to_vec(),
        }
    }

    /// Returns a frame with an ICMP or ICMPv6 message. ICMP has no ports, so the ports in both arguments have no
    /// effect.
    #[must_use]
    pub fn icmp(source: &str, destination: &str, kind: u8, code: u8, rest: [u8; 4]) -> Self {
        Self::new(source, destination, Transport::Icmp(kind, code, rest))
    }

    #[must_use]
    pub fn bytes(&self) -> Vec<u8> {
        let mut out = self.link_layer();
        out.extend(self.packet());
        out
    }

    /// Returns the bytes of the IP packet.
    #[must_use]
    pub fn packet(&self) -> Vec<u8> {
        let segment = if self.fragment_offset == 0 { self.segment() } else { self.payload.clone() };
        let extensions = self.extension_headers();
        let mut out = self.ip(extensions.len() + segment.len());
        out.extend(extensions);
        out.extend(segment);
        out
    }

    /// Splits the packet into fragments of `size` bytes each; `size` must be a multiple of eight.
    #[must_use]
    pub fn fragments(&self, size: usize, id: u32) -> Vec<Self> {
        let segment = self.segment();
        let parts = segment.len().div_ceil(size);
        segment
            .chunks(size)
            .enumerate()
            .map(|(index, part)| {
                let (offset, more) = ((index * size / 8) as u16, index + 1 < parts);
                let mut frame =
                    Self { transport: Transport::Raw(self.protocol().0), payload: part.to_vec(), ..self.clone() };
                if self.source.is_ipv4() {
                    frame.id = id as u16;
                    frame.dont_fragment = false;
                    frame.more_fragments = more;
                    frame.fragment_offset = offset;
                } else {
                    frame.extensions.push(fragment(offset, more, id));
                }
                frame
            })
            .collect()
    }

    /// Encapsulates the packet in an IP packet from `source` to `destination`, as a balancer does.
    #[must_use]
    pub fn in_ip(&self, source: IpAddr, destination: IpAddr, entropy: u16) -> Self {
        let protocol = if self.source.is_ipv4() { 4 } else { 41 };
        let flow_label = if source.is_ipv6() { u32::from(entropy) } else { 0 };
        Self {
            source: SocketAddr::new(source, 0),
            destination: SocketAddr::new(destination, 0),
            ttl: 64,
            id: 0,
            options: Vec::new(),
            extensions: Vec::new(),
            flow_label,
            dont_fragment: self.source.is_ipv6() || self.dont_fragment,
            more_fragments: false,
            fragment_offset: 0,
            transport: Transport::Raw(protocol),
            payload: self.packet(),
            ..self.clone()
        }
    }

    /// Encapsulates the packet in UDP as a balancer does, with variant 1 of Generic UDP Encapsulation.
    #[must_use]
    pub fn in_gue(&self, source: IpAddr, destination: IpAddr, entropy: u16) -> Self {
        Self {
            source: SocketAddr::new(source, entropy),
            destination: SocketAddr::new(destination, 6080),
            transport: Transport::UdpWithoutChecksum,
            ..self.in_ip(source, destination, entropy)
        }
    }

    fn extension_headers(&self) -> Vec<u8> {
        let next = self.extensions.iter().map(|&(kind, _)| kind).skip(1).chain([self.protocol().0]);
        let headers = self.extensions.iter().zip(next);
        headers.flat_map(|((_, bytes), next)| [&[next], &bytes[1..]].concat()).collect()
    }

    fn protocol(&self) -> IpNumber {
        match self.transport {
            Transport::Tcp(_) => IpNumber::TCP,
            Transport::Udp | Transport::UdpWithoutChecksum => IpNumber::UDP,
            Transport::Icmp(..) if self.source.is_ipv4() => IpNumber::ICMP,
            Transport::Icmp(..) => IpNumber::IPV6_ICMP,
            Transport::Raw(protocol) => IpNumber(protocol),
        }
    }

    fn link_layer(&self) -> Vec<u8> {
        let ip = if self.source.is_ipv4() { EtherType::IPV4 } else { EtherType::IPV6 };
        let mut types: Vec<EtherType> = self.vlans.iter().map(|_| EtherType::VLAN_TAGGED_FRAME).collect();
        if types.len() > 1 {
            types[0] = EtherType::PROVIDER_BRIDGING;
        }
        types.push(ip);
        let ethernet =
            Ethernet2Header { source: self.source_mac, destination: self.destination_mac, ether_type: types[0] };
        let mut out = ethernet.to_bytes().to_vec();
        for (&vlan, &ether_type) in self.vlans.iter().zip(&types[1..]) {
            let header = SingleVlanHeader {
                vlan_id: VlanId::try_new(vlan).unwrap_or_default(),
                ether_type,
                ..Default::default()
            };
            out.extend(header.to_bytes());
        }
        out
    }

    fn ip(&self, segment: usize) -> Vec<u8> {
        match (self.source.ip(), self.destination.ip()) {
            (IpAddr::V4(source), IpAddr::V4(destination)) => {
                let mut header = Ipv4Header {
                    identification: self.id,
                    dont_fragment: self.dont_fragment,
                    more_fragments: self.more_fragments,
                    fragment_offset: IpFragOffset::try_new(self.fragment_offset).unwrap_or_default(),
                    time_to_live: self.ttl,
                    protocol: self.protocol(),
                    source: source.octets(),
                    destination: destination.octets(),
                    options: Ipv4Options::try_from(self.options.as_slice()).unwrap_or_default(),
                    ..Ipv4Header::default()
                };
                header.total_len = (header.header_len() + segment) as u16;
                let mut bytes = header.to_bytes().to_vec();
                bytes[1] = self.tos;
                bytes[10..12].fill(0);
                let check = internet_checksum(&[&bytes]);
                bytes[10..12].copy_from_slice(&check.to_be_bytes());
                bytes
            }
            (IpAddr::V6(source), IpAddr::V6(destination)) => Ipv6Header {
                traffic_class: self.tos,
                flow_label: Ipv6FlowLabel::try_new(self.flow_label).unwrap_or_default(),
                payload_length: segment as u16,
                next_header: self.extensions.first().map_or(self.protocol(), |&(kind, _)| IpNumber(kind)),
                hop_limit: self.ttl,
                source: source.octets(),
                destination: destination.octets(),
            }
            .to_bytes()
            .to_vec(),
            #[expect(clippy::panic, reason = "a test's own description is wrong")]
            _ => panic!("one family to a frame"),
        }
    }

    fn segment(&self) -> Vec<u8> {
        let (mut header, check_at) = match self.transport {
            Transport::Tcp(flags) => {
                let mut header = TcpHeader::new(self.source.port(), self.destination.port(), self.sequence, 64_000);
                header.acknowledgment_number = self.acknowledgement;
                let mut bytes = header.to_bytes().to_vec();
                bytes[13] = flags;
                if let Some(stamp) = self.stamp {
                    // The options have the order that Linux gives them.
                    let before: &[u8] = if flags & SYN == 0 { &[1, 1] } else { &[2, 4, 5, 180, 4, 2] };
                    let options = [before, &[8, 10], &stamp.to_be_bytes(), &[0; 4]].concat();
                    bytes[12] = (5 + options.len().div_ceil(4) as u8) << 4;
                    bytes.extend(&options);
                    bytes.resize(20 + options.len().next_multiple_of(4), 0);
                }
                (bytes, 16)
            }
            Transport::Udp | Transport::UdpWithoutChecksum => {
                let header = UdpHeader {
                    source_port: self.source.port(),
                    destination_port: self.destination.port(),
                    length: (8 + self.payload.len()) as u16,
                    checksum: 0,
                };
                (header.to_bytes().to_vec(), 6)
            }
            Transport::Icmp(kind, code, [a, b, c, d]) => (vec![kind, code, 0, 0, a, b, c, d], 2),
            Transport::Raw(_) => return self.payload.clone(),
        };
        header.extend(&self.payload);
        if self.transport != Transport::UdpWithoutChecksum {
            let mut check = if self.protocol() == IpNumber::ICMP {
                internet_checksum(&[&header])
            } else {
                transport_checksum(self.source.ip(), self.destination.ip(), self.protocol().0, &header)
            };
            if check == 0 && self.transport == Transport::Udp {
                check = 0xffff;
            }
            header[check_at..check_at + 2].copy_from_slice(&check.to_be_bytes());
        }
        header
    }
}

/// The Internet checksum (RFC 1071) over the concatenation of `parts`. All `parts` except the last one must have an
/// even length.
#[must_use]
pub fn internet_checksum(parts: &[&[u8]]) -> u16 {
    let mut sum: u32 = 0;
    for part in parts {
        for chunk in part.chunks(2) {
            sum += u32::from(u16::from_be_bytes([chunk[0], chunk.get(1).copied().unwrap_or(0)]));
            sum = (sum & 0xffff) + (sum >> 16);
        }
    }
    !(sum as u16)
}

/// The checksum of a TCP or UDP segment and its pseudo-header. The checksum field of the segment must be zero.
#[must_use]
pub fn transport_checksum(source: IpAddr, destination: IpAddr, protocol: u8, segment: &[u8]) -> u16 {
    let octets = |address: IpAddr| match address {
        IpAddr::V4(address) => address.octets().to_vec(),
        IpAddr::V6(address) => address.octets().to_vec(),
    };
    let mut pseudo = octets(source);
    pseudo.extend(octets(destination));
    pseudo.extend((segment.len() as u32).to_be_bytes());
    pseudo.extend([0, 0, 0, protocol]);
    internet_checksum(&[&pseudo, segment])
}
