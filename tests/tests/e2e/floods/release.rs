//! Larger floods, and floods in the other modes, which take longer than a landing has time for.

use balancer_common::map_types::Forwarding;
use balancer_testkit::topology::Family;

use super::{flood, refuse};

const FORGED: u32 = 1_000_000;

#[test]
fn when_a_million_forged_syns_come_twice_to_nat_servers_then_checks_are_few_and_nothing_moves() {
    flood(Forwarding::Nat, Family::V4, FORGED);
}

#[test]
fn when_a_million_forged_syns_come_twice_to_dsr_servers_then_checks_are_few_and_nothing_moves() {
    flood(Forwarding::Dsr, Family::V4, FORGED);
}

#[test]
fn when_forged_syns_of_ipv6_come_twice_to_nat_servers_then_checks_are_few_and_nothing_moves() {
    flood(Forwarding::Nat, Family::V6, FORGED / 5);
}

/// Each refused connection occupies a port of the balancer for a while, so a larger number of connections would use up
/// the balancer's ports.
#[test]
fn when_a_client_of_snat_is_refused_ten_thousand_times_then_checks_are_few_and_nothing_moves() {
    for family in Family::BOTH {
        refuse(Forwarding::Snat, family, 10_000);
    }
}
