//! Merges a reloaded configuration file with the changes made at run time since the balancer last read the file.
//!
//! The file takes precedence where it has changed; all other changes made at run time stay in effect. Only the sets of
//! listeners, backends and rules, the weights of backends, and the share of steered clients can differ at run time, so
//! all other settings of a service come from the file.

mod rules;

use std::{collections::HashMap, net::SocketAddr, sync::Arc};

use balancer_config::{
    config::{BackendConfig, ServiceConfig},
    discover::{DiscoverConfig, Discovered},
    limits::Limits,
    listeners::Listener,
    names::BackendName,
    renames::Named as _,
    shared::{ByName, alike, by_name},
    states::Admin,
    validate::{self, Valid},
};

pub use self::rules::{MergedRules, merge_rules};

/// The result of merging a file with changes made at run time.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Merged {
    pub services: Vec<Arc<ServiceConfig>>,
    /// The backends that were being removed and that the new file contains again.
    pub called_back: Vec<BackendName>,
    /// The differences between the file and the run-time state, one line each.
    pub differences: Vec<String>,
}

/// Merges the new `file` into the run-time state `now`, where `base` is the previous file. `leaves` returns whether a
/// backend of `now` is being removed. If a service is the same in the old file, in the new `file` and at run time, the
/// result and `file` share this service without a copy.
#[must_use]
pub fn merge(
    base: &[Arc<ServiceConfig>],
    now: &[Arc<ServiceConfig>],
    leaves: impl Fn(&str, &str) -> bool,
    file: &Valid,
) -> Merged {
    let mut merged = Merged::default();
    let (mut additions, mut moved) = (Vec::new(), Vec::new());
    let mut listeners = Vec::new();
    let (base, all_now, written) = (by_name(base), now, by_name(file));
    let now = by_name(now);
    for service in all_now.iter().filter(|service| !written.contains_key(service.name.as_str())) {
        let mut line = format!("service {} is no longer in {}: removed", service.name, service.origin());
        let at = |other: &&Arc<ServiceConfig>| other.listen.iter().any(|listener| service.listen.contains(listener));
        if let Some(heir) = file.iter().find(at).filter(|heir| !now.contains_key(heir.name.as_str())) {
            line += &format!(
                "; if it is called {} now, renamed_from = {:?} there keeps its known clients",
                heir.name,
                service.identity()
            );
        }
        merged.differences.push(line);
    }
    let stays = |service: &ServiceConfig| service.backends.iter().all(|backend| !leaves(&service.name, &backend.name));
    let is_in = |services: &ByName<'_>, service| alike(services, service).is_some();
    let settled: Vec<bool> =
        file.iter().map(|service| is_in(&base, service) && is_in(&now, service) && stays(service)).collect();
    for (service, settled) in file.iter().cloned().zip(&settled) {
        if *settled {
            merged.services.push(service);
            continue;
        }
        let mut service = Arc::unwrap_or_clone(service);
        steer(&base, &now, &mut service, &mut merged.differences);
        quic(&base, &now, &mut service, &mut merged.differences);
        listen(&base, &now, (merged.services.len(), &mut service), &mut listeners, &mut merged.differences);
        let of = |services: &ByName<'_>| -> HashMap<String, BackendConfig> {
            let found = services.get(service.name.as_str());
            let backends = found.into_iter().flat_map(|service| &service.backends);
            backends.map(|backend| (backend.name.clone(), backend.clone())).collect()
        };
        let before_all = &base;
        let (base, mut present) = (of(&base), of(&now));
        let order = now.get(service.name.as_str());
        let order: Vec<String> =
            order.into_iter().flat_map(|service| &service.backends).map(|backend| backend.name.clone()).collect();
        let mut backends = Vec::with_capacity(service.backends.len());
        for backend in std::mem::take(&mut service.backends) {
            let name = BackendName { service: service.name.clone(), backend: backend.name.clone() };
            let leaving = leaves(&name.service, &name.backend);
            match (base.get(&backend.name), present.remove(&backend.name)) {
                (None, None) => backends.push(backend),
                (None, Some(here)) => {
                    if here.discovered.is_none() && here != backend {
                        merged.differences.push(format!(
                            "backend {name} {} was added at run time, the file now says otherwise: {}",
                            service.shown_address(&here),
                            service.shown_address(&backend)
                        ));
                    }
                    merged.called_back.extend(leaving.then_some(name));
                    backends.push(backend);
                }
                (Some(before), None) if *before == backend => {
                    merged.differences.push(format!("backend {name} was removed at run time and stays removed"));
                }
                (Some(_), None) => {
                    let text = "was removed at run time, the file has changed it since: it is back";
                    merged.differences.push(format!("backend {name} {text}"));
                    backends.push(backend);
                }
                (Some(before), Some(here)) => {
                    if leaving && *before == backend {
                        merged.differences.push(format!("backend {name} is being removed and stays so"));
                        additions.push((merged.services.len(), here));
                        continue;
                    }
                    merged.called_back.extend(leaving.then(|| name.clone()));
                    let place = (merged.services.len(), backends.len());
                    moved.extend(moved_at_run_time(before, &here, &backend).then(|| (place, here.clone())));
                    backends.push(one((&service, &name), before, here, backend, &mut merged.differences));
                }
            }
        }
        let new = backends.iter().filter(|backend| !base.contains_key(&backend.name));
        // Among several backends with the same address, the first one takes precedence.
        let heirs: HashMap<SocketAddr, &BackendConfig> = new.rev().map(|backend| (backend.address, backend)).collect();
        let is_list = |list: &DiscoverConfig| list.source.backend().is_none();
        let discovered_before = before_all.get(service.name.as_str()).is_some_and(|of| of.discover.iter().any(is_list));
        for name in order {
            let Some(backend) = present.remove(&name) else { continue };
            let full = format!("{}/{name}", service.name);
            let is_written = base.contains_key(&name) && backend.discovered.is_none();
            let own = service.discover.iter().find(|list| list.source.backend() == Some(name.as_str()));
            let any = || service.discover.iter().find(|list| list.source.backend().is_none() && !discovered_before);
            if let Some(list) = own.or_else(any).filter(|_| is_written) {
                let source = list.source.clone();
                merged
                    .differences
                    .push(format!("backend {full} is no longer in the file: the targets of {source} decide about it"));
                // A backend that was being removed and that the file contains comes back.
                let gone = leaves(&service.name, &name).then_some(Admin::Ready);
                let discovered = Some(Box::new(Discovered { source, weight: backend.weight, gone, was: None }));
                additions.push((merged.services.len(), BackendConfig { discovered, ..backend }));
            } else if is_written {
                let mut line = format!("backend {full} is no longer in the file: removed");
                if let Some(heir) = heirs.get(&backend.address) {
                    line += &format!(
                        "; if it is called {} now, renamed_from = {:?} there keeps its known clients",
                        heir.name,
                        backend.identity()
                    );
                }
                merged.differences.push(line);
            } else {
                additions.push((merged.services.len(), backend));
            }
        }
        service.backends = backends;
        merged.services.push(Arc::new(service));
    }
    move_again(moved, file, &mut merged);
    add_listeners(listeners, file, &mut merged);
    add(additions, &leaves, file, &mut merged);
    for (service, _) in merged.services.iter_mut().zip(settled).filter(|(_, settled)| !settled) {
        let names = |services: &ByName<'_>| -> Vec<String> {
            let found = services.get(service.name.as_str());
            found.into_iter().flat_map(|service| &service.backends).map(|backend| backend.name.clone()).collect()
        };
        // A backend that a user removed and added again at run time keeps its position.
        if names(&written) == names(&base) {
            let order = names(&now);
            let order: HashMap<&str, usize> = order.iter().map(String::as_str).zip(0..).collect();
            Arc::make_mut(service)
                .backends
                .sort_by_key(|backend| order.get(backend.name.as_str()).copied().unwrap_or(usize::MAX));
        }
    }
    merged
}

