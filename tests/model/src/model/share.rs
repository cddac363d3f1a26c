//! Decides about packets of services that share their clients with the host. In this model, the host's sockets have no
//! connections; packet tests of the kernel program cover the host's connections.

use std::net::IpAddr;

use balancer_common::share::Side;

use super::{Arrival, Fate, State, client_hash, parse::Packet, steer::Choice};

/// The possible treatments of a client's packets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Treated {
    /// The program steers the packets; `came` says whether the client may have connections to the host.
    Steered { came: bool },
    /// The packets go to the host, although the client may still have connections to backends.
    Left,
    /// All packets of the client go to the host.
    Host,
    /// The packets go to the host, but the program counts the packets as if it steered them to backends.
    Watched,
}

impl State {
    /// Returns how the program treats packets of a service's client.
    pub(super) fn treated(&self, service: usize, client: IpAddr) -> Treated {
        let service = &self.services[service];
        let tag = (client_hash(service, client) >> 32) as u32;
        match service.spec.share.side(tag) {
            Side::Steered => Treated::Steered { came: false },
            Side::Came => Treated::Steered { came: true },
            Side::Left => Treated::Left,
            Side::Host if service.spec.share.now == 0 => Treated::Watched,
            Side::Host => Treated::Host,
        }
    }

    /// Returns whether the host also serves clients of a VIP.
    pub(super) fn is_shared(&self, vip: IpAddr) -> bool {
        let mut services = self.services.iter().filter(|service| !service.spec.share.is_all());
        services.any(|service| service.spec.listeners.iter().any(|of| of.listener.address == vip))
    }

    /// Passes a packet of a client that the program does not steer to the host.
    pub(super) fn unsteered(&mut self, service: usize, packet: &Packet) -> Fate {
        self.follow_to_kernel(packet);
        self.left(service)
    }

    /// Passes a packet of a client that the program no longer steers. The packet's connection may belong to the host.
    /// The program's choice: later fragments of a datagram do not follow the first fragment to the host.
    pub(super) fn left(&mut self, service: usize) -> Fate {
        *self.counters.unsteered.entry(self.services[service].spec.id.0).or_default() += 1;
        Fate::Pass
    }

    /// Passes a packet to the host and counts the packet for the client's backend.
    pub(super) fn watched(&mut self, _arrival: Arrival<'_>, packet: &Packet, choice: Choice) -> Fate {
        self.follow_to_kernel(packet);
        if let Some(decision) = choice.decision {
            self.counters.backend(choice.backend).decisions[decision.index()] += 1;
        }
        if self.reachable(choice.backend).is_some() {
            self.counters.forwarded(choice.backend, packet.start + packet.length, choice.decision.is_some());
            self.counters.watched += 1;
        }
        Fate::Pass
    }
}
