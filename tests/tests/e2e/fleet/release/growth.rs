//! A fleet whose maps grow several times, which takes longer than a landing has time for.

use crate::fleet::growth::members_agree;

#[test]
fn when_services_come_one_by_one_in_a_fleet_then_the_maps_grow_again_and_members_agree() {
    members_agree(12, 2);
}
