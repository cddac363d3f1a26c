//! Compares the kernel program's parser with the model's parser.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use balancer_common::map_types::FAMILY_V4;

use crate::{
    connection_id,
    model::{parse as model, quic},
    packet::Packet,
    parse::{self, Ip, Ports, Stopped, TCP, UDP},
};

/// The result of parsing a frame, in a form in which the results of the two parsers can be compared.
#[derive(Debug, PartialEq)]
enum Seen {
    NotIp,
    Waypoint,
    Broken { destination: IpAddr },
    Packet(Headers),
}

#[derive(Debug, PartialEq)]
struct Headers {
    start: usize,
    l4: usize,
    length: usize,
    protocol: u8,
    ttl: u8,
    traffic_class: u8,
    source: IpAddr,
    destination: IpAddr,
    fragment: (u16, bool, u32),
    may_be_fragmented: bool,
    /// The source port, the destination port, and whether the packet opens a connection. Later fragments, and packets
    /// of protocols other than TCP and UDP, have `None`.
    ports: Option<Option<(u16, u16, bool)>>,
    /// The connection ID of a datagram with ports, read as if the datagram were QUIC.
    connection_id: Option<Vec<u8>>,
}

/// Compares the results of the kernel program's parser and of the model's parser for the frame `bytes`.
///
/// # Panics If the results of both parsers differ.
pub fn compare(bytes: &[u8]) {
    // The kernel never delivers frames of fewer than 14 bytes.
    if bytes.len() >= 14 {
        assert_eq!(program(&mut bytes.to_vec()), plainly(bytes));
        assert_short_way(&mut bytes.to_vec());
    }
}

/// Checks that the fast path for common headers accepts only common headers and gives the same result as the full
/// parser.
fn assert_short_way(bytes: &mut [u8]) {
    let frame = Packet::from_slice(bytes);
    let long = parse::ip(frame);
    let is_plain = |ip: &Ip<'_>| {
        let options = ip.headers_length != if ip.family == FAMILY_V4 { 20 } else { 40 };
        ip.well_formed && !ip.fragment.is_part() && !options
    };
    match (parse::with_plain_ip(frame, |offset, _| offset, Some, None), long) {
        (None, long) => assert!(long.is_none(), "the long way finds IP: {long:?}"),
        (Some(None), long) => assert!(!long.as_ref().is_some_and(is_plain), "plain, and not found: {long:?}"),
        (Some(plain), long) => {
            assert!(long.as_ref().is_some_and(is_plain), "not plain: {long:?}");
            assert_eq!(format!("{plain:?}"), format!("{long:?}"));
        }
    }
}

fn address(v4: bool, words: [u32; 4]) -> IpAddr {
    let bytes: [u8; 16] = bytemuck::cast(words);
    let [a, b, c, d, ..] = bytes;
    if v4 { Ipv4Addr::new(a, b, c, d).into() } else { Ipv6Addr::from(bytes).into() }
}

fn program(bytes: &mut [u8]) -> Seen {
    let frame = Packet::from_slice(bytes);
    let Some(mut ip) = parse::ip(frame) else { return Seen::NotIp };
    let v4 = ip.family == FAMILY_V4;
    let destination = address(v4, ip.destination);
    if !ip.well_formed || !ip.header.holds(ip.length) {
        return Seen::Broken { destination };
    }
    match parse::follow(frame, &mut ip, Some) {
        Ok(()) => {}
        Err(Stopped::Malformed) => return Seen::Broken { destination },
        Err(Stopped::Waypoint) => return Seen::Waypoint,
    }
    // The kernel program's parser keeps the identification in the packet's byte order.
    let id = if v4 { u16::from_be(ip.fragment.id as u16).into() } else { u32::from_be(ip.fragment.id) };
    Seen::Packet(Headers {
        start: ip.l3_offset,
        l4: ip.l4_offset(),
        length: ip.length,
        protocol: ip.protocol,
        ttl: ip.ttl(),
        traffic_class: ip.traffic_class().unwrap_or_default(),
        source: address(v4, ip.source),
        destination,
        fragment: (ip.fragment.offset(), ip.fragment.more(), id),
        may_be_fragmented: ip.may_be_fragmented(),
        ports: ports(&ip),
        connection_id: connection_id(&ip),
    })
}

fn ports(ip: &Ip<'_>) -> Option<Option<(u16, u16, bool)>> {
    let found = |ports: Ports| (u16::from_be(ports.source()), u16::from_be(ports.destination()), ports.opens());
    let has_ports = [TCP, UDP].contains(&ip.protocol) && !ip.fragment.is_later();
    has_ports.then(|| parse::ports(ip).map(found))
}

fn connection_id(ip: &Ip<'_>) -> Option<Vec<u8>> {
    ports(ip).flatten().filter(|_| ip.protocol == UDP)?;
    let (words, length) = connection_id::read(ip).filter(|(_, length)| *length > 0)?;
    Some(words.iter().flat_map(|word| word.to_be_bytes()).take(length).collect())
}

fn plainly(frame: &[u8]) -> Seen {
    let packet = match model::frame(frame) {
        model::Parsed::NotIp => return Seen::NotIp,
        model::Parsed::Waypoint => return Seen::Waypoint,
        model::Parsed::Broken { destination } => return Seen::Broken { destination },
        model::Parsed::Packet(packet) => packet,
    };
    let has_ports = [model::TCP, model::UDP].contains(&packet.protocol) && !packet.is_later_fragment();
    let ports = || model::ports(frame, &packet).map(|ports| (ports.source, ports.destination, ports.opens));
    let ports = has_ports.then(ports);
    let is_datagram = ports.flatten().is_some() && packet.protocol == model::UDP;
    let connection_id = is_datagram.then(|| quic::connection_id(quic::payload(frame, &packet))).flatten();
    Seen::Packet(Headers {
        start: packet.start,
        l4: packet.l4(),
        length: packet.length,
        protocol: packet.protocol,
        ttl: packet.ttl,
        traffic_class: packet.traffic_class,
        source: packet.source,
        destination: packet.destination,
        fragment: (packet.fragment_offset, packet.more_fragments, packet.id),
        may_be_fragmented: !packet.dont_fragment,
        ports,
        connection_id: connection_id.map(<[u8]>::to_vec),
    })
}
