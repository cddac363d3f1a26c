//! Tests of a fleet whose maps grow several times, or whose maps cannot all grow. They take longer than a landing has time
//! for.

use std::collections::BTreeMap;

use balancer_testkit::{binaries, faults::Faults};
use nix::errno::Errno;

use crate::{
    fleet::{
        Fleet, Plan,
        growth::{AT_ONCE, members_agree},
        moved,
    },
    support::wait,
};

#[test]
fn when_services_come_one_by_one_in_a_fleet_then_the_maps_grow_again_and_members_agree() {
    members_agree(12, 2);
}

#[test]
fn when_the_kernel_of_one_member_refuses_larger_maps_then_verdicts_go_on_and_it_follows_later() {
    let place = tempfile::tempdir().unwrap();
    let faults = Faults::new(place.path(), &binaries::balancer().unwrap()).unwrap();
    let mut fleet = Fleet::planned(Plan { third: Some(faults.program()), ..Plan::default() });
    let homes = fleet.one_answer();
    faults.refuse_maps(Errno::ENOMEM as i32).unwrap();
    let (said, is_whole) = fleet.try_apply(0, AT_ONCE);
    assert!(said.contains("; applied by 2 of 3 members; applied only in part by lb3") && !is_whole, "{said}");
    let ready = |fleet: &Fleet, number| match fleet.try_cli(number, &["ready"]) {
        Ok(said) | Err(said) => said,
    };
    wait("lb3 does not say what it lacks", || ready(&fleet, 2).contains("making room in the kernel's maps"));
    assert_eq!((ready(&fleet, 0).as_str(), ready(&fleet, 1).as_str()), ("ready", "ready"));

    fleet.backends[0] = None;
    fleet.wait_for("web1", "down");
    let drained = fleet.cli(1, &["backend", "drain", "web/web2", "--timeout", "1h"]);
    assert!(drained.contains("applied by"), "{drained}");
    let after = fleet.one_answer();
    assert_eq!(moved(&homes, &after, "web1"), BTreeMap::new());

    faults.refuse_maps(0).unwrap();
    fleet.wait_in_step();
    wait("lb3 lacks services", || ready(&fleet, 2) == "ready");
    assert_eq!(moved(&after, &fleet.one_answer(), ""), BTreeMap::new());
}
