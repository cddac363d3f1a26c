//! The same tests in the other modes, which take longer than a landing has time for.

use balancer_common::map_types::Forwarding;
use balancer_testkit::topology::Shape;

use super::a_server_that_is_not_serving_is_down;

#[test]
fn when_a_grpc_server_is_not_serving_behind_dsr_then_it_is_down() {
    a_server_that_is_not_serving_is_down(Shape::OneLegged, Forwarding::Dsr);
}

#[test]
fn when_a_grpc_server_is_not_serving_behind_ipip_then_it_is_down() {
    a_server_that_is_not_serving_is_down(Shape::OneLegged, Forwarding::Ipip);
}
