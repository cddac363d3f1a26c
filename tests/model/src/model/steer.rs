//! Chooses the backend of a client.

use std::net::IpAddr;

use balancer_common::{
    client_table::bucket,
    map_types::{ALL_DOWN, NO_BACKEND, SLOT_EXCEPTIONS, SLOT_REFILLED},
    seen,
    verdict::{CauseIndex, Decision, DropReason},
};
use balancer_config::config::Failback;
use siphasher::sip::SipHasher13;

use super::{
    BUCKETS, Service, State,
    memory::{self, Asked, Newcomer},
    rules::Rule,
};

/// The number of seconds without a datagram after which a client's next datagram opens a new connection.
const IDLE_SECONDS: u32 = 30;

/// The properties of a packet that decide about new connections.
#[derive(Clone, Copy)]
pub(super) struct Opening {
    /// The source port of the client.
    pub(super) port: u16,
    /// Whether the packet opens a connection.
    pub(super) opens: bool,
    /// Whether the packet is a datagram, which may open a connection.
    pub(super) datagram: bool,
    /// If the program reads the client memory for the packet: whether only clients with an entry go to a backend.
    pub(super) known_alone: bool,
}

/// The reason why a packet goes to no backend.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Nowhere {
    /// The packet passes to the host.
    Host,
    /// No backend takes the packet.
    Dropped(DropReason),
}

impl From<DropReason> for Nowhere {
    fn from(reason: DropReason) -> Self {
        Self::Dropped(reason)
    }
}

/// The chosen backend, and the decision if the packet opens a connection.
#[derive(Clone, Copy, Debug)]
pub(super) struct Choice {
    pub(super) backend: u16,
    pub(super) decision: Option<Decision>,
}

/// Hashes the address of a service's client, masked to the prefix.
#[must_use]
pub fn client_hash(service: &Service, source: IpAddr) -> u64 {
    match source {
        IpAddr::V4(address) => hash(service, &masked(service, address.octets())),
        IpAddr::V6(address) => hash(service, &masked(service, address.octets())),
    }
}

/// Hashes one connection of a client to which a spread rule applies. The hash input is the masked client address,
/// padded with zeros to the length of an IPv6 address, and the client's port.
fn connection_hash(service: &Service, source: IpAddr, port: u16) -> u64 {
    let mut bytes = [0; 18];
    match source {
        IpAddr::V4(address) => bytes[..4].copy_from_slice(&masked(service, address.octets())),
        IpAddr::V6(address) => bytes[..16].copy_from_slice(&masked(service, address.octets())),
    }
    bytes[16..].copy_from_slice(&port.to_be_bytes());
    hash(service, &bytes)
}

fn masked<const BYTES: usize>(service: &Service, mut address: [u8; BYTES]) -> [u8; BYTES] {
    for (bit, byte) in (0..).step_by(8).zip(&mut address) {
        let kept = u32::from(service.spec.client_prefix).saturating_sub(bit).min(8);
        *byte &= u8::MAX.checked_shl(8 - kept).unwrap_or(0);
    }
    address
}

fn hash(service: &Service, bytes: &[u8]) -> u64 {
    let key = service.spec.hash_key;
    SipHasher13::new_with_keys(key.k0, key.k1).hash(bytes)
}

/// Returns the slot of a hash among `slots` slots: the hash's upper 32 bits, as a fraction of 2^32, determine the slot.
pub(super) fn slot_of(hash: u64, slots: usize) -> usize {
    (u128::from(hash >> 32) * slots as u128 / (1 << 32)) as usize
}

impl State {
    /// Chooses the backend for a packet from `source`, and records the client.
    pub(super) fn steer(&mut self, service: usize, source: IpAddr, opening: Opening) -> Result<Choice, Nowhere> {
        self.choose(service, source, Some(opening.port), Some(opening), opening.known_alone)
    }

    /// Returns the backend for a packet from `client`. The function neither records the client nor counts the packet.
    pub(super) fn peek(
        &mut self,
        service: usize,
        client: IpAddr,
        port: Option<u16>,
        known_alone: bool,
    ) -> Result<Choice, Nowhere> {
        self.choose(service, client, port, None, known_alone)
    }

    /// Records the client of a packet that the host serves, or the time at which the client was seen. The program's choice:
    /// rules have no effect.
    pub(super) fn remember(&mut self, index: usize, source: IpAddr, opens: bool, datagram: bool) {
        let service = &self.services[index];
        let Some(clock) = service.clock() else { return };
        let hash = client_hash(service, source);
        let Some(slot) = service.slots.get(slot_of(hash, service.slots.len())) else { return };
        let always =
            slot.flags & SLOT_EXCEPTIONS != 0 || service.spec.remember.as_secs() < u64::from(seen::SHORTEST_MEMORY);
        if !always && !opens && self.seen.contains(hash) {
            return;
        }
        let asked = Asked {
            tag: (hash >> 32) as u32,
            service: service.spec.id,
            live: Some(slot.backend).filter(|&backend| backend != NO_BACKEND && backend != ALL_DOWN),
            pinned: false,
            migrates: false,
            is_home: slot.flags & SLOT_REFILLED == 0,
            opens,
            datagram,
            failback: service.spec.failback == Failback::Return,
            now: service.tick,
            remember: clock.remember,
            idle: IDLE_SECONDS.div_ceil(clock.tick_seconds).max(1) as u16,
        };
        self.ask(hash, &asked, false, !always);
    }

