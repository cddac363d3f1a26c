//! Validation: the properties of services that the data path needs. The same rules apply to a file, in which objects
//! have lines, and to changes and saved states, in which objects have no lines.

mod backends;
mod listeners;
mod problem;
mod returns;

use std::{iter::repeat_n, ops::Deref, sync::Arc};

use balancer_common::{
    map_types::{LAST_BACKEND, MAX_RULES},
    quic::MAX_QUIC_SERVICES,
};
use foldhash::{HashMap, HashSet};

pub(crate) use self::backends::enough_slots;
use self::{problem::Fault, returns::Source};
pub use self::{
    problem::{Place, Problem},
    returns::answering_alike,
};
use super::{renames, value};
use crate::{
    service::ServiceConfig,
    shared::{alike, by_name, is_one},
    words::grouped,
};

const MAX_SERVICES: usize = u16::MAX as usize;

/// Services that are valid, each by itself and all of them together. Copies of this value share memory, so they are
/// cheap.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Valid(Arc<[Arc<ServiceConfig>]>);

impl Valid {
    /// Checks whether `services` are valid.
    ///
    /// # Errors
    /// Returns the first problem of the services.
    pub fn new(services: Vec<Arc<ServiceConfig>>) -> Result<Self, Problem> {
        self::services(&services, &Self::default())?;
        Ok(Self(services.into()))
    }

    /// Checks `services`, some of which are `known` to be valid by themselves, and returns all problems.
    pub(crate) fn or_problems(services: Vec<Arc<ServiceConfig>>, known: &Self) -> Result<Self, Vec<Problem>> {
        let problems = problems(&services, known);
        if problems.is_empty() { Ok(Self(services.into())) } else { Err(problems) }
    }

    /// The same services together with `others`.
    ///
    /// # Errors
    /// Returns the first problem that the services have together.
    pub fn with(&self, others: impl IntoIterator<Item = Arc<ServiceConfig>>) -> Result<Self, Problem> {
        let others: Vec<_> = others.into_iter().collect();
        if others.is_empty() {
            return Ok(self.clone());
        }
        let all: Vec<_> = self.iter().cloned().chain(others).collect();
        self::services(&all, self)?;
        Ok(Self(all.into()))
    }

    /// Those of the services that are `wanted`.
    #[must_use]
    pub fn only(&self, wanted: impl Fn(&ServiceConfig) -> bool) -> Self {
        Self(self.iter().filter(|service| wanted(service)).cloned().collect())
    }

    /// The services that come from drop-ins.
    pub fn of_drop_ins(&self) -> impl Iterator<Item = &Arc<ServiceConfig>> {
        self.iter().filter(|service| service.drop_in.is_some())
    }

    /// Copies of the services, in a form that can be serialized.
    #[must_use]
    pub fn copies(&self) -> Vec<ServiceConfig> {
        self.iter().map(|service| ServiceConfig::clone(service)).collect()
    }

    /// The same services, which then share memory with equal services in `others`.
    #[must_use]
    pub fn sharing(self, others: &[Arc<ServiceConfig>]) -> Self {
        if is_one(&self, others) {
            return self;
        }
        let others = by_name(others);
        Self(self.iter().map(|service| Arc::clone(alike(&others, service).unwrap_or(service))).collect())
    }
}

impl Deref for Valid {
    type Target = [Arc<ServiceConfig>];

    fn deref(&self) -> &[Arc<ServiceConfig>] {
        &self.0
    }
}

/// Checks `services` and the backends of these services. The function does not check single services that are `known`
/// to be valid.
///
/// # Errors
/// Returns the first problem of the services.
pub fn services(services: &[Arc<ServiceConfig>], known: &Valid) -> Result<(), Problem> {
    problems(services, known).into_iter().next().map_or(Ok(()), Err)
}

/// All problems of `services` and of the backends of these services. The function does not check single services that
/// are `known` to be valid.
#[must_use]
pub fn problems(services: &[Arc<ServiceConfig>], known: &Valid) -> Vec<Problem> {
    let pointers = known.iter().map(Arc::as_ptr).collect();
    let mut problems = Problems { services, known, pointers, found: Vec::new() };
    let mut names = HashMap::default();
    for (index, service) in services.iter().enumerate() {
        let at = Place::Name(index);
        problems.name(at, &service.name, service.renamed_from.as_deref());
        if let Some(first) = names.insert(service.name.as_str(), at) {
            problems.add(at, Fault::NameTaken { what: "service", name: service.name.clone(), first });
        }
        if !problems.is_known(service) {
            problems.backends(index, service);
            problems.server_ids(index, service);
            problems.table_size(index, service);
        }
    }
    problems.hashed_alike(services, Place::Name);
    for (index, service) in services.iter().enumerate() {
        if !problems.is_known(service) {
            problems.hashed_alike(&service.backends, |backend| Place::BackendName(index, backend));
        }
    }
    problems.listeners();
    problems.limits();
    problems.returns();
    problems.found
}

