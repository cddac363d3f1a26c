//! Tests of changing the listeners of a running service. The balancer recognizes known clients at another listener,
//! `apply` adds and removes listeners, and impossible changes have no effect.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{fs, net::SocketAddr};

use balancer_common::map_types::Forwarding;
use balancer_config::config::Protocol;
use balancer_testkit::{
    site::Site,
    topology::{Family, Shape},
};

use crate::listeners::{BACKENDS, CLIENTS, IN_RANGE, LATER, PORTS, ask, serve, shop, where_all_are};

const HTTP: u16 = PORTS[0].0;
const HTTPS: u16 = PORTS[1].0;

fn start() -> Site {
    let site = Site::start(Shape::OneLegged, Forwarding::Dsr, BACKENDS, |settings, topology| {
        settings.families = Vec::new();
        settings.lines = shop(topology, Forwarding::Dsr);
        Ok(())
    });
    let site = site.unwrap();
    (1..=BACKENDS).for_each(|number| serve(&site, Forwarding::Dsr, number));
    site
}

/// Returns the numbers of decisions about new connections of the shop's clients: new, kept, moved.
fn decisions(site: &Site) -> [f64; 3] {
    let metrics = site.metrics().unwrap();
    ["new", "kept", "moved"]
        .map(|result| metrics.sum("decisions_total", &["service=\"shop\"", &format!("result=\"{result}\"")]).unwrap())
}

#[test]
fn when_a_client_connects_through_another_listener_then_it_is_kept() {
    let site = start();
    let all = f64::from(2 * CLIENTS);
    let homes = where_all_are(&site, &[HTTP], &[]);
    assert_eq!(decisions(&site), [all, 0.0, 0.0]);
    assert_eq!(where_all_are(&site, &[HTTPS], &[]), homes);
    assert_eq!(decisions(&site), [all, all, 0.0]);
    // Known clients also stay when the lookup table names another backend.
    site.cli(&["backend", "drain", "shop/web1", "--timeout", "10m"]).unwrap();
    assert_eq!(where_all_are(&site, &[HTTPS, HTTP], &[]), homes);
    assert_eq!(decisions(&site), [all, 3.0 * all, 0.0]);
    // A client's first datagram may count as a connection of a known client. Later datagrams of the client do not count
    // as connections.
    assert_eq!(where_all_are(&site, &[], &[HTTP, IN_RANGE]), homes);
    let [new, kept, moved] = decisions(&site);
    assert_eq!([new, moved], [all, 0.0]);
    assert!((3.0 * all..=5.0 * all).contains(&kept), "{kept}");
    // A client moves at all listeners of a service at the same time.
    site.cli(&["backend", "maint", "shop/web1"]).unwrap();
    let of_web1 = homes.values().filter(|home| *home == "web1").count();
    let after = where_all_are(&site, &[HTTPS, HTTP], &[HTTPS]);
    assert_eq!(homes.iter().filter(|&(client, home)| after[client] != *home).count(), of_web1);
    assert_eq!(decisions(&site)[2], of_web1 as f64);
}

