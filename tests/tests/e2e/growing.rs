//! Tests of maps that grow while something else has another program or data of its own in the kernel.
//!
//! | beside the growth | what must hold |
//! | --- | --- |
//! | a trace | the trace goes on, and the plain program is back afterwards |
//! | a trace that begins after a growth, and ends after the next one | the same |
//! | open `snat` connections | the connections go on; a new `snat` service has ports |
//! | rules that deny clients | the clients stay denied |
//! | features that the program does not have yet | one command gets both the features and the room |
//! | a restart with fewer services, and one with more | known clients and open connections stay |
//!
//! The tests of [`full_maps`](crate::full_maps) treat loads, failures and the end of the balancer in between.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write as _,
    fs,
    net::{SocketAddr, TcpStream},
    ops::RangeInclusive,
    time::Duration,
};

use balancer_common::map_types::Forwarding;
use balancer_testkit::{
    site::{PATIENCE, QUICK_CHECK, Site, backend_port},
    topology::{Family, Shape},
};

use crate::{
    observing::watch::{self, Watch, attached},
    snat::{ask, connect},
    support::wait,
};

const FAMILY: Family = Family::V4;
const CLIENTS: RangeInclusive<u16> = 1..=60;
const DENIED: u16 = 61;
/// The number of services that a command adds; there is room for 128 at the start.
const AT_ONCE: u32 = 200;

fn services(all: impl Iterator<Item = u32>) -> String {
    let mut text = String::new();
    for n in all {
        write!(
            text,
            "[[service]]\nname = \"more{n}\"\naddress = \"198.18.{}.{}:80\"\nforwarding = \"dsr\"\ntable_size = 11\n\
             remember = \"0s\"\ncheck = {{ type = \"none\" }}\n",
            n >> 8,
            n & 255
        )
        .unwrap();
    }
    text
}

/// A site whose maps grow, with what must stay.
struct Growing {
    site: Site,
    homes: BTreeMap<u16, String>,
    open: Vec<TcpStream>,
}

impl Growing {
    fn start() -> Self {
        let mut site = Site::start(Shape::OneLegged, Forwarding::Snat, 3, |settings, _| {
            settings.remember = "10m";
            settings.on_exit = "keep";
            settings.check = QUICK_CHECK.to_owned();
            Ok(())
        })
        .unwrap();
        (1..=3).for_each(|number| site.wait_state(number, &["up"]).unwrap());
        let homes = site.homes(FAMILY, CLIENTS).unwrap();
        let denied = site.topology().client_address(FAMILY, DENIED).to_string();
        site.cli(&["rule", "add", "web", &denied, "deny"]).unwrap();
        let open = (1..=4).map(|client| connect(&site, FAMILY, client)).collect();
        Self { site, homes, open }
    }

    /// Adds services for which the maps must grow, as one drop-in.
    #[track_caller]
    fn add(&self, name: &str, text: &str) {
        let before = self.grown();
        self.apply(name, text);
        assert!(self.grown() > before, "{name}: the maps have not grown");
    }

    #[track_caller]
    fn apply(&self, name: &str, text: &str) {
        let file = self.site.files().join("more.toml");
        fs::write(&file, text).unwrap();
        self.site.cli(&["drop-in", "apply", name, &file.display().to_string()]).unwrap();
    }

    fn grown(&self) -> usize {
        fs::read_to_string(self.site.files().join("balancer.log"))
            .unwrap()
            .matches("the kernel's maps have grown")
            .count()
    }

    #[track_caller]
    fn assert_served(&mut self, what: &str) {
        for stream in &mut self.open {
            assert!(ask(stream).unwrap().starts_with("HTTP/1.1 200"), "{what}");
        }
        assert_eq!(self.site.homes(FAMILY, CLIENTS).unwrap(), self.homes, "{what}");
        let refused = self.site.ask(FAMILY, [DENIED], Duration::from_millis(300)).unwrap();
        assert!(refused.iter().all(Result::is_err), "{what}: {refused:?}");
    }

    /// Asserts that a trace shows a new connection of the client.
    #[track_caller]
    fn assert_traced(&self, trace: &Watch, client: u16) {
        let address = self.site.topology().client_address(FAMILY, client).to_string();
        let opened = || {
            let packets = trace.packets();
            let is_new = |packet: &&serde_json::Value| packet["packet"]["flags"] == "SYN";
            packets.iter().filter(is_new).filter(|packet| packet["client"] == address.as_str()).count()
        };
        let before = opened();
        self.site.ask(FAMILY, [client], PATIENCE).unwrap().remove(0).unwrap();
        wait("the trace does not show the connection", || opened() > before);
    }
}

