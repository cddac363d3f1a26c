//! The backends of a service after the controller has applied a list of targets. The controller matches targets to
//! backends by name, never by position.

use std::{
    borrow::Cow,
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, SocketAddr},
};

use balancer_config::{
    config::{self, BackendConfig, ServiceConfig},
    discover::{DiscoverConfig, Discovered, Own, Source, Target},
    dns::{self, DnsSource, Records},
    listeners::Family,
    renames::Named as _,
    states::Admin,
    validate::{Place as At, Problem, answering_alike},
    words::counted,
};

/// The backends of a service after the controller has applied a list, and the differences from the backends before.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Pool {
    /// All backends: the existing backends in their order, followed by the new backends.
    pub backends: Vec<BackendConfig>,
    /// The names of the new backends.
    pub added: Vec<String>,
    /// The names of the backends that are no longer in the list.
    pub gone: Vec<String>,
    /// The backends that are in the list again, with the states that the operator wants for them.
    pub back: Vec<(String, Admin)>,
    /// The names of the backends whose address or weight has changed.
    pub changed: Vec<String>,
    /// The backends whose target has another name at the same address.
    pub renamed: Vec<Renamed>,
    /// The drained backends whose address now belongs to another backend that is in the list. These backends are not
    /// among `backends`.
    pub displaced: Vec<Displaced>,
    /// The faults of the entries that the controller leaves out.
    pub left_out: Vec<String>,
}

/// A backend whose target has another name at the same address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Renamed {
    /// The name that the list gave before.
    pub from: String,
    /// The name that the list gives now.
    pub to: String,
}

/// A drained backend whose address now belongs to another backend.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Displaced {
    /// The name of the backend that was drained.
    pub name: String,
    /// The name of the backend that has the address now.
    pub by: String,
}

impl Pool {
    /// Returns a text such as `1 added, 1 drains`, or an empty text if there is no difference.
    #[must_use]
    pub fn summary(&self) -> String {
        let verb = |count: usize, word: &str| (count > 0).then(|| format!("{} {word}", counted(count, "backend")));
        let parts = [
            verb(self.added.len(), "added"),
            verb(self.gone.len(), "no longer listed"),
            verb(self.back.len(), "listed again"),
            verb(self.changed.len(), "changed"),
            verb(self.renamed.len(), "renamed"),
            verb(self.displaced.len(), "displaced"),
        ];
        parts.into_iter().flatten().collect::<Vec<_>>().join(", ")
    }
}

#[derive(Clone, Copy, Debug)]
pub struct Version<'a> {
    /// The targets, among them the faulty ones.
    pub targets: &'a [Target],
    /// The names of the backends that stay although the list lacks their targets.
    pub waiting: &'a BTreeSet<String>,
    /// The faults of targets that cannot be backends of the service, by the backend's name.
    pub impossible: &'a BTreeMap<String, String>,
}

