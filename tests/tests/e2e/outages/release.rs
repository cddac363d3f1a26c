//! The same tests without a restart, which take longer than a landing has time for.

use balancer_common::map_types::Forwarding;

use super::all_crash_and_come_back;

#[test]
fn when_all_servers_crash_and_come_back_then_no_client_of_nat_is_moved() {
    all_crash_and_come_back(Forwarding::Nat, false);
}

#[test]
fn when_all_servers_crash_and_come_back_then_no_client_of_dsr_is_moved() {
    all_crash_and_come_back(Forwarding::Dsr, false);
}
