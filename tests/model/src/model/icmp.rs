//! Handles ICMP and ICMPv6: echo requests to VIPs, and errors about packets of services.

use balancer_common::{handover::Handed, map_types::Forwarding, verdict::DropReason};

use super::{
    Arrival, Fate, State,
    checksum::{self, Covered, pseudo_header},
    forward::{
        End, New, Way, one_hop_is_left, renew_header, renew_segment, replace_address, replace_port, take_a_hop,
        with_a_hop_less, write_macs,
    },
    parse::{self, Packet, TCP, UDP},
    share::Treated,
    state::Portless,
    steer::{Choice, Nowhere},
    too_big::{is_group, is_one_host},
};

/// The TTL or hop limit of an answer.
const TTL: u8 = 64;

impl State {
    pub(super) fn icmp(&mut self, arrival: Arrival<'_>, packet: &Packet) -> Result<Fate, DropReason> {
        if packet.l4_length() < 8 {
            return self.broken(packet.destination);
        }
        let echo_request = if packet.v6 { 128 } else { 8 };
        let errors: &[u8] = if packet.v6 { &[1, 2, 3, 4] } else { &[3, 11, 12] };
        let kind = arrival.frame[packet.l4()];
        match (kind, self.is_vip(packet.destination)) {
            (kind, true) if kind == echo_request && self.is_shared(packet.destination) => Ok(Fate::Pass),
            (kind, true) if kind == echo_request => Ok(self.echo(arrival.frame, packet)),
            (kind, true) if errors.contains(&kind) => self.error_to_vip(arrival, packet),
            (kind, false) if errors.contains(&kind) => self.error_to_client(arrival, packet),
            _ => Ok(Fate::Pass),
        }
    }

    fn echo(&mut self, frame: &[u8], packet: &Packet) -> Fate {
        if is_group(frame) || !is_one_host(packet.source) {
            return Fate::Pass;
        }
        self.counters.echo += 1;
        let mut out = [&frame[6..12], &frame[..6], &frame[12..]].concat();
        replace_address(&mut out, packet, New { end: End::Source, address: packet.destination, port: 0 });
        replace_address(&mut out, packet, New { end: End::Destination, address: packet.source, port: 0 });
        out[packet.start + if packet.v6 { 7 } else { 8 }] = TTL;
        renew_header(frame, &mut out, packet);
        out[packet.l4()] = if packet.v6 { 129 } else { 0 };
        let pseudo = pseudo_header(packet.source, packet.destination, packet.protocol, packet.l4_length());
        let check = renew_message(frame, &mut out, packet, &pseudo, &pseudo);
        // The program's choice: the program writes a checksum of zero as 0xffff, which is also correct for a message of
        // only zeros.
        if !packet.v6 && check == 0 {
            out[packet.l4() + 2..][..2].fill(0xff);
        }
        Fate::Tx(out)
    }

    /// Handles an ICMP error about a packet that a backend sent with the VIP as the source address. The program sends
    /// the error to the backend of the client to which the quoted packet was addressed.
    fn error_to_vip(&mut self, arrival: Arrival<'_>, packet: &Packet) -> Result<Fate, DropReason> {
        let vip = packet.destination;
        let Some(inner) = parse::quoted(arrival.frame, packet) else { return self.refused(vip, DropReason::Malformed) };
        if !is_ours(packet, &inner) {
            return Ok(Fate::Pass);
        }
        let service = if inner.is_later_fragment() {
            match self.only_service(inner.source, inner.protocol) {
                Portless::Nothing => None,
                Portless::Several => return self.refused(vip, DropReason::FragmentUnknown),
                Portless::Only(service) => Some(service),
            }
        } else {
            let Some(port) = parse::word(arrival.frame, inner.l4()) else {
                return self.refused(vip, DropReason::Malformed);
            };
            self.service(inner.source, port, inner.protocol)
        };
        let Some(service) = service else { return Ok(Fate::Pass) };
        // The program knows the client's port only if the ICMP error quotes the port.
        let port = if inner.is_later_fragment() { None } else { parse::word(arrival.frame, inner.l4() + 2) };
        let segment = inner.protocol == TCP && port.is_some();
        let came = match self.treated(service, inner.destination) {
            Treated::Steered { came } => came,
            Treated::Left if segment => {
                // The program's choice: when an ICMP error makes the program apply a rule, the program counts the rule.
                self.rule(service, inner.destination, true);
                return Ok(self.left(service));
            }
            Treated::Left | Treated::Host | Treated::Watched => return Ok(Fate::Pass),
        };
        let choice = match self.peek(service, inner.destination, port, came && segment) {
            Ok(choice) => choice,
            Err(Nowhere::Host) => return Ok(Fate::Pass),
            Err(Nowhere::Dropped(reason)) => return Err(reason),
        };
        self.error_to_backend(arrival, packet, &inner, choice)
    }