#[test]
fn when_apply_adds_and_removes_listeners_then_no_client_moves() {
    let mut site = start();
    let homes = where_all_are(&site, &[HTTP, HTTPS], &[IN_RANGE]);
    let later = SocketAddr::new(site.topology().vip(Family::V4), LATER).to_string();
    let [v4, v6] = Family::BOTH.map(|family| site.topology().vip(family));

    // A listener that a user has added survives the application of a file that lacks the listener.
    site.cli(&["service", "listen", "add", "shop", &later]).unwrap();
    let lines = shop(site.topology(), Forwarding::Dsr);
    let without_http = lines.replace(&format!("\"{v4}:{HTTP}\", "), "").replace(&format!("\"[{v6}]:{HTTP}\", "), "");
    let file = site.files().join("without-http.toml");
    fs::write(&file, fs::read_to_string(site.config()).unwrap().replace(&lines, &without_http)).unwrap();
    let said = site.cli(&["apply", "--dry-run", &file.to_string_lossy()]).unwrap();
    for gone in [format!("{v4}:{HTTP}/tcp"), format!("[{v6}]:{HTTP}/tcp")] {
        assert!(said.contains(&gone), "{gone} is not in {said}");
    }
    assert!(said.contains(&format!("{later}/tcp of shop was added at run time and is kept")), "{said}");
    assert_eq!(where_all_are(&site, &[HTTP], &[]), homes, "a dry run changes nothing");
    site.apply(|settings| settings.lines = without_http).unwrap();
    assert_eq!(where_all_are(&site, &[HTTPS], &[HTTP, IN_RANGE]), homes);
    for family in Family::BOTH {
        assert!(ask(&site, family, 0, HTTP, Protocol::Tcp).is_err(), "{family:?}: nobody listens there");
    }
    for client in 0..CLIENTS {
        assert_eq!(ask(&site, Family::V4, client, LATER, Protocol::Tcp).unwrap(), homes[&(true, client)]);
    }

    // The next file names the listener again, and the listener's counters start at zero.
    site.apply(|settings| settings.lines = lines).unwrap();
    assert_eq!(where_all_are(&site, &[HTTP, HTTPS], &[HTTP, IN_RANGE]), homes);
    assert_eq!(site.status().unwrap().services[0].listeners.len(), 11);
    let metrics = site.metrics().unwrap();
    let opened = metrics.sum("listener_connections_total", &[&format!("listener=\"{v4}:{HTTP}/tcp\"")]).unwrap();
    assert_eq!(opened, f64::from(CLIENTS));
    assert_eq!(metrics.sum("moves_total", &["service=\"shop\""]).unwrap(), 0.0);
}

#[test]
fn when_a_listener_change_is_impossible_then_nothing_changes() {
    let mut site = start();
    let v4 = site.topology().vip(Family::V4);
    let refused = |site: &Site, listener: &str| {
        let output = site.output(&["service", "listen", "add", "shop", listener]).unwrap();
        assert!(!output.status.success(), "{listener} was added");
        String::from_utf8_lossy(&output.stderr).into_owned()
    };
    let other = format!(
        "\n[[service]]\nname = \"other\"\nforwarding = \"dsr\"\nlisten = [\"{v4}:9000\", \"{v4}:9100-9199\"]\n\
         check = {{ type = \"none\" }}\n"
    );
    let lines = shop(site.topology(), Forwarding::Dsr) + &other;
    site.apply(|settings| settings.lines.clone_from(&lines)).unwrap();
    let homes = where_all_are(&site, &[HTTP], &[]);
    for (listener, why) in [(format!("{v4}:9000"), "is service other already"), (format!("{v4}:9150-9250"), "overlap")]
    {
        let told = refused(&site, &listener);
        assert!(told.contains(why), "{listener}: {told}");
    }
    let taken = lines.replace(&format!("{v4}:9000"), &format!("{v4}:{HTTP}"));
    assert!(site.apply(|settings| settings.lines = taken).is_err());
    // The test adds listeners up to the largest allowed number, and tries to add one more. A single port within another
    // service's range is a separate listener.
    for port in 9150..9150 + 54 {
        site.cli(&["service", "listen", "add", "shop", &format!("{v4}:{port}")]).unwrap();
    }
    let told = refused(&site, &format!("{v4}:9300"));
    assert!(told.contains("more than 64 listeners of one service"), "{told}");
    assert_eq!(site.status().unwrap().services[0].listeners.len(), 64);
    // A user cannot remove the last listener of any service.
    site.cli(&["service", "listen", "remove", "other", &format!("{v4}:9000")]).unwrap();
    let output = site.output(&["service", "listen", "remove", "other", &format!("{v4}:9100-9199")]).unwrap();
    assert!(String::from_utf8_lossy(&output.stderr).contains("only listener"), "{output:?}");
    assert_eq!(where_all_are(&site, &[HTTP, HTTPS], &[HTTP]), homes);
}
