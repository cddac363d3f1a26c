//! The same tests in the other modes, which take longer than a landing has time for.

use balancer_common::map_types::Forwarding;

use super::each_client_has_one_backend;

#[test]
fn when_a_service_has_several_listeners_with_dsr_then_each_client_has_one_backend() {
    each_client_has_one_backend(Forwarding::Dsr);
}

#[test]
fn when_a_service_has_several_listeners_with_ipip_then_each_client_has_one_backend() {
    each_client_has_one_backend(Forwarding::Ipip);
}
