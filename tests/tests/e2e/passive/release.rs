//! The same tests in the other modes and families, which take longer than a landing has time for.

use balancer_common::map_types::Forwarding;
use balancer_testkit::topology::Family;

use super::{begun_connections_succeed, forged_resets_cause_few_checks, no_new_connection_fails};

#[test]
fn when_the_machine_of_a_server_of_any_mode_is_gone_then_connections_that_were_begun_succeed() {
    let others = [Forwarding::Snat, Forwarding::Dsr, Forwarding::Ipip];
    let cells = others.iter().flat_map(|&mode| Family::BOTH.map(|family| (mode, family)));
    let rest = [(Forwarding::Nat, Family::V6), (Forwarding::Gue, Family::V4)];
    begun_connections_succeed(&cells.chain(rest).collect::<Vec<_>>());
}

#[test]
fn when_a_server_behind_translated_addresses_of_the_other_family_is_killed_then_no_new_connection_fails() {
    no_new_connection_fails(&[(Forwarding::Nat, Family::V6), (Forwarding::Snat, Family::V4)]);
}

#[test]
fn when_another_machine_forges_a_servers_resets_over_ipv6_then_checks_are_few_and_nothing_moves() {
    forged_resets_cause_few_checks(Family::V6);
}
