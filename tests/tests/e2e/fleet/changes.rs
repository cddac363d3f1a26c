//! Tests of changes that users make at any member.

use std::{collections::BTreeMap, fs};

use balancer_api::{model::FleetSnapshot, statistics::StatsView};
use balancer_testkit::topology::Family;

use super::{Fleet, moved};
use crate::support::wait;

#[test]
fn when_changes_are_made_at_any_member_then_members_act_as_one_balancer() {
    let mut fleet = Fleet::new();
    let homes = fleet.one_answer();
    assert_eq!(homes[0].iter().collect::<std::collections::BTreeSet<_>>().len(), 3);
    let load = fleet.under_load(|fleet| {
        fleet.spread("1");
        let added = fleet.cli(1, &["backend", "add", "web/web4", &fleet.backend_address(Family::V4, 4)]);
        assert!(added.contains("; applied by 3 of 3 members"), "{added}");
        fleet.cli(2, &["backend", "add", "web6/web4", &fleet.backend_address(Family::V6, 4)]);
        fleet.cli(0, &["backend", "weight", "web/web1", "40"]);
        fleet.cli(1, &["backend", "drain", "web/web2"]);
        fleet.cli(2, &["backend", "ready", "web/web2"]);
        fleet.wait_in_step();
    });
    load.assert_answered(200);
    assert_eq!(moved(&homes, &fleet.one_answer(), ""), BTreeMap::new());
    // New clients reach the added backend through any member, not only through the member at which the user added it.
    assert!(fleet.states(0).iter().any(|state| state.starts_with("web/web4 up") && !state.ends_with(" 0")));

    // All members report the same members and the same leader.
    wait("members do not agree on what they see", || {
        let shown: Vec<FleetSnapshot> = fleet.members().map(|number| fleet.shown(number)).collect();
        let agree = |of: &FleetSnapshot| {
            let names: Vec<&str> = of.members.iter().map(|member| member.name.as_str()).collect();
            let steady = of
                .members
                .iter()
                .all(|member| member.ready == "ready" && member.epoch == of.epoch && member.lag_seconds == 0.0);
            names == ["lb1", "lb2", "lb3"] && steady && of.epoch == shown[0].epoch && of.leader == shown[0].leader
        };
        shown.iter().all(agree) && shown[0].leader.is_some()
    });
    // A member imports no record about a client from which it has received packets itself.
    let told: u64 = fleet.members().map(|number| fleet.shown(number).records.told).sum();
    assert!(told >= 180, "{told}");
    for number in fleet.members() {
        let shown = fleet.shown(number);
        assert_eq!((shown.name.as_str(), shown.member), ("site1", format!("lb{}", number + 1)));
        assert!(shown.epoch.is_some_and(|epoch| epoch > 5) && shown.commit_seconds.is_some(), "{:?}", shown.epoch);
        let engine = &shown.engine;
        assert!(engine.reachable && engine.leader.is_some() && engine.bytes_sent > 0 && engine.bytes_received > 0);
        assert!(engine.database_bytes > 0 && engine.endpoint.as_ref().is_some_and(|place| place.contains(":2379")));
        let metrics = fleet.metrics(number);
        for line in ["balancer_fleet_members{state=\"ready\"} 3", "balancer_fleet_engine_reachable 1"] {
            assert!(metrics.lines().any(|known| known == line), "{line}: {metrics}");
        }
        assert!(fleet.cli(number, &["status"]).contains(&format!("fleet site1: this is lb{}, epoch", number + 1)));
    }

    // Each member can add up the counts of all members.
    let connections = |number, arguments: &[&str]| -> u64 {
        let stats: Vec<StatsView> = serde_json::from_str(&fleet.cli(number, arguments)).unwrap();
        stats[0].periods.iter().find(|period| period.period == "start").unwrap().connections
    };
    let alone: Vec<u64> = fleet.members().map(|number| connections(number, &["stats", "web", "--json"])).collect();
    assert!(alone.iter().all(|&count| count > 0), "{alone:?}");
    wait("what members count does not add up", || {
        let together = |number| connections(number, &["stats", "web", "--json", "--fleet"]);
        fleet.members().all(|number| together(number) == alone.iter().sum::<u64>())
    });
    let text = fleet.cli(1, &["stats", "web", "--fleet"]);
    assert!(text.contains("of all members together") && !text.contains("WARNING"), "{text}");
    let events = fleet.cli(1, &["events", "--json"]);
    assert!(events.contains("\"member\": \"lb2\""), "{events}");

    // A configuration file that a user applies at one member becomes the file of the fleet. A member whose own file
    // differs follows the fleet's file, and reports the difference.
    let file = fleet.files.path().join("lb3/balancer.toml");
    let text = fs::read_to_string(&file).unwrap().replace("name = \"web1\"", "name = \"first\"");
    fs::write(&file, text.replace("name = \"first\"", "renamed_from = \"web1\"\nname = \"first\"")).unwrap();
    let applied = fleet.cli(2, &["apply", file.to_str().unwrap()]);
    fleet.assert_applied(2, &applied, 3);
    assert!(fleet.states(0).iter().any(|state| state.starts_with("web/first up")), "{:?}", fleet.states(0));
    assert_eq!(moved(&homes, &fleet.one_answer(), ""), BTreeMap::new());
    fleet.kill(0);
    fleet.start_again(0);
    let events = fleet.cli(0, &["events"]);
    assert!(events.contains("differ from the fleet's, and the fleet's are in force"), "{events}");
    assert_eq!(moved(&homes, &fleet.one_answer(), ""), BTreeMap::new());

    // All members refuse the same changes.
    let refused = fleet.try_cli(2, &["backend", "add", "web/web4", &fleet.backend_address(Family::V4, 4)]).unwrap_err();
    assert!(refused.contains("web/web4 exists already"), "{refused}");
}
