//! Drains of `snat` backends, whose connections the balancer counts.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::PathBuf,
    time::Duration,
};

use balancer_common::map_types::Forwarding;
use balancer_config::{
    config::ServiceConfig,
    discover::{DiscoverConfig, Source},
    fixture::{name, web},
    snat::DrainUntil,
    states::Admin,
};

use crate::{
    controller_test::Bench,
    discover_test::targets,
    fixture::next_hop,
    io::{Change, CheckOutcome, Event, NextHop},
};

fn list() -> Source {
    Source::File(PathBuf::from("/t.json"))
}

fn listed(bench: &mut Bench, names: &[&str]) {
    let (service, targets, waiting) = ("web".to_owned(), targets(names), BTreeSet::new());
    bench.change(Change::Discover { service, source: list(), targets, waiting }).unwrap();
}

fn snat() -> ServiceConfig {
    let discover = vec![DiscoverConfig::new(list())];
    ServiceConfig { forwarding: Forwarding::Snat, remember: Duration::from_secs(3600), discover, ..web() }
}

/// A `snat` service whose backends are up. The backend `web/a`, which is listed or added at run time, has ten known
/// clients, and one of these clients has a connection.
fn bench(service: ServiceConfig) -> Bench {
    let is_listed = !service.discover.is_empty();
    let mut bench = Bench::new(vec![service]).0;
    if is_listed {
        listed(&mut bench, &["a", "b"]);
    } else {
        ["a", "b"].iter().zip(["10.0.0.21", "10.0.0.22"]).for_each(|(name, at)| {
            bench.add(&format!("web/{name}"), at).unwrap();
        });
    }
    for address in ["10.0.0.21", "10.0.0.22"] {
        let next_hop = NextHop { source: Some([10, 0, 0, 1].into()), ..next_hop(1) };
        let event = Event::NextHop { address: address.parse().unwrap(), next_hop: Ok(next_hop) };
        bench.controller.handle(event, bench.now);
    }
    for backend in ["web/web1", "web/web2", "web/web3", "web/web4", "web/a", "web/b"] {
        bench.pass(backend);
    }
    sweep(&mut bench, 10);
    count(&mut bench, 1);
    assert!(keeps(&bench), "{:?}", bench.shown("web/a"));
    bench
}

fn sweep(bench: &mut Bench, known: u64) {
    let known = vec![(bench.id("web/a"), known)];
    bench.controller.handle(Event::Swept { known }, bench.now);
}

/// Counts the connections of `web/a`, which has received no packets since the previous count.
fn count(bench: &mut Bench, connections: u64) {
    let of = BTreeMap::from([(bench.id("web/a"), connections)]);
    bench.controller.handle(Event::Flows { of, ports: BTreeMap::new(), active: BTreeSet::new() }, bench.now);
}

/// Counts no connections of `web/a`, which has received packets since the previous count.
fn count_packets(bench: &mut Bench) {
    let active = BTreeSet::from([bench.id("web/a")]);
    bench.controller.handle(Event::Flows { of: BTreeMap::new(), ports: BTreeMap::new(), active }, bench.now);
}

/// Whether `web/a` still exists and keeps its known clients.
fn keeps(bench: &Bench) -> bool {
    bench.controller.backend(&name("web/a")).is_ok_and(|backend| backend.keeps_known())
}

type Begin = fn(&mut Bench);

/// The ways in which a drain of `web/a` can begin; the last one concerns backends that are listed.
const BEGINNINGS: [(&str, Begin); 4] = [
    ("drained", |bench| drop(bench.admin("web/a", Admin::Drain))),
    ("removed", |bench| drop(bench.remove("web/a"))),
    ("failing", |bench| (0..3).for_each(|_| drop(bench.check("web/a", CheckOutcome::Soft("status 503".to_owned()))))),
    ("no longer listed", |bench| listed(bench, &["b"])),
];

#[test]
fn when_the_last_connection_of_a_draining_snat_backend_ends_then_its_known_clients_stay() {
    for (what, begin) in BEGINNINGS {
        let discover = if what == "no longer listed" { snat().discover } else { Vec::new() };
        let mut bench = bench(ServiceConfig { discover, ..snat() });
        begin(&mut bench);
        for _ in 0..60 {
            bench.now += Duration::from_secs(1);
            count(&mut bench, 0);
            sweep(&mut bench, 10);
        }
        assert!(keeps(&bench), "{what}: {:?}", bench.shown("web/a"));
        sweep(&mut bench, 0);
        sweep(&mut bench, 0);
        bench.controller.handle(Event::Tick, bench.now);
        assert!(!keeps(&bench), "{what}: nobody is known there");
    }
}

fn until_connections(remember: Duration, grace: Option<Duration>) -> ServiceConfig {
    ServiceConfig { remember, drain_until: Some(DrainUntil::Connections), drain_grace: grace, ..snat() }
}

/// Counts no connections and no packets, once a second, until the drain of `web/a` ends. Returns the number of seconds.
fn silence(bench: &mut Bench) -> u64 {
    let begun = bench.now;
    while keeps(bench) {
        assert!((bench.now - begun).as_secs() < 7200, "the drain does not end");
        count(bench, 0);
        bench.now += Duration::from_secs(1);
        sweep(bench, 10);
    }
    (bench.now - begun).as_secs() - 1
}

#[test]
fn when_a_drain_waits_for_connections_then_it_ends_once_the_backend_was_silent_for_the_grace() {
    for (remember, grace, lasts) in [(60, None, 30), (3600, None, 450), (3600, Some(7), 7)] {
        let remember = Duration::from_secs(remember);
        let mut bench = bench(until_connections(remember, grace.map(Duration::from_secs)));
        let drain =
            Change::SetAdmin { name: name("web/a"), admin: Admin::Drain, timeout: Some(Duration::from_secs(36_000)) };
        bench.change(drain).unwrap();
        for active in [false, true] {
            for _ in 0..2000 {
                bench.now += Duration::from_secs(1);
                if active {
                    count_packets(&mut bench)
                } else {
                    count(&mut bench, 1)
                }
                // Clients keep coming, although the counts between their connections find none.
                bench.now += Duration::from_secs(1);
                count(&mut bench, 0);
            }
            assert!(keeps(&bench));
        }
        count_packets(&mut bench);
        assert_eq!(silence(&mut bench), lasts);
    }
}

#[test]
fn when_a_drain_waits_for_connections_and_nobody_is_known_then_it_ends_without_the_grace() {
    let mut bench = bench(until_connections(Duration::from_secs(3600), None));
    bench.admin("web/a", Admin::Drain);
    count(&mut bench, 1);
    sweep(&mut bench, 0);
    sweep(&mut bench, 0);
    assert!(keeps(&bench), "a connection goes on");
    count(&mut bench, 0);
    sweep(&mut bench, 0);
    sweep(&mut bench, 0);
    assert!(!keeps(&bench));
}