/// Whether a user removed a backend and added it again with another address at run time, while the file has not changed
/// the backend.
fn moved_at_run_time(before: &BackendConfig, here: &BackendConfig, file: &BackendConfig) -> bool {
    same_but_for_numbers(before, file) && !same_but_for_numbers(before, here)
}

fn same_but_for_numbers(one: &BackendConfig, other: &BackendConfig) -> bool {
    let rest = |of: &BackendConfig| BackendConfig { weight: 0, limits: Limits::default(), ..of.clone() };
    rest(one) == rest(other)
}

/// Gives moved backends their run-time addresses again, except addresses that contradict the new file. A position in
/// `moved` consists of the index of the service and the index of the backend.
fn move_again(moved: Vec<((usize, usize), BackendConfig)>, file: &Valid, merged: &mut Merged) {
    if moved.is_empty() {
        return;
    }
    let Merged { services, differences, .. } = merged;
    let exchange = |services: &mut [Arc<ServiceConfig>], (service, index): (usize, usize), other: BackendConfig| {
        let backend = Arc::make_mut(services.get_mut(service)?).backends.get_mut(index)?;
        let other = BackendConfig { weight: backend.weight, limits: backend.limits, ..other };
        Some(std::mem::replace(backend, other))
    };
    let mut together = services.clone();
    for (place, here) in &moved {
        exchange(&mut together, *place, here.clone());
    }
    let all_fit = validate::services(&together, file).is_ok();
    for (place, here) in moved {
        let Some(written) = exchange(services, place, here.clone()) else { continue };
        let refused = if all_fit { None } else { validate::services(services, file).err() };
        let Some(service) = services.get(place.0) else { continue };
        let backend = format!("backend {}/{} {}", service.name, here.name, service.shown_address(&here));
        let said = service.shown_address(&written);
        differences.push(match &refused {
            None => format!("{backend} was set at run time and is kept, the file says {said} as before"),
            Some(refused) => format!("{backend} was set at run time and is {said} again, as in the file: {refused}"),
        });
        if refused.is_some() {
            exchange(services, place, written);
        }
    }
}

