//! Tests of DNS and of etcd as sources of targets in a fleet.

use balancer_testkit::topology::{Family, Topology};

use crate::{
    discovery::named::Named,
    fleet::{ENGINES, Fleet, PORT, Plan},
    support::wait,
};

impl Fleet {
    /// Returns the SRV records for the given backends.
    fn records(&self, numbers: &[u16]) -> String {
        let of = |number: &u16| {
            let address = self.topology.backend_address(Family::V4, number - 1);
            format!("_http._tcp.web SRV 10 100 {PORT} web{number}\nweb{number} A {address}\n")
        };
        numbers.iter().map(of).collect()
    }

    /// Checks that all members send each client to the same backend.
    #[track_caller]
    fn one_answer_of_web(&self) {
        let members: Vec<usize> = self.members().collect();
        let answers: Vec<Vec<String>> = members
            .iter()
            .map(|&number| {
                self.route(&[number]);
                self.homes(Family::V4)
            })
            .collect();
        self.route(&members);
        assert!(answers.iter().all(|answer| *answer == answers[0]), "{answers:?}");
    }
}

#[test]
fn when_dns_changes_in_a_fleet_then_all_members_have_the_leaders_answer_and_names_follow_their_addresses() {
    let mut fleet = Fleet::planned(Plan { service_lines: "drain = { timeout = \"2s\" }", ..Plan::default() });
    let server = Topology::host_address(Family::V4, ENGINES[0]);
    let mut named = Named::start(&fleet.engines[0], server, &fleet.records(&[1, 2]));
    fleet.apply_with(&format!(
        "discover = [{{ dns = \"_http._tcp.web.internal\", servers = [\"{server}\"], keep = \"0s\" }}]"
    ));
    fleet.wait_for_pool(&["web1.internal ready", "web2.internal ready"], 2);
    fleet.wait_for_all_up();
    fleet.one_answer_of_web();

    fleet.replace_leader();
    named.answer(&fleet.engines[0], &fleet.records(&[2, 3]));
    fleet.wait_for_pool(&["web2.internal ready", "web3.internal ready"], 2);
    fleet.wait_for_all_up();
    fleet.one_answer_of_web();
}

#[test]
fn when_keys_of_etcd_change_in_a_fleet_then_its_leader_decides_and_the_next_leader_goes_on() {
    let mut fleet = Fleet::new();
    let homes = fleet.homes(Family::V4);
    let put = |fleet: &Fleet, number: u16| {
        let (key, address) =
            (format!("/services/web/web{number}"), fleet.topology.backend_address(Family::V4, number - 1));
        fleet.etcdctl(0, &["put", &key, &format!("{address}:{PORT}")]).unwrap();
    };
    (1..=3).for_each(|number| put(&fleet, number));
    let source =
        format!("discover = [{{ etcd = \"/services/web/\", keep = \"0s\", {} }}]", fleet.etcd_keys().join(", "));
    // The source of targets names the backends of the file, which therefore keep their clients.
    fleet.apply_with(&source);
    fleet.wait_for_pool(&["web1 ready", "web2 ready", "web3 ready"], 3);
    assert_eq!(fleet.homes(Family::V4), homes);

    fleet.etcdctl(0, &["del", "/services/web/web2"]).unwrap();
    fleet.wait_for_pool(&["web1 ready", "web2 drain", "web3 ready"], 2);
    assert_eq!(fleet.homes(Family::V4), homes, "known clients stay where they are");

    let leader = fleet.replace_leader();
    fleet.wait_for_pool(&["web1 ready", "web2 drain", "web3 ready"], 2);
    put(&fleet, 2);
    put(&fleet, 4);
    fleet.wait_for_pool(&["web1 ready", "web2 ready", "web3 ready", "web4 ready"], 4);
    fleet.wait_for_all_up();
    assert_eq!(fleet.homes(Family::V4), homes);

    fleet.etcdctl(0, &["del", "/services/web/", "--prefix"]).unwrap();
    let short = "has 0 targets, fewer than min = 1";
    wait("the leader does not say what is wrong", || fleet.reasons(leader).contains(short));
    assert!(fleet.members().filter(|&number| number != leader).all(|number| fleet.reasons(number).is_empty()));
    assert_eq!(fleet.homes(Family::V4), homes);
}