    /// Chooses a backend; `opening` is `None` if an ICMP error quotes the client's packet.
    fn choose(
        &mut self,
        index: usize,
        source: IpAddr,
        port: Option<u16>,
        opening: Option<Opening>,
        known_alone: bool,
    ) -> Result<Choice, Nowhere> {
        let rule = self.rule(index, source, opening.is_none());
        let service = &self.services[index];
        let hash = match rule {
            Some(Rule::Deny) => return Err(DropReason::Denied.into()),
            Some(Rule::Spread) => connection_hash(service, source, port.ok_or(DropReason::FragmentUnknown)?),
            Some(Rule::Pin(_) | Rule::Fallen) | None => client_hash(service, source),
        };
        let pin = match rule {
            Some(Rule::Pin(backend)) => Some(backend),
            Some(Rule::Spread | Rule::Deny | Rule::Fallen) | None => None,
        };
        let slot = service.slots[slot_of(hash, service.slots.len())];
        let (live, nobody) = match slot.backend {
            NO_BACKEND => (None, DropReason::NoBackend),
            ALL_DOWN => (None, DropReason::AllDown),
            backend => (Some(backend), DropReason::AllDown),
        };
        let opens = opening.is_some_and(|opening| opening.opens);
        let live = pin.or(live);
        let Some(clock) = service.clock().filter(|_| rule != Some(Rule::Spread)) else {
            let decision = if pin.is_some() { Decision::Pinned } else { Decision::Stateless };
            let decision = opens.then_some(decision);
            return live.map(|backend| Choice { backend, decision }).ok_or(nobody.into());
        };
        // In a slot that is not flagged, the program reads the client's entry only for the packets that these
        // conditions select.
        let datagram = opening.is_some_and(|opening| opening.datagram);
        let always = pin.is_some()
            || rule == Some(Rule::Fallen)
            || slot.flags & SLOT_EXCEPTIONS != 0
            || opening.is_none()
            || service.spec.remember.as_secs() < u64::from(seen::SHORTEST_MEMORY);
        if !always && !opens && self.seen.contains(hash) {
            return live.map(|backend| Choice { backend, decision: None }).ok_or(nobody.into());
        }
        let nobody = if known_alone { Nowhere::Host } else { nobody.into() };
        let asked = Asked {
            tag: (hash >> 32) as u32,
            service: service.spec.id,
            live: live.filter(|_| !known_alone),
            pinned: pin.is_some() && !known_alone,
            migrates: false,
            is_home: slot.flags & SLOT_REFILLED == 0,
            opens,
            datagram,
            failback: service.spec.failback == Failback::Return,
            now: service.tick,
            remember: clock.remember,
            idle: IDLE_SECONDS.div_ceil(clock.tick_seconds).max(1) as u16,
        };
        self.ask(hash, &asked, opening.is_none(), !always).ok_or(nobody)
    }

    /// Reads the client memory for one packet. If `marks` is true, an up-to-date entry marks the client as seen, so
    /// that the program skips the client memory for the client's next packets.
    fn ask(&mut self, hash: u64, asked: &Asked, peeks: bool, marks: bool) -> Option<Choice> {
        let answer = self.answer(hash, asked, peeks, marks);
        if !peeks {
            self.count_newcomer(&answer);
            if let Some((from, cause)) = answer.moved {
                self.counters.backend(from).moves[CauseIndex::from(cause).counter()] += 1;
            }
        }
        answer.backend.map(|backend| Choice { backend, decision: answer.decision })
    }

    pub(super) fn answer(&mut self, hash: u64, asked: &Asked, peeks: bool, marks: bool) -> memory::Answer {
        let place = bucket(hash, BUCKETS as u32 - 1) as usize;
        let mut bucket = self.clients[place];
        let newcomers = &mut self.newcomers;
        let may_record = || !peeks && newcomers.take(asked.service.0);
        let answer = memory::ask(&mut bucket, asked, |id| self.backends.get(&id), may_record);
        if answer.settled && marks {
            self.seen.insert(hash);
        }
        if !peeks {
            self.clients[place] = bucket;
        }
        answer
    }

    pub(super) fn count_newcomer(&mut self, answer: &memory::Answer) {
        let memory = &mut self.counters.memory;
        match answer.newcomer {
            None => {}
            Some(Newcomer::Recorded { forgets_another }) => {
                memory.inserted += 1;
                memory.evicted += u64::from(forgets_another);
            }
            Some(Newcomer::Full) => memory.full += 1,
            Some(Newcomer::Limited) => memory.limited += 1,
        }
    }
}
