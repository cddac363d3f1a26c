//! The same tests in the other topologies, which take longer than a landing has time for.

use balancer_common::map_types::Forwarding;
use balancer_testkit::topology::Shape;

use super::{Variant, serves};

#[test]
fn when_ipip_runs_on_two_legs_then_clients_are_served() {
    serves(Shape::TwoLegged, Forwarding::Ipip, Variant::Usual);
}

#[test]
fn when_ipip_runs_on_one_leg_then_clients_are_served() {
    serves(Shape::OneLegged, Forwarding::Ipip, Variant::Usual);
}

#[test]
fn when_gue_runs_on_two_legs_then_clients_are_served() {
    serves(Shape::TwoLegged, Forwarding::Gue, Variant::Usual);
}

#[test]
fn when_ipip_leads_to_backends_of_the_other_family_then_clients_are_served() {
    serves(Shape::OneLegged, Forwarding::Ipip, Variant::Crossed);
}

#[test]
fn when_ipip_runs_in_generic_mode_then_clients_are_served() {
    serves(Shape::OneLegged, Forwarding::Ipip, Variant::Generic);
}
