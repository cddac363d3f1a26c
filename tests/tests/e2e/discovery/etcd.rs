//! Tests of backends that the balancer takes from keys in etcd. The servers `web1` to `web3` run on three hosts, and
//! etcd runs on a fourth host.

mod release;

use std::collections::BTreeMap;

use balancer_common::map_types::Forwarding;
use balancer_testkit::{
    etcd::{EtcdCluster, Options},
    namespace::run,
    site::{Settings, Site},
    topology::{Family, Shape, Topology},
};

use super::{CLIENTS, reasons, wait_until, web};

/// A site that has its own etcd.
struct Place {
    etcd: EtcdCluster,
    site: Site,
}

impl Place {
    /// Starts the site, and an etcd with the given keys. In the text `source`, the configuration keys for reaching etcd
    /// replace `ENDPOINTS`.
    fn start(options: &Options, source: &str, keys: impl Fn(&Topology) -> Vec<(String, String)>) -> Self {
        Self::adapted(options, source, keys, |_| {})
    }

    fn adapted(
        options: &Options,
        source: &str,
        keys: impl Fn(&Topology) -> Vec<(String, String)>,
        adapt: impl FnOnce(&mut Settings),
    ) -> Self {
        let mut etcd = None;
        let site = Site::start(Shape::OneLegged, Forwarding::Nat, 4, |settings, topology| {
            let (host, address) = (&topology.backends()[3], topology.backend_address(Family::V4, 3));
            let cluster = EtcdCluster::start(&[(host, address)], options)?;
            for (key, value) in keys(topology) {
                run(cluster.client(host, address).args(["put", &key, &value]))?;
            }
            let mut needs = format!("endpoints = {:?}", cluster.endpoints());
            if let Some(of) = cluster.certificates() {
                needs += &format!(", ca = {:?}, cert = {:?}, key = {:?}", of.ca, of.cert, of.key);
            }
            settings.backends.clear();
            settings.remember = "10m";
            settings.service_lines = format!("discover = [{{ {} }}]", source.replace("ENDPOINTS", &needs));
            adapt(settings);
            etcd = Some(cluster);
            Ok(())
        });
        Self { etcd: etcd.unwrap(), site: site.unwrap() }
    }

    fn etcdctl(&self, arguments: &[&str]) -> String {
        let topology = self.site.topology();
        let address = topology.backend_address(Family::V4, 3);
        run(self.etcd.client(&topology.backends()[3], address).args(arguments)).unwrap()
    }

    fn put(&self, key: &str, value: &str) {
        self.etcdctl(&["put", key, value]);
    }

    /// Returns the address and port of a server.
    fn at(&self, number: u16) -> String {
        at(self.site.topology(), number)
    }

    fn homes(&self) -> BTreeMap<u16, String> {
        self.site.homes(Family::V4, CLIENTS).unwrap()
    }

    /// Waits until the service has exactly the expected backends, in the form `NAME ADMIN WEIGHT`.
    #[track_caller]
    fn wait_for(&self, expected: &[&str]) {
        let pool = || {
            let backends = web(&self.site).backends;
            let line = |of: &balancer_api::model::BackendView| {
                format!("{} {} {}{}", of.name, of.admin, of.weight, if of.backup { " backup" } else { "" })
            };
            let mut lines: Vec<String> = backends.iter().map(line).collect();
            lines.sort_unstable();
            lines
        };
        wait_until(&format!("the pool is {expected:?}"), || pool() == expected);
    }
}

fn at(topology: &Topology, number: u16) -> String {
    format!("{}:8080", topology.backend_address(Family::V4, number - 1))
}

fn keys(topology: &Topology) -> Vec<(String, String)> {
    (1..=2).map(|number| (format!("/services/web/web{number}"), at(topology, number))).collect()
}

const SOURCE: &str = "etcd = \"/services/web/\", keep = \"0s\", ENDPOINTS";