/// Keeps the share of steered clients that was set at run time, unless the file has changed the share.
fn steer(base: &ByName<'_>, now: &ByName<'_>, service: &mut ServiceConfig, differences: &mut Vec<String>) {
    let of = |services: &ByName<'_>| services.get(service.name.as_str()).map(|service| service.steer);
    let (Some(before), Some(here)) = (of(base), of(now)) else { return };
    let (name, file) = (&service.name, service.steer);
    if here == before || here == file {
        return;
    }
    if file == before {
        differences.push(format!("steer of {name}: {here} set at run time is kept, the file says {file} as before"));
        service.steer = here;
    } else {
        differences.push(format!("steer of {name}: {here} set at run time, the file now says {file}"));
    }
}

/// Keeps a key for connection IDs that was rotated at run time, unless the file has changed the key. The balancer still
/// understands connection IDs under earlier keys.
fn quic(base: &ByName<'_>, now: &ByName<'_>, service: &mut ServiceConfig, differences: &mut Vec<String>) {
    let of = |services: &ByName<'_>| services.get(service.name.as_str()).and_then(|service| service.quic.clone());
    let (before, Some(here), Some(file)) = (of(base), of(now), &mut service.quic) else { return };
    if before.as_ref() == Some(file) {
        if here.current != file.current {
            let (config, name) = (here.current.config, &service.name);
            differences.push(format!(
                "the key of quic of {name}: rotated to config {config} at run time and kept, the file says config {} as before",
                file.current.config
            ));
        }
        *file = here;
    } else if file.current == here.current {
        file.before = here.before.filter(|_| file.has_parts_of(&here));
    } else if file.goes_beside(&here) {
        file.before = Some(here.current);
    }
}

/// Removes from `service` the listeners that were removed at run time, and collects in `additions` the listeners that
/// were added at run time; `index` is the index of the service in the file.
fn listen(
    base: &ByName<'_>,
    now: &ByName<'_>,
    (index, service): (usize, &mut ServiceConfig),
    additions: &mut Vec<(usize, Listener)>,
    differences: &mut Vec<String>,
) {
    let of = |services: &ByName<'_>| -> Option<Vec<Listener>> {
        services.get(service.name.as_str()).map(|service| service.listen.clone())
    };
    let (Some(before), Some(present)) = (of(base), of(now)) else { return };
    let name = &service.name;
    let came = present.iter().filter(|listener| !before.contains(listener) && !service.listen.contains(listener));
    additions.extend(came.map(|&listener| (index, listener)));
    let stay = |listener: &Listener| !before.contains(listener) || present.contains(listener);
    if !service.listen.iter().any(stay) {
        return;
    }
    for listener in service.listen.iter().filter(|listener| !stay(listener)) {
        differences.push(format!("listener {listener} of {name} was removed at run time and stays removed"));
    }
    service.listen.retain(stay);
}

