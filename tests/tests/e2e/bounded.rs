//! Tests of bounded load: a backend with too many clients gets fewer new clients, and no known client moves away from
//! the backend.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{
    collections::BTreeMap,
    io::{ErrorKind, Read as _, Write as _},
    net::{Ipv6Addr, SocketAddr, TcpListener},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::Duration,
};

use balancer_common::map_types::Forwarding;
use balancer_config::words::grouped;
use balancer_testkit::{
    http_client::Request,
    namespace::Namespace,
    site::{PATIENCE, QUICK_CHECK, Site, counts},
    topology::{Family, Shape},
};

use crate::support::wait;

pub(crate) const BOUNDED: &str = "bounded_load = { factor = 1.25, by = \"clients\" }";
const FIRST: std::ops::RangeInclusive<u16> = 1..=80;
const ALL: std::ops::RangeInclusive<u16> = 1..=200;

fn slots(site: &Site) -> u32 {
    web1(site).slots
}

fn web1(site: &Site) -> balancer_api::model::BackendView {
    let services = site.status().unwrap().services;
    services.into_iter().flat_map(|service| service.backends).find(|backend| backend.name == "web1").unwrap()
}

/// Returns the HTML of the status page.
fn page(site: &Site) -> String {
    let any = SocketAddr::from(([0, 0, 0, 0], 0));
    let request = Request { timeout: PATIENCE, ..Request::new(any, SocketAddr::from(([127, 0, 0, 1], 9660))) };
    let reply = site.topology().balancer().run_in_thread(|| request.send()).unwrap().unwrap();
    String::from_utf8(reply.body).unwrap()
}

#[test]
fn when_a_backend_has_too_many_clients_then_it_takes_fewer_new_ones_and_nobody_moves() {
    let mut site = Site::start(Shape::OneLegged, Forwarding::Nat, 2, |settings, _| {
        settings.remember = "10m";
        settings.check = QUICK_CHECK.to_owned();
        settings.service_lines = BOUNDED.to_owned();
        Ok(())
    })
    .unwrap();
    let whole = slots(&site);
    site.cli(&["backend", "drain", "web/web2"]).unwrap();
    let homes = site.homes(Family::V4, FIRST).unwrap();
    assert!(homes.values().all(|home| home == "web1"));
    wait("web1 does not know them", || web1(&site).known_clients >= 80);
    site.cli(&["backend", "ready", "web/web2"]).unwrap();
    wait("web1 gives nothing away", || slots(&site) < whole);

    let backend = web1(&site);
    let bound = backend.bound.clone().unwrap();
    assert_eq!((bound.keeps_percent, backend.state.as_str()), (60, "up"));
    assert!(backend.slots.abs_diff(whole * 6 / 10) < whole / 50, "{backend:?} of {whole}");
    assert!((backend.slots + bound.given_slots).abs_diff(whole) < whole / 50, "{bound:?}");
    let status = site.cli(&["status"]).unwrap();
    assert!(status.contains("bounded load: keeps 60% of its slots, had 2.00 times its share"), "{status}");
    let events = site.cli(&["events"]).unwrap();
    assert!(events.contains("service web, bounded load: web1 keeps 60% of its slots"), "{events}");
    let given = site.metrics().unwrap().sum("bounded_slots", &["backend=\"web1\""]).unwrap();
    assert_eq!(given, f64::from(bound.given_slots));
    let page = page(&site);
    let text = format!("({} given away)", grouped(bound.given_slots));
    let kept = 100.0 * f64::from(backend.slots) / f64::from(backend.slots + bound.given_slots);
    let band = format!("class=\"fill\" y=\"2\" width=\"{kept:.2}\"");
    assert!(page.contains(&text) && page.contains(&band), "{text}, {band}: {page}");
    assert_eq!(site.homes(Family::V4, FIRST).unwrap(), homes);
    let all = site.homes(Family::V4, ALL).unwrap();
    assert!(all.values().skip(80).filter(|home| *home == "web2").count() > 60, "{all:?}");

    // The reduced share of the backend survives a restart, although the restart makes the balancer forget the clients.
    // Without the configuration key, the backend gets its slots back, and still no client moves.
    let table = slots(&site);
    site.restart(|_| {}).unwrap();
    assert_eq!(slots(&site), table);
    let all = site.homes(Family::V4, ALL).unwrap();
    site.apply(|settings| settings.service_lines.clear()).unwrap();
    assert_eq!((slots(&site), web1(&site).bound), (whole, None));
    assert_eq!(site.homes(Family::V4, ALL).unwrap(), all);
    assert_eq!(site.metrics().unwrap().sum("moves_total", &[]).unwrap_or(0.0), 0.0);
}

