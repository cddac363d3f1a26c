//! The same tests in the other modes, which take longer than a landing has time for.

use balancer_common::map_types::Forwarding;
use balancer_testkit::topology::Shape;

use super::{bridge, only_replies_are_redirected, served_by_the_kernel};

const OTHERS: [Forwarding; 2] = [Forwarding::Dsr, Forwarding::Ipip];

#[test]
fn when_the_backends_of_other_modes_are_behind_a_bridge_one_legged_then_the_kernel_forwards() {
    served_by_the_kernel(Shape::OneLegged, bridge, &OTHERS);
}

#[test]
fn when_the_backends_of_other_modes_are_behind_a_bridge_two_legged_then_the_kernel_forwards() {
    only_replies_are_redirected(&OTHERS);
}
