//! Services that share their clients with the host. Here the host's sockets have no connections: tests with single
//! packets cover that.

use std::net::IpAddr;

use balancer_common::share::Side;

use super::{Arrival, Fate, State, client_hash, parse::Packet, steer::Choice};

/// How packets of a client are treated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Treated {
    /// The packets are steered; `came` says whether the client may have connections to the host.
    Steered { came: bool },
    /// The packets go to the host, but the client may have connections to backends.
    Left,
    /// The client's packets go to the host.
    Host,
    /// The packets go to the host, and are counted as if they were steered.
    Watched,
}

impl State {
    /// Returns how packets of a service's client are treated.
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

    /// Whether the host also serves clients of a VIP.
    pub(super) fn is_shared(&self, vip: IpAddr) -> bool {
        let mut services = self.services.iter().filter(|service| !service.spec.share.is_all());
        services.any(|service| service.spec.listeners.iter().any(|of| of.listener.address == vip))
    }

    /// Passes a packet of a client that is not steered.
    pub(super) fn unsteered(&mut self, service: usize, packet: &Packet) -> Fate {
        self.follow_to_kernel(packet);
        self.left(service)
    }

    /// Passes a packet of a client that is no longer steered, whose connection may belong to the host. A choice: later
    /// fragments do not follow this packet.
    pub(super) fn left(&mut self, service: usize) -> Fate {
        *self.counters.unsteered.entry(self.services[service].spec.id.0).or_default() += 1;
        Fate::Pass
    }

    /// Passes a packet to the host and counts it for its backend.
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
