//! Sends a packet to its backend, and a `nat` reply to its client.

use std::net::IpAddr;

use balancer_common::{
    handover::Handed,
    map_types::{Forwarding, Mac},
    verdict::DropReason,
};

use super::{
    Arrival, Fate, Hop, Route, State,
    checksum::{self, Covered, pseudo_header},
    parse::{self, Packet, TCP, UDP},
    state::WayBack,
    steer::Choice,
};

/// The data after a packet's headers.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Carries {
    /// A TCP or UDP header with ports.
    Ports,
    /// The bytes of a later fragment, without ports.
    Nothing,
}

/// One end of a packet, whose address and port the program replaces.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum End {
    Source,
    Destination,
}

/// The new address and port of one end of a packet. Port 0 means that the packet keeps its port.
#[derive(Clone, Copy)]
pub(super) struct New {
    pub(super) end: End,
    pub(super) address: IpAddr,
    pub(super) port: u16,
}

/// The next step of a reply on its way to the client.
pub(super) enum Way {
    Hop(Hop),
    /// The kernel sends the packet.
    Handed,
    /// The kernel handles the packet.
    Kernel,
    /// The path's MTU, which is smaller than the packet.
    Narrow(usize),
}

impl Hop {
    /// Sends `frame` to the next hop.
    pub(super) fn leave(self, mut frame: Vec<u8>, ingress: u32) -> Fate {
        write_macs(&mut frame, self.destination_mac, self.source_mac);
        Fate::sent(frame, ingress, self.ifindex)
    }
}

impl State {
    pub(super) fn forward(&mut self, at: Arrival<'_>, packet: &Packet, choice: Choice) -> Result<Fate, DropReason> {
        self.forward_carrying(at, packet, choice, Carries::Ports)
    }

    pub(super) fn forward_carrying(
        &mut self,
        arrival: Arrival<'_>,
        packet: &Packet,
        choice: Choice,
        carries: Carries,
    ) -> Result<Fate, DropReason> {
        if let Some(decision) = choice.decision {
            self.counters.backend(choice.backend).decisions[decision.index()] += 1;
        }
        let backend = self.reachable(choice.backend).ok_or(DropReason::NoNextHop)?.clone();
        let hop = backend.next_hop.ok_or(DropReason::NoNextHop)?;
        let mut frame = match backend.forwarding {
            Forwarding::Ipip | Forwarding::Gue => match self.wrap(arrival, packet, &backend)? {
                Ok(frame) => frame,
                Err(fits) => return self.tell_too_big(arrival, packet, fits),
            },
            // A packet that leaves by its ingress interface fits into that interface's MTU, because the packet arrived
            // on that interface.
            _ if hop.ifindex != arrival.ingress && packet.length > hop.mtu as usize => {
                return self.tell_too_big(arrival, packet, hop.mtu as usize);
            }
            Forwarding::Dsr => {
                one_hop_is_left(packet)?;
                with_a_hop_less(arrival.frame, packet)
            }
            // Scenes contain no `snat` services, because the source port would be random; `flow_contest.rs` has random
            // packets of `snat` connections.
            Forwarding::Snat => return Err(DropReason::NoNextHop),
            Forwarding::Nat => {
                one_hop_is_left(packet)?;
                let port = match carries {
                    Carries::Ports => parse::word(arrival.frame, packet.l4() + 2).unwrap_or(0),
                    Carries::Nothing => 0,
                };
                let port = self.backend_port(&backend, packet.destination, port, packet.protocol);
                let new = New { end: End::Destination, address: backend.address.ip(), port };
                translated(arrival.frame, packet, new, carries)
            }
        };
        write_macs(&mut frame, hop.destination_mac, hop.source_mac);
        self.counters.forwarded(choice.backend, packet.start + packet.length, choice.decision.is_some());
        Ok(Fate::sent(frame, arrival.ingress, hop.ifindex))
    }

    pub(super) fn reply(&mut self, at: Arrival<'_>, packet: &Packet, way: WayBack) -> Result<Fate, DropReason> {
        self.reply_carrying(at, packet, way, Carries::Ports)
    }

    pub(super) fn reply_carrying(
        &mut self,
        arrival: Arrival<'_>,
        packet: &Packet,
        way: WayBack,
        carries: Carries,
    ) -> Result<Fate, DropReason> {
        let to_client = self.way_to_client(arrival, packet, way)?;
        let frame = || translated(arrival.frame, packet, self.back(way, End::Source), carries);
        match to_client {
            Way::Kernel => Ok(Fate::Pass),
            Way::Narrow(fits) => self.tell_too_big(arrival, packet, fits),
            Way::Hop(hop) => Ok(hop.leave(frame(), arrival.ingress)),
            Way::Handed => Ok(Fate::handed(frame(), Handed::Client)),
        }
    }

