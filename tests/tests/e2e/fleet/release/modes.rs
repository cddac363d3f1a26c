//! The same tests in the other modes.

use balancer_common::map_types::Forwarding;

use crate::fleet::{Fleet, modes::one_answer_through};

#[test]
fn when_a_fleet_is_healthy_then_the_doctor_finds_nothing_at_any_member() {
    let fleet = Fleet::new();
    for member in 0..3 {
        let said = fleet.cli(member, &["doctor"]);
        assert!(said.starts_with("no findings"), "lb{}: {said}", member + 1);
    }
}

#[test]
fn when_a_fleet_uses_ipip_then_clients_have_one_answer() {
    one_answer_through(Forwarding::Ipip);
}
