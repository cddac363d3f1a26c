//! Makes frames that hosts might send: to services, from `nat` backends, and to other destinations.

use std::{collections::VecDeque, net::SocketAddr};

use balancer_common::map_types::Forwarding;
use balancer_config::{
    config::Protocol,
    listeners::{Listener, PortRange},
};
use fastrand::Rng;

use super::{
    Scene, clients,
    dress::{bytes, dressed},
    once_in, one_of, quic,
};
use crate::model::Service;
use balancer_testkit::frame::{self, ACK, DESTINATION_OPTIONS, FRAGMENT, Frame, SYN, Transport};

/// Makes frames that belong to a scene.
pub(super) struct Source<'a> {
    pub(super) scene: &'a Scene,
    /// Fragments that the source has not yet returned.
    pub(super) pending: VecDeque<Frame>,
}

impl<'a> Source<'a> {
    pub(super) const fn new(scene: &'a Scene) -> Self {
        Self { scene, pending: VecDeque::new() }
    }

    /// Returns a random service of the scene.
    pub(super) fn service(&self, rng: &mut Rng) -> &'a Service {
        &self.scene.services[rng.usize(..self.scene.services.len())]
    }

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
    pub(super) fn past(&self, rng: &mut Rng) -> Frame {
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

    pub(super) fn fragmented(&mut self, rng: &mut Rng) {
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