/// Applies a `version` of the list. An entry that cannot be a backend is left out; if the entry is about a backend that
/// exists, the backend stays as it is. `admin` returns the state that the operator wants for a backend.
///
/// # Errors
/// Returns one line if the list is not applicable; in this case, the controller applies no part of the list.
pub fn pool(
    service: &ServiceConfig,
    list: &DiscoverConfig,
    version: Version<'_>,
    admin: impl Fn(&str) -> Admin,
) -> Result<Pool, String> {
    let present = Present::of(service, list);
    let named = present.named(version.targets);
    let (mut left, faulty) = present.sort(&named, version.impossible);
    if let Some((_, first)) = faulty.first().filter(|_| 2 * faulty.len() > named.len()) {
        let of = counted(named.len(), "target");
        return Err(format!("lacks {} of {of}, so no part of it is applied: {first}", faulty.len()));
    }
    if let Some(text) = list.min.too_few(left.len(), present.listed()) {
        return Err(text);
    }
    let keeps: BTreeSet<&str> = faulty.iter().map(|(name, _)| *name).filter(|name| !left.contains_key(name)).collect();
    let heirs = present.heirs(&left, &keeps);
    let mut pool = Pool::default();
    for backend in &service.backends {
        let mut backend = backend.clone();
        let name = backend.name.as_str();
        let waits = || version.waiting.contains(name) && !left.contains_key(name) && !heirs.contains_key(name);
        if !present.backends.contains_key(name) || keeps.contains(name) || waits() {
            pool.backends.push(backend);
            continue;
        }
        if let Some(name) = heirs.get(backend.name.as_str()) {
            pool.renamed.push(Renamed { from: backend.name.clone(), to: (*name).to_owned() });
            rename(&mut backend, name);
        }
        let found = left.remove(backend.name.as_str());
        pool.keep(backend, list, found, &admin);
    }
    for target in &*named {
        if let Some((target, place)) = left.remove(target.name.as_str()) {
            pool.added.push(target.name.clone());
            pool.backends.push(new(list, target, place));
        }
    }
    pool.displace(service, version.waiting);
    pool.left_out = faulty.into_iter().map(|(_, fault)| fault).collect();
    Ok(pool)
}

impl Pool {
    /// Adds a backend of the list, which is now at `found`; `None`: the backend is no longer in the list.
    fn keep(
        &mut self,
        mut backend: BackendConfig,
        list: &DiscoverConfig,
        found: Option<(&Target, Place)>,
        admin: impl Fn(&str) -> Admin,
    ) {
        let Some(discovered) = backend.discovered.as_deref_mut() else { return };
        let Some((target, place)) = found else {
            if discovered.gone.is_none() {
                discovered.gone = Some(admin(&backend.name));
                self.gone.push(backend.name.clone());
            }
            self.backends.push(backend);
            return;
        };
        list.source.clone_into(&mut discovered.source);
        self.back.extend(discovered.gone.take().map(|admin| (backend.name.clone(), admin)));
        let Own { weight, backup } = list.own.unwrap_or(Own { weight: target.weight, backup: target.backup });
        let new_weight = discovered.weight != weight;
        if new_weight {
            (discovered.weight, backend.weight) = (weight, weight);
        }
        if new_weight || place != (backend.address, backend.address6) || backend.backup != backup {
            self.changed.push(backend.name.clone());
        }
        (backend.address, backend.address6) = place;
        backend.backup = backup;
        self.backends.push(backend);
    }

    /// Takes out the backends that are in no list any more and whose replies could not be told from those of a backend
    /// that is: their server answers under another name now. The backends that are `waiting` are in no list either.
    fn displace(&mut self, service: &ServiceConfig, waiting: &BTreeSet<String>) {
        let is_gone = |backend: &BackendConfig| {
            backend.discovered.as_ref().is_some_and(|of| of.gone.is_some() || waiting.contains(&backend.name))
        };
        if !self.backends.iter().any(is_gone) {
            return;
        }
        let mut heirs = BTreeMap::new();
        for [one, other] in answering_alike(service, &self.backends) {
            let gone = |index: usize| self.backends.get(index).is_some_and(is_gone);
            match (gone(one), gone(other)) {
                (true, false) => drop(heirs.insert(one, other)),
                (false, true) => drop(heirs.insert(other, one)),
                (true, true) | (false, false) => {}
            }
        }
        let backends = &self.backends;
        let name = |index: &usize| backends.get(*index).map(|backend| backend.name.clone());
        let displaced = |(gone, heir): (&usize, &usize)| Some(Displaced { name: name(gone)?, by: name(heir)? });
        self.displaced = heirs.iter().filter_map(displaced).collect();
        let Self { backends, gone, displaced, .. } = self;
        let stays = |name: &String| !displaced.iter().any(|other| other.name == *name);
        backends.retain(|backend| stays(&backend.name));
        gone.retain(stays);
    }
}

