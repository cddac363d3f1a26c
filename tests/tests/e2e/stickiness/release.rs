//! The same tests in the other topologies, which take longer than a landing has time for.

use balancer_common::map_types::Forwarding;
use balancer_testkit::topology::Shape;

use super::clients_stay;

#[test]
fn when_clients_connect_with_dsr_on_two_legs_then_they_stay() {
    clients_stay(Shape::TwoLegged, Forwarding::Dsr);
}

#[test]
fn when_clients_connect_with_nat_on_one_leg_then_they_stay() {
    clients_stay(Shape::OneLegged, Forwarding::Nat);
}
