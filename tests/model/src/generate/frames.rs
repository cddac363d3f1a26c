//! Makes frames that hosts might send: to services, from `nat` backends, and to other destinations.

use std::{
    collections::VecDeque,
    net::{IpAddr, SocketAddr},
};

use balancer_common::map_types::Forwarding;
use balancer_config::{
    config::Protocol,
    listeners::{Listener, PortRange},
};
use fastrand::Rng;

use super::{Scene, clients, icmp, once_in, one_of, quic};
use crate::model::Service;
use balancer_testkit::frame::{self, ACK, DESTINATION_OPTIONS, Extension, FRAGMENT, Frame, HOP_BY_HOP, SYN, Transport};

/// Makes frames that belong to a scene.
pub(super) struct Source<'a> {
    pub(super) scene: &'a Scene,
    /// Fragments that the source has not yet returned.
    pending: VecDeque<Frame>,
}

impl<'a> Source<'a> {
    pub(super) const fn new(scene: &'a Scene) -> Self {
        Self { scene, pending: VecDeque::new() }
    }

    /// Returns the next frame.
    pub(super) fn frame(&mut self, rng: &mut Rng) -> Vec<u8> {
        if !self.pending.is_empty() && rng.bool() {
            // The source returns fragments mostly in order.
            let at = if once_in(rng, 4) { rng.usize(..self.pending.len()) } else { 0 };
            if let Some(frame) = self.pending.remove(at) {
                return padded(rng, frame.bytes());
            }
        }
        let frame = match rng.u32(..100) {
            0..8 => {
                self.fragmented(rng);
                return self.frame(rng);
            }
            8..50 => self.to_service(rng),
            50..62 => self.reply(rng),
            62..70 => icmp::error_to_vip(rng, self),
            70..75 => icmp::error_to_client(rng, self),
            75..81 => icmp::echo(rng, self),
            81..83 => icmp::other(rng, self),
            83..97 => self.past(rng),
            _ => return noise(rng),
        };
        padded(rng, frame.bytes())
    }

    /// Returns a random service of the scene.
    pub(super) fn service(&self, rng: &mut Rng) -> &'a Service {
        &self.scene.services[rng.usize(..self.scene.services.len())]
    }

    /// Returns a random service and one of its listeners.
    pub(super) fn listener(&self, rng: &mut Rng) -> (&'a Service, Listener) {
        let service = self.service(rng);
        (service, service.spec.listeners[rng.usize(..service.spec.listeners.len())].listener)
    }

    /// Returns a client's packet to a service.
    pub(super) fn to_service(&self, rng: &mut Rng) -> Frame {
        let (service, listener) = self.listener(rng);
        let mut client = client(rng, listener.address.is_ipv4());
        let vip = at_port_of(rng, listener);
        if once_in(rng, 60) {
            let other = self.listener(rng).1.address;
            client.set_ip(if other.is_ipv4() == vip.is_ipv4() { other } else { vip.ip() });
        }
        let mut frame = between(rng, client, vip, listener.protocol);
        if listener.protocol == Protocol::Quic && !once_in(rng, 8) {
            frame.payload = quic::datagram(rng, self.scene, service);
        }
        frame
    }

    /// Returns a reply of a `nat` backend, or a packet that looks like a reply.
    pub(super) fn reply(&self, rng: &mut Rng) -> Frame {
        let nat: Vec<&Service> =
            self.scene.services.iter().filter(|service| service.spec.forwarding == Forwarding::Nat).collect();
        let Some(service) = rng.choice(nat) else { return self.to_service(rng) };
        let Some(&(_, backend)) = rng.choice(service.spec.backends.iter()) else { return self.to_service(rng) };
        let of = service.spec.listeners[rng.usize(..service.spec.listeners.len())];
        let client = client(rng, of.listener.address.is_ipv4());
        let port = match (backend.port(), of.backend_port) {
            (0, 0) => at_port_of(rng, of.listener).port(),
            (0, port) | (port, _) => port,
        };
        between(rng, SocketAddr::new(backend.ip(), port), client, of.listener.protocol)
    }

    /// Returns a packet whose destination differs slightly from a listener's address.
    fn past(&self, rng: &mut Rng) -> Frame {
        let mut frame = if rng.bool() { self.to_service(rng) } else { self.reply(rng) };
        match rng.u32(..5) {
            0 => frame.destination.set_port(rng.u16(..)),
            1 => frame.source.set_port(rng.u16(..)),
            2 => {
                let client = clients::address(rng, frame.source.is_ipv4());
                frame.destination.set_ip(client);
            }
            3 => {
                frame.transport = match frame.transport {
                    Transport::Tcp(_) => Transport::Udp,
                    Transport::Udp | Transport::UdpWithoutChecksum | Transport::Icmp(..) | Transport::Raw(_) => {
                        Transport::Tcp(ACK)
                    }
                }
            }
            _ => {
                frame.transport = Transport::Raw(one_of(rng, &[0, 4, 41, 43, 44, 47, 50, 51, 59, 60, 132, 255]));
                frame.fragment_offset = if once_in(rng, 3) { rng.u16(..300) } else { 0 };
            }
        }
        frame
    }

    fn fragmented(&mut self, rng: &mut Rng) {
        let mut frame = if rng.bool() { self.to_service(rng) } else { self.reply(rng) };
        frame.extensions.retain(|(kind, _)| *kind != FRAGMENT);
        let length = one_of(rng, &[16, 60, 200, 1000, 2900]);
        let mut payload = bytes(rng, length);
        payload.iter_mut().zip(&frame.payload).for_each(|(byte, of)| *byte = *of);
        frame.payload = payload;
        let size = one_of(rng, &[8, 24, 64, 512, 1400]).max(frame.payload.len() / 40 * 8 + 8);
        // The range of identifications is small, so that several datagrams have the same identification.
        let mut parts = frame.fragments(size, rng.u32(..500));
        if once_in(rng, 6) {
            parts.remove(0);
        }
        if frame.source.is_ipv6() && once_in(rng, 5) {
            let (kind, header) = frame::options(DESTINATION_OPTIONS, 1);
            with_options_inside(&mut parts, kind, &header);
        }
        if once_in(rng, 4) {
            far_apart(&mut parts);
        }
        self.pending.extend(parts);
    }
}

