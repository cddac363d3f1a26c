//! The same test in another mode, which takes longer than a landing has time for.

use balancer_common::map_types::Forwarding;

use super::clients_of_a_drop_in_stay;

#[test]
fn when_a_drop_in_brings_the_only_nat_service_then_its_clients_stay_through_restarts_reloads_and_resets() {
    clients_of_a_drop_in_stay(&[(Forwarding::Nat, "keep"), (Forwarding::Nat, "detach")]);
}
