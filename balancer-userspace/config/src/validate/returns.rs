//! Detects `nat` backends whose replies the return path could not distinguish.

use std::{
    cell::LazyCell,
    net::{IpAddr, SocketAddr},
    sync::Arc,
};

use balancer_common::map_types::Forwarding;
use foldhash::{HashMap, HashSet};

use super::{Place, Valid};
use crate::{
    listeners::Listener,
    protocol::Protocol,
    service::{BackendConfig, ServiceConfig},
    shared::by_name,
};

/// The source address and port of a `nat` backend's replies to the clients of a listener.
#[derive(Clone, Copy)]
pub(super) struct Source<'a> {
    service: &'a ServiceConfig,
    backend: &'a BackendConfig,
    pub(super) listener: Listener,
    /// The source address of the replies; port 0: every port.
    pub(super) from: SocketAddr,
    pub(super) at: Place,
}

/// Pairs of reply sources that cannot be distinguished.
pub(super) fn confused(services: &[Arc<ServiceConfig>]) -> Vec<(Source<'_>, Source<'_>)> {
    pairs(&sources(services).collect::<Vec<_>>(), &[])
}

/// Whether there may be pairs of reply sources that cannot be distinguished. The reply sources of services that are
/// known to be valid, or that were derived from such a service, do not conflict with each other. The function therefore
/// compares only the remaining sources with all sources.
pub(super) fn may_be_confused(
    services: &[Arc<ServiceConfig>],
    known: &Valid,
    is_known: impl Fn(&Arc<ServiceConfig>) -> bool,
) -> bool {
    let places = new_backends(services, known, is_known);
    if places.is_empty() {
        return false;
    }
    let (new, old): (Vec<_>, Vec<_>) = sources(services).partition(|source| places.contains(&source.at));
    !pairs(&new, &old).is_empty()
}

/// Pairs of reply sources in which at least one source is `new`; the `old` sources do not conflict with each other.
fn pairs<'a>(new: &[Source<'a>], old: &[Source<'a>]) -> Vec<(Source<'a>, Source<'a>)> {
    let mut pairs = Vec::new();
    let mut exact: HashMap<_, &Source<'a>> = HashMap::default();
    exact.reserve(new.len());
    for source in new {
        if let Some(other) = exact.insert(source.key(), source)
            && !source.is_told_with(other)
        {
            pairs.push((*source, *other));
        }
    }
    for source in old {
        if let Some(other) = exact.get(&source.key())
            && !source.is_told_with(other)
        {
            pairs.push((*source, **other));
        }
    }
    let all = || new.iter().chain(old);
    let with_every_port = all().filter(|source| source.from.port() == 0);
    let with_every_port: HashMap<_, &Source<'a>> = with_every_port.map(|source| (source.key(), source)).collect();
    if with_every_port.is_empty() {
        return pairs;
    }
    for source in all().filter(|source| source.from.port() != 0) {
        if let Some(other) = with_every_port.get(&source.every_port())
            && source.is_taken_for(other)
        {
            pairs.push((*source, **other));
        }
    }
    pairs
}

/// The reply sources of backends that are not in a known service of the same name, at the same address and behind the
/// same listeners.
fn new_backends(
    services: &[Arc<ServiceConfig>],
    known: &Valid,
    is_known: impl Fn(&Arc<ServiceConfig>) -> bool,
) -> HashSet<Place> {
    let known = LazyCell::new(|| by_name(known));
    let mut new = HashSet::default();
    for (index, service) in services.iter().enumerate().filter(|(_, service)| !is_known(service)) {
        let fronts = |of: &ServiceConfig| (of.forwarding, of.listen.clone(), of.ports.clone());
        let before = known.get(service.name.as_str()).filter(|before| fronts(before) == fronts(service));
        let place = |backend: &BackendConfig| (backend.address, backend.address6);
        let mut there: HashSet<_> = before.into_iter().flat_map(|before| &before.backends).map(place).collect();
        let backends = service.backends.iter().enumerate().filter(|(_, backend)| !there.remove(&place(backend)));
        new.extend(backends.map(|(number, _)| Place::BackendAddress(index, number)));
    }
    new
}

fn sources(services: &[Arc<ServiceConfig>]) -> impl Iterator<Item = Source<'_>> {
    let nat = services.iter().enumerate().filter(|(_, service)| service.forwarding == Forwarding::Nat);
    nat.flat_map(|(index, service)| sources_of(index, service, &service.backends))
}

fn sources_of<'a>(
    index: usize,
    service: &'a ServiceConfig,
    backends: &'a [BackendConfig],
) -> impl Iterator<Item = Source<'a>> {
    backends.iter().enumerate().flat_map(move |(number, backend)| {
        let at = Place::BackendAddress(index, number);
        service.listen.iter().filter_map(move |&listener| Source::new(service, backend, listener, at))
    })
}

/// Pairs of `backends`, by position, whose replies the return path could not distinguish if the service had these
/// backends.
#[must_use]
pub fn answering_alike(service: &ServiceConfig, backends: &[BackendConfig]) -> Vec<[usize; 2]> {
    if service.forwarding != Forwarding::Nat {
        return Vec::new();
    }
    let all: Vec<_> = sources_of(0, service, backends).collect();
    let position = |source: &Source<'_>| {
        if let Place::BackendAddress(_, number) = source.at { Some(number) } else { None }
    };
    pairs(&all, &[]).iter().filter_map(|(one, other)| Some([position(one)?, position(other)?])).collect()
}

impl<'a> Source<'a> {
    fn new(service: &'a ServiceConfig, backend: &'a BackendConfig, listener: Listener, at: Place) -> Option<Self> {
        let address = backend.address_for(listener.family(), service.forwarding)?;
        let port = if address.port() == 0 { service.backend_port(listener) } else { address.port() };
        Some(Self { service, backend, listener, from: SocketAddr::new(address.ip(), port), at })
    }

    pub(super) fn name(&self) -> String {
        format!("{}/{}", self.service.name, self.backend.name)
    }

    const fn key(&self) -> (IpAddr, u16, Protocol) {
        (self.from.ip(), self.from.port(), self.listener.protocol.transport())
    }

    /// The key of a backend whose replies may come from every port of its address.
    const fn every_port(&self) -> (IpAddr, u16, Protocol) {
        (self.from.ip(), 0, self.listener.protocol.transport())
    }

    /// Whether both sources are port ranges of one VIP, so that it does not matter to which of the two a reply belongs.
    fn is_told_with(&self, other: &Self) -> bool {
        self.from.port() == 0
            && self.listener.address == other.listener.address
            && self.service.name == other.service.name
    }

    /// Whether `other`, whose replies may come from every port of its address, also replies from the port of this
    /// source. Such a pair is harmless only if both sources stand for the same VIP and no port changes.
    fn is_taken_for(&self, other: &Self) -> bool {
        let port = self.from.port();
        other.may_answer_from(port)
            && !(other.listener.address == self.listener.address && self.listener.ports.single() == Some(port))
    }

    /// Whether replies of a source with every port may come from `port`: a range replies only from its own ports.
    fn may_answer_from(&self, port: u16) -> bool {
        let of_vip = |listener: &&Listener| {
            listener.address == self.listener.address
                && listener.protocol.transport() == self.listener.protocol.transport()
        };
        self.service.listen.iter().filter(of_vip).any(|listener| listener.ports.contains(port))
    }
}
