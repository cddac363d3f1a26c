//! Tests of bounded load in a fleet: the leader decides about shares, and all members follow.

use crate::{
    bounded::BOUNDED,
    fleet::{Fleet, Plan},
    support::wait,
};

impl Fleet {
    /// Returns the slots of web1, and the percentage of its slots that web1 keeps, as each member shows them.
    fn bounds(&self) -> Vec<(u64, u64)> {
        let shown = |number| {
            let status: serde_json::Value = serde_json::from_str(&self.cli(number, &["status", "--json"])).unwrap();
            let backend = &status["services"][0]["backends"][0];
            (backend["slots"].as_u64().unwrap(), backend["bound"]["keeps_percent"].as_u64().unwrap_or(100))
        };
        self.members().map(shown).collect()
    }
}

#[test]
fn when_a_backend_of_a_fleet_has_too_many_clients_then_all_members_give_the_same_slots_away() {
    let mut fleet = Fleet::planned(Plan { service_lines: BOUNDED, ..Plan::default() });
    let whole = fleet.bounds()[0].0;
    for backend in ["web2", "web3"] {
        fleet.cli(0, &["backend", "drain", &format!("web/{backend}")]);
    }
    let drains = |line: &String| !line.starts_with("web/web1") && line.starts_with("web/");
    wait("web2 and web3 take clients", || {
        let all_drain =
            |number| fleet.states(number).iter().filter(|line| drains(line)).all(|line| line.ends_with(" 0"));
        fleet.members().all(all_drain)
    });
    fleet.one_answer();
    for backend in ["web2", "web3"] {
        fleet.cli(0, &["backend", "ready", &format!("web/{backend}")]);
    }
    wait("web1 gives nothing away", || fleet.bounds().iter().all(|&(slots, keeps)| keeps < 100 && slots < whole));
    let bounds = fleet.bounds();
    assert!(bounds.iter().all(|bound| *bound == bounds[0]), "{bounds:?}");
    let homes = fleet.one_answer();
    assert!(homes[0].iter().all(|home| *home == homes[0][0]), "somebody was moved: {homes:?}");

    // The leader of the fleet dies, but web1's slots stay reduced.
    fleet.replace_leader();
    assert!(fleet.bounds().iter().all(|bound| *bound == bounds[0]));
    assert_eq!(fleet.one_answer(), homes);
}

#[test]
fn when_a_backend_of_a_fleet_is_full_then_all_members_send_new_clients_elsewhere() {
    let fleet = Fleet::planned(Plan::default());
    let homes = fleet.one_answer();
    fleet.cli(0, &["backend", "limit", "web/web1", "--max-clients", "1"]);
    let full = |number| {
        let status: serde_json::Value = serde_json::from_str(&fleet.cli(number, &["status", "--json"])).unwrap();
        let backend = &status["services"][0]["backends"][0];
        (backend["full"].as_bool().unwrap_or_default(), backend["slots"].as_u64().unwrap())
    };
    wait("web1 is full everywhere", || fleet.members().all(|number| full(number) == (true, 0)));
    assert_eq!(fleet.one_answer(), homes, "somebody was moved");
    fleet.cli(1, &["backend", "limit", "web/web1"]);
    wait("web1 has room everywhere", || fleet.members().all(|number| !full(number).0 && full(number).1 > 0));
    assert_eq!(fleet.one_answer(), homes);
}