/// Makes destination options the first header inside the fragments.
fn with_options_inside(parts: &mut [Frame], kind: u8, header: &[u8]) {
    for part in parts {
        let Transport::Raw(protocol) = part.transport else { continue };
        let first = part.extensions.last().is_some_and(|(_, bytes)| bytes[2] == 0 && bytes[3] & 0xf8 == 0);
        part.transport = Transport::Raw(kind);
        if first {
            let mut inside = header.to_vec();
            inside[0] = protocol;
            inside.append(&mut part.payload);
            part.payload = inside;
        }
    }
}

/// Makes the datagram look much longer by setting the highest bit in the offset of each later fragment.
fn far_apart(parts: &mut [Frame]) {
    for part in parts {
        if part.fragment_offset != 0 {
            part.fragment_offset |= 0x1000;
        }
        if let Some((FRAGMENT, bytes)) = part.extensions.last_mut()
            && (bytes[2], bytes[3] & 0xf8) != (0, 0)
        {
            bytes[2] |= 0x80;
        }
    }
}

/// Returns a client's address and port.
pub(super) fn client(rng: &mut Rng, v4: bool) -> SocketAddr {
    SocketAddr::new(clients::address(rng, v4), 40_000 + rng.u16(..4))
}

/// Returns one of a listener's ports, or a port next to the listener's ports.
fn at_port_of(rng: &mut Rng, listener: Listener) -> SocketAddr {
    let PortRange { first, last } = listener.ports;
    let ports = [first, last, first + (last - first) / 2, first.saturating_sub(1), last.saturating_add(1)];
    let port = match listener.ports.single() {
        Some(port) => port,
        None if listener.ports == PortRange::EVERY => one_of(rng, &[1, 80, 9999, 8003, 0]),
        None => one_of(rng, &ports),
    };
    SocketAddr::new(listener.address, port)
}