/// The port of health checks, by which the balancer measures how fast a server answers.
const WORK: u16 = 9779;

/// Starts a server of health checks for both families. While the returned flag is true, the server answers slowly.
fn serve_checks(namespace: &Namespace) -> Arc<AtomicBool> {
    let (entrance, is_slow) = (namespace.entrance(), Arc::new(AtomicBool::new(false)));
    let slow = Arc::clone(&is_slow);
    let (ready, is_ready) = std::sync::mpsc::channel();
    thread::spawn(move || {
        entrance.enter().unwrap();
        let listener = TcpListener::bind((Ipv6Addr::UNSPECIFIED, WORK)).unwrap();
        ready.send(()).unwrap();
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let _ = stream.read(&mut [0; 1024]);
            if slow.load(Ordering::Relaxed) {
                thread::sleep(Duration::from_millis(400));
            }
            let _ = write!(stream, "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n");
        }
    });
    is_ready.recv().unwrap();
    is_slow
}

/// Returns the slots of each backend in the services of both families.
fn tables(site: &Site) -> BTreeMap<String, u32> {
    let services = site.status().unwrap().services;
    let named = |service: balancer_api::model::ServiceView| {
        let name = service.name;
        service.backends.into_iter().map(move |backend| (format!("{name}/{}", backend.name), backend.slots))
    };
    services.into_iter().flat_map(named).collect()
}