/// Returns the reason why targets lack an address that the service needs, with an example; `None` if no target lacks
/// one. Existing backends keep their earlier addresses in this case.
#[must_use]
pub fn unresolved(service: &ServiceConfig, list: &DiscoverConfig, targets: &[Target]) -> Option<String> {
    let present = Present::of(service, list);
    let mut without = targets.iter().filter(|target| target.fault.is_none() && !present.is_resolved(target));
    let first = without.next()?;
    let why = first.why.as_ref().map(|why| format!(": {why}")).unwrap_or_default();
    let rest = match without.count() {
        0 => String::new(),
        more => format!("; nor have {more} more"),
    };
    Some(format!("{} has not the addresses that the service needs{why}{rest}", first.name))
}

/// The backends that the targets of a list become if the service has no backend of this list yet.
pub(crate) fn newcomers(service: &ServiceConfig, source: &Source, targets: &[Target]) -> Vec<BackendConfig> {
    let list = DiscoverConfig::new(source.clone());
    let present = Present::of(service, &list);
    let is_new = |target: &&Target| !service.backends.iter().any(|backend| backend.name == target.name);
    let named = present.named(targets);
    let place = |target: &Target| Some(new(&list, target, present.place(target).ok()??));
    named.iter().filter(is_new).filter_map(place).collect()
}

const OTHER_NAME: &str = "give one of them another name";

/// The addresses of a backend.
type Place = (SocketAddr, Option<SocketAddr>);

/// Targets that can be backends, by name.
type Sound<'t> = BTreeMap<&'t str, (&'t Target, Place)>;

/// The existing backends that come from a list of targets.
struct Present<'a> {
    service: &'a ServiceConfig,
    source: &'a Source,
    backends: BTreeMap<&'a str, &'a BackendConfig>,
}

impl<'a> Present<'a> {
    fn of(service: &'a ServiceConfig, list: &'a DiscoverConfig) -> Self {
        let is_listed = |backend: &&BackendConfig| {
            backend.discovered.as_ref().is_some_and(|of| is_of(service, &list.source, &backend.name, of))
        };
        let listed = service.backends.iter().filter(is_listed);
        let backends = listed.map(|backend| (backend.name.as_str(), backend)).collect();
        Self { service, source: &list.source, backends }
    }