/// A packet with the given source and destination.
pub(super) fn between(rng: &mut Rng, source: SocketAddr, destination: SocketAddr, protocol: Protocol) -> Frame {
    let transport = match protocol {
        Protocol::Tcp => Transport::Tcp(one_of(rng, &[SYN, SYN, ACK, ACK, ACK | 8, ACK | 1, SYN | ACK, 4, 0])),
        Protocol::Udp if once_in(rng, 5) => Transport::UdpWithoutChecksum,
        Protocol::Udp | Protocol::Quic => Transport::Udp,
    };
    let mut frame = Frame { source, destination, ..dressed(rng, source.ip(), transport) };
    if source.is_ipv4() != destination.is_ipv4() {
        frame.destination = source;
    }
    frame
}

/// A packet of the family of `source`, with random values in all secondary fields. The caller sets the source and the
/// destination.
pub(super) fn dressed(rng: &mut Rng, source: IpAddr, transport: Transport) -> Frame {
    let v4 = source.is_ipv4();
    let payload = match rng.u32(..20) {
        0..14 => rng.usize(..40),
        14..16 => rng.usize(..600),
        // A payload length near a common MTU.
        16 => one_of(rng, &[1300, 1280, 1500, 576]) - rng.usize(20..100),
        17 => rng.usize(..1460),
        _ => 0,
    };
    Frame {
        vlans: (0..one_of(rng, &[0, 0, 0, 0, 0, 0, 1, 2])).map(|_| rng.u16(..4096)).collect(),
        ttl: one_of(rng, &[64, 64, 64, 64, 64, 255, 63, 2, 1, 0]),
        tos: if once_in(rng, 3) { rng.u8(..) } else { 0 },
        id: rng.u16(..),
        options: if v4 && once_in(rng, 8) { vec![1; 4 * rng.usize(1..=10)] } else { Vec::new() },
        flow_label: rng.u32(..1 << 20),
        extensions: if !v4 && once_in(rng, 5) { extensions(rng) } else { Vec::new() },
        dont_fragment: !once_in(rng, 4),
        payload: bytes(rng, payload),
        ..Frame::new("0.0.0.0:0", "0.0.0.0:0", transport)
    }
}

fn extensions(rng: &mut Rng) -> Vec<Extension> {
    let count = if once_in(rng, 8) { rng.usize(7..=10) } else { rng.usize(1..4) };
    let mut headers = Vec::new();
    for index in 0..count {
        headers.push(match rng.u32(..12) {
            0..3 if index == 0 => frame::options(HOP_BY_HOP, rng.usize(1..4)),
            0..3 => frame::routing(0),
            3 => frame::routing(rng.u8(..2)),
            // A fragment of a datagram: usually the only fragment, and sometimes the first of several fragments.
            4 => frame::fragment(0, once_in(rng, 3), rng.u32(..500)),
            5 if once_in(rng, 4) => long_options(rng.u8(100..170)),
            6 if once_in(rng, 4) => frame::options(HOP_BY_HOP, 1),
            _ => frame::options(DESTINATION_OPTIONS, rng.usize(1..6)),
        });
    }
    headers
}

/// Destination options of `units` × 8 bytes that consist of Pad1 options.
fn long_options(units: u8) -> Extension {
    let mut header = vec![0; usize::from(units) * 8];
    header[1] = units - 1;
    (DESTINATION_OPTIONS, header)
}

pub(super) fn bytes(rng: &mut Rng, length: usize) -> Vec<u8> {
    let mut bytes = vec![0; length];
    // Checksums have special cases for data that consists of only zeros or only ones.
    match rng.u32(..16) {
        0 => {}
        1 => bytes.fill(0xff),
        _ => rng.fill(&mut bytes),
    }
    bytes
}

/// Sometimes makes the destination a group MAC address, or appends bytes after the packet.
fn padded(rng: &mut Rng, mut frame: Vec<u8>) -> Vec<u8> {
    if once_in(rng, 100) {
        frame[0] |= 1;
    }
    if once_in(rng, 8) {
        let padding = rng.usize(..50);
        frame.extend(bytes(rng, padding));
    }
    frame
}

/// Returns a frame that contains no IP packet.
fn noise(rng: &mut Rng) -> Vec<u8> {
    let length = rng.usize(14..80);
    let mut frame = bytes(rng, length);
    let kinds = [[0x08, 0x06], [0x08, 0x00], [0x86, 0xdd], [0x81, 0x00], [0x88, 0xa8], [0x88, 0xcc]];
    frame[12..14].copy_from_slice(&one_of(rng, &kinds));
    frame
}
