//! The same tests in `dsr`, and with more restarts, which take longer than a landing has time for.

use balancer_common::map_types::Forwarding;

use super::restarts;

#[test]
fn when_controllers_restart_with_dsr_then_no_client_notices() {
    restarts(Forwarding::Dsr, 10, 5);
}

#[test]
fn when_controllers_restart_often_with_nat_then_no_client_notices() {
    restarts(Forwarding::Nat, 10, 5);
}