/// Adds the listeners that were added at run time, except listeners that contradict the new file.
fn add_listeners(additions: Vec<(usize, Listener)>, file: &Valid, merged: &mut Merged) {
    let Merged { services, differences, .. } = merged;
    for (index, listener) in additions {
        let Some(service) = services.get_mut(index).map(Arc::make_mut) else { continue };
        service.listen.push(listener);
        let name = service.name.clone();
        match validate::services(services, file) {
            Ok(()) => differences.push(format!("listener {listener} of {name} was added at run time and is kept")),
            Err(refused) => {
                if let Some(service) = services.get_mut(index).map(Arc::make_mut) {
                    service.listen.pop();
                }
                differences
                    .push(format!("listener {listener} of {name} was added at run time and is removed: {refused}"));
            }
        }
    }
}

/// Adds the backends that were added at run time, and the backends that are being removed. A backend that contradicts
/// the new file is removed without a drain.
fn add(
    additions: Vec<(usize, BackendConfig)>,
    leaves: &impl Fn(&str, &str) -> bool,
    file: &Valid,
    merged: &mut Merged,
) {
    if additions.is_empty() {
        return;
    }
    let Merged { services, differences, .. } = merged;
    let mut together = services.clone();
    for (index, backend) in &additions {
        together.get_mut(*index).into_iter().for_each(|of| Arc::make_mut(of).backends.push(backend.clone()));
    }
    let all_fit = validate::services(&together, file).is_ok();
    for (index, backend) in additions {
        let Some(service) = services.get_mut(index).map(Arc::make_mut) else { continue };
        let (full, address) = (format!("{}/{}", service.name, backend.name), service.shown_address(&backend));
        let leaving = leaves(&service.name, &backend.name);
        let discovered = backend.discovered.is_some();
        service.backends.push(backend);
        let refused = if all_fit { None } else { validate::services(services, file).err() };
        if let Some(refused) = refused {
            services.get_mut(index).into_iter().for_each(|of| drop(Arc::make_mut(of).backends.pop()));
            let was = if leaving { "was being removed" } else { "was added at run time" };
            differences.push(format!("backend {full} {address} {was} and is removed: {refused}"));
        } else if !leaving && !discovered {
            differences.push(format!("backend {full} {address} was added at run time and is kept"));
        }
    }
}

/// Merges one backend that exists in the old file, at run time and in the new file.
fn one(
    (service, name): (&ServiceConfig, &BackendName),
    before: &BackendConfig,
    here: BackendConfig,
    file: BackendConfig,
    differences: &mut Vec<String>,
) -> BackendConfig {
    let weight = if file.weight != before.weight { file.weight } else { here.weight };
    if here.weight != before.weight && here.weight != file.weight {
        differences.push(if weight == here.weight {
            format!(
                "weight of {name}: {} set at run time is kept, the file says {} as before",
                here.weight, file.weight
            )
        } else {
            format!("weight of {name}: {} set at run time, the file now says {}: {weight}", here.weight, file.weight)
        });
    }
    let limits = if file.limits != before.limits { file.limits } else { here.limits };
    if here.limits != before.limits && here.limits != file.limits {
        differences.push(if limits == here.limits {
            format!("limits of {name}: {} set at run time kept, the file says {} as before", here.limits, file.limits)
        } else {
            format!("limits of {name}: {} set at run time, the file now says {}", here.limits, file.limits)
        });
    }
    let known = [before, &file].iter().any(|other| same_but_for_numbers(&here, other));
    if !known && !same_but_for_numbers(before, &file) {
        differences.push(format!(
            "backend {name} {} was set at run time, the file now says otherwise: {}",
            service.shown_address(&here),
            service.shown_address(&file)
        ));
    }
    BackendConfig { weight, limits, ..file }
}

