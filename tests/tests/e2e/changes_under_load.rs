//! Tests of a hundred changes during which clients open connections all the time.
//!
//! With memory, known clients stay regardless of the lookup table, so no client notices a change. Without memory, a
//! client follows the slot of the lookup table, so a change breaks exactly the open connections of clients that the
//! change moves.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod release;

use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
    ops::RangeInclusive,
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::{Duration, Instant},
};

use balancer_api::model::{AddBackend, SetAdmin};
use balancer_common::map_types::Forwarding;
use balancer_config::{names::BackendName, states::Admin};
use balancer_control::{controller::Controller as Core, io::Change};
use balancer_testkit::{
    http_client::Request,
    site::{PATIENCE, Site, home},
    stop::StopOnDrop,
    topology::{Family, Shape},
};

pub(crate) const CLIENTS: RangeInclusive<u16> = 1..=240;
const WORKERS: usize = 6;
const CHANGES: usize = 100;
/// The time between two changes, so that connections begin and end under each lookup table.
const PAUSE: Duration = Duration::from_millis(25);
const FAMILY: Family = Family::V4;

/// A client's attempt to connect.
pub(crate) struct Attempt {
    pub(crate) client: u16,
    start: Instant,
    end: Instant,
    pub(crate) outcome: Result<String, String>,
}

/// A lookup table, and the period in which the table may have steered packets.
struct Reign {
    what: &'static str,
    begun: Instant,
    gone: Option<Instant>,
    homes: BTreeMap<u16, String>,
}

fn name(backend: &str) -> BackendName {
    BackendName { service: "web".to_owned(), backend: backend.to_owned() }
}

/// Returns the changes, which the test makes one after another.
fn changes(fifth: SocketAddr) -> Vec<(&'static str, Change)> {
    let admin = |backend, admin| Change::SetAdmin { name: name(backend), admin, timeout: None };
    let weight = |backend, weight| Change::SetWeight { name: name(backend), weight };
    let (address, port) = (fifth.ip(), Some(fifth.port()));
    vec![
        (
            "add web5",
            Change::Add {
                name: name("web5"),
                address,
                address6: None,
                port,
                weight: Some(100),
                backup: false,
                limits: Default::default(),
            },
        ),
        ("drain web1", admin("web1", Admin::Drain)),
        ("weight web5 50", weight("web5", 50)),
        ("ready web1", admin("web1", Admin::Ready)),
        ("weight web3 200", weight("web3", 200)),
        ("drain web2", admin("web2", Admin::Drain)),
        ("remove web5", Change::Remove { name: name("web5"), force: true }),
        ("ready web2", admin("web2", Admin::Ready)),
        ("maint web4", admin("web4", Admin::Maint)),
        ("weight web3 100", weight("web3", 100)),
        ("ready web4", admin("web4", Admin::Ready)),
    ]
}

fn apply(site: &Site, change: &Change) {
    let change = change.clone();
    let changed = site.api(|api| async move {
        match change {
            Change::Add { name, address, address6: _, port, weight, backup, limits: _ } => {
                let address = SocketAddr::new(address, port.unwrap()).to_string();
                let backend = AddBackend {
                    name: name.backend,
                    address,
                    address6: None,
                    weight,
                    backup,
                    max_clients: None,
                    max_connections: None,
                };
                api.add_backend(&name.service, &backend).await
            }
            Change::Remove { name, force } => api.remove_backend(&name, force).await,
            Change::SetAdmin { name, admin, .. } => api.set_admin(&name, &SetAdmin { admin, timeout: None }).await,
            Change::SetWeight { name, weight } => api.set_weight(&name, weight).await,
            Change::Agent { .. }
            | Change::Bound { .. }
            | Change::Full { .. }
            | Change::SetLimits { .. }
            | Change::SetSteer { .. }
            | Change::RotateQuicKey { .. }
            | Change::AddListener { .. }
            | Change::RemoveListener { .. }
            | Change::ForceHealth { .. }
            | Change::AddRule { .. }
            | Change::RemoveRule { .. }
            | Change::SetDropIn { .. }
            | Change::Reload(_)
            | Change::Reset(_)
            | Change::Discover { .. } => {
                unreachable!("not among the changes")
            }
        }
    });
    changed.unwrap();
}

fn homes(core: &Core, site: &Site) -> BTreeMap<u16, String> {
    CLIENTS
        .map(|client| (client, home(core, site.topology().client_address(FAMILY, client)).unwrap().unwrap()))
        .collect()
}

/// Makes clients connect until `stop` is true.
fn load(site: &Site, clients: &[u16], stop: &AtomicBool) -> Vec<Attempt> {
    let mut attempts = Vec::new();
    let requests: Vec<_> = clients.iter().map(|&client| (client, site.request(FAMILY, client))).collect();
    site.topology().client().enter().unwrap();
    for (client, request) in requests.into_iter().cycle() {
        if stop.load(Ordering::Relaxed) {
            break;
        }
        let request = Request { timeout: PATIENCE, ..request };
        let start = Instant::now();
        let outcome = request.send().map(|reply| reply.backend).map_err(|error| error.to_string());
        attempts.push(Attempt { client, start, end: Instant::now(), outcome });
    }
    attempts
}

/// Makes the changes while all clients open connections, and returns the results of the connections.
pub(crate) fn under_load(site: &Site, changes: impl FnOnce()) -> Vec<Attempt> {
    let stop = AtomicBool::new(false);
    let clients: Vec<u16> = CLIENTS.collect();
    thread::scope(|scope| {
        let stop = &stop;
        let _stop = StopOnDrop(stop);
        let workers: Vec<_> =
            clients.chunks(clients.len() / WORKERS).map(|part| scope.spawn(move || load(site, part, stop))).collect();
        changes();
        thread::sleep(PAUSE);
        stop.store(true, Ordering::Relaxed);
        workers.into_iter().flat_map(|worker| worker.join().unwrap()).collect()
    })
}

