//! The same test in the other modes, which takes longer than a landing has time for.

use balancer_common::map_types::Forwarding;
use balancer_testkit::topology::{Family, Shape};

use super::this_machine_serves_its_share;

#[test]
fn when_this_machine_is_a_backend_of_another_mode_then_it_serves_its_share_and_keeps_its_clients() {
    this_machine_serves_its_share(&[
        (Forwarding::Dsr, Family::V4, Shape::OneLegged),
        (Forwarding::Dsr, Family::V6, Shape::TwoLegged),
        (Forwarding::Nat, Family::V6, Shape::OneLegged),
        (Forwarding::Snat, Family::V4, Shape::OneLegged),
        (Forwarding::Snat, Family::V6, Shape::TwoLegged),
        (Forwarding::Ipip, Family::V4, Shape::TwoLegged),
    ]);
}
