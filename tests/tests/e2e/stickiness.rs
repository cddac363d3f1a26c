//! Tests that a client reaches the same backend in every connection and from every port, and that the backends get
//! equal shares of the clients.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod release;

use std::collections::BTreeMap;

use balancer_common::map_types::Forwarding;
use balancer_testkit::{
    site::{Site, counts, deviation, home, service},
    topology::{Family, Shape},
};

const CLIENTS: std::ops::RangeInclusive<u16> = 1..=600;
const MANY: std::ops::RangeInclusive<u16> = 1..=20_000;
const BACKENDS: u16 = 4;

/// Checks 600 clients of each family with three connections each, and compares the backends with the controller's
/// answers.
fn clients_stay(shape: Shape, forwarding: Forwarding) {
    let site = Site::start(shape, forwarding, BACKENDS, |settings, _| {
        settings.families = Family::BOTH.to_vec();
        Ok(())
    })
    .unwrap();
    let model = site.core().unwrap();
    for family in Family::BOTH {
        let homes = site.homes(family, CLIENTS).unwrap();
        for _ in 0..2 {
            assert_eq!(site.homes(family, CLIENTS).unwrap(), homes, "{shape:?} {forwarding:?} {family:?}");
        }
        let shares = counts(homes.values());
        let off = deviation(&shares, usize::from(BACKENDS));
        println!("{shape:?} {forwarding:?} {family:?}: {shares:?}, within {:.1}% of equal", off * 100.0);
        assert!(off <= 0.25, "{shares:?}");

        let located: BTreeMap<u16, String> =
            CLIENTS.map(|client| (client, site.locate(family, client).unwrap().1)).collect();
        assert_eq!(located, homes, "the controller says otherwise than the packets");
        for client in CLIENTS.step_by(60) {
            let address = site.topology().client_address(family, client).to_string();
            let text = site.cli(&["client", "where", &address, "--json"]).unwrap();
            let view: serde_json::Value = serde_json::from_str(&text).unwrap();
            assert_eq!(view["backend"], homes[&client]);
            assert_eq!((&view["service"], &view["why"]), (&service(family).into(), &"table".into()));
        }

        // The controller core in the test's process chooses backends for 20,000 clients. For a sample of these clients,
        // the test compares the chosen backends with the answers of the running controller.
        let many: BTreeMap<u16, String> = MANY
            .map(|client| (client, home(&model, site.topology().client_address(family, client)).unwrap().unwrap()))
            .collect();
        for (client, expected) in many.iter().step_by(40) {
            assert_eq!(&site.locate(family, *client).unwrap().1, expected, "client {client}");
        }
        let shares = counts(many.values());
        let off = deviation(&shares, usize::from(BACKENDS));
        println!("{shape:?} {forwarding:?} {family:?}: {shares:?}, within {:.1}% of equal", off * 100.0);
        assert!(off <= 0.05, "{shares:?}");
    }
}

#[test]
fn when_clients_connect_with_nat_on_two_legs_then_they_stay() {
    clients_stay(Shape::TwoLegged, Forwarding::Nat);
}

#[test]
fn when_clients_connect_with_dsr_on_one_leg_then_they_stay() {
    clients_stay(Shape::OneLegged, Forwarding::Dsr);
}
