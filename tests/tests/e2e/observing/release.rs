//! The same tests in the other modes, which take longer than a landing has time for.

use balancer_common::map_types::Forwarding;
use balancer_testkit::topology::{Family, Shape};

use super::{
    HARDEST,
    capture::each_is_there_as_it_came_and_as_it_left,
    trace::{check_mode, the_program_that_tells_goes},
};

const OTHERS: [Forwarding; 3] = [Forwarding::Dsr, Forwarding::Snat, Forwarding::Ipip];

#[test]
fn when_a_new_client_comes_on_one_interface_then_the_other_modes_say_where_it_goes_and_why() {
    for forwarding in OTHERS {
        check_mode(Shape::OneLegged, forwarding, "native", Family::V4);
    }
}

#[test]
fn when_there_are_two_interfaces_and_ipv6_then_every_mode_says_the_same() {
    for forwarding in OTHERS.into_iter().chain(HARDEST) {
        check_mode(Shape::TwoLegged, forwarding, "native", Family::V6);
    }
    check_mode(Shape::TwoLegged, Forwarding::Ipip, "generic", Family::V4);
}

#[test]
fn when_packets_are_captured_in_the_other_modes_then_each_is_there_as_it_came_and_as_it_left() {
    each_is_there_as_it_came_and_as_it_left(&OTHERS);
}

#[test]
fn when_it_is_killed_with_on_exit_detach_then_the_program_that_tells_goes_and_clients_notice_nothing() {
    the_program_that_tells_goes("detach");
}
