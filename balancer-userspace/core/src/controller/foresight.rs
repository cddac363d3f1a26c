//! Lookup tables that are made before they are wanted, on a copy of what needs them, so that nobody waits for one: tables
//! of a change that is being kept on disk, and of backends that have begun to fail.

use std::{
    collections::{BTreeSet, HashMap},
    mem,
    sync::Arc,
};

use super::{Controller, Services};
use crate::{io::ServiceId, service::Service, table::Made};

/// Of so many backends of a service that have begun to fail it is foreseen that each of them fails and the others do not yet.
const ALONE: usize = 4;

/// Where more services than this have such backends, only that all of them fail: each table takes memory.
const MANY: usize = 64;

/// Tables by service. Where they turn out not to be the ones that are wanted, those are made.
#[derive(Clone, Debug, Default)]
pub struct Foresight(HashMap<ServiceId, Arc<[Made]>>);

#[cfg(test)]
impl Foresight {
    pub(crate) fn of(&self, service: ServiceId) -> &[Made] {
        &self.0[&service]
    }
}

/// What a controller has been given, and what it waits for.
#[derive(Clone, Debug, Default)]
pub(super) struct Foreseen {
    /// For the change that is being made.
    change: Foresight,
    /// For backends that have begun to fail.
    doubts: Foresight,
    /// Services of which other backends are in doubt than were.
    doubted: BTreeSet<ServiceId>,
}

impl Foreseen {
    /// The tables there are for a service.
    pub(super) fn of(&self, service: ServiceId) -> Vec<Made> {
        let found = [&self.change, &self.doubts].into_iter().filter_map(|foresight| foresight.0.get(&service));
        found.flat_map(|made| made.iter().cloned()).collect()
    }

    /// Forgets what was foreseen of services that are not `there`.
    pub(super) fn keep(&mut self, there: impl Fn(ServiceId) -> bool) {
        self.doubts.0.retain(|&id, _| there(id));
    }

    /// Other backends of a service are in doubt, or what would become of it without them is something else.
    pub(super) fn doubt(&mut self, service: ServiceId) {
        self.doubted.insert(service);
    }
}

/// Services with backends that have begun to fail.
#[derive(Debug)]
pub struct Doubts(Vec<Doubt>);

#[derive(Debug)]
struct Doubt {
    service: Arc<Service>,
    /// What may come of it: see [`Service::takes_new_without_doubtful`].
    cases: Vec<Vec<Option<bool>>>,
    /// What was foreseen before, which may still be what is wanted.
    made: Vec<Made>,
}

impl Doubts {
    /// Makes the tables that are wanted if they fail, one or all: as long as so many tables take.
    #[must_use]
    pub fn resolve(self) -> Foresight {
        let made = |Doubt { service, cases, made }: Doubt| (service.id(), service.made_for(&cases, &made).into());
        Foresight(self.0.into_iter().map(made).collect())
    }
}

impl Controller {
    /// The tables of the services that were touched since they were shared with `before`.
    #[must_use]
    pub fn foresight_since(&self, before: &Services) -> Foresight {
        Foresight(self.services.touched_since(before).map(|service| (service.id(), service.made().into())).collect())
    }

    /// Has these tables for the change that comes next, instead of those of the last.
    pub fn expect(&mut self, foresight: Foresight) {
        self.foreseen.change = foresight;
    }

    /// Has these tables for backends that go on failing, of services in which some still do.
    pub fn foresee(&mut self, foresight: Foresight) {
        let services = &self.services;
        let in_doubt = |id: ServiceId| services.with_id(id).is_some_and(Service::has_doubts);
        self.foreseen.doubts.0.extend(foresight.0.into_iter().filter(|(id, _)| in_doubt(*id)));
    }

    /// What there is to foresee since this was asked last.
    pub fn take_doubts(&mut self) -> Option<Doubts> {
        let mut doubts = Vec::new();
        let services = self.foreseen.doubts.0.len() + self.foreseen.doubted.len();
        let alone = if services > MANY { 0 } else { ALONE };
        for id in mem::take(&mut self.foreseen.doubted) {
            let service = self.services.shared_with_id(id).filter(|service| service.has_doubts());
            let Some(service) = service else {
                self.foreseen.doubts.0.remove(&id);
                continue;
            };
            let cases = service.takes_new_without_doubtful(alone, &self.hops);
            doubts.push(Doubt { service: Arc::clone(service), cases, made: self.foreseen.of(id) });
        }
        (!doubts.is_empty()).then_some(Doubts(doubts))
    }
}
