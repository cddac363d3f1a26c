//! Tests of the failure and recovery of a backend: only the backend's own clients move, and they return after the
//! recovery.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{
    collections::BTreeMap,
    ops::RangeInclusive,
    thread,
    time::{Duration, Instant},
};

use balancer_common::map_types::Forwarding;
use balancer_config::names::BackendName;
use balancer_control::{
    controller::Controller as Core,
    io::{CheckOutcome, Event},
};
use balancer_testkit::{
    site::{Site, counts, deviation, home},
    topology::{Family, Shape},
};

const CLIENTS: RangeInclusive<u16> = 1..=600;
const MANY: RangeInclusive<u16> = 1..=20_000;
const VICTIM: u16 = 2;
const FALL: u32 = 3;
const INTERVAL: Duration = Duration::from_millis(400);
const TIMEOUT: Duration = Duration::from_millis(300);
/// The longest time after a failure until the clients of the failed backend are served again.
const RECOVERY: Duration = INTERVAL.saturating_mul(FALL).saturating_add(TIMEOUT).saturating_add(SLACK);
const SLACK: Duration = Duration::from_millis(500);
const POLL: Duration = Duration::from_millis(20);
const FAMILY: Family = Family::V4;

type Homes = BTreeMap<u16, String>;

fn site(forwarding: Forwarding) -> Site {
    let mut site = Site::start(Shape::OneLegged, forwarding, 4, |settings, _| {
        let (interval, timeout) = (INTERVAL.as_millis(), TIMEOUT.as_millis());
        settings.check = format!(
            r#"{{ type = "http", path = "/healthz", interval = "{interval}ms", timeout = "{timeout}ms", fall = {FALL}, rise = 2 }}"#
        );
        Ok(())
    })
    .unwrap();
    for number in 1..=4 {
        site.wait_state(number, &["up"]).unwrap();
    }
    site
}

fn name(number: u16) -> String {
    format!("web{number}")
}

fn clients_of(homes: &Homes, home: &str) -> Vec<u16> {
    homes.iter().filter(|(_, found)| *found == home).map(|(&client, _)| client).collect()
}

/// Checks that exactly the clients of the failed backend have moved, in equal numbers to the other three backends.
fn only_the_victims_moved(before: &Homes, after: &Homes, tolerance: f64) {
    let victim = name(VICTIM);
    for (client, home) in before.iter().filter(|(_, home)| **home != victim) {
        assert_eq!(&after[client], home, "client {client} has moved without need");
    }
    let shares = counts(clients_of(before, &victim).iter().map(|client| &after[client]));
    assert!(!shares.contains_key(&victim), "{shares:?}");
    let off = deviation(&shares, 3);
    println!(
        "{} clients of {victim} went to {shares:?}, within {:.1}% of equal",
        shares.values().sum::<usize>(),
        off * 100.0
    );
    assert!(off <= tolerance, "{shares:?}");
}

/// Returns the backends that the core chooses for the clients in `MANY`.
fn homes_by_lookup(core: &Core, site: &Site) -> Homes {
    let home = |client| home(core, site.topology().client_address(FAMILY, client)).unwrap().unwrap();
    MANY.map(|client| (client, home(client))).collect()
}

/// Checks the effects of the same failure in the lookup table, for 20,000 clients.
fn lookup_agrees(site: &Site, before: &Homes, after: &Homes) {
    let mut core = site.core().unwrap();
    let all_before = homes_by_lookup(&core, site);
    let victim = core.backend(&BackendName { service: "web".to_owned(), backend: name(VICTIM) }).unwrap();
    let (victim, check) = (victim.id(), victim.check_number().unwrap());
    let now = Instant::now();
    for _ in 0..FALL {
        let outcome = CheckOutcome::Hard("connect: refused".to_owned());
        core.handle(Event::Checked { backend: victim, check, outcome, took: Duration::ZERO, asked: false }, now);
    }
    let all_after = homes_by_lookup(&core, site);
    only_the_victims_moved(&all_before, &all_after, 0.1);
    for client in CLIENTS {
        assert_eq!((&all_before[&client], &all_after[&client]), (&before[&client], &after[&client]));
    }
}

#[test]
fn when_a_backend_is_killed_then_only_its_own_clients_move() {
    for forwarding in [Forwarding::Dsr, Forwarding::Nat] {
        let mut site = site(forwarding);
        let before = site.homes(FAMILY, CLIENTS).unwrap();
        let orphans = clients_of(&before, &name(VICTIM));

        let killed = Instant::now();
        site.kill_backend(VICTIM).unwrap();
        let mut refused = 0;
        for &client in orphans.iter().cycle() {
            let reply = site.ask(FAMILY, [client], Duration::from_millis(200)).unwrap().remove(0);
            if reply.is_ok() {
                break;
            }
            refused += 1;
            assert!(killed.elapsed() < RECOVERY + POLL, "no connection after {:?}: {reply:?}", killed.elapsed());
            thread::sleep(POLL);
        }
        println!("{forwarding:?}: {refused} connections refused, the first one served after {:?}", killed.elapsed());
        assert!(refused > 0, "the backend was not dead");

        let after = site.homes(FAMILY, CLIENTS).unwrap();
        only_the_victims_moved(&before, &after, 0.4);
        lookup_agrees(&site, &before, &after);
        let status = site.status().unwrap();
        let victim = &status.services[0].backends[usize::from(VICTIM) - 1];
        assert_eq!((victim.state.as_str(), victim.slots), ("down", 0));
        assert!(victim.reason.contains("refused"), "{}", victim.reason);

        site.start_backend(VICTIM).unwrap();
        site.wait_state(VICTIM, &["up"]).unwrap();
        assert_eq!(site.homes(FAMILY, CLIENTS).unwrap(), before);
    }
}

/// Checks the effects of a health check that fails in one way while the backend continues to serve clients.
fn a_failed_check_moves_only_its_clients(mode: &str, reason: &str) {
    let mut site = site(Forwarding::Nat);
    let before = site.homes(FAMILY, CLIENTS).unwrap();
    site.fail_backend(VICTIM, mode).unwrap();
    site.wait_state(VICTIM, &["down"]).unwrap();
    let after = site.homes(FAMILY, CLIENTS).unwrap();
    only_the_victims_moved(&before, &after, 0.4);
    lookup_agrees(&site, &before, &after);
    let status = site.status().unwrap();
    let victim = &status.services[0].backends[usize::from(VICTIM) - 1];
    assert!(victim.reason.contains(reason), "{}", victim.reason);

    site.fail_backend(VICTIM, "ok").unwrap();
    site.wait_state(VICTIM, &["up"]).unwrap();
    assert_eq!(site.homes(FAMILY, CLIENTS).unwrap(), before);
}

/// Without memory, there are no known clients that could drain, so the backend is down at once.
#[test]
fn when_a_check_answers_503_then_the_backend_gets_no_clients() {
    a_failed_check_moves_only_its_clients("503", "status 503");
}

#[test]
fn when_a_check_hangs_then_the_backend_is_down() {
    a_failed_check_moves_only_its_clients("hang", "timeout");
}

#[test]
fn when_a_check_answers_too_late_then_the_backend_is_down() {
    a_failed_check_moves_only_its_clients("slow", "timeout");
}

#[test]
fn when_a_check_is_reset_then_the_backend_is_down() {
    a_failed_check_moves_only_its_clients("reset", "reset");
}