fn nobody_else_notices(forwarding: Forwarding) {
    let mut site = Site::start(Shape::OneLegged, forwarding, 5, |settings, _| {
        settings.backends.pop();
        Ok(())
    })
    .unwrap();
    let fifth = site.backend_address(FAMILY, 5);
    let mut core = site.core().unwrap();
    let mut reigns = vec![Reign { what: "start", begun: Instant::now(), gone: None, homes: homes(&core, &site) }];
    site.homes(FAMILY, CLIENTS).unwrap();

    let attempts = under_load(&site, || {
        for (what, change) in changes(fifth).iter().cycle().take(CHANGES) {
            thread::sleep(PAUSE);
            balancer_testkit::site::change(&mut core, change.clone()).unwrap();
            let next = homes(&core, &site);
            let begun = Instant::now();
            apply(&site, change);
            reigns.last_mut().unwrap().gone = Some(Instant::now());
            reigns.push(Reign { what, begun, gone: None, homes: next });
        }
    });

    let mut cut = BTreeMap::<String, usize>::new();
    for attempt in &attempts {
        let live: Vec<&Reign> = reigns
            .iter()
            .filter(|reign| reign.begun <= attempt.end && reign.gone.is_none_or(|gone| gone >= attempt.start))
            .collect();
        let possible: BTreeSet<&str> = live.iter().map(|reign| reign.homes[&attempt.client].as_str()).collect();
        let took = attempt.end - attempt.start;
        match &attempt.outcome {
            Ok(home) => assert!(possible.contains(home.as_str()), "{home} answered, not one of {possible:?}"),
            Err(error) => {
                let changes: Vec<&str> = live.iter().skip(1).map(|reign| reign.what).collect();
                assert!(
                    possible.len() > 1,
                    "client of {possible:?} lost its connection ({error}, {took:?}) at {changes:?}"
                );
                // The new backend does not know the connection, so it sends a reset. If a removed `nat` backend already
                // has the whole request, the backend's answer is lost, because the balancer no longer translates
                // packets of the backend.
                let removed = forwarding == Forwarding::Nat && changes.iter().any(|what| what.starts_with("remove"));
                let in_vain = removed && error == "no whole answer in time";
                let as_expected = error.contains("reset by peer") || in_vain;
                assert!(as_expected, "client of {possible:?}: {error}, {took:?}, at {changes:?}");
                *cut.entry(changes.join(", ")).or_default() += 1;
            }
        }
    }
    let slowest = attempts.iter().map(|attempt| attempt.end - attempt.start).max().unwrap();
    let lost: usize = cut.values().sum();
    println!(
        "{forwarding:?}: {} connections during {CHANGES} changes, the slowest took {slowest:?}; {lost} were cut, all of clients \
         that were being moved: {cut:?}",
        attempts.len()
    );
    assert!(attempts.len() >= 10 * CHANGES, "no load: {}", attempts.len());
    let clients: Vec<u16> = CLIENTS.collect();
    let moved =
        clients.iter().filter(|client| reigns.iter().any(|reign| reign.homes[client] != reigns[0].homes[client]));
    assert!(moved.count() > clients.len() / 2, "the changes have moved hardly anybody");

    // At the end, the balancer and the core in the test's process must choose the same backends.
    for client in CLIENTS.step_by(10) {
        assert_eq!(site.locate(FAMILY, client).unwrap().1, reigns.last().unwrap().homes[&client]);
    }
    let status = site.status().unwrap();
    assert_eq!(status.services[0].table_generation, 1 + CHANGES as u64);
    let unreachable = site.metrics().unwrap().sum("drops_total", &["reason=\"no_next_hop\""]).unwrap();
    assert_eq!(unreachable, 0.0, "packets dropped for want of a next hop");
    site.controller().ensure_running().unwrap();
}

#[test]
fn when_changes_move_clients_with_nat_then_no_other_client_notices() {
    nobody_else_notices(Forwarding::Nat);
}

/// Tests a hundred changes of a service with memory: additions, weights, drains and returns.
fn nobody_notices(forwarding: Forwarding) {
    let site = Site::start(Shape::OneLegged, forwarding, 5, |settings, _| {
        settings.remember = "60s";
        settings.backends.pop();
        Ok(())
    })
    .unwrap();
    let fifth = site.backend_address(FAMILY, 5);
    let known = site.homes(FAMILY, CLIENTS).unwrap();
    let mut changes = changes(fifth);
    // The test leaves out changes that move known clients at once.
    changes.retain(|(what, _)| !what.starts_with("remove") && !what.contains("web4"));
    let addition = changes.remove(0).1;

    let attempts = under_load(&site, || {
        apply(&site, &addition);
        for (_, change) in changes.iter().cycle().take(CHANGES - 1) {
            thread::sleep(PAUSE);
            apply(&site, change);
        }
    });

    for attempt in &attempts {
        let took = attempt.end - attempt.start;
        let home = known.get(&attempt.client).cloned();
        assert_eq!(attempt.outcome.clone().map(Some), Ok(home), "client {} after {took:?}", attempt.client);
    }
    assert!(attempts.len() >= 10 * CHANGES, "no load: {}", attempts.len());
    let metrics = site.metrics().unwrap();
    assert_eq!(metrics.sum("moves_total", &["service=\"web\""]).unwrap(), 0.0);
    assert!(metrics.sum("table_generation", &["service=\"web\""]).unwrap() > 50.0, "the tables changed");
}

#[test]
fn when_clients_are_known_with_nat_then_no_client_notices_changes() {
    nobody_notices(Forwarding::Nat);
}
