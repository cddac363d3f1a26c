//! Limits of backends: decides which backends are full and take no new clients.
//!
//! A backend that has reached its limit of clients or connections takes no new clients, and its slots go to the next
//! backends in the table's order. The backend takes new clients again when it is 5% below the limit, but no earlier
//! than [`DWELL`] after it became full, because each change alters the table. The same holds for a `snat` backend whose
//! connections hold all but 5% of the ports under which the backend sees its clients.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use balancer_config::limits::{Enough, Full, Limits};

use crate::{io::PortsInUse, service::Service};

/// The minimum time for which a backend stays full.
pub const DWELL: Duration = Duration::from_secs(10);
/// A full backend takes new clients again after it has fallen below its maximum by one part in this many.
const MARGIN: u32 = 20;

/// A backend is full if its connections hold all ports but one in this many.
const SPARE_PORTS: u32 = 20;

/// The facts about a backend that may be full which determine whether it is full, over all address families.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Member {
    /// The limits on clients and connections of the backend.
    pub limits: Limits,
    /// The number of known clients at the backend.
    pub clients: u64,
    /// The number of connections to the backend, if the balancer counts them.
    pub connections: u64,
    /// The ports that the backend's connections hold, in the address family in which fewest are free; `None`: the
    /// connections hold no ports.
    pub ports: Option<PortsInUse>,
    /// Whether the backend takes or keeps clients at all.
    pub serves: bool,
    /// The limit that the backend has reached at present; `None`: the backend is not full.
    pub full: Option<Full>,
}

/// Returns the backends of a service that may be full, given the parts of the service for the address families.
pub fn members<'a>(legs: impl Iterator<Item = &'a Service>) -> BTreeMap<String, Member> {
    let mut members = BTreeMap::<String, Member>::new();
    let all = legs.flat_map(|leg| leg.backends().iter().filter(|backend| leg.may_be_full(backend)));
    for backend in all {
        let member = members.entry(backend.name().to_owned()).or_default();
        member.limits = backend.config().limits;
        member.clients += backend.known_clients();
        member.connections += backend.connections().unwrap_or(0);
        member.ports = [member.ports, backend.ports_in_use()].into_iter().flatten().max_by(PortsInUse::by_part);
        member.serves |= backend.may_take_new() || backend.may_keep_known();
        member.full = member.full.or_else(|| backend.full());
    }
    members
}

/// The times at which the backends of a service became full.
#[derive(Clone, Debug, Default)]
pub struct Watch(BTreeMap<String, Instant>);

impl Watch {
    /// Evaluates the limits of all `members`. Returns the backends that should be full, if these differ from the
    /// backends that are full now.
    pub fn look(&mut self, members: &BTreeMap<String, Member>, now: Instant) -> Option<BTreeMap<String, Full>> {
        self.0.retain(|name, _| members.get(name).is_some_and(|member| member.full.is_some()));
        let mut full = BTreeMap::new();
        for (name, member) in members {
            let since = member.full.map(|_| *self.0.entry(name.clone()).or_insert(now));
            let stays = since.is_some_and(|since| now.saturating_duration_since(since) < DWELL);
            if let Some(next) = member.next(stays) {
                full.insert(name.clone(), next);
            }
        }
        let differs = members.iter().any(|(name, member)| member.full.is_some() != full.contains_key(name));
        differs.then_some(full)
    }
}

impl Member {
    fn next(&self, stays: bool) -> Option<Full> {
        if !self.serves {
            return None;
        }
        let ports = self.ports.map_or((0, None), |ports| (ports.taken.into(), Some(ports.all)));
        let counts = [
            (Enough::Clients, self.clients, self.limits.clients),
            (Enough::Connections, self.connections, self.limits.connections),
            (Enough::Ports, ports.0, ports.1),
        ];
        let limits = || counts.iter().filter_map(|&(of, had, most)| Some(Full { of, had, most: most? }));
        let Some(full) = self.full else {
            return limits().find(|count| count.had >= limit(*count).into());
        };
        let has_room = |count: Full| {
            let limit = limit(count);
            count.had <= u64::from(limit - (limit / MARGIN).max(1).min(limit))
        };
        (stays || !limits().all(has_room)).then_some(full)
    }
}

/// The number from which a backend is full.
const fn limit(Full { of, most, .. }: Full) -> u32 {
    match of {
        Enough::Clients | Enough::Connections => most,
        Enough::Ports => most - most / SPARE_PORTS,
    }
}
