//! The same tests in the other modes, which take longer than a landing has time for.

use balancer_common::map_types::Forwarding;
use balancer_testkit::topology::Shape;

use super::{adapts_behind_routers, adapts_to_the_balancers_link, adapts_to_the_tunnels_way};

#[test]
fn when_a_router_has_a_smaller_mtu_with_dsr_then_transfers_adapt() {
    adapts_behind_routers(Shape::OneLegged, Forwarding::Dsr);
}

#[test]
fn when_a_router_has_a_smaller_mtu_with_snat_then_transfers_adapt() {
    adapts_behind_routers(Shape::OneLegged, Forwarding::Snat);
}

#[test]
fn when_a_router_has_a_smaller_mtu_with_ipip_then_transfers_adapt() {
    adapts_behind_routers(Shape::OneLegged, Forwarding::Ipip);
}

#[test]
fn when_the_balancers_link_to_the_backends_is_narrow_with_dsr_then_transfers_adapt() {
    adapts_to_the_balancers_link(Forwarding::Dsr, "eth1", true, false);
}

#[test]
fn when_the_balancers_link_to_the_backends_is_narrow_with_nat_then_transfers_adapt() {
    adapts_to_the_balancers_link(Forwarding::Nat, "eth1", true, false);
}

#[test]
fn when_the_balancers_link_to_the_backends_is_narrow_with_snat_then_transfers_adapt() {
    adapts_to_the_balancers_link(Forwarding::Snat, "eth1", true, false);
}

#[test]
fn when_the_balancers_link_to_the_clients_is_narrow_with_snat_then_transfers_adapt() {
    adapts_to_the_balancers_link(Forwarding::Snat, "eth0", false, true);
}

#[test]
fn when_a_router_on_the_way_of_ipip_or_the_route_is_narrow_then_clients_adapt() {
    adapts_to_the_tunnels_way(Forwarding::Ipip, [20, 40]);
}
