//! The backends of a service after the controller has applied a list of targets. The controller matches targets to
//! backends by name, never by position.

use std::{
    borrow::Cow,
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, SocketAddr},
};

use balancer_config::{
    config::{self, BackendConfig, ServiceConfig},
    discover::{DiscoverConfig, Discovered, Floor, Own, Source, Target},
    dns::{self, DnsSource, Records},
    listeners::Family,
    renames::Named as _,
    states::Admin,
    validate::answering_alike,
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

/// Applies the `targets` of the list `source`. `admin` returns the state that the operator wants for a backend.
///
/// # Errors
/// Returns one line if the list is not applicable; in this case, the controller applies no part of the list.
pub fn pool(
    service: &ServiceConfig,
    list: &DiscoverConfig,
    targets: &[Target],
    admin: impl Fn(&str) -> Admin,
) -> Result<Pool, String> {
    let present = Present::of(service, list);
    let named = present.named(targets);
    let mut left: BTreeMap<&str, (&Target, Place)> = BTreeMap::new();
    for target in &*named {
        let Some(place) = present.place(target)? else { continue };
        if left.insert(&target.name, (target, place)).is_some() {
            return Err(format!("has two targets called {}; give one of them another name", target.name));
        }
    }
    if let Some(text) = list.min.too_few(left.len(), present.listed()) {
        return Err(text);
    }
    let heirs = present.heirs(&left);
    let mut pool = Pool::default();
    for backend in &service.backends {
        let mut backend = backend.clone();
        if !backend.discovered.as_deref().is_some_and(|of| is_of(service, &list.source, &backend.name, of)) {
            if left.contains_key(backend.name.as_str()) {
                return Err(format!(
                    "has a target called {}, and so is a backend that is not of this list; give one of them another name",
                    backend.name
                ));
            }
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
    pool.displace(service);
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
    /// that is: their server answers under another name now.
    fn displace(&mut self, service: &ServiceConfig) {
        let is_gone = |backend: &BackendConfig| backend.discovered.as_ref().is_some_and(|of| of.gone.is_some());
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
    let mut without = targets.iter().filter(|target| !present.is_resolved(target));
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
    let list = DiscoverConfig { source: source.clone(), min: Floor::default(), own: None };
    let present = Present::of(service, &list);
    let is_new = |target: &&Target| !service.backends.iter().any(|backend| backend.name == target.name);
    let named = present.named(targets);
    let place = |target: &Target| Some(new(&list, target, present.place(target).ok()??));
    named.iter().filter(is_new).filter_map(place).collect()
}

/// The addresses of a backend.
type Place = (SocketAddr, Option<SocketAddr>);

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

    /// The number of backends of the list when the controller last applied the list.
    fn listed(&self) -> usize {
        self.backends.values().filter(|of| of.discovered.as_ref().is_some_and(|of| of.gone.is_none())).count()
    }

    /// The new names of the backends that the targets `left` continue under other names: those that the list no longer
    /// contains, if a new target is at the address of the backend. The server there is the same to its clients. If two
    /// backends had the address, the one that the list contained last goes on.
    fn heirs<'t>(&self, left: &BTreeMap<&'t str, (&Target, Place)>) -> BTreeMap<&'a str, &'t str> {
        let taken: BTreeSet<&str> = self.service.backends.iter().map(|backend| backend.name.as_str()).collect();
        let new = left.iter().filter(|(name, _)| !taken.contains(*name));
        let mut at: BTreeMap<Place, &'t str> = new.rev().map(|(name, (_, place))| (*place, *name)).collect();
        let missing = self.backends.values().filter(|backend| !left.contains_key(backend.name.as_str()));
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
            Some(Records::Services) => Cow::Owned(dns::named(targets, |name, port| {
                let address = self.backends.get(name)?.address;
                Some(self.service.without_implied_port(SocketAddr::new(address.ip(), port)) == address)
            })),
            Some(Records::Addresses { .. } | Records::Backend { .. }) | None => Cow::Borrowed(targets),
        }
    }

    /// The addresses of a target: the current addresses while the target still has them or no other addresses are
    /// known, otherwise the lowest addresses. `None`: the target has no address yet, or no address of a wanted family.
    fn place(&self, target: &Target) -> Result<Option<Place>, String> {
        let port = self.service.port_of(&target.name, target.port)?;
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
mod tests {
    use std::path::PathBuf;

    use balancer_common::map_types::Forwarding;
    use balancer_config::fixture::service;

    use super::*;

    fn list(min: u32) -> DiscoverConfig {
        DiscoverConfig { source: Source::File(PathBuf::from("/t.json")), min: Floor::Targets(min), own: None }
    }

    fn target(name: &str, host: u8, weight: u16) -> Target {
        let addresses = vec![[10, 0, 0, host].into()];
        Target { name: name.to_owned(), addresses, why: None, port: Some(8080), weight, backup: false }
    }

    fn web(backends: Vec<BackendConfig>) -> ServiceConfig {
        let web = service("web", "198.51.100.10:80", Forwarding::Nat, &["own 10.0.0.1:8080"]);
        let backends = if backends.is_empty() { web.backends.clone() } else { backends };
        ServiceConfig { discover: vec![list(1)], backends, ..web }
    }

    fn next(before: &Pool, targets: &[Target]) -> Pool {
        pool(&web(before.backends.clone()), &list(1), targets, |_| Admin::Ready).unwrap()
    }

    fn names(pool: &Pool) -> Vec<&str> {
        pool.backends.iter().map(|backend| backend.name.as_str()).collect()
    }

    fn two() -> [Target; 2] {
        [target("a", 2, 100), target("b", 3, 50)]
    }

    #[test]
    fn when_a_list_is_shuffled_then_nothing_changes() {
        let first = next(&Pool::default(), &two());
        assert_eq!((names(&first), &*first.summary()), (vec!["own", "a", "b"], "2 backends added"));
        assert_eq!(first.backends[2].weight, 50);
        let [a, b] = two();
        let second = next(&first, &[b, a]);
        assert_eq!(second, Pool { backends: first.backends, ..Pool::default() });
    }

    #[test]
    fn when_a_target_is_gone_and_comes_back_then_it_is_as_the_operator_had_it() {
        let first = next(&Pool::default(), &two());
        let service = web(first.backends.clone());
        let gone = pool(&service, &list(1), &two()[..1], |_| Admin::Maint).unwrap();
        assert_eq!((names(&gone), &*gone.gone), (vec!["own", "a", "b"], &["b".to_owned()][..]));
        let still = next(&gone, &two()[..1]);
        assert_eq!((still.summary(), &still.backends), (String::new(), &gone.backends));
        let back = next(&gone, &two());
        assert_eq!((&back.backends, &*back.back), (&first.backends, &[("b".to_owned(), Admin::Maint)][..]));
    }

    #[test]
    fn when_a_list_has_fewer_targets_than_the_floor_then_nothing_is_taken_over() {
        let first = next(&Pool::default(), &two());
        let service = web(first.backends);
        let refused = |min, targets: &[Target]| pool(&service, &list(min), targets, |_| Admin::Ready).unwrap_err();
        assert_eq!(refused(1, &[]), "has 0 targets, fewer than min = 1; if that is meant, lower min");
        assert!(refused(3, &two()).starts_with("has 2 targets, fewer than min = 3"));
        assert_eq!(pool(&service, &list(0), &[], |_| Admin::Ready).unwrap().gone.len(), 2);
    }

    #[test]
    fn when_a_weight_was_set_at_run_time_then_it_stays_until_the_list_says_another() {
        let mut first = next(&Pool::default(), &two());
        first.backends[1].weight = 7;
        let same = next(&first, &two());
        assert_eq!((same.backends[1].weight, same.summary()), (7, String::new()));
        let other = next(&first, &[target("a", 2, 80), target("b", 9, 50)]);
        assert_eq!((other.backends[1].weight, other.changed.len()), (80, 2));
        assert_eq!(other.backends[2].address, "10.0.0.9:8080".parse().unwrap());
    }

    #[test]
    fn when_a_target_is_called_like_a_backend_of_the_file_then_the_list_is_refused() {
        let refused = pool(&web(Vec::new()), &list(1), &[target("own", 2, 1)], |_| Admin::Ready).unwrap_err();
        assert!(refused.starts_with("has a target called own, and so is a backend"), "{refused}");
    }

    #[test]
    fn when_a_service_has_another_list_than_before_then_that_decides_about_the_backends_of_the_former() {
        let first = next(&Pool::default(), &two());
        let other = DiscoverConfig { source: Source::File(PathBuf::from("/other.json")), ..list(1) };
        let service = ServiceConfig { discover: vec![other.clone()], ..web(first.backends) };
        let taken = pool(&service, &other, &two()[..1], |_| Admin::Ready).unwrap();
        let sources: Vec<_> =
            taken.backends.iter().filter_map(|of| Some(of.discovered.as_ref()?.source.to_string())).collect();
        assert_eq!(sources, ["/other.json", "/t.json"]);
        assert_eq!((taken.added.len(), &*taken.gone), (0, &["b".to_owned()][..]));
    }

    fn srv(min: Floor) -> DiscoverConfig {
        let name = "_http._tcp.web.internal".to_owned();
        let dns = DnsSource { records: Records::Services, name, family: None, servers: Vec::new() };
        DiscoverConfig { source: Source::Dns(dns), min, own: None }
    }

    fn host(name: &str, port: u16, addresses: &[&str]) -> Target {
        let addresses = addresses.iter().map(|text| text.parse().unwrap()).collect();
        let why = Some("NXDOMAIN".to_owned()).filter(|_| !name.starts_with("web"));
        Target { name: name.to_owned(), addresses, why, port: Some(port), weight: 1, backup: false }
    }

    /// Returns the backends that result from a series of DNS answers, with their addresses.
    fn after(listen: &str, forwarding: Forwarding, answers: &[&[Target]]) -> Vec<String> {
        let listen = listen.split(' ').map(|text| text.parse().unwrap()).collect();
        let mut web = ServiceConfig { listen, discover: vec![srv(Floor::default())], ..web(Vec::new()) };
        (web.forwarding, web.backends) = (forwarding, Vec::new());
        for targets in answers {
            web.backends = pool(&web, &web.discover[0], targets, |_| Admin::Ready).unwrap().backends;
        }
        let shown = |backend: &BackendConfig| {
            let of = backend.discovered.as_ref().unwrap();
            let address6 = backend.address6.map(|address| format!(" {address}")).unwrap_or_default();
            let gone = if of.gone.is_some() { " gone" } else { "" };
            format!("{} {}{address6}{gone}", backend.name, backend.address)
        };
        web.backends.iter().map(shown).collect()
    }

    const V4: &str = "198.51.100.10:80";
    const BOTH: &str = "198.51.100.10:80 [2001:db8::10]:80";

    #[test]
    fn when_a_host_has_several_addresses_then_the_one_in_use_stays_and_otherwise_the_lowest_counts() {
        let of = |addresses: &[&str]| [host("web1", 8080, addresses)];
        let nat = |answers: &[&[Target]]| after(V4, Forwarding::Nat, answers).join(", ");
        let first = of(&["10.0.0.3", "10.0.0.2"]);
        assert_eq!(nat(&[&first]), "web1 10.0.0.2:8080");
        assert_eq!(nat(&[&first, &of(&["10.0.0.1", "10.0.0.2"])]), "web1 10.0.0.2:8080");
        assert_eq!(nat(&[&first, &of(&["10.0.0.9", "10.0.0.3"])]), "web1 10.0.0.3:8080");
        assert_eq!(nat(&[&first, &of(&[])]), "web1 10.0.0.2:8080", "it has no address any more");
        assert_eq!(nat(&[&first, &of(&["fd00::1"])]), "web1 10.0.0.2:8080", "none of the service's family");
        assert_eq!(nat(&[&first, &of(&["10.0.0.2"]), &[host("web1", 80, &["10.0.0.2"])]]), "web1 10.0.0.2:0");
    }

    #[test]
    fn when_a_service_has_both_families_then_a_target_needs_both_except_in_tunnels() {
        let web1 = host("web1", 8080, &["fd00::1", "10.0.0.1"]);
        let all = [web1, host("web2", 8080, &["10.0.0.2"]), host("web3", 8080, &["fd00::3"])];
        assert_eq!(after(BOTH, Forwarding::Nat, &[&all]), ["web1 10.0.0.1:8080 [fd00::1]:8080"]);
        let tunnel = ["web1 10.0.0.1:8080 [fd00::1]:8080", "web2 10.0.0.2:8080", "web3 [fd00::3]:8080"];
        assert_eq!(after(BOTH, Forwarding::Ipip, &[&all]), tunnel);
        let kept = [host("web1", 8080, &["10.0.0.7"])];
        assert_eq!(after(BOTH, Forwarding::Nat, &[&all, &kept]), ["web1 10.0.0.7:8080 [fd00::1]:8080"]);
    }

    #[test]
    fn when_targets_have_no_addresses_then_that_is_told_and_new_ones_wait() {
        let service = ServiceConfig { discover: vec![srv(Floor::default())], ..web(Vec::new()) };
        let told = |targets: &[Target]| unresolved(&service, &service.discover[0], targets);
        assert_eq!(told(&[host("web1", 80, &["10.0.0.1"])]), None);
        let [a, b] = ["a", "b"].map(|name| host(name, 80, &[]));
        let expected = "a has not the addresses that the service needs: NXDOMAIN; nor have 1 more";
        assert_eq!(told(&[a.clone(), b]).as_deref(), Some(expected));
        assert_eq!(after(V4, Forwarding::Nat, &[&[host("web1", 8080, &["10.0.0.1"]), a]]), ["web1 10.0.0.1:8080"]);
    }

    #[test]
    fn when_a_host_gets_a_second_port_and_loses_the_first_then_backends_keep_their_names() {
        let at = |port| host("web1", port, &["10.0.0.1"]);
        let answers: [&[Target]; 4] = [&[at(8080)], &[at(8080), at(8081)], &[at(8081)], &[at(8081), at(8080)]];
        let nat = |count: usize| after(V4, Forwarding::Nat, &answers[..count]).join(", ");
        assert_eq!(nat(2), "web1 10.0.0.1:8080, web1-8081 10.0.0.1:8081");
        assert_eq!(nat(3), "web1 10.0.0.1:8080 gone, web1-8081 10.0.0.1:8081");
        assert_eq!(nat(4), nat(2));
        // The address of a backend omits the listener's port.
        let implied: [&[Target]; 2] = [&[at(80)], &[at(81), at(80)]];
        assert_eq!(after(V4, Forwarding::Nat, &implied).join(", "), "web1 10.0.0.1:0, web1-81 10.0.0.1:81");
    }

    #[test]
    fn when_names_of_hosts_and_ports_collide_then_the_answer_is_refused() {
        let service = ServiceConfig { discover: vec![srv(Floor::default())], ..web(Vec::new()) };
        let at = |name, port| host(name, port, &["10.0.0.1"]);
        let targets = [at("web1", 80), at("web1", 81), at("web1-80", 82)];
        let refused = pool(&service, &service.discover[0], &targets, |_| Admin::Ready).unwrap_err();
        assert_eq!(refused, "has two targets called web1-80; give one of them another name");
    }

    #[test]
    fn when_the_floor_is_a_share_then_it_is_one_of_those_listed_before() {
        let at = |number| host(&format!("web{number}"), 80, &[&format!("10.0.0.{number}")]);
        let hosts: Vec<Target> = (1..=4).map(at).collect();
        let mut service = ServiceConfig { discover: vec![srv(Floor::Share(50))], ..web(Vec::new()) };
        let take = |service: &ServiceConfig, count: usize| {
            pool(service, &service.discover[0], &hosts[..count], |_| Admin::Ready)
        };
        assert!(take(&service, 0).unwrap_err().starts_with("has 0 targets, fewer than min = 1"));
        service.backends = take(&service, 4).unwrap().backends;
        assert_eq!(
            take(&service, 1).unwrap_err(),
            "has 1 target, fewer than 50 % of the 4 before; if that is meant, lower min"
        );
        service.backends = take(&service, 2).unwrap().backends;
        assert_eq!(take(&service, 1).unwrap().gone.len(), 1, "half of the two that are left");
    }

    #[test]
    fn when_other_servers_are_asked_for_the_same_records_then_no_other_list_takes_their_backends_away() {
        let mut service = ServiceConfig { discover: vec![srv(Floor::default()), list(1)], ..web(Vec::new()) };
        let targets = [host("web1", 8080, &["10.0.0.7"])];
        service.backends = pool(&service, &service.discover[0], &targets, |_| Admin::Ready).unwrap().backends;
        let Source::Dns(dns) = &mut service.discover[0].source else { panic!() };
        dns.servers = vec!["192.0.2.53:53".parse().unwrap()];
        let of_file = pool(&service, &service.discover[1], &two(), |_| Admin::Ready).unwrap();
        assert_eq!((of_file.added.len(), of_file.gone.len()), (2, 0));
        let none_now = pool(&service, &service.discover[0], &[host("web2", 80, &["10.0.0.8"])], |_| Admin::Ready);
        assert_eq!(none_now.unwrap().gone, ["web1"]);
        // Without the DNS records, the configuration file decides.
        service.discover.remove(0);
        assert_eq!(pool(&service, &service.discover[0], &two(), |_| Admin::Ready).unwrap().gone, ["web1"]);
    }

    fn named(backend: &str, host: &str, weight: u16) -> DiscoverConfig {
        let records = Records::Backend { backend: backend.to_owned(), port: Some(8080) };
        let dns = DnsSource { records, name: host.to_owned(), family: None, servers: Vec::new() };
        let own = Some(Own { weight, backup: false });
        DiscoverConfig { source: Source::Dns(dns), min: Floor::default(), own }
    }

    #[test]
    fn when_the_address_of_a_backend_is_another_name_then_no_other_list_takes_the_backend_away() {
        let one = [host("web1", 8080, &["10.0.0.1"])];
        let mut service = ServiceConfig { discover: vec![named("web1", "a.internal", 7)], ..web(Vec::new()) };
        service.backends = pool(&service, &service.discover[0], &one, |_| Admin::Ready).unwrap().backends;
        let backend = service.backends.last().unwrap();
        assert_eq!((backend.name.as_str(), backend.weight), ("web1", 7), "the weight is the configuration's");
        service.discover = vec![named("web1", "b.internal", 7), list(1), named("web2", "c.internal", 7)];
        for (at, target) in [(1, target("a", 2, 100)), (2, host("web2", 8080, &["10.0.0.3"]))] {
            let pool = pool(&service, &service.discover[at], &[target], |_| Admin::Ready).unwrap();
            assert!(pool.gone.is_empty(), "{:?}", pool.gone);
        }
        let moved = [host("web1", 8080, &["10.0.0.9"])];
        let taken = pool(&service, &service.discover[0], &moved, |_| Admin::Ready).unwrap();
        assert_eq!((&*taken.changed, taken.added.len()), (&["web1".to_owned()][..], 0));
    }
}
