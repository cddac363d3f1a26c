//! What members see of backends.

use std::collections::BTreeMap;

use balancer_tests::topology::Family;

use super::{Fleet, moved};
use crate::support::wait;

#[test]
fn a_backend_is_down_when_most_see_it() {
    let mut fleet = Fleet::new();
    let homes = fleet.one_answer();
    // The third member's own way to web2 is cut: nothing moves, and it says so.
    let cut = |fleet: &Fleet, verb: &str| {
        for family in Family::BOTH {
            let address = fleet.topology.backend_address(family, 1);
            let flag = if family == Family::V4 { "-4" } else { "-6" };
            let prefix = if family == Family::V4 { "32" } else { "128" };
            fleet.namespace(2).ip(&format!("{flag} route {verb} blackhole {address}/{prefix}")).unwrap();
        }
    };
    cut(&fleet, "add");
    wait("lb3 does not say that it cannot reach web2", || {
        let ready = fleet.cli(2, &["ready", "--json"]);
        ready.contains("degraded") && ready.contains("web/web2")
    });
    wait("lb1 does not show that lb3 sees something else", || {
        let members = fleet.shown(0).members;
        let differs =
            |name: &str| members.iter().any(|of| of.name == name && of.votes_differ == ["web/web2", "web6/web2"]);
        differs("lb3") && !differs("lb1")
    });
    let votes = "balancer_fleet_votes_differ{service=\"web\",backend=\"web2\"} 1";
    assert!(fleet.metrics(1).contains(votes), "{}", fleet.metrics(1));
    assert!(fleet.try_cli(2, &["ready", "--strict"]).is_err() && fleet.try_cli(2, &["ready"]).is_ok());
    assert!(fleet.states(0).iter().any(|state| state.starts_with("web/web2 up")), "{:?}", fleet.states(0));
    cut(&fleet, "del");
    wait("lb3 is not ready again", || fleet.try_cli(2, &["ready", "--strict"]).is_ok());
    assert_eq!(moved(&homes, &fleet.one_answer(), ""), BTreeMap::new());

    // It dies: its clients move, once, to the same backends everywhere.
    fleet.backends[1] = None;
    fleet.wait_for("web2", "down");
    let after = fleet.one_answer();
    assert_eq!(moved(&homes, &after, "web2"), BTreeMap::new());
    assert!(after.iter().flatten().all(|home| home != "web2"));
    fleet.start_backend(2);
    fleet.wait_for("web2", "up");
    assert_eq!(moved(&after, &fleet.one_answer(), ""), BTreeMap::new());
}
