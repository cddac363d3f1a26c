//! Client → backend.

use std::{cell::Cell, net::IpAddr};

use balancer_common::{
    client,
    client_table::{BUCKET_ENTRIES, Entries, Entry},
    map_types::{ALL_DOWN, NO_BACKEND, SLOT_EXCEPTIONS, SLOT_REFILLED},
    memory::{BackendFacts, Query, Recorded, consult},
    seen,
    verdict::{CauseIndex, Decision, DropReason},
};
use balancer_model::config::Failback;

use super::{BUCKETS, Service, State, rules::Rule};

/// Seconds of silence after which a client's next datagram counts as a new connection.
const IDLE_SECONDS: u32 = 30;

/// What a packet says of connections.
#[derive(Clone, Copy)]
pub(super) struct Opening {
    /// The client's port.
    pub(super) port: u16,
    /// It opens one.
    pub(super) opens: bool,
    /// It may.
    pub(super) datagram: bool,
}

/// A backend, and how it was chosen if the packet opens a connection.
#[derive(Clone, Copy, Debug)]
pub(super) struct Choice {
    pub(super) backend: u16,
    pub(super) decision: Option<Decision>,
}

/// The hash of a client of a service: of its address, masked to the prefix.
#[must_use]
pub fn client_hash(service: &Service, source: IpAddr) -> u64 {
    let prefix = u32::from(service.spec.client_prefix);
    match source {
        IpAddr::V4(address) => {
            let mask = u32::MAX.checked_shl(32 - prefix).unwrap_or(0);
            let masked = (u32::from(address) & mask).to_be_bytes();
            client::hash_v4(service.spec.hash_key, u32::from_ne_bytes(masked))
        }
        IpAddr::V6(address) => {
            let mask = u128::MAX.checked_shl(128 - prefix).unwrap_or(0);
            let masked = (u128::from(address) & mask).to_be_bytes();
            client::hash_v6(service.spec.hash_key, bytemuck::cast(masked))
        }
    }
}

/// The hash of one connection of a client whose connections are spread.
fn connection_hash(service: &Service, source: IpAddr, port: u16) -> u64 {
    let mut address = [0; 16];
    match source {
        IpAddr::V4(source) => address[..4].copy_from_slice(&source.octets()),
        IpAddr::V6(source) => address = source.octets(),
    }
    for (bit, byte) in (0..).step_by(8).zip(&mut address) {
        let kept = u32::from(service.spec.client_prefix).saturating_sub(bit).min(8);
        *byte &= u8::MAX.checked_shl(8 - kept).unwrap_or(0);
    }
    client::hash_connection(service.spec.hash_key, bytemuck::cast(address), port.to_be())
}

/// A bucket as the shared rule wants it.
struct Bucket(Cell<[u64; BUCKET_ENTRIES]>);

impl Entries for Bucket {
    fn load(&self, index: usize) -> Entry {
        Entry(self.0.get()[index])
    }

    fn store(&self, index: usize, entry: Entry) {
        let mut entries = self.0.get();
        entries[index] = entry.0;
        self.0.set(entries);
    }
}

impl State {
    /// The backend for a packet from `source`, which is remembered.
    pub(super) fn steer(&mut self, service: usize, source: IpAddr, opening: Opening) -> Result<Choice, DropReason> {
        self.choose(service, source, Some(opening.port), Some(opening))
    }

    /// The backend that a packet from `client` would go to. Nothing is remembered of it or counted.
    pub(super) fn peek(&mut self, service: usize, client: IpAddr, port: Option<u16>) -> Result<Choice, DropReason> {
        self.choose(service, client, port, None)
    }

    /// `opening`: `None` to peek.
    fn choose(
        &mut self,
        index: usize,
        source: IpAddr,
        port: Option<u16>,
        opening: Option<Opening>,
    ) -> Result<Choice, DropReason> {
        let rule = self.rule(index, source, opening.is_none());
        let service = &self.services[index];
        let hash = match rule {
            Some(Rule::Deny) => return Err(DropReason::Denied),
            Some(Rule::Spread) => connection_hash(service, source, port.ok_or(DropReason::FragmentUnknown)?),
            Some(Rule::Pin(_)) | None => client_hash(service, source),
        };
        let pin = match rule {
            Some(Rule::Pin(backend)) => Some(backend),
            Some(Rule::Spread | Rule::Deny) | None => None,
        };
        let slot = service.slots[client::slot(hash, service.slots.len() as u32) as usize];
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
            return live.map(|backend| Choice { backend, decision }).ok_or(nobody);
        };
        // The gate: in a slot without exceptions, only these need the client's entry.
        let datagram = opening.is_some_and(|opening| opening.datagram);
        let always = pin.is_some()
            || slot.flags & SLOT_EXCEPTIONS != 0
            || opening.is_none()
            || service.spec.remember.as_secs() < u64::from(seen::SHORTEST_MEMORY);
        if !always && !opens && self.seen.contains(hash) {
            return live.map(|backend| Choice { backend, decision: None }).ok_or(nobody);
        }
        let query = Query {
            pinned: pin.is_some(),
            tag: (hash >> 32) as u32,
            service: service.spec.id.0,
            live,
            live_is_home: slot.flags & SLOT_REFILLED == 0,
            opens,
            datagram,
            failback: service.spec.failback == Failback::Return,
            now: service.tick,
            remember: clock.remember,
            idle: IDLE_SECONDS.div_ceil(clock.tick_seconds).max(1) as u16,
        };
        self.ask(hash, &query, opening.is_none(), !always).ok_or(nobody)
    }

    /// `marks`: the client's next packets need not ask.
    fn ask(&mut self, hash: u64, query: &Query, peeks: bool, marks: bool) -> Option<Choice> {
        let place = hash as usize % BUCKETS;
        let bucket = Bucket(Cell::new(self.clients[place]));
        let facts = |id: u16| {
            let backend = self.backends.get(&id)?;
            let cause = CauseIndex::from(backend.cause);
            Some(BackendFacts { service: backend.service.0, keeps_known: backend.keeps_known, cause })
        };
        let newcomers = &mut self.newcomers;
        let may_record = || !peeks && newcomers.take(query.service);
        let answer = consult(&bucket, query, facts, may_record);
        if answer.known && marks {
            self.seen.insert(hash);
        }
        if !peeks {
            self.clients[place] = bucket.0.get();
            let memory = &mut self.counters.memory;
            match answer.recorded {
                Recorded::Known => {}
                Recorded::Inserted => memory.inserted += 1,
                Recorded::Evicted => {
                    memory.inserted += 1;
                    memory.evicted += 1;
                }
                Recorded::Full => memory.full += 1,
                Recorded::Limited => memory.limited += 1,
            }
            if answer.moved_from != NO_BACKEND {
                self.counters.backend(answer.moved_from).moves[answer.cause.counter()] += 1;
            }
        }
        answer.backend.map(|backend| Choice { backend, decision: answer.decision })
    }
}