    /// Divides the targets into those that can be backends, with their places, and the faulty ones, with their faults.
    /// A target without an address is in neither part.
    fn sort<'t>(
        &self,
        targets: &'t [Target],
        impossible: &BTreeMap<String, String>,
    ) -> (Sound<'t>, Vec<(&'t str, String)>) {
        let names = self.service.backends.iter().map(|backend| backend.name.as_str());
        let others: BTreeSet<&str> = names.filter(|name| !self.backends.contains_key(name)).collect();
        let (mut sound, mut faulty) = (BTreeMap::new(), Vec::new());
        for target in targets {
            let name = target.name.as_str();
            let fault = if let Some(fault) = target.fault.as_ref().or_else(|| impossible.get(name)) {
                fault.clone()
            } else if others.contains(name) {
                format!("a target is called {name}, and so is a backend that is not of this list; {OTHER_NAME}")
            } else if sound.contains_key(name) {
                format!("two targets are called {name}; {OTHER_NAME}")
            } else {
                match self.place(target) {
                    Ok(Some(place)) => drop(sound.insert(name, (target, place))),
                    Ok(None) => {}
                    Err(fault) => faulty.push((name, fault)),
                }
                continue;
            };
            faulty.push((name, fault));
        }
        (sound, faulty)
    }

    /// The number of backends of the list when the controller last applied the list.
    fn listed(&self) -> usize {
        self.backends.values().filter(|of| of.discovered.as_ref().is_some_and(|of| of.gone.is_none())).count()
    }

    /// The new names of the backends that the targets `left` continue under other names: those that the list no longer
    /// contains, if a new target is at the address of the backend. The server there is the same to its clients. If two
    /// backends had the address, the one that the list contained last goes on. Backends in `keeps` stay as they are.
    fn heirs<'t>(
        &self,
        left: &BTreeMap<&'t str, (&Target, Place)>,
        keeps: &BTreeSet<&str>,
    ) -> BTreeMap<&'a str, &'t str> {
        let taken: BTreeSet<&str> = self.service.backends.iter().map(|backend| backend.name.as_str()).collect();
        let new = left.iter().filter(|(name, _)| !taken.contains(*name));
        let mut at: BTreeMap<Place, &'t str> = new.rev().map(|(name, (_, place))| (*place, *name)).collect();
        let is_missing = |name: &str| !left.contains_key(name) && !keeps.contains(name);
        let missing = self.backends.values().filter(|backend| is_missing(&backend.name));
        let is_gone = |backend: &&&BackendConfig| backend.discovered.as_ref().is_some_and(|of| of.gone.is_some());
        let (gone, listed): (Vec<_>, Vec<_>) = missing.partition(is_gone);
        let heir = |backend: &'a BackendConfig| {
            Some((backend.name.as_str(), at.remove(&(backend.address, backend.address6))?))
        };
        listed.into_iter().chain(gone).copied().filter_map(heir).collect()
    }

    /// Gives each target the name of a backend.
    fn named<'t>(&self, targets: &'t [Target]) -> Cow<'t, [Target]> {
        match self.source.dns().map(|dns| &dns.records) {
            Some(Records::Services) => Cow::Owned(dns::named(&self.without_kept_ports(targets), |name, port| {
                let address = self.backends.get(name)?.address;
                Some(self.service.without_implied_port(SocketAddr::new(address.ip(), port)) == address)
            })),
            Some(Records::Addresses { .. } | Records::Backend { .. }) | None => Cow::Borrowed(targets),
        }
    }

    /// Removes ports at which clients reach the targets anyway. Records of one host that differ only in such ports become
    /// one target, with the better of their priorities and weights.
    fn without_kept_ports(&self, targets: &[Target]) -> Vec<Target> {
        let mut without: Vec<Target> = Vec::with_capacity(targets.len());
        for target in targets {
            let port = target.port.filter(|port| !self.service.keeps_port(*port));
            let known =
                without.iter_mut().find(|known| port.is_none() && known.port.is_none() && known.name == target.name);
            match known {
                Some(known) if (known.backup, target.weight) > (target.backup, known.weight) => {
                    (known.backup, known.weight) = (target.backup, target.weight);
                }
                Some(_) => {}
                None => without.push(Target { port, ..target.clone() }),
            }
        }
        without
    }

    /// The addresses of a target: the current addresses while the target still has them or no other addresses are
    /// known, otherwise the lowest addresses. `None`: the target has no address yet, or no address of a wanted family.
    fn place(&self, target: &Target) -> Result<Option<Place>, String> {
        let port = target.port.filter(|port| !self.service.keeps_port(*port));
        let port = self.service.port_of(&target.name, port)?;
        let socket = |ip| self.service.without_implied_port(SocketAddr::new(ip, port));
        let Some(dns) = self.source.dns() else {
            return Ok(target.addresses.first().map(|ip| (socket(*ip), None)));
        };
        let families = self.service.families_of(dns);
        let in_use = self.backends.get(target.name.as_str()).map(|of| [Some(of.address), of.address6]);
        let in_use: Vec<IpAddr> = in_use.into_iter().flatten().flatten().map(|address| address.ip()).collect();
        let chosen = |family: &Family| {
            let now = in_use.iter().find(|ip| Family::of(**ip) == *family);
            let answers = || target.addresses.iter().filter(|ip| Family::of(**ip) == *family);
            // If one address serves both families, an address that is no longer in the answer is not needed.
            let former = now.filter(|_| !self.crosses_families() || !self.is_resolved(target));
            now.filter(|now| answers().any(|ip| ip == *now)).or_else(|| answers().min()).or(former).copied()
        };
        let addresses: Vec<IpAddr> = families.iter().filter_map(chosen).collect();
        let is_whole = addresses.len() == families.len() || self.crosses_families();
        let mut addresses = addresses.into_iter().filter(|_| is_whole).collect::<Vec<_>>();
        addresses.sort_unstable();
        let mut addresses = addresses.into_iter().map(socket);
        Ok(addresses.next().map(|first| (first, addresses.next())))
    }

    /// Whether the DNS answer contains the addresses of a target that the service needs. An address of an unwanted
    /// address family does not count.
    fn is_resolved(&self, target: &Target) -> bool {
        let of_hosts = |dns: &&DnsSource| !matches!(dns.records, Records::Addresses { .. });
        let Some(dns) = self.source.dns().filter(of_hosts) else { return true };
        let has = |family: &Family| target.addresses.iter().any(|ip| Family::of(*ip) == *family);
        let families = self.service.families_of(dns);
        if self.crosses_families() { families.iter().any(has) } else { families.iter().all(has) }
    }

    /// Whether the service can send packets of either address family to a backend of the other family.
    const fn crosses_families(&self) -> bool {
        config::crosses_families(self.service.forwarding)
    }
}

