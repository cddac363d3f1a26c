//! The same tests in the other modes and topologies, which take longer than a landing has time for.

use balancer_common::map_types::Forwarding;
use balancer_testkit::topology::Shape;

use super::every_byte_arrives;

#[test]
fn when_much_is_sent_with_dsr_then_every_byte_arrives() {
    every_byte_arrives(Shape::OneLegged, Forwarding::Dsr, |_| ());
}

#[test]
fn when_much_is_sent_with_nat_then_every_byte_arrives() {
    every_byte_arrives(Shape::TwoLegged, Forwarding::Nat, |_| ());
}

#[test]
fn when_much_is_sent_with_snat_then_every_byte_arrives() {
    every_byte_arrives(Shape::TwoLegged, Forwarding::Snat, |_| ());
}

#[test]
fn when_much_is_sent_with_snat_on_one_leg_in_generic_mode_then_every_byte_arrives() {
    every_byte_arrives(Shape::OneLegged, Forwarding::Snat, |settings| settings.xdp_mode = "generic");
}

#[test]
fn when_much_is_sent_with_snat_to_the_other_family_then_every_byte_arrives() {
    every_byte_arrives(Shape::TwoLegged, Forwarding::Snat, |settings| settings.crossed = true);
}

#[test]
fn when_much_is_sent_with_ipip_then_every_byte_arrives() {
    every_byte_arrives(Shape::OneLegged, Forwarding::Ipip, |_| ());
}

#[test]
fn when_much_is_sent_with_gue_then_every_byte_arrives() {
    every_byte_arrives(Shape::TwoLegged, Forwarding::Gue, |_| ());
}

#[test]
fn when_much_is_sent_with_ipip_over_the_other_family_then_every_byte_arrives() {
    every_byte_arrives(Shape::OneLegged, Forwarding::Ipip, |settings| settings.crossed = true);
}
