//! The same tests in `dsr`, which take longer than a landing has time for.

use balancer_common::map_types::Forwarding;

use super::{nobody_else_notices, nobody_notices};

#[test]
fn when_changes_move_clients_with_dsr_then_no_other_client_notices() {
    nobody_else_notices(Forwarding::Dsr);
}

#[test]
fn when_clients_are_known_with_dsr_then_no_client_notices_changes() {
    nobody_notices(Forwarding::Dsr);
}
