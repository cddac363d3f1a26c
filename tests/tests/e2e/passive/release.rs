//! The same test in the other modes, which takes longer than a landing has time for.

use balancer_common::map_types::Forwarding;
use balancer_testkit::topology::Family;

use super::begun_connections_succeed;

#[test]
fn when_the_machine_of_a_server_of_any_mode_is_gone_then_connections_that_were_begun_succeed() {
    let others = [Forwarding::Snat, Forwarding::Dsr, Forwarding::Ipip];
    let cells = others.iter().flat_map(|&mode| Family::BOTH.map(|family| (mode, family)));
    let rest = [(Forwarding::Nat, Family::V6), (Forwarding::Gue, Family::V4)];
    begun_connections_succeed(&cells.chain(rest).collect::<Vec<_>>());
}
