//! Tests of a fleet whose etcd has lost its data, and of a member that cannot reach etcd.

use std::{collections::BTreeMap, thread, time::Duration};

use balancer_testkit::topology::{Family, Topology};

use crate::{
    fleet::{ENGINES, Fleet, moved},
    support::wait,
};

#[test]
fn when_etcd_has_lost_everything_then_members_fill_it_again_without_a_move() {
    let mut fleet = Fleet::new();
    let homes = fleet.one_answer();
    // Because of the new weights, many clients are at other backends than the lookup table names.
    fleet.cli(1, &["backend", "weight", "web/web1", "10"]);
    fleet.cli(1, &["backend", "weight", "web6/web1", "10"]);
    fleet.wait_in_step();
    let before = fleet.shown(0).epoch;
    fleet.kill_all_engines();
    // A backend dies while etcd is down.
    fleet.backends[1] = None;
    fleet.wait_for("web2", "down");
    let after = fleet.one_answer();
    assert_eq!(moved(&homes, &after, "web2"), BTreeMap::new());
    fleet.sit_out(&after, "");
    fleet.etcd.lose_disks().unwrap();
    fleet.start_all_engines();
    // Changes that users made at run time survive, although only the members know these changes.
    for number in fleet.members() {
        let weights = fleet.cli(number, &["backend", "list", "web", "--json"]);
        assert!(weights.contains("\"weight\": 10") && weights.contains("\"weight\": 70"), "{weights}");
    }
    assert!(fleet.shown(0).epoch > before, "{:?} after {before:?}", fleet.shown(0).epoch);
    thread::sleep(Duration::from_secs(3));
    assert_eq!(moved(&after, &fleet.one_answer(), ""), BTreeMap::new());
}

#[test]
fn when_a_member_was_cut_off_from_etcd_then_clients_still_have_one_answer() {
    let mut fleet = Fleet::new();
    let homes = fleet.one_answer();
    // The member lb3 cannot reach etcd. All members can still reach each other.
    let cut = |fleet: &Fleet, verb: &str| {
        for engine in ENGINES.map(|host| Topology::host_address(Family::V4, host)) {
            fleet.namespace(2).ip(&format!("route {verb} blackhole {engine}/32")).unwrap();
        }
    };
    cut(&fleet, "add");
    wait("lb3 is not degraded", || fleet.cli(2, &["ready", "--json"]).contains("etcd is out of reach"));
    assert!(fleet.try_cli(2, &["ready", "--strict"]).is_err());
    // The members lb1 and lb2 drop lb3 from the fleet and continue. New clients of lb1 and lb2 reach backends that lb3
    // does not know.
    wait("lb3 still counts", || fleet.shown(0).members.len() == 2);
    for (service, family) in [("web", Family::V4), ("web6", Family::V6)] {
        let name = format!("{service}/web4");
        let added = fleet.cli(0, &["backend", "add", &name, &fleet.backend_address(family, 4)]);
        fleet.assert_applied(0, &added, 2);
    }
    let refused = fleet.try_cli(2, &["backend", "weight", "web/web1", "50"]).unwrap_err();
    assert!(refused.contains("out of reach"), "{refused}");
    // Known clients reach the same backends through all three members, including lb3.
    assert_eq!(moved(&homes, &fleet.one_answer(), ""), BTreeMap::new());
    let load = fleet.under_load(|fleet| {
        cut(fleet, "del");
        wait("lb3 does not come back", || fleet.try_cli(2, &["ready", "--strict"]).is_ok());
        fleet.wait_in_step();
    });
    load.assert_answered(20);
    assert_eq!(moved(&homes, &fleet.one_answer(), ""), BTreeMap::new());
    assert!(fleet.states(2).iter().any(|state| state.starts_with("web/web4 up") && !state.ends_with(" 0")));
}
