//! Tests of backends' agents in a fleet: the leader asks the agents, and all members apply the answers.

use crate::{
    agents::{AGENTS, Agent},
    fleet::{Fleet, Plan},
    support::wait,
};

const UP: &[&str] = &["up"];
/// A drain ends when the backend has no clients left. The members notice the end of the drain one after another.
const DRAINED: &[&str] = &["draining", "drained"];

impl Fleet {
    /// Returns the state of web1, its slots, and its agent's answer, as each member shows them.
    fn web1(&self) -> Vec<(String, u64, String)> {
        let shown = |number| {
            let status: serde_json::Value = serde_json::from_str(&self.cli(number, &["status", "--json"])).unwrap();
            let backend = &status["services"][0]["backends"][0];
            let text = |value: &serde_json::Value| value.as_str().unwrap_or_default().to_owned();
            (text(&backend["state"]), backend["slots"].as_u64().unwrap(), text(&backend["agent"]["says"]))
        };
        self.members().map(shown).collect()
    }

    /// Waits until every member shows web1 in one of `states`, with the agent's answer `word`; returns the slots of
    /// web1.
    fn wait_for_word(&self, states: &[&str], word: &str) -> u64 {
        let mut all = Vec::new();
        wait(word, || {
            all = self.web1();
            all.iter().all(|(state, _, says)| states.contains(&state.as_str()) && says == word)
        });
        assert!(all.iter().all(|(_, slots, _)| *slots == all[0].1), "{all:?}");
        all[0].1
    }
}

#[test]
fn when_an_agent_lowers_a_backend_of_a_fleet_then_all_members_do_and_the_next_leader_goes_on_asking() {
    let mut fleet = Fleet::planned(Plan { service_lines: AGENTS, ..Plan::default() });
    let agent = Agent::start(&fleet.topology.backends()[0], "100%");
    let whole = fleet.wait_for_word(UP, "100%");
    agent.says("50%");
    let half = fleet.wait_for_word(UP, "50%");
    assert!(half < whole && half > 0, "{half} of {whole}");
    agent.says("drain");
    assert_eq!(fleet.wait_for_word(DRAINED, "50%, drain"), 0);

    // The leader of the fleet dies. The agent's answer stays in effect, and the next leader asks the agent.
    fleet.replace_leader();
    assert_eq!(fleet.wait_for_word(DRAINED, "50%, drain"), 0);
    agent.says("ready 100%");
    assert_eq!(fleet.wait_for_word(UP, "100%"), whole);
}

/// Each member reads the agent's header in the answers to the checks of that member.
#[test]
fn when_answers_to_checks_have_words_in_a_fleet_then_all_members_have_the_leaders() {
    const CHECK: &str = r#"{ type = "http", port = 9778, interval = "300ms", timeout = "300ms", fall = 5 }"#;
    let mut fleet = Fleet::planned(Plan { check: CHECK, ..Plan::default() });
    let agents: Vec<Agent> = fleet.topology.backends().iter().map(Agent::serve_checks).collect();
    ["web1", "web2", "web3"].iter().for_each(|backend| fleet.wait_for(backend, "up"));
    let whole = fleet.wait_for_word(UP, "");
    let homes = fleet.one_answer();
    agents[0].says("50%");
    let half = fleet.wait_for_word(UP, "50%");
    assert!(half < whole && half > 0, "{half} of {whole}");
    agents[0].says("drain");
    assert_eq!(fleet.wait_for_word(DRAINED, "50%, drain"), 0);
    assert_eq!(fleet.one_answer(), homes, "a known client moved");

    // The next leader uses the header in the answers to its own checks.
    fleet.replace_leader();
    assert_eq!(fleet.wait_for_word(DRAINED, "50%, drain"), 0);
    agents[0].says("ready 100%");
    assert_eq!(fleet.wait_for_word(UP, "100%"), whole);
    assert_eq!(fleet.one_answer(), homes);
}
