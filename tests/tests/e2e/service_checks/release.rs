//! The same tests in the other modes and topologies, which take longer than a landing has time for.

use balancer_common::map_types::Forwarding;
use balancer_testkit::topology::Shape;

use super::{Cell, HTTP, TCP, a_backend_without_the_vip_is_down};

#[test]
fn when_a_dsr_backend_has_no_vip_then_it_is_down() {
    let (shape, forwarding) = (Shape::OneLegged, Forwarding::Dsr);
    a_backend_without_the_vip_is_down(&Cell { shape, forwarding, of: HTTP, crossed: false, local: true });
}

#[test]
fn when_an_ipip_backend_has_no_vip_then_it_is_down() {
    let (shape, forwarding) = (Shape::TwoLegged, Forwarding::Ipip);
    a_backend_without_the_vip_is_down(&Cell { shape, forwarding, of: TCP, crossed: false, local: true });
}

#[test]
fn when_an_ipip_backend_of_the_other_family_has_no_vip_then_it_is_down() {
    let (shape, forwarding) = (Shape::OneLegged, Forwarding::Ipip);
    a_backend_without_the_vip_is_down(&Cell { shape, forwarding, of: HTTP, crossed: true, local: false });
}
