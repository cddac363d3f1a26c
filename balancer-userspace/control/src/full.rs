//! Limits of backends: decides which backends are full and take no new clients.
//!
//! A backend that has reached its limit of clients or connections takes no new clients, and its slots go to the next
//! backends in the table's order. The backend takes new clients again when it is 5% below the limit, but no earlier
//! than [`DWELL`] after it became full, because each change alters the table.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use balancer_config::limits::{Full, Limits};

use crate::service::Service;

/// The minimum time for which a backend stays full.
pub const DWELL: Duration = Duration::from_secs(10);
/// A full backend takes new clients again after it has fallen below its maximum by one part in this many.
const MARGIN: u32 = 20;

/// The facts about a backend with limits that determine whether it is full, over all address families.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Member {
    /// The limits on clients and connections of the backend.
    pub limits: Limits,
    /// The number of known clients at the backend.
    pub clients: u64,
    /// The number of connections to the backend, if the balancer counts them.
    pub connections: u64,
    /// Whether the backend takes or keeps clients at all.
    pub serves: bool,
    /// The limit that the backend has reached at present; `None`: the backend is not full.
    pub full: Option<Full>,
}

/// Returns the backends with limits of a service, given the parts of the service for the address families.
pub fn members<'a>(legs: impl Iterator<Item = &'a Service>) -> BTreeMap<String, Member> {
    let mut members = BTreeMap::<String, Member>::new();
    for backend in legs.flat_map(Service::backends).filter(|backend| !backend.config().limits.is_none()) {
        let member = members.entry(backend.name().to_owned()).or_default();
        member.limits = backend.config().limits;
        member.clients += backend.known_clients();
        member.connections += backend.connections().unwrap_or(0);
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
        let counts = [(false, self.clients, self.limits.clients), (true, self.connections, self.limits.connections)];
        let limits = || counts.iter().filter_map(|&(of, had, most)| Some((of, had, most?)));
        let Some(full) = self.full else {
            let mut reached = limits().filter(|&(_, had, most)| had >= u64::from(most));
            return reached.next().map(|(connections, had, most)| Full { connections, had, most });
        };
        let has_room = |(_, had, most): (bool, u64, u32)| had <= u64::from(most - (most / MARGIN).max(1).min(most));
        (stays || !limits().all(has_room)).then_some(full)
    }
}
