//! Tests of a fleet in each forwarding mode.

use std::collections::BTreeMap;

use balancer_common::map_types::Forwarding;
use balancer_testkit::topology::Family;

use super::{Fleet, Plan, moved};

/// Under load, the test adds a backend and drains another backend; then a member dies and returns. No client moves, and
/// all members agree on each client's backend.
pub(super) fn one_answer_through(forwarding: Forwarding) {
    let mut fleet = Fleet::planned(Plan { forwarding, ..Plan::default() });
    for member in 0..3 {
        let said = fleet.cli(member, &["doctor"]);
        assert!(said.starts_with("no findings"), "lb{}: {said}", member + 1);
    }
    let homes = fleet.one_answer();
    let load = fleet.under_load(|fleet| {
        fleet.spread("1");
        for (member, service, family) in [(1, "web", Family::V4), (2, "web6", Family::V6)] {
            fleet.cli(member, &["backend", "add", &format!("{service}/web4"), &fleet.backend_address(family, 4)]);
            fleet.cli(member, &["backend", "drain", &format!("{service}/web2")]);
        }
        fleet.wait_in_step();
    });
    load.assert_answered(100);
    assert_eq!(moved(&homes, &fleet.one_answer(), ""), BTreeMap::new());
    fleet.route(&[1, 2]);
    fleet.answer_through(&[1, 2]);
    fleet.kill(0);
    assert_eq!(moved(&homes, &fleet.one_answer(), ""), BTreeMap::new());
    fleet.start_again(0);
    fleet.answer_through(&[0, 1, 2]);
    assert_eq!(moved(&homes, &fleet.one_answer(), ""), BTreeMap::new());
}

#[test]
fn when_a_fleet_uses_nat_then_clients_have_one_answer() {
    one_answer_through(Forwarding::Nat);
}

#[test]
fn when_a_fleet_uses_gue_then_clients_have_one_answer() {
    one_answer_through(Forwarding::Gue);
}
