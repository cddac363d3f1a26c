//! Reads the answers to probes from the packets that the doctor has recorded.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use balancer_config::config::Protocol;

use super::{BARE_ECHO, LARGE, Probe, SMALL, VIP_ECHO, port, sequence};
use crate::{
    facts::{
        Backend, Direct, Facts, Mac, Neighbour, Outcome, Refusal, Rejection, Said, ServiceProbe, Unsteered,
        Untranslated, Vip, Way, WayBack,
    },
    look::{
        packets::{ACK, Heard, Outer, PROTO_TCP, PROTO_UDP, RST, SYN},
        probe::Asked,
        wire::Note,
    },
};

impl Probe<'_> {
    pub(super) fn is_answered(&self) -> bool {
        (0..self.targets.len()).all(|number| {
            let target = &self.targets[number];
            let near = match target.next_hop {
                IpAddr::V4(next_hop) => !self.answers_of(next_hop, target.ifindex).is_empty(),
                IpAddr::V6(_) => true,
            };
            let vip = target.vip.is_none_or(|(_, is_tcp)| {
                self.echoed(number, VIP_ECHO) && (!is_tcp || self.tcp(number) != Outcome::Silent)
            });
            near && vip && self.echoed(number, SMALL) && self.echoed(number, LARGE)
        })
    }

    fn incoming(&self) -> impl Iterator<Item = &Note> {
        self.notes.iter().filter(|note| !note.outgoing)
    }

    /// The hardware addresses of hosts that answered ARP for an address.
    pub(super) fn answers_of(&self, wanted: Ipv4Addr, on: u32) -> Vec<Mac> {
        let mut found = Vec::new();
        for note in self.incoming().filter(|note| note.ifindex == on) {
            if let Heard::Arp { address, mac } = note.heard
                && address == wanted
                && !found.contains(&mac)
            {
                found.push(mac);
            }
        }
        found
    }

    pub(super) fn echoed(&self, number: usize, kind: u16) -> bool {
        self.has_echo(sequence(number, kind))
    }

    pub(super) fn has_echo(&self, wanted: u16) -> bool {
        self.incoming()
            .any(|note| matches!(note.heard, Heard::Echo { id, sequence, .. } if id == self.id && sequence == wanted))
    }

    /// Returns the outcome of the SYN to the VIP at a backend.
    pub(super) fn tcp(&self, number: usize) -> Outcome {
        let Some((vip, _)) = self.targets[number].vip else { return Outcome::Silent };
        self.answer(vip, port(number)).unwrap_or_default()
    }

    /// The answer to a SYN from one of this machine's ports.
    pub(super) fn answer(&self, from: SocketAddr, to_port: u16) -> Option<Outcome> {
        self.answer_by(from, to_port).map(|(_, outcome)| outcome)
    }

    /// The answer to a SYN from one of this machine's ports, and the interface by which it came.
    fn answer_by(&self, from: SocketAddr, to_port: u16) -> Option<(u32, Outcome)> {
        self.incoming().find_map(|note| match note.heard {
            Heard::Tcp { from: source, to, flags, .. } if source == from && to.port() == to_port => match flags {
                reset if reset & RST != 0 => Some((note.ifindex, Outcome::Refused)),
                accepted if accepted & (SYN | ACK) == SYN | ACK => Some((note.ifindex, Outcome::Connected)),
                _ => None,
            },
            Heard::Tcp { .. } | Heard::Arp { .. } | Heard::Echo { .. } | Heard::Unreachable { .. } => None,
        })
    }

    pub(super) fn neighbour(&self, number: usize) -> Option<Neighbour> {
        let target = &self.targets[number];
        let IpAddr::V4(next_hop) = target.next_hop else { return None };
        Some(Neighbour {
            known: target.entry.and_then(|entry| entry.mac),
            permanent: target.entry.is_some_and(|entry| entry.permanent),
            answered: self.answers_of(next_hop, target.ifindex),
        })
    }

    pub(super) fn direct(&self, number: usize, outcome: Outcome) -> Direct {
        let address = self.backends[self.targets[number].index].address;
        let port = self.ports[number];
        let mut direct = Direct { outcome, ..Direct::default() };
        for note in &self.notes {
            let Heard::Tcp { from, to, flags, checksum_right } = note.heard else { continue };
            if note.outgoing && to == address && Some(from.port()) == port && flags & SYN != 0 {
                direct.left = true;
            } else if !note.outgoing && from == address && Some(to.port()) == port {
                direct.came = true;
                direct.checksum_wrong |= !checksum_right;
            }
        }
        direct.rejected = port.and_then(|port| self.rejection(address.ip(), PROTO_TCP, port));
        direct
    }

    pub(super) fn service(&self, number: usize) -> Option<ServiceProbe> {
        let target = &self.targets[number];
        let (vip, is_tcp) = target.vip?;
        target.vip_source.filter(|_| self.can_send(target))?;
        let backend = self.backends[target.index].address.ip();
        let tries_bare = target.is_near(backend) && target.outer != Outer::None;
        let of_outer = |said: Said, protocol| {
            let unknown = matches!(said, Said::ProtocolUnreachable | Said::PortUnreachable);
            unknown && target.outer.is(protocol)
        };
        Some(ServiceProbe {
            echo: self.echoed(number, VIP_ECHO),
            bare_echo: tries_bare.then(|| self.echoed(number, BARE_ECHO)),
            tcp: is_tcp.then(|| self.tcp(number)),
            by: self.answer_by(vip, port(number)).map(|(ifindex, _)| ifindex),
            refused_outer: self.incoming().any(|note| {
                matches!(note.heard, Heard::Unreachable { target: to, protocol, said, .. }
                    if to == backend && of_outer(said, protocol))
            }),
            rejected: self.rejection(vip.ip(), PROTO_TCP, port(number)).or_else(|| self.rejected_outer(number)),
        })
    }

    /// The ICMP error that answered a probe with an outer header, if it does not say that the host has nothing for it.
    fn rejected_outer(&self, number: usize) -> Option<Rejection> {
        let target = &self.targets[number];
        let backend = self.backends[target.index].address.ip();
        self.incoming().find_map(|note| match note.heard {
            Heard::Unreachable { from, target: to, protocol, said, .. }
                if to == backend
                    && target.outer.is(protocol)
                    && !matches!(said, Said::ProtocolUnreachable | Said::PortUnreachable) =>
            {
                Some(Rejection { from, said })
            }
            Heard::Tcp { .. } | Heard::Arp { .. } | Heard::Echo { .. } | Heard::Unreachable { .. } => None,
        })
    }

    /// The ICMP error that answered the datagram to a UDP port of the service.
    pub(super) fn datagram(&self, number: usize) -> Option<Refusal> {
        let to = self.targets[number].udp?;
        let rejection = self.rejection(to.ip(), PROTO_UDP, port(number))?;
        Some(Refusal { to, rejection })
    }

    /// The ICMP error that answered a packet with this protocol and source port.
    fn rejection(&self, to: IpAddr, wanted: u8, source_port: u16) -> Option<Rejection> {
        self.incoming().find_map(|note| match note.heard {
            Heard::Unreachable { from, target, protocol, port, said }
                if target == to && protocol == wanted && port == Some(source_port) =>
            {
                Some(Rejection { from, said })
            }
            Heard::Tcp { .. } | Heard::Arp { .. } | Heard::Echo { .. } | Heard::Unreachable { .. } => None,
        })
    }

    /// SYN packets of clients to a VIP that reached the doctor's socket because the program did not steer the packets.
    pub(super) fn unsteered(&self, vip: &Vip) -> Vec<Unsteered> {
        let mut found: Vec<Unsteered> = Vec::new();
        for note in self.incoming() {
            let Heard::Tcp { to, flags, .. } = note.heard else { continue };
            let is_for = vip.listeners.iter().any(|listener| {
                listener.protocol == Protocol::Tcp && listener.address == to.ip() && listener.ports.contains(to.port())
            });
            if !is_for || flags & (SYN | ACK) != SYN {
                continue;
            }
            let (ifindex, for_another) = (note.ifindex, note.for_another);
            match found.iter_mut().find(|known| (known.ifindex, known.for_another) == (ifindex, for_another)) {
                Some(known) => known.packets += 1,
                None => found.push(Unsteered { ifindex, for_another, packets: 1 }),
            }
        }
        found
    }

    /// Replies of a `nat` backend to clients that reached the doctor's socket because the program did not translate
    /// them. Answers to `snat` connections have an address of this machine, as the answers to checks have.
    pub(super) fn untranslated(&self, backend: &Backend, facts: &Facts) -> Vec<Untranslated> {
        let mut found: Vec<Untranslated> = Vec::new();
        for note in self.incoming().filter(|note| backend.forwarding == "nat" && !note.for_another) {
            let Heard::Tcp { from, to, flags, .. } = note.heard else { continue };
            let reply = Untranslated { ifindex: note.ifindex, client: to.ip() };
            let is_reply = from.ip() == backend.address.ip() && flags & (SYN | ACK) == SYN | ACK;
            if is_reply && !facts.is_own(to.ip()) && !found.contains(&reply) {
                found.push(reply);
            }
        }
        found
    }

    /// The hardware addresses that answered ARP for the neighbour on the way back to a client.
    pub(super) fn neighbour_of(&self, way: &WayBack) -> Vec<Mac> {
        match way.way {
            Way::Known { ifindex, next_hop: IpAddr::V4(next_hop) } => self.answers_of(next_hop, ifindex),
            Way::Known { .. } | Way::Local | Way::None(_) => Vec::new(),
        }
    }

    /// The hosts that have a VIP, each with the interface towards the host.
    pub(super) fn owners(&self, asked: &Asked) -> Vec<(u32, Mac)> {
        let on = asked.interfaces.iter();
        on.flat_map(|(ifindex, _)| self.answers_of(asked.address, *ifindex).into_iter().map(|mac| (*ifindex, mac)))
            .collect()
    }
}
