//! The same tests in the other modes, which take longer than a landing has time for.

use balancer_common::map_types::Forwarding;
use balancer_testkit::topology::Shape;

use super::large_datagrams_come_back;

#[test]
fn when_datagrams_are_large_with_dsr_then_they_come_back() {
    large_datagrams_come_back(Shape::OneLegged, Forwarding::Dsr);
}

#[test]
fn when_datagrams_are_large_with_ipip_then_they_come_back() {
    large_datagrams_come_back(Shape::TwoLegged, Forwarding::Ipip);
}

#[test]
fn when_datagrams_are_large_with_snat_then_they_come_back() {
    large_datagrams_come_back(Shape::TwoLegged, Forwarding::Snat);
}
