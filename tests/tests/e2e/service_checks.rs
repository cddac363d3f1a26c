//! Tests of `check = { via = "service" }`: a backend without the VIP is down, although the backend's own address
//! answers.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod release;

use std::{fs, thread, time::Duration};

use balancer_common::map_types::Forwarding;
use balancer_testkit::{
    site::{PATIENCE, Site},
    topology::{Family, Shape},
};

const VICTIM: u16 = 2;
const HTTP: &str = r#"type = "http", path = "/healthz""#;
const TCP: &str = r#"type = "tcp""#;

fn check(of: &str, via: &str) -> String {
    format!(
        r#"{{ {of}, via = "{via}", interval = "400ms", timeout = "300ms", fast_interval = "200ms", fall = 2, rise = 1 }}"#
    )
}

struct Cell {
    shape: Shape,
    forwarding: Forwarding,
    of: &'static str,
    crossed: bool,
    /// Whether the balancer's host has the VIPs as well.
    local: bool,
}

fn site(cell: &Cell) -> Site {
    Site::start(cell.shape, cell.forwarding, 3, |settings, topology| {
        settings.families = Family::BOTH.to_vec();
        settings.crossed = cell.crossed;
        settings.check = check(cell.of, "service");
        settings.service_lines = "start_down = true".to_owned();
        settings.on_exit = "keep";
        settings.remember = "60s";
        if !cell.local {
            for family in Family::BOTH {
                let vip = topology.vip(family);
                let length = if family == Family::V4 { 32 } else { 128 };
                topology.balancer().ip(&format!("addr del {vip}/{length} dev lo"))?;
            }
        }
        Ok(())
    })
    .unwrap()
}

/// Adds the VIPs to the host of the failing backend, or removes the VIPs.
fn hold(site: &Site, holds: bool) {
    let host = &site.topology().backends()[usize::from(VICTIM) - 1];
    for family in Family::BOTH {
        let (length, nodad) = if family == Family::V4 { (32, "") } else { (128, "nodad") };
        let vip = site.topology().vip(family);
        let (verb, nodad) = if holds { ("add", nodad) } else { ("del", "") };
        host.ip(&format!("addr {verb} {vip}/{length} dev lo {nodad}")).unwrap();
    }
}

fn all_are(site: &mut Site, state: &str) {
    (1..=3).for_each(|number| site.wait_state(number, &[state]).unwrap());
}

/// Checks that only the failing backend is down, with the correct reason.
fn the_victim_is_down(site: &mut Site) {
    site.wait_state(VICTIM, &["down"]).unwrap();
    let status = site.status().unwrap();
    for (service, family) in status.services.iter().zip(Family::BOTH) {
        for (backend, number) in service.backends.iter().zip(1..) {
            if number == VICTIM {
                let vip = std::net::SocketAddr::new(site.topology().vip(family), 80);
                let why = format!("connect to {vip}: timeout after 300ms; does the backend hold that address?");
                assert_eq!(backend.reason, why);
            } else {
                assert_eq!(backend.state, "up", "{}/{}: {}", service.name, backend.name, backend.reason);
            }
        }
    }
}

fn a_backend_without_the_vip_is_down(cell: &Cell) {
    let mut site = site(cell);
    all_are(&mut site, "up");
    hold(&site, false);
    the_victim_is_down(&mut site);
    let homes = site.homes(Family::V4, 1..=60).unwrap();
    assert!(!homes.values().any(|home| home == "web2"), "{homes:?}");

    // The new controller keeps the check results of the previous controller, and determines the reason again.
    site.kill_and_restart(|_| {}).unwrap();
    the_victim_is_down(&mut site);

    // The backend's own address has answered during the whole test.
    let text = fs::read_to_string(site.config()).unwrap();
    let past = text.replace(r#"via = "service""#, r#"via = "backend""#);
    fs::write(site.config(), &past).unwrap();
    let file = site.config().display().to_string();
    site.cli(&["apply", &file]).unwrap();
    if cell.forwarding == Forwarding::Dsr || !cell.crossed {
        all_are(&mut site, "up");
    }
    fs::write(site.config(), &text).unwrap();
    site.cli(&["apply", &file]).unwrap();
    the_victim_is_down(&mut site);

    hold(&site, true);
    all_are(&mut site, "up");
    let shown = site.cli(&["health", "show", "web"]).unwrap();
    assert!(
        shown.contains("via service") && shown.contains(&format!("{}:80", site.topology().vip(Family::V4))),
        "{shown}"
    );
}

#[test]
fn when_a_dsr_backend_has_no_vip_and_the_balancer_neither_then_it_is_down() {
    let (shape, forwarding) = (Shape::TwoLegged, Forwarding::Dsr);
    a_backend_without_the_vip_is_down(&Cell { shape, forwarding, of: HTTP, crossed: false, local: false });
}

#[test]
fn when_a_gue_backend_has_no_vip_then_it_is_down() {
    let (shape, forwarding) = (Shape::OneLegged, Forwarding::Gue);
    a_backend_without_the_vip_is_down(&Cell { shape, forwarding, of: HTTP, crossed: false, local: true });
}

/// With `via = "service"`, a negative or missing answer has the same effect as in other checks.
#[test]
fn when_a_check_via_the_service_fails_then_it_counts_like_other_checks() {
    let cell = Cell { shape: Shape::OneLegged, forwarding: Forwarding::Dsr, of: HTTP, crossed: false, local: true };
    let mut site = site(&cell);
    all_are(&mut site, "up");
    for (mode, reason) in
        [("503", "status 503"), ("hang", "http: timeout after 300ms"), ("reset", "http: connection reset")]
    {
        site.fail_backend(VICTIM, mode).unwrap();
        let deadline = std::time::Instant::now() + PATIENCE;
        loop {
            let shown = site.status().unwrap().services[0].backends[usize::from(VICTIM) - 1].reason.clone();
            if shown == reason {
                break;
            }
            assert!(std::time::Instant::now() < deadline, "{mode}: {shown}");
            thread::sleep(Duration::from_millis(20));
        }
    }
    site.fail_backend(VICTIM, "ok").unwrap();
    site.wait_state(VICTIM, &["up"]).unwrap();
    site.kill_backend(VICTIM).unwrap();
    site.wait_state(VICTIM, &["down"]).unwrap();
    let reason = site.status().unwrap().services[0].backends[usize::from(VICTIM) - 1].reason.clone();
    assert_eq!(reason, format!("connect to {}:80: refused", site.topology().vip(Family::V4)));
}