#[test]
fn when_the_maps_grow_during_traces_then_the_traces_go_on_and_leave_the_plain_program() {
    let mut growing = Growing::start();
    let plain = attached(&growing.site);
    let trace = ["trace", "--service", "web", "--json"];
    let mut first = watch::start(&growing.site, "first", &trace);
    let tracing = attached(&growing.site);
    assert!(plain.is_disjoint(&tracing), "{plain:?}, {tracing:?}");
    growing.assert_traced(&first, 5);
    growing.add("one", &services(0..AT_ONCE));
    growing.assert_traced(&first, 6);
    growing.assert_served("during a trace");
    first.interrupt();
    growing.site.homes(FAMILY, CLIENTS).unwrap();
    wait("the plain program is not back", || attached(&growing.site) == plain);

    let mut second = watch::start(&growing.site, "second", &trace);
    growing.assert_traced(&second, 7);
    growing.add("two", &services(AT_ONCE..3 * AT_ONCE));
    growing.assert_traced(&second, 8);
    second.interrupt();
    wait("the plain program is not back", || attached(&growing.site) == plain);
    growing.assert_served("after the traces");
    assert_eq!(growing.site.cli(&["ready"]).unwrap().trim(), "ready");
}

#[test]
fn when_a_change_needs_features_and_room_then_connections_rules_and_restarts_are_as_before() {
    let mut growing = Growing::start();
    let before = attached(&growing.site);
    // Encapsulation, IPv6 and QUIC need code that the program does not have yet.
    let backend = growing.site.topology().backend_address(FAMILY, 0);
    let port = backend_port(Forwarding::Snat);
    let also = SocketAddr::new(growing.site.topology().vip(FAMILY), 81);
    let richer = format!(
        "[[service]]\nname = \"gue\"\naddress = \"[2001:db8::9]:80\"\nforwarding = \"gue\"\ntable_size = 11\n\
         check = {{ type = \"none\" }}\n[[service.rule]]\nprefix = \"2001:db8:1::/48\"\naction = \"deny\"\n\
         [[service]]\nname = \"also\"\naddress = \"{also}\"\nforwarding = \"snat\"\n\
         check = {{ type = \"none\" }}\n[[service.backend]]\nname = \"one\"\naddress = \"{backend}:{port}\"\n"
    );
    growing.add("one", &(richer + &services(0..AT_ONCE)));
    assert_eq!(attached(&growing.site), before);
    let connect = move || TcpStream::connect_timeout(&also, PATIENCE).map(drop);
    growing.site.topology().client().run_in_thread(connect).unwrap().unwrap();
    growing.assert_served("with more features and more room");
    growing.add("two", &services(AT_ONCE..3 * AT_ONCE));
    growing.assert_served("with more room");
    let names = |site: &Site| -> BTreeSet<String> {
        site.status().unwrap().services.into_iter().map(|service| service.name).collect()
    };
    let all = names(&growing.site);
    assert_eq!(all.len(), 3 + 3 * AT_ONCE as usize);

    // A start makes the maps that the services need then.
    growing.site.cli(&["drop-in", "remove", "two"]).unwrap();
    growing.site.kill_and_restart_with_the_file_as_it_is().unwrap();
    assert_eq!(names(&growing.site).len(), 3 + AT_ONCE as usize);
    growing.assert_served("with fewer services");
    growing.apply("two", &services(AT_ONCE..3 * AT_ONCE));
    growing.site.restart_with_the_file_as_it_is().unwrap();
    assert_eq!(names(&growing.site), all);
    growing.assert_served("with more services");
    growing.site.kill_backend(1).unwrap();
    wait("web1 is not down", || {
        let status = growing.site.status().unwrap();
        status.services.iter().flat_map(|service| &service.backends).any(|of| of.name == "web1" && of.state == "down")
    });
    let now = growing.site.homes(FAMILY, CLIENTS).unwrap();
    assert!(now.iter().all(|(client, home)| *home == growing.homes[client] || growing.homes[client] == "web1"));
}