    /// Finds how a reply reaches the client.
    pub(super) fn way_to_client(&self, arrival: Arrival<'_>, packet: &Packet, way: WayBack) -> Result<Way, DropReason> {
        match self.routes.find(packet.destination) {
            Route::Kernel => Ok(Way::Kernel),
            _ if !self.came_by(way, arrival.ingress) => Err(DropReason::WrongInterface),
            Route::Forbidden => Err(DropReason::NoRoute),
            // The program's choice: for a limited time, the program assumes that an unresolved neighbour may still
            // answer. The clock ends this assumption of the program, but tests do not use the clock.
            Route::NoNeighbour => one_hop_is_left(packet).map(|()| Way::Handed),
            // The program's choice: the program checks the size before the hop limit.
            Route::Hop(hop) if hop.ifindex != arrival.ingress && packet.length > hop.mtu => Ok(Way::Narrow(hop.mtu)),
            Route::Hop(hop) => {
                one_hop_is_left(packet)?;
                Ok(Way::Hop(hop))
            }
        }
    }

    /// Returns the new source address and port of a reply, which replace those of the backend.
    pub(super) fn back(&self, way: WayBack, end: End) -> New {
        let vip = self.services[way.service].spec.listeners[way.listener].listener;
        New { end, address: vip.address, port: vip.ports.single().unwrap_or(0) }
    }
}

pub(super) fn one_hop_is_left(packet: &Packet) -> Result<(), DropReason> {
    if packet.ttl <= 1 { Err(DropReason::TtlExceeded) } else { Ok(()) }
}

pub(super) fn write_macs(frame: &mut [u8], destination: Mac, source: Mac) {
    frame[..6].copy_from_slice(&destination);
    frame[6..12].copy_from_slice(&source);
}

/// The frame with the hop limit reduced by one, and otherwise unchanged.
pub(super) fn with_a_hop_less(frame: &[u8], packet: &Packet) -> Vec<u8> {
    let mut out = frame.to_vec();
    take_a_hop(&mut out, packet);
    renew_header(frame, &mut out, packet);
    out
}

fn translated(frame: &[u8], packet: &Packet, new: New, carries: Carries) -> Vec<u8> {
    let mut out = frame.to_vec();
    replace_address(&mut out, packet, new);
    take_a_hop(&mut out, packet);
    renew_header(frame, &mut out, packet);
    if carries == Carries::Ports {
        replace_port(&mut out, packet, new);
        renew_segment(frame, &mut out, packet, new, packet.end());
    }
    out
}

fn octets(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(address) => address.octets().to_vec(),
        IpAddr::V6(address) => address.octets().to_vec(),
    }
}

pub(super) fn replace_address(frame: &mut [u8], packet: &Packet, new: New) {
    let at = match (packet.v6, new.end) {
        (false, End::Source) => 12,
        (false, End::Destination) => 16,
        (true, End::Source) => 8,
        (true, End::Destination) => 24,
    };
    let octets = octets(new.address);
    frame[packet.start + at..][..octets.len()].copy_from_slice(&octets);
}

pub(super) fn replace_port(frame: &mut [u8], packet: &Packet, new: New) {
    if new.port != 0 {
        let at = packet.l4() + if new.end == End::Source { 0 } else { 2 };
        frame[at..at + 2].copy_from_slice(&new.port.to_be_bytes());
    }
}

pub(super) fn take_a_hop(frame: &mut [u8], packet: &Packet) {
    frame[packet.start + if packet.v6 { 7 } else { 8 }] -= 1;
}

/// Updates the checksum of a changed IPv4 header.
pub(super) fn renew_header(before: &[u8], after: &mut [u8], packet: &Packet) {
    if packet.v6 {
        return;
    }
    let header = packet.start..packet.start + packet.headers;
    let covered = |bytes| Covered { pseudo: &[], bytes, check: 10 };
    let check = checksum::carried(&covered(&before[header.clone()]), &covered(&after[header]));
    after[packet.start + 10..][..2].copy_from_slice(&check.to_be_bytes());
}

/// Updates the checksum of a TCP or UDP segment, which ends at byte `end`, after one address and port have changed. If
/// a UDP checksum is missing (0), it stays missing. A computed checksum of 0 therefore becomes 0xffff (RFC 768).
pub(super) fn renew_segment(before: &[u8], after: &mut [u8], packet: &Packet, new: New, end: usize) {
    let check_at = match packet.protocol {
        TCP => 16,
        UDP => 6,
        _ => return,
    };
    let segment = packet.l4()..end;
    if segment.len() < check_at + 2 || packet.protocol == UDP && before[packet.l4() + 6..][..2] == [0, 0] {
        return;
    }
    let (source, destination) = match new.end {
        End::Source => (new.address, packet.destination),
        End::Destination => (packet.source, new.address),
    };
    let length = packet.l4_length();
    let old = pseudo_header(packet.source, packet.destination, packet.protocol, length);
    let pseudo = pseudo_header(source, destination, packet.protocol, length);
    let check = checksum::carried(
        &Covered { pseudo: &old, bytes: &before[segment.clone()], check: check_at },
        &Covered { pseudo: &pseudo, bytes: &after[segment], check: check_at },
    );
    let check = if check == 0 && packet.protocol == UDP { 0xffff } else { check };
    after[packet.l4() + check_at..][..2].copy_from_slice(&check.to_be_bytes());
}
