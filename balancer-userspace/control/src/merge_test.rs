//! A second implementation of the merge, written from its description in the book: for each backend, the test compares
//! the values in the old file, at run time and in the new file.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use balancer_common::map_types::Forwarding;
use balancer_config::{
    config::ServiceConfig,
    fixture::{backend, service},
    validate::Valid,
};
use proptest::prelude::*;

use super::merge;

/// The address and the weight of a backend.
type Place = (u8, u16);
/// Backends by name, in their order.
type Side = Vec<(char, Place)>;

fn config(side: &Side) -> Vec<Arc<ServiceConfig>> {
    let mut web = service("web", "198.51.100.10:80", Forwarding::Nat, &[]);
    for (name, (host, weight)) in side {
        let mut of = backend(&name.to_string(), &format!("10.0.0.{host}:8080"));
        of.weight = *weight;
        web.backends.push(of);
    }
    vec![Arc::new(web)]
}

fn find(side: &Side, name: char) -> Option<Place> {
    side.iter().find(|(of, _)| *of == name).map(|(_, place)| *place)
}

fn fits(side: &BTreeMap<char, Place>) -> bool {
    let hosts: BTreeSet<u8> = side.values().map(|(host, _)| *host).collect();
    hosts.len() == side.len()
}

/// Returns the value that differs from `before`; if the file's value and the run-time value differ from `before`, the
/// file takes precedence.
fn either<T: PartialEq + Copy>(before: T, now: T, file: T) -> T {
    if file == before { now } else { file }
}

/// Gives each backend its run-time address and weight: all backends together if this causes no conflict, otherwise one
/// backend after the other.
fn keep(result: &mut BTreeMap<char, Place>, wanted: &[(char, Place)]) {
    let mut together = result.clone();
    together.extend(wanted.iter().copied());
    if fits(&together) {
        *result = together;
        return;
    }
    for (name, place) in wanted {
        let mut with = result.clone();
        with.insert(*name, *place);
        if fits(&with) {
            *result = with;
        }
    }
}

fn plainly(base: &Side, now: &Side, leaving: &BTreeSet<char>, file: &Side) -> BTreeMap<char, Place> {
    let (mut result, mut moved, mut last) = (BTreeMap::new(), Vec::new(), Vec::new());
    for &(name, said) in file {
        match (find(base, name), find(now, name)) {
            // The old file did not have the backend, so the new file takes precedence.
            (None, _) => drop(result.insert(name, said)),
            // The backend was removed at run time or is being removed, and the file has not changed the backend.
            (Some(before), None) if before == said => {}
            (Some(before), Some(here)) if before == said && leaving.contains(&name) => last.push((name, here)),
            (Some(_), None) => drop(result.insert(name, said)),
            (Some(before), Some(here)) => {
                let weight = either(before.1, here.1, said.1);
                result.insert(name, (said.0, weight));
                let host = either(before.0, here.0, said.0);
                if host != said.0 {
                    moved.push((name, (host, weight)));
                }
            }
        }
    }
    keep(&mut result, &moved);
    let known = |name: char| find(base, name).is_some() || find(file, name).is_some();
    last.extend(now.iter().copied().filter(|(name, _)| !known(*name)));
    keep(&mut result, &last);
    result
}

prop_compose! {
    /// A proptest strategy for lists of backends without duplicate names or addresses.
    fn side()(
        names in Just(vec!['a', 'b', 'c', 'd', 'e']).prop_shuffle(),
        hosts in Just(vec![1_u8, 2, 3, 4, 5]).prop_shuffle(),
        weights in prop::collection::vec(1_u16..3, 5),
        count in 0..5_usize,
    ) -> Side {
        names.into_iter().zip(hosts.into_iter().zip(weights)).take(count).collect()
    }
}

fn shown(services: &[Arc<ServiceConfig>]) -> Side {
    let backends = services.iter().flat_map(|service| &service.backends);
    let host = |address: std::net::IpAddr| match address {
        std::net::IpAddr::V4(address) => address.octets()[3],
        std::net::IpAddr::V6(_) => 0,
    };
    backends.map(|of| (of.name.chars().next().unwrap_or('?'), (host(of.address.ip()), of.weight))).collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn when_files_are_merged_then_the_result_is_valid_and_matches_the_second_implementation(
        base in side(),
        now in side(),
        file in side(),
        leaving in prop::collection::btree_set(prop::char::range('a', 'e'), 0..3),
    ) {
        let leaves = |_: &str, name: &str| name.chars().next().is_some_and(|name| leaving.contains(&name));
        let merged = merge(&config(&base), &config(&now), leaves, &Valid::new(config(&file)).unwrap());
        prop_assert_eq!(Valid::new(merged.services.clone()).err().map(|err| err.to_string()), None);
        let result: BTreeMap<char, Place> = shown(&merged.services).into_iter().collect();
        prop_assert_eq!(result, plainly(&base, &now, &leaving, &file));
    }
}