    fn error_to_backend(
        &mut self,
        arrival: Arrival<'_>,
        packet: &Packet,
        inner: &Packet,
        choice: Choice,
    ) -> Result<Fate, DropReason> {
        let backend = self.reachable(choice.backend).ok_or(DropReason::NoNextHop)?.clone();
        let hop = backend.next_hop.ok_or(DropReason::NoNextHop)?;
        let mut frame = match backend.forwarding {
            // An ICMP error must not cause another ICMP error.
            Forwarding::Ipip | Forwarding::Gue => {
                self.wrap(arrival, packet, &backend)?.map_err(|_fits| DropReason::TooBig)?
            }
            _ if hop.ifindex != arrival.ingress && packet.length > hop.mtu as usize => return Err(DropReason::TooBig),
            Forwarding::Dsr => {
                one_hop_is_left(packet)?;
                with_a_hop_less(arrival.frame, packet)
            }
            Forwarding::Snat => return Err(DropReason::NoNextHop),
            Forwarding::Nat => {
                one_hop_is_left(packet)?;
                let outer = New { end: End::Destination, address: backend.address.ip(), port: 0 };
                let old = parse::word(arrival.frame, inner.l4()).filter(|_| !inner.is_later_fragment());
                let port = old.map_or(0, |old| self.backend_port(&backend, inner.source, old, inner.protocol));
                let new = New { end: End::Source, address: backend.address.ip(), port };
                translated(arrival.frame, packet, inner, outer, new)
            }
        };
        write_macs(&mut frame, hop.destination_mac, hop.source_mac);
        self.counters.forwarded(choice.backend, packet.start + packet.length, false);
        Ok(Fate::sent(frame, arrival.ingress, hop.ifindex))
    }

    /// Handles an ICMP error about a packet that the program translated for a `nat` backend. The program sends the
    /// error from the VIP to the client that sent the quoted packet.
    fn error_to_client(&self, arrival: Arrival<'_>, packet: &Packet) -> Result<Fate, DropReason> {
        let Some(inner) = parse::quoted(arrival.frame, packet).filter(|inner| is_ours(packet, inner)) else {
            return Ok(Fate::Pass);
        };
        let way = if inner.is_later_fragment() {
            match self.only_way_back(inner.destination, inner.protocol) {
                Portless::Only(way) => Some(way),
                Portless::Nothing | Portless::Several => None,
            }
        } else {
            let port = parse::word(arrival.frame, inner.l4() + 2);
            port.and_then(|port| self.way_back(inner.destination, port, inner.protocol))
        };
        let Some(way) = way else { return Ok(Fate::Pass) };
        let to_client = self.way_to_client(arrival, packet, way)?;
        let frame = || {
            let new = self.back(way, End::Destination);
            let outer = New { end: End::Source, address: new.address, port: 0 };
            translated(arrival.frame, packet, &inner, outer, new)
        };
        match to_client {
            Way::Kernel => Ok(Fate::Pass),
            // An ICMP error must not cause another ICMP error.
            Way::Narrow(_) => Err(DropReason::TooBig),
            Way::Hop(hop) => Ok(hop.leave(frame(), arrival.ingress)),
            Way::Handed => Ok(Fate::handed(frame(), Handed::Client)),
        }
    }
}

/// Returns whether the error went to the sender of the quoted packet.
fn is_ours(packet: &Packet, inner: &Packet) -> bool {
    inner.source == packet.destination && matches!(inner.protocol, TCP | UDP)
}

/// Replaces one end of an ICMP error by `outer` and one end of the quoted packet by `new`, and reduces the error's hop
/// limit by one. The function also updates the checksums in the quoted packet.
fn translated(frame: &[u8], packet: &Packet, inner: &Packet, outer: New, new: New) -> Vec<u8> {
    let mut out = frame.to_vec();
    replace_address(&mut out, packet, outer);
    take_a_hop(&mut out, packet);
    renew_header(frame, &mut out, packet);
    replace_address(&mut out, inner, new);
    renew_header(frame, &mut out, inner);
    if !inner.is_later_fragment() {
        replace_port(&mut out, inner, new);
        renew_segment(frame, &mut out, inner, new, packet.end());
    }
    let (source, destination) = match outer.end {
        End::Source => (outer.address, packet.destination),
        End::Destination => (packet.source, outer.address),
    };
    let length = packet.l4_length();
    let old = pseudo_header(packet.source, packet.destination, packet.protocol, length);
    renew_message(frame, &mut out, packet, &old, &pseudo_header(source, destination, packet.protocol, length));
    out
}

/// Updates the checksum of an ICMP message. The checksum of ICMPv6 also covers the pseudo-header.
fn renew_message(before: &[u8], after: &mut [u8], packet: &Packet, old: &[u8], new: &[u8]) -> u16 {
    let message = packet.l4()..packet.end();
    let (old, new) = if packet.v6 { (old, new) } else { (&[] as &[u8], &[] as &[u8]) };
    let check = checksum::carried(
        &Covered { pseudo: old, bytes: &before[message.clone()], check: 2 },
        &Covered { pseudo: new, bytes: &after[message], check: 2 },
    );
    after[packet.l4() + 2..][..2].copy_from_slice(&check.to_be_bytes());
    check
}