fn new(list: &DiscoverConfig, target: &Target, (address, address6): Place) -> BackendConfig {
    let Own { weight, backup } = list.own.unwrap_or(Own { weight: target.weight, backup: target.backup });
    BackendConfig {
        name: target.name.clone(),
        renamed_from: None,
        address,
        address6,
        weight,
        backup,
        check: None,
        quic_server_id: None,
        limits: Default::default(),
        discovered: Some(Box::new(Discovered { source: list.source.clone(), weight, gone: None, was: None })),
    }
}

/// The targets to blame for problems of services of which the service at `index` has the backends of `pool`, by name:
/// each with the problem. Of two targets, the new or changed one is to blame.
pub(crate) fn to_blame(pool: &Pool, index: usize, problems: &[Problem]) -> BTreeMap<String, String> {
    let changes = |name: &&String| pool.added.contains(name) || pool.changed.contains(name);
    let backend = |at: At| match at {
        At::BackendName(of, number) | At::BackendAddress(of, number) if of == index => pool.backends.get(number),
        At::Name(_) | At::Listener(..) | At::TableSize(_) | At::BackendName(..) | At::BackendAddress(..) => None,
    };
    let blamed = |problem: &Problem| {
        let names = problem.places().filter_map(backend).map(|backend| &backend.name).filter(changes);
        Some((names.max_by_key(|name| (pool.added.contains(name), *name))?.clone(), problem.text(|_| None)))
    };
    problems.iter().filter_map(blamed).collect()
}

/// Lets a backend go on under another name.
fn rename(backend: &mut BackendConfig, name: &str) {
    let was = backend.identity().to_owned();
    if let Some(discovered) = backend.discovered.as_deref_mut() {
        discovered.was = Some(was);
    }
    backend.renamed_from = None;
    name.clone_into(&mut backend.name);
}

/// Whether a list controls a backend: the backend comes from this list, or from a list that the service no longer has.
/// A backend whose address in the configuration was replaced by a DNS name belongs only to that name. A backend whose
/// DNS records the balancer now queries differently belongs to the new query.
fn is_of(service: &ServiceConfig, source: &Source, name: &str, backend: &Discovered) -> bool {
    if backend.source == *source {
        return true;
    }
    let mut lists = service.discover.iter().map(|list| &list.source);
    let is_lost = !lists.clone().any(|other| backend.source == *other);
    let is_own = |other: &Source| other.backend() == Some(name) || other.succeeds(&backend.source);
    is_lost && lists.find(|other| is_own(other)).is_none_or(|own| own == source)
}

#[cfg(test)]
#[path = "pool_test.rs"]
mod tests;
