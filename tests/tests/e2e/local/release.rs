//! The same tests in the other modes, which take longer than a landing has time for.

use balancer_common::map_types::Forwarding;
use balancer_testkit::topology::{Family, Shape};

use super::{
    clients_stay_where_they_are, datagrams_come_back,
    direct::{the_server_answers_from_its_own_address, two_machines_see_each_other},
    only_its_clients_move, this_machine_serves_its_share,
};

const OTHERS: [Forwarding; 2] = [Forwarding::Dsr, Forwarding::Snat];

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

#[test]
fn when_the_dsr_or_snat_server_on_this_machine_dies_then_only_its_clients_move() {
    only_its_clients_move(&OTHERS);
}

#[test]
fn when_the_balancer_restarts_or_drains_its_own_dsr_or_snat_server_then_clients_stay_where_they_are() {
    clients_stay_where_they_are(&OTHERS);
}

#[test]
fn when_this_machine_serves_datagrams_of_any_mode_then_whole_ones_and_fragments_come_back_from_where_they_went() {
    datagrams_come_back(&[(Forwarding::Dsr, "native"), (Forwarding::Nat, "native"), (Forwarding::Snat, "native")]);
}

#[test]
fn when_others_connect_to_the_own_address_of_a_server_of_another_mode_then_it_answers_from_this_address() {
    the_server_answers_from_its_own_address(&[
        (Forwarding::Dsr, Family::V4, Shape::OneLegged),
        (Forwarding::Nat, Family::V6, Shape::TwoLegged),
        (Forwarding::Snat, Family::V4, Shape::TwoLegged),
        (Forwarding::Snat, Family::V6, Shape::OneLegged),
    ]);
}

#[test]
fn when_two_machines_are_ipv6_servers_and_balancers_then_each_finds_the_other_up_and_clients_stay_when_the_vip_moves() {
    two_machines_see_each_other(&[(Forwarding::Nat, Family::V6), (Forwarding::Snat, Family::V6)]);
}
