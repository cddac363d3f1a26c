//! What the balancer changes on its machine follows what the configuration wants, while it runs.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{
    thread,
    time::{Duration, Instant},
};

use balancer_common::map_types::Forwarding;
use balancer_tests::{
    site::Site,
    topology::{Family, Shape},
};

const PATIENCE: Duration = Duration::from_secs(20);

fn wait(what: &str, mut done: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !done() {
        assert!(Instant::now() < deadline, "{what}");
        thread::sleep(Duration::from_millis(20));
    }
}

fn switch(site: &Site, key: &str) -> String {
    let output = site.topology().balancer().command("sysctl").args(["-n", key]).output().unwrap();
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}

/// IPv4 forwarding, IPv6 forwarding, whether routers' advertisements are accepted, on the last interface.
fn switches(site: &Site) -> [String; 3] {
    let interface = site.topology().interfaces().last().unwrap();
    ["ipv4/NAME/forwarding", "ipv6/NAME/forwarding", "ipv6/NAME/accept_ra"].map(|key| {
        switch(site, &format!("net.{}", key.replace("NAME", &format!("conf/{interface}")).replace('/', ".")))
    })
}

#[test]
fn the_first_nat_service_of_a_family_that_apply_brings_works_at_once() {
    for shape in [Shape::OneLegged, Shape::TwoLegged] {
        let mut site = Site::start(shape, Forwarding::Nat, 2, |settings, _| {
            settings.on_exit = "keep";
            settings.check = r#"{ type = "tcp", interval = "200ms", timeout = "200ms" }"#.to_owned();
            Ok(())
        })
        .unwrap();
        site.wait_state(1, &["up"]).unwrap();
        assert_eq!(switches(&site), ["1", "0", "1"]);
        site.apply(|settings| settings.families = vec![Family::V6]).unwrap();
        assert_eq!(switches(&site)[1..], ["1", "2"]);
        let up = |status: &balancer::api::model::StatusView| {
            status.services.iter().flat_map(|service| &service.backends).all(|backend| backend.state == "up")
        };
        site.controller().wait_for(PATIENCE, "health checks over IPv6", up).unwrap();
        assert_eq!(site.homes(Family::V6, 1..=10).unwrap().len(), 10);
        // Nobody needs IPv4 any more.
        wait("net.ipv4 stays switched on", || switches(&site) == ["0", "1", "2"]);

        site.apply(|settings| settings.families = vec![Family::V4, Family::V6]).unwrap();
        for family in Family::BOTH {
            assert_eq!(site.homes(family, 1..=10).unwrap().len(), 10, "{family:?}");
        }
        // Somebody switches it off: it is on again soon, and the next controller knows what to put back.
        site.topology().forward(false).unwrap();
        wait("net.ipv4 stays switched off", || switches(&site) == ["1", "1", "2"]);
        site.kill_and_restart(|_| {}).unwrap();
        site.apply(|settings| settings.families = vec![Family::V4]).unwrap();
        wait("net.ipv6 stays switched on", || switches(&site) == ["1", "0", "1"]);
        site.controller().process().kill().unwrap();
        assert!(site.detach().unwrap().status.success());
        assert_eq!(switches(&site), ["0", "0", "1"]);
    }
}