#[test]
fn when_a_server_is_slower_than_the_others_then_new_clients_go_elsewhere_and_known_ones_stay() {
    let mut work = Vec::new();
    let mut site = Site::start(Shape::OneLegged, Forwarding::Nat, 3, |settings, topology| {
        let timing = r#"interval = "1s", timeout = "1s", fall = 5"#;
        settings.families = Family::BOTH.to_vec();
        settings.remember = "1h";
        settings.on_exit = "keep";
        settings.check = format!(r#"{{ type = "http", port = {WORK}, {timing} }}"#);
        work.extend(topology.backends().iter().map(serve_checks));
        Ok(())
    })
    .unwrap();
    (1..=3).for_each(|number| site.wait_state(number, &["up"]).unwrap());
    let whole = tables(&site);
    let homes = Family::BOTH.map(|family| site.homes(family, FIRST).unwrap());
    assert!(homes.iter().all(|homes| counts(homes.values()).len() == 3), "{homes:?}");
    work[0].store(true, Ordering::Relaxed);
    site.apply(|settings| settings.service_lines = "bounded_load = { by = \"latency\" }".to_owned()).unwrap();
    wait("web1 gives nothing away", || {
        tables(&site).iter().all(|(name, of)| !name.ends_with("1") || *of < whole[name])
    });

    // web1 loses half of its slots in each family. web2 and web3, which are as fast as before, get more slots.
    let given = tables(&site);
    for (name, slots) in &given {
        let before = whole[name];
        let half = name.ends_with("1") && slots.abs_diff(before / 2) < before / 50;
        assert!(half || (!name.ends_with("1") && *slots > before), "{given:?} of {whole:?}");
    }
    let backend = web1(&site);
    assert_eq!((backend.state.as_str(), backend.bound.as_ref().unwrap().keeps_percent), ("up", 50));
    assert!(backend.reason.starts_with("bounded load: keeps 50% of its slots, had "), "{backend:?}");
    let events = site.cli(&["events"]).unwrap();
    assert!(
        events.contains("bounded load: web1 keeps 50% of its slots, had ") && events.contains(" of latency"),
        "{events}"
    );
    let all_stay = |site: &Site| {
        assert_eq!(Family::BOTH.map(|family| site.homes(family, FIRST).unwrap()), homes, "a known client moved");
    };
    all_stay(&site);
    let newcomers = Family::BOTH.map(|family| site.homes(family, 201..=440).unwrap());
    for homes in &newcomers {
        // web1 now gets a sixth of the 240 clients instead of a third.
        let counts = counts(homes.values());
        assert!((15..60).contains(&counts["web1"]), "{counts:?}");
    }

    // Neither a restart nor a kill of the balancer changes the slots or the backends of the clients.
    site.restart(|_| {}).unwrap();
    assert_eq!(tables(&site), given);
    site.kill_and_restart(|_| {}).unwrap();
    assert_eq!(tables(&site), given);
    all_stay(&site);
    assert_eq!(site.metrics().unwrap().sum("moves_total", &[]).unwrap_or(0.0), 0.0);
}

#[test]
fn when_backends_are_at_their_limits_then_new_clients_go_to_the_next_and_at_last_to_nobody_and_nobody_moves() {
    let mut site = Site::start(Shape::OneLegged, Forwarding::Nat, 2, |settings, _| {
        settings.remember = "10m";
        settings.check = QUICK_CHECK.to_owned();
        settings.service_lines = "when_full = \"reject\"".to_owned();
        Ok(())
    })
    .unwrap();
    let whole = slots(&site);
    // A plan of the change reports the same error as the command, and changes nothing.
    let refused = site.cli(&["plan", "backend", "limit", "web/web1", "--max-connections", "9"]).unwrap_err();
    assert!(format!("{refused}").contains("max_connections needs forwarding = \"snat\""), "{refused}");
    let planned = site.cli(&["plan", "backend", "limit", "web/web1", "--max-clients", "20"]).unwrap();
    assert!(
        planned.starts_with("service web: 0 of 65,537 slots would move, 0 needless; 0 known clients would"),
        "{planned}"
    );
    assert_eq!((slots(&site), web1(&site).max_clients), (whole, None));
    let said = site.cli(&["backend", "limit", "web/web1", "--max-clients", "20"]).unwrap();
    assert!(said.starts_with("backend web/web1 no limit → max_clients 20: "), "{said}");
    let homes = site.homes(Family::V4, FIRST).unwrap();
    wait("web1 is full", || slots(&site) == 0);
    let backend = web1(&site);
    assert_eq!((backend.state.as_str(), backend.max_clients, backend.full), ("up", Some(20), true));
    assert!(
        backend.reason.starts_with("full: had ") && backend.reason.ends_with(" of at most 20 clients"),
        "{backend:?}"
    );
    let events = site.cli(&["events"]).unwrap();
    assert!(events.contains("of at most 20 clients and takes no new clients"), "{events}");
    assert_eq!(site.metrics().unwrap().sum("backend_full", &["backend=\"web1\""]).unwrap(), 1.0);
    assert_eq!(site.homes(Family::V4, FIRST).unwrap(), homes, "somebody moved");
    let all = site.homes(Family::V4, 1..=120).unwrap();
    assert!(all.iter().filter(|(client, _)| **client > 80).all(|(_, home)| home == "web2"), "{all:?}");

    // The backend's limit survives a restart of the balancer. After the restart, the balancer knows no clients.
    site.restart(|_| {}).unwrap();
    assert!(web1(&site).full);
    wait("web1 has room", || !web1(&site).full && slots(&site) == whole);

    // web1 and web2 are full: new clients get a reset, and known clients stay.
    site.cli(&["backend", "limit", "web/web1"]).unwrap();
    let homes = site.homes(Family::V4, FIRST).unwrap();
    wait("web2's clients are not counted", || {
        let services = site.status().unwrap().services;
        services.iter().flat_map(|service| &service.backends).all(|backend| backend.known_clients > 20)
    });
    let planned = site.cli(&["plan", "backend", "limit", "web/web2", "--max-clients", "10"]).unwrap();
    let would = format!(
        "service web: {} of 65,537 slots would move, 0 needless; 0 known clients would",
        grouped(65_537 - whole)
    );
    assert!(planned.starts_with(&would) && planned.contains("web2"), "{planned}");
    assert!(web1(&site).slots == whole && site.status().unwrap().services[0].backends[1].max_clients.is_none());
    for backend in ["web/web1", "web/web2"] {
        site.cli(&["backend", "limit", backend, "--max-clients", "10"]).unwrap();
    }
    wait("both are full", || site.metrics().unwrap().sum("backend_full", &[]).unwrap() == 2.0);
    assert_eq!(site.homes(Family::V4, FIRST).unwrap(), homes, "somebody moved");
    let refused = site.ask(Family::V4, [150], Duration::from_secs(3)).unwrap().remove(0).unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::ConnectionRefused, "{refused:?}");
    // With the new file, the balancer sends new clients to full backends.
    site.apply(|settings| settings.service_lines = "when_full = \"open\"".to_owned()).unwrap();
    assert!(site.homes(Family::V4, 150..=160).is_ok());
    let config = site.config();
    let said = site.cli(&["apply", "--reset", &config.to_string_lossy()]).unwrap();
    assert!(said.contains("reset: 2 backends"), "{said}");
    wait("nobody is full", || site.status().unwrap().services.iter().flat_map(|of| &of.backends).all(|of| !of.full));
    assert_eq!(site.metrics().unwrap().sum("moves_total", &[]).unwrap_or(0.0), 0.0);
}