struct Problems<'a> {
    services: &'a [Arc<ServiceConfig>],
    known: &'a Valid,
    pointers: HashSet<*const ServiceConfig>,
    found: Vec<Problem>,
}

impl Problems<'_> {
    fn is_known(&self, service: &Arc<ServiceConfig>) -> bool {
        self.pointers.contains(&Arc::as_ptr(service))
    }

    fn add(&mut self, at: Place, fault: Fault) {
        let (Place::Name(index)
        | Place::Listener(index, _)
        | Place::TableSize(index)
        | Place::BackendName(index, _)
        | Place::BackendAddress(index, _)) = at;
        let service = self.services.get(index).map(|service| service.name.clone()).unwrap_or_default();
        self.found.push(Problem { at, service, fault: Box::new(fault) });
    }

    fn name(&mut self, at: Place, name: &str, renamed_from: Option<&str>) {
        for name in [Some(name), renamed_from].into_iter().flatten() {
            if let Err(text) = value::name(name) {
                self.add(at, Fault::Invalid(text));
            }
        }
    }

    fn hashed_alike<N: renames::Named>(&mut self, all: &[N], place: impl Fn(usize) -> Place) {
        if let Some((index, first, second)) = renames::hashed_alike(all)
            && first.name() != second.name()
        {
            self.add(place(index), Fault::HashedAlike(renames::text(first, second)));
        }
    }

    fn limits(&mut self) {
        let services = self.services;
        if services.len() > MAX_SERVICES {
            let text = format!("more than {MAX_SERVICES} services; remove some");
            self.add(Place::Name(MAX_SERVICES), Fault::Invalid(text));
        }
        let mut room = MAX_RULES as usize;
        let full = services.iter().position(|service| {
            let left = room.checked_sub(service.rules.len());
            room = left.unwrap_or(0);
            left.is_none()
        });
        if let Some(index) = full {
            let text = format!("more than {} rules over all services; remove some", grouped(MAX_RULES));
            self.add(Place::Name(index), Fault::Invalid(text));
        }
        self.quic_services();
        let room = usize::from(LAST_BACKEND);
        if services.iter().map(|service| service.backend_ids()).sum::<usize>() <= room {
            return;
        }
        let mut backends = services.iter().enumerate().flat_map(|(index, service)| {
            let families = service.families().len();
            (0..service.backends.len()).flat_map(move |number| repeat_n(Place::BackendAddress(index, number), families))
        });
        if let Some(excess) = backends.nth(room) {
            let twice = services.iter().any(|service| service.families().len() > 1);
            let each = if twice { ", those of services of both address families counted twice" } else { "" };
            let text = format!("more than {room} backends over all services{each}; remove some");
            self.add(excess, Fault::Invalid(text));
        }
    }

    fn quic_services(&mut self) {
        let with_quic = self.services.iter().enumerate().filter(|(_, service)| service.quic.is_some());
        let mut each = with_quic.flat_map(|(index, service)| repeat_n(index, service.families().len()));
        if let Some(excess) = each.nth(MAX_QUIC_SERVICES) {
            let text = format!(
                "more than {MAX_QUIC_SERVICES} services with quic, those of both address families counted twice; \
                 remove some"
            );
            self.add(Place::Name(excess), Fault::Invalid(text));
        }
    }

    /// Checks for `nat` backends whose replies the return path could not distinguish.
    fn returns(&mut self) {
        // Both of two services with the same name may come from a service that is known to be valid.
        let is_known = |service: &Arc<ServiceConfig>| self.is_known(service);
        if self.found.is_empty() && !returns::may_be_confused(self.services, self.known, is_known) {
            return;
        }
        for (source, other) in returns::confused(self.services) {
            self.ambiguous(&source, &other);
        }
    }

    fn ambiguous(&mut self, source: &Source<'_>, other: &Source<'_>) {
        let (one, two) = (source.name(), other.name());
        self.add(
            source.at,
            Fault::Ambiguous {
                one,
                other: two,
                address: [source.from, other.from],
                listeners: [source.listener, other.listener],
                at: other.at,
            },
        );
    }
}

#[cfg(test)]
#[path = "validate_test.rs"]
mod tests;
