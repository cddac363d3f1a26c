//! Tests of a fleet whose etcd answers but refuses writes.

use std::{collections::BTreeMap, thread, time::Duration};

use balancer_testkit::namespace::run;

use crate::{
    fleet::{ENGINES, Fleet, Plan, moved},
    support::wait,
};

const METRICS: &str = "127.0.0.1:2381";

impl Fleet {
    /// Writes to etcd until etcd reports that its storage is full.
    fn fill_etcd(&self) {
        let value = "x".repeat(100_000);
        let refused = (0..400).find_map(|number| self.etcdctl(0, &["put", &format!("/filler/{number}"), &value]).err());
        assert!(format!("{:#}", refused.unwrap()).contains("database space exceeded"));
    }

    /// Frees space in etcd as the book describes.
    fn make_room_in_etcd(&self) {
        self.etcdctl(0, &["del", "--prefix", "/filler/"]).unwrap();
        let status = self.etcdctl(0, &["endpoint", "status", "--write-out=fields"]).unwrap();
        let revision = status.lines().find_map(|line| line.strip_prefix("\"Revision\" : ")).unwrap();
        self.etcdctl(0, &["compaction", revision]).unwrap();
        (0..ENGINES.len()).for_each(|engine| drop(self.etcdctl(engine, &["defrag"]).unwrap()));
        self.etcdctl(0, &["alarm", "disarm"]).unwrap();
    }

    /// Returns the number of requests that all etcd servers together have answered.
    fn asked_of_etcd(&self) -> u64 {
        let scrape = |engine: &balancer_testkit::namespace::Namespace| {
            let mut curl = engine.command("curl");
            run(curl.args(["--silent", "--fail", &format!("http://{METRICS}/metrics")])).unwrap()
        };
        let texts: Vec<String> = self.engines.iter().map(scrape).collect();
        let lines = texts.iter().flat_map(|text| text.lines());
        let handled = lines.filter(|line| {
            line.starts_with("grpc_server_handled_total")
                && (line.contains("\"Txn\"") || line.contains("\"LeaseGrant\""))
        });
        handled.filter_map(|line| line.rsplit_once(' ')?.1.parse::<f64>().ok()).sum::<f64>() as u64
    }

    fn asked_in(&self, time: Duration) -> u64 {
        let before = self.asked_of_etcd();
        thread::sleep(time);
        self.asked_of_etcd() - before
    }
}

#[test]
fn when_etcd_is_full_then_members_say_so_act_on_what_they_see_and_do_not_storm_it() {
    let etcd = vec!["--quota-backend-bytes=8388608".to_owned(), format!("--listen-metrics-urls=http://{METRICS}")];
    let mut fleet = Fleet::planned(Plan { etcd, ..Plan::default() });
    let homes = fleet.one_answer();
    let calm = fleet.asked_in(Duration::from_secs(5));
    fleet.fill_etcd();
    let words = "etcd takes no writes (mvcc: database space exceeded): changes are refused";
    for number in 0..3 {
        wait("a member does not say that etcd is full", || {
            let ready = fleet.cli(number, &["ready", "--json"]);
            ready.contains("degraded") && ready.contains(words) && ready.contains("alarm NOSPACE")
        });
        let shown = fleet.cli(number, &["fleet"]);
        assert!(shown.contains("takes no writes (mvcc: database space exceeded)"), "{shown}");
        assert!(fleet.metrics(number).contains("balancer_fleet_engine_writable 0"));
        let refused = fleet.try_cli(number, &["backend", "weight", "web/web1", "80"]).unwrap_err();
        assert!(refused.contains("nothing") && refused.contains("database space exceeded"), "{refused}");
    }
    assert_eq!(moved(&homes, &fleet.one_answer(), ""), BTreeMap::new());
    // A backend dies: each member acts according to its own checks.
    fleet.backends[1] = None;
    fleet.wait_for("web2", "down");
    let after = fleet.one_answer();
    assert_eq!(moved(&homes, &after, "web2"), BTreeMap::new());
    assert!(after.iter().flatten().all(|home| home != "web2"));
    let asked = fleet.asked_in(Duration::from_secs(10));
    println!("etcd was asked {calm} times in 5 s before, and {asked} times in 10 s while it was full");
    assert!(asked < 2 * calm.max(50) * 3, "{asked} requests in 10 s, {calm} in 5 s before");
    // After etcd accepts writes again, the members form one fleet, and no client moves.
    fleet.make_room_in_etcd();
    wait("changes are refused", || fleet.try_cli(0, &["backend", "weight", "web/web3", "70"]).is_ok());
    fleet.wait_in_step();
    for number in 0..3 {
        wait("a member is not ready again", || fleet.try_cli(number, &["ready", "--strict"]).is_ok());
    }
    thread::sleep(Duration::from_secs(3));
    assert_eq!(moved(&after, &fleet.one_answer(), ""), BTreeMap::new());
}
