//! Thousands of services, which take longer than a landing has time for.

use super::{Row, fill};

#[test]
fn when_two_thousand_services_come_one_by_one_then_the_maps_grow_and_known_clients_stay() {
    fill(&Row { commands: 2000, services: 1, forwarding: "nat", slots: 251, grows: 4 });
}
