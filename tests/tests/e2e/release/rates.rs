//! Tests of the displayed packet rates, and of the hint about a service that receives no packets.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use balancer_common::map_types::Forwarding;
use balancer_testkit::{
    namespace::run,
    site::Site,
    topology::{Family, Shape},
};

use crate::support::wait;

/// Returns the HTML of the status page.
fn page(site: &Site) -> String {
    let mut curl = site.topology().balancer().command("curl");
    run(curl.args(["-s", "http://127.0.0.1:9660/"])).unwrap()
}

#[test]
fn when_clients_come_then_rates_are_shown_and_when_none_come_then_the_first_thing_to_look_at() {
    let mut site = Site::start(Shape::OneLegged, Forwarding::Nat, 2, |settings, _| {
        settings.remember = "10m";
        Ok(())
    })
    .unwrap();
    site.wait_state(2, &["up"]).unwrap();
    let silence = |site: &Site| site.status().unwrap().services[0].silence.clone();
    wait("a silent service is not told of", || {
        silence(&site).is_some_and(|text| text.contains("10.2.0.10:80 lead here?"))
    });
    assert!(page(&site).contains("lead here?"), "{}", page(&site));
    assert!(site.cli(&["status"]).unwrap().contains("no packets over the last 10 s: does 10.2.0.10:80 lead here?"));

    site.homes(Family::V4, 1..=20).unwrap();
    wait("clients' packets are not seen", || {
        site.status().unwrap().services[0].rates.is_some_and(|rates| rates.packets > 0.0)
    });
    let status = site.status().unwrap();
    let service = &status.services[0];
    let (all, parts) = (service.rates.unwrap(), service.backends.iter().map(|backend| backend.rates.unwrap()));
    let sum: f64 = parts.map(|rates| rates.connections).sum();
    assert!((all.connections - sum).abs() < 1e-9 && all.connections > 0.0 && all.bytes > all.packets, "{all:?}");
    assert_eq!(service.silence, None);
    let text = site.cli(&["status"]).unwrap();
    assert!(text.contains(" bytes a second, over the last 10 s") && text.contains("CONN/S"), "{text}");
    assert!(!text.contains("no packets over"), "{text}");
    assert!(page(&site).contains(" bytes a second"), "{}", page(&site));

    // A backend with a weight of 0 takes no new clients, but keeps its known clients.
    site.cli(&["backend", "weight", "web/web1", "0"]).unwrap();
    let is_explained = |reason: &str| {
        let words = reason.strip_prefix("takes no new clients, has ").and_then(|rest| rest.split_once(" known client"));
        words.is_some_and(|(count, why)| count != "0" && why.ends_with(": its weight is 0; they stay"))
    };
    wait("no reason is given", || is_explained(&site.status().unwrap().services[0].backends[0].reason));
    assert!(page(&site).contains("its weight is 0; they stay"), "{}", page(&site));

    site.cli(&["withdraw"]).unwrap();
    wait("the VIPs are not named", || silence(&site).is_some_and(|text| text.contains("the VIPs are withdrawn")));
}
