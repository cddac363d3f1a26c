//! The same tests in the other modes, which take longer than a landing has time for.

use balancer_common::map_types::Forwarding;
use balancer_testkit::topology::Family;

use super::{connections_stay_whatever_their_address, each_trace_says_whether_the_connection_id_decided};

#[test]
fn when_clients_of_dsr_change_their_address_then_their_connections_stay() {
    connections_stay_whatever_their_address(Forwarding::Dsr);
}

#[test]
fn when_clients_of_snat_change_their_address_then_their_connections_stay() {
    connections_stay_whatever_their_address(Forwarding::Snat);
}

#[test]
fn when_datagrams_of_dsr_are_traced_then_it_is_told_whether_the_connection_id_decided() {
    each_trace_says_whether_the_connection_id_decided(Forwarding::Dsr, Family::V4);
}

#[test]
fn when_datagrams_of_snat_are_traced_then_it_is_told_whether_the_connection_id_decided() {
    each_trace_says_whether_the_connection_id_decided(Forwarding::Snat, Family::V4);
}
