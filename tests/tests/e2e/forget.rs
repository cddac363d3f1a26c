//! Tests of the command `client forget`. The next connection of a forgotten client follows the lookup table, as the
//! connection of a new client does. When the balancer forgets a client, no other client moves.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::BTreeMap;

use balancer_common::map_types::Forwarding;
use balancer_testkit::{
    site::Site,
    topology::{Family, Shape},
};
use serde_json::Value;

const CLIENTS: std::ops::RangeInclusive<u16> = 1..=150;
const FAMILY: Family = Family::V4;

fn site() -> Site {
    Site::start(Shape::OneLegged, Forwarding::Dsr, 3, |settings, topology| {
        settings.remember = "1h";
        settings.lines = format!(
            "[[service]]\nname = \"plain\"\naddress = \"{}:81\"\nforwarding = \"dsr\"\nremember = \"0s\"\n\
             check = {{ type = \"none\" }}\n[[service.backend]]\nname = \"web1\"\naddress = \"{}\"\n",
            topology.vip(FAMILY),
            topology.backend_address(FAMILY, 0)
        );
        Ok(())
    })
    .unwrap()
}

fn forget(site: &Site, arguments: &[&str]) -> (u64, u64) {
    let said = site.cli(&[&["client", "forget", "--json"], arguments].concat()).unwrap();
    let said: Value = serde_json::from_str(&said).unwrap();
    (said["forgotten"].as_u64().unwrap(), said["moved"].as_u64().unwrap())
}

fn counted(site: &Site) -> (f64, f64) {
    let metrics = site.metrics().unwrap();
    let moves = metrics.sum("moves_total", &["service=\"web\"", "cause=\"forgotten\""]).unwrap();
    assert_eq!(metrics.sum("moves_total", &["service=\"web\""]).unwrap(), moves, "nothing else has moved anybody");
    (metrics.sum("decisions_total", &["service=\"web\"", "result=\"new\""]).unwrap(), moves)
}

fn at(homes: &BTreeMap<u16, String>, home: &str) -> Vec<u16> {
    homes.iter().filter(|(_, at)| *at == home).map(|(&client, _)| client).collect()
}

#[test]
fn when_a_client_is_forgotten_then_it_follows_the_table() {
    let site = site();
    let homes = site.homes(FAMILY, CLIENTS).unwrap();
    let address = |client: u16| site.topology().client_address(FAMILY, client).to_string();
    let all = f64::from(*CLIENTS.end());
    assert_eq!(counted(&site), (all, 0.0));

    // If the lookup table sends the forgotten client to the same backend, the client is new and has not moved.
    let home = at(&homes, "web2")[0];
    assert_eq!(forget(&site, &[&address(home)]), (1, 0));
    assert_eq!(forget(&site, &[&address(home)]), (0, 0), "it is not known any more");
    assert_eq!(site.homes(FAMILY, [home]).unwrap()[&home], "web2");
    assert_eq!(counted(&site), (all + 1.0, 0.0));

    // A drained backend keeps its clients until a user makes the balancer forget these clients.
    site.cli(&["backend", "drain", "web/web1"]).unwrap();
    let kept = at(&homes, "web1");
    assert_eq!(site.homes(FAMILY, CLIENTS).unwrap(), homes);
    assert_eq!(forget(&site, &[&address(kept[0]), "--service", "web"]), (1, 1));
    assert_eq!(counted(&site), (all + 1.0, 1.0));
    let after = site.homes(FAMILY, CLIENTS).unwrap();
    let moved: Vec<u16> = CLIENTS.filter(|client| after[client] != homes[client]).collect();
    assert_eq!(moved, [kept[0]]);
    assert_eq!(counted(&site), (all + 2.0, 1.0));

    let rest = kept.len() as u64 - 1;
    assert_eq!(forget(&site, &["--backend", "web/web1"]), (rest, rest));
    assert_eq!(forget(&site, &["--backend", "web/web1"]), (0, 0));
    let after = site.homes(FAMILY, CLIENTS).unwrap();
    for client in CLIENTS {
        assert_eq!(after[&client] == homes[&client], homes[&client] != "web1", "client {client}");
    }
    assert_eq!(counted(&site), (all + 2.0 + rest as f64, 1.0 + rest as f64));
    let said = site.cli(&["client", "forget", "--backend", "web/web1"]).unwrap();
    assert_eq!(said, "backend web/web1: 0 known clients forgotten, 0 of them go elsewhere now\n");
}

#[test]
fn when_a_service_has_no_memory_then_there_is_no_client_to_forget() {
    let site = site();
    for (arguments, words) in [
        (&["10.1.0.1", "--service", "plain"][..], "plain has no memory of clients"),
        (&["--backend", "plain/web1"], "plain has no memory of clients"),
        (&["--backend", "web/web9"], "did you mean"),
        (&["--backend", "wbe/web1"], "did you mean \"web\"?"),
        (&["2001:db8::1"], "no service is IPv6"),
    ] {
        let error = site.cli(&[&["client", "forget"], arguments].concat()).unwrap_err().to_string();
        assert!(error.contains(words) && error.contains("exit status: 1"), "{error}");
    }
    // Without `--service`, the command applies to all services with memory.
    site.homes(FAMILY, [1]).unwrap();
    let client = site.topology().client_address(FAMILY, 1).to_string();
    assert_eq!(forget(&site, &[&client]), (1, 0));
}