#[test]
fn when_keys_of_etcd_change_then_backends_come_drain_and_come_back_and_a_wrong_value_changes_nothing() {
    let place = Place::start(&Options::default(), SOURCE, keys);
    place.wait_for(&["web1 ready 100", "web2 ready 100"]);
    assert_eq!(reasons(&place.site), "", "from the first packet on");
    let shown = place.site.cli(&["status"]).unwrap();
    assert!(shown.contains("discovers 2 targets by etcd /services/web/"), "{shown}");
    assert_eq!(web(&place.site).discover[0].etcd.as_deref(), Some("/services/web/"));
    let first = place.homes();

    // The test adds a third target in the format of SkyDNS, and a key of another service.
    let skydns = format!(r#"{{"host":"{}","port":8080,"weight":250}}"#, place.at(3).trim_end_matches(":8080"));
    place.put("/services/web/web3", &skydns);
    place.put("/services/web2/web9", &place.at(3));
    place.wait_for(&["web1 ready 100", "web2 ready 100", "web3 ready 250"]);
    assert_eq!(place.homes(), first);

    // A key disappears from etcd and returns.
    place.etcdctl(&["del", "/services/web/web2"]);
    place.wait_for(&["web1 ready 100", "web2 drain 100", "web3 ready 250"]);
    assert_eq!(place.homes(), first);
    place.put("/services/web/web2", &place.at(2));
    place.wait_for(&["web1 ready 100", "web2 ready 100", "web3 ready 250"]);

    // The backend of a malformed value stays as it is, and the balancer ignores an empty list.
    place.put("/services/web/web1", "web1.internal:80");
    let wrong = r#"etcd /services/web/: 1 target left out: key "web1": the value is no address of a backend"#;
    wait_until("the key is told", || reasons(&place.site).contains(wrong));
    place.etcdctl(&["del", "/services/web/", "--prefix"]);
    let short = "etcd /services/web/ has 0 targets, fewer than min = 1";
    wait_until("the empty list is told", || reasons(&place.site).contains(short));
    place.wait_for(&["web1 ready 100", "web2 ready 100", "web3 ready 250"]);
    assert_eq!(place.homes(), first);
    for number in 1..=3 {
        place.put(&format!("/services/web/web{number}"), &place.at(number));
    }
    wait_until("all is well", || reasons(&place.site).is_empty());
    place.wait_for(&["web1 ready 100", "web2 ready 100", "web3 ready 100"]);
    assert_eq!(place.homes(), first);
}

#[test]
fn when_the_lease_of_a_servers_key_runs_out_then_it_drains_and_worse_priorities_are_backups() {
    let place = Place::start(&Options::default(), SOURCE, keys);
    let lease = place.etcdctl(&["lease", "grant", "2"]);
    let lease = lease.split_whitespace().nth(1).unwrap();
    let backup = format!(r#"{{"host":"{}","priority":20}}"#, place.at(3));
    place.etcdctl(&["put", "/services/web/web3", &backup, &format!("--lease={lease}")]);
    place.wait_for(&["web1 ready 100", "web2 ready 100", "web3 ready 100 backup"]);
    place.wait_for(&["web1 ready 100", "web2 ready 100", "web3 drain 100 backup"]);
}

#[test]
fn when_a_service_gets_another_source_or_other_endpoints_then_the_backends_that_it_names_keep_their_clients() {
    let mut place = Place::start(&Options::default(), SOURCE, keys);
    let first = place.homes();
    let endpoints = place.etcd.endpoints();
    let more = format!("{:?}", [endpoints[0].clone(), "http://127.0.0.1:1".to_owned()]);
    let lines = format!("discover = [{{ etcd = \"/services/web\", keep = \"0s\", endpoints = {more} }}]");
    place.site.apply(|settings| settings.service_lines = lines).unwrap();
    place.put("/services/web/web3", &place.at(3));
    place.wait_for(&["web1 ready 100", "web2 ready 100", "web3 ready 100"]);
    assert_eq!(place.homes(), first);
    let list: Vec<String> = (1..=2)
        .map(|number| format!(r#"{{"targets": ["{}"], "labels": {{"name": "web{number}"}}}}"#, place.at(number)))
        .collect();
    let file = place.site.files().join("targets.json");
    std::fs::write(&file, format!("[{}]", list.join(","))).unwrap();
    let lines = format!("discover = [{{ file = {file:?}, keep = \"0s\" }}]");
    place.site.apply(|settings| settings.service_lines = lines).unwrap();
    place.wait_for(&["web1 ready 100", "web2 ready 100", "web3 drain 100"]);
    assert_eq!(place.homes(), first);
}
