//! The backends of a service when a list of targets is taken over. What counts is the name of a target, never its place.

use std::{collections::BTreeMap, net::SocketAddr, path::Path};

use balancer_model::{
    config::{BackendConfig, ServiceConfig},
    discover::{DiscoverConfig, Discovered, Target, too_few},
    states::Admin,
    words::counted,
};

/// The backends of a service after a list was taken over, and how they differ from those before.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Pool {
    /// All backends: those that there are in their order, then new ones.
    pub backends: Vec<BackendConfig>,
    /// Names of new ones.
    pub added: Vec<String>,
    /// Names of those that are no longer listed.
    pub gone: Vec<String>,
    /// Those that were not listed, and are again, with the states that the operator wants.
    pub back: Vec<(String, Admin)>,
    /// Names of those with another address or weight.
    pub changed: Vec<String>,
}

impl Pool {
    /// `1 added, 1 drains`; nothing where there is nothing.
    #[must_use]
    pub fn summary(&self) -> String {
        let verb = |count: usize, word: &str| (count > 0).then(|| format!("{} {word}", counted(count, "backend")));
        let parts = [
            verb(self.added.len(), "added"),
            verb(self.gone.len(), "no longer listed"),
            verb(self.back.len(), "listed again"),
            verb(self.changed.len(), "changed"),
        ];
        parts.into_iter().flatten().collect::<Vec<_>>().join(", ")
    }
}

/// Takes over the `targets` of the list `source`. `admin` tells which state the operator wants of a backend.
///
/// # Errors
/// One line, where the list cannot be taken over; then nothing of it is.
pub fn pool(
    service: &ServiceConfig,
    list: &DiscoverConfig,
    targets: &[Target],
    admin: impl Fn(&str) -> Admin,
) -> Result<Pool, String> {
    if targets.len() < list.min as usize {
        return Err(too_few(targets.len(), list.min));
    }
    let mut left: BTreeMap<&str, &Target> = targets.iter().map(|target| (target.name.as_str(), target)).collect();
    let mut pool = Pool::default();
    for backend in &service.backends {
        let mut backend = backend.clone();
        let Some(discovered) = backend.discovered.as_deref_mut().filter(|of| is_of(service, &list.file, of)) else {
            if left.contains_key(backend.name.as_str()) {
                return Err(format!(
                    "has a target called {}, and so is a backend that is not of this list; give one of them another name",
                    backend.name
                ));
            }
            pool.backends.push(backend);
            continue;
        };
        let Some(target) = left.remove(backend.name.as_str()) else {
            if discovered.gone.is_none() {
                discovered.gone = Some(admin(&backend.name));
                pool.gone.push(backend.name.clone());
            }
            pool.backends.push(backend);
            continue;
        };
        list.file.clone_into(&mut discovered.source);
        pool.back.extend(discovered.gone.take().map(|admin| (backend.name.clone(), admin)));
        let address = address(service, target)?;
        let new_weight = discovered.weight != target.weight;
        if new_weight {
            (discovered.weight, backend.weight) = (target.weight, target.weight);
        }
        if new_weight || backend.address != address {
            pool.changed.push(backend.name.clone());
        }
        backend.address = address;
        pool.backends.push(backend);
    }
    for target in targets.iter().filter(|target| left.contains_key(target.name.as_str())) {
        pool.added.push(target.name.clone());
        pool.backends.push(new(service, &list.file, target)?);
    }
    Ok(pool)
}

/// The backend that a new target is.
pub(crate) fn new(service: &ServiceConfig, source: &Path, target: &Target) -> Result<BackendConfig, String> {
    Ok(BackendConfig {
        name: target.name.clone(),
        renamed_from: None,
        address: address(service, target)?,
        address6: None,
        weight: target.weight,
        backup: false,
        check: None,
        discovered: Some(Box::new(Discovered { source: source.to_owned(), weight: target.weight, gone: None })),
    })
}

/// Whether a list says what becomes of a backend: its own, or one of a list that the service has no longer.
fn is_of(service: &ServiceConfig, list: &Path, backend: &Discovered) -> bool {
    backend.source == list || !service.discover.iter().any(|other| other.file == backend.source)
}

fn address(service: &ServiceConfig, target: &Target) -> Result<SocketAddr, String> {
    let port = service.port_of(&target.name, target.port)?;
    Ok(service.without_implied_port(SocketAddr::new(target.address, port)))
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use balancer_common::map_types::Forwarding;
    use balancer_model::fixture::service;

    use super::*;

    fn list(min: u32) -> DiscoverConfig {
        DiscoverConfig { file: PathBuf::from("/t.json"), min }
    }

    fn target(name: &str, host: u8, weight: u16) -> Target {
        Target { name: name.to_owned(), address: [10, 0, 0, host].into(), port: Some(8080), weight }
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
        let other = DiscoverConfig { file: PathBuf::from("/other.json"), min: 1 };
        let service = ServiceConfig { discover: vec![other.clone()], ..web(first.backends) };
        let taken = pool(&service, &other, &two()[..1], |_| Admin::Ready).unwrap();
        let sources: Vec<_> = taken.backends.iter().filter_map(|of| Some(&*of.discovered.as_ref()?.source)).collect();
        assert_eq!(sources, [Path::new("/other.json"), Path::new("/t.json")]);
        assert_eq!((taken.added.len(), &*taken.gone), (0, &["b".to_owned()][..]));
    }
}
