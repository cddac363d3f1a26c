//! Tests of backends' agents in a fleet: the leader asks them, and all members use its answer.

use super::{Fleet, Plan};
use crate::{
    agents::{AGENTS, Agent},
    support::wait,
};

impl Fleet {
    /// The state and the slots of web1, and its agent's answer, as each member shows them.
    fn web1(&self) -> Vec<(String, u64, String)> {
        let shown = |number| {
            let status: serde_json::Value = serde_json::from_str(&self.cli(number, &["status", "--json"])).unwrap();
            let backend = &status["services"][0]["backends"][0];
            let text = |value: &serde_json::Value| value.as_str().unwrap_or_default().to_owned();
            (text(&backend["state"]), backend["slots"].as_u64().unwrap(), text(&backend["agent"]["says"]))
        };
        self.members().map(shown).collect()
    }

    fn wait_for_word(&self, state: &str, word: &str) -> u64 {
        wait(word, || self.web1().iter().all(|(is, _, says)| is == state && says == word));
        let all = self.web1();
        assert!(all.iter().all(|of| *of == all[0]), "{all:?}");
        all[0].1
    }
}

#[test]
fn when_an_agent_lowers_a_backend_of_a_fleet_then_all_members_do_and_the_next_leader_goes_on_asking() {
    let mut fleet = Fleet::planned(Plan { service_lines: AGENTS, ..Plan::default() });
    let agent = Agent::start(&fleet.topology.backends()[0], "100%");
    let whole = fleet.wait_for_word("up", "100%");
    agent.says("50%");
    let half = fleet.wait_for_word("up", "50%");
    assert!(half < whole && half > 0, "{half} of {whole}");
    agent.says("drain");
    assert_eq!(fleet.wait_for_word("draining", "50%, drain"), 0);

    // The leader dies. The agent's answer stays, and the next leader asks.
    let leader = fleet.shown(0).leader.unwrap();
    let leader: usize = leader.trim_start_matches("lb").parse().unwrap();
    fleet.kill(leader - 1);
    wait("another leads", || {
        fleet.members().all(|number| fleet.shown(number).leader.is_some_and(|name| name != format!("lb{leader}")))
    });
    assert_eq!(fleet.wait_for_word("draining", "50%, drain"), 0);
    agent.says("ready 100%");
    assert_eq!(fleet.wait_for_word("up", "100%"), whole);
}