#[cfg(test)]
#[path = "merge_test.rs"]
mod merge_test;

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use balancer_common::map_types::Forwarding;
    use balancer_config::fixture::service;

    use super::*;

    /// A service from `NAME ADDRESS WEIGHT` lines; a `-` after the name means that the backend is being removed.
    fn web(backends: &[&str]) -> Vec<Arc<ServiceConfig>> {
        let mut web = service("web", "198.51.100.10:80", Forwarding::Nat, &[]);
        for line in backends {
            let [name, host, weight] = line.split(' ').collect::<Vec<_>>()[..] else { panic!("{line}") };
            let mut backend =
                balancer_config::fixture::backend(name.trim_end_matches('-'), &format!("10.0.0.{host}:8080"));
            backend.weight = weight.parse().unwrap();
            web.backends.push(backend);
        }
        vec![Arc::new(web)]
    }

    fn valid(services: Vec<Arc<ServiceConfig>>) -> Valid {
        Valid::new(services).unwrap()
    }

    #[test]
    fn when_the_file_has_changed_something_then_the_file_wins() {
        type Case<'a> = (&'a str, [&'a [&'a str]; 4], &'a [&'a str]);
        // Each case contains its name, the backends ([old file, run time, new file, result]), and the reported
        // differences.
        let cases: &[Case<'_>] = &[
            ("nothing changed", [&["a 1 100"], &["a 1 100"], &["a 1 100"], &["a 1 100"]], &[]),
            ("weight in the file", [&["a 1 100"], &["a 1 100"], &["a 1 80"], &["a 1 80"]], &[]),
            (
                "weight at run time",
                [&["a 1 100"], &["a 1 50"], &["a 1 100"], &["a 1 50"]],
                &["weight of web/a: 50 set at run time is kept, the file says 100 as before"],
            ),
            (
                "weight in both",
                [&["a 1 100"], &["a 1 50"], &["a 1 80"], &["a 1 80"]],
                &["weight of web/a: 50 set at run time, the file now says 80: 80"],
            ),
            ("weight in both alike", [&["a 1 100"], &["a 1 80"], &["a 1 80"], &["a 1 80"]], &[]),
            ("added in the file", [&["a 1 1"], &["a 1 1"], &["b 2 1", "a 1 1"], &["b 2 1", "a 1 1"]], &[]),
            (
                "added at run time",
                [&["a 1 1"], &["a 1 1", "b 2 1"], &["a 1 1"], &["a 1 1", "b 2 1"]],
                &["backend web/b 10.0.0.2:8080 was added at run time and is kept"],
            ),
            ("added in both alike", [&["a 1 1"], &["a 1 1", "b 2 1"], &["a 1 1", "b 2 1"], &["a 1 1", "b 2 1"]], &[]),
            (
                "added in both",
                [&["a 1 1"], &["a 1 1", "b 2 1"], &["a 1 1", "b 3 1"], &["a 1 1", "b 3 1"]],
                &["backend web/b 10.0.0.2:8080 was added at run time, the file now says otherwise: 10.0.0.3:8080"],
            ),
            (
                "added at run time where the file now has another",
                [&["a 1 1"], &["a 1 1", "b 2 1"], &["a 1 1", "c 2 1"], &["a 1 1", "c 2 1"]],
                &["backend web/b 10.0.0.2:8080 was added at run time and is removed: "],
            ),
            (
                "removed in the file",
                [&["a 1 1", "b 2 1"], &["a 1 1", "b 2 1"], &["a 1 1"], &["a 1 1"]],
                &["backend web/b is no longer in the file: removed"],
            ),
            (
                "removed at run time",
                [&["a 1 1", "b 2 1"], &["a 1 1"], &["a 1 1", "b 2 1"], &["a 1 1"]],
                &["backend web/b was removed at run time and stays removed"],
            ),
            (
                "removed at run time, changed in the file",
                [&["a 1 1", "b 2 1"], &["a 1 1"], &["a 1 1", "b 2 9"], &["a 1 1", "b 2 9"]],
                &["backend web/b was removed at run time, the file has changed it since: it is back"],
            ),
            ("removed in both", [&["a 1 1", "b 2 1"], &["a 1 1"], &["a 1 1"], &["a 1 1"]], &[]),
            (
                "being removed",
                [&["a 1 1", "b 2 1"], &["a 1 1", "b- 2 1"], &["a 1 1", "b 2 1"], &["a 1 1", "b 2 1"]],
                &["backend web/b is being removed and stays so"],
            ),
            (
                "being removed where the file now has another",
                [&["a 1 1", "b 2 1"], &["a 1 1", "b- 3 1"], &["a 1 1", "b 2 1", "c 3 1"], &["a 1 1", "c 3 1"]],
                &[
                    "backend web/b is being removed and stays so",
                    "backend web/b 10.0.0.3:8080 was being removed and is removed: ",
                ],
            ),
            (
                "being removed, changed in the file",
                [&["b 2 1"], &["b- 2 1"], &["b 2 9"], &["b 2 9"]],
                &["called back web/b"],
            ),
            ("added and being removed", [&[], &["b- 2 1"], &[], &["b 2 1"]], &[]),
            (
                "moved at run time",
                [&["a 1 1"], &["a 2 1"], &["a 1 1"], &["a 2 1"]],
                &["backend web/a 10.0.0.2:8080 was set at run time and is kept, the file says 10.0.0.1:8080 as before"],
            ),
            (
                "moved at run time to where the file now has another",
                [&["a 1 1"], &["a 2 5"], &["a 1 1", "c 2 1"], &["a 1 5", "c 2 1"]],
                &[
                    "weight of web/a: 5 set at run time is kept, the file says 1 as before",
                    "backend web/a 10.0.0.2:8080 was set at run time and is 10.0.0.1:8080 again, as in the file: ",
                ],
            ),
            (
                "two exchanged at run time",
                [&["a 1 1", "b 2 1"], &["a 2 1", "b 1 1"], &["a 1 1", "b 2 1"], &["a 2 1", "b 1 1"]],
                &[
                    "backend web/a 10.0.0.2:8080 was set at run time and is kept, the file says 10.0.0.1:8080 as before",
                    "backend web/b 10.0.0.1:8080 was set at run time and is kept, the file says 10.0.0.2:8080 as before",
                ],
            ),
            (
                "moved in both",
                [&["a 1 1"], &["a 2 1"], &["a 3 1"], &["a 3 1"]],
                &["backend web/a 10.0.0.2:8080 was set at run time, the file now says otherwise: 10.0.0.3:8080"],
            ),
            (
                "moved in the file, weighed at run time",
                [&["a 1 1"], &["a 1 5"], &["a 3 1"], &["a 3 5"]],
                &["weight of web/a: 5 set at run time is kept, the file says 1 as before"],
            ),
        ];
        for (what, [base, now, file, expected], told) in cases {
            let leaves = |_: &str, name: &str| now.iter().any(|line| line.starts_with(&format!("{name}-")));
            let merged = merge(&web(base), &web(now), leaves, &valid(web(file)));
            assert_eq!(merged.services, web(expected), "{what}");
            let called_back = merged.called_back.iter().map(|name| format!("called back {name}"));
            let said: Vec<String> = merged.differences.iter().cloned().chain(called_back).collect();
            assert_eq!(said.len(), told.len(), "{what}: {said:?}");
            assert!(said.iter().zip(*told).all(|(said, told)| said.starts_with(told)), "{what}: {said:?}");
        }
    }

    #[test]
    fn when_settings_or_services_differ_then_the_files_win() {
        let base = web(&["a 1 1"]);
        let mut file = base.clone();
        Arc::make_mut(&mut file[0]).remember = Duration::from_secs(60);
        file.push(Arc::new(service("dns", "198.51.100.11:53", Forwarding::Dsr, &[])));
        let merged = merge(&base, &base, |_, _| false, &valid(file.clone()));
        assert_eq!((merged.services, merged.differences), (file.clone(), Vec::new()));
        let merged = merge(&file, &file, |_, _| false, &valid(base.clone()));
        assert_eq!(merged.services, base);
        assert_eq!(merged.differences, ["service dns is no longer in the file: removed"]);
    }
}
