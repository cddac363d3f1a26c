//! Tests of members that join, leave and die.

use std::{collections::BTreeMap, env, thread, time::Duration};

use balancer_testkit::topology::{Family, Topology};
use serde_json::Value;

use super::{ENGINES, Fleet, moved};
use crate::support::wait;

/// Returns how often each member dies. `FLEET_ROUNDS=10` makes the test longer.
fn rounds() -> usize {
    env::var("FLEET_ROUNDS").ok().and_then(|rounds| rounds.parse().ok()).unwrap_or(1)
}

#[test]
fn when_a_member_dies_and_comes_back_then_clients_away_from_home_stay() {
    let mut fleet = Fleet::new();
    let homes = fleet.one_answer();
    // Because of the new weights, many clients are at other backends than the lookup table names. All known clients
    // must stay at their backends.
    fleet.cli(0, &["backend", "weight", "web/web1", "10"]);
    fleet.cli(0, &["backend", "weight", "web6/web1", "10"]);
    fleet.wait_in_step();
    for number in [1, 0, 2].into_iter().cycle().take(3 * rounds()) {
        let others: Vec<usize> = (0..3).filter(|&other| other != number).collect();
        let load = fleet.under_load(|fleet| {
            fleet.route(&others);
            thread::sleep(Duration::from_millis(300));
            fleet.kill(number);
            thread::sleep(Duration::from_millis(1500));
            fleet.start_again(number);
            assert!(fleet.shown(number).records.taken_over > 0, "{:?}", fleet.shown(number).records);
            fleet.route(&[0, 1, 2]);
        });
        load.assert_answered(50);
        assert_eq!(moved(&homes, &fleet.one_answer(), ""), BTreeMap::new(), "after lb{}", number + 1);
    }
}

/// The commands of the book's section "Upgrading a fleet".
fn upgrade() -> impl Iterator<Item = &'static str> {
    let chapter = include_str!("../../../../docs/src/several-balancers.md");
    let section = chapter.split("### Upgrading a fleet").nth(1).unwrap();
    let block = section.split("```console\n").nth(1).unwrap().split("```").next().unwrap();
    block.lines().map(|line| line.strip_prefix("$ ").unwrap())
}

impl Fleet {
    /// Runs a command of the book at a member. For programs other than `balancer`, the test only simulates the effect
    /// of the command.
    fn types(&mut self, number: usize, command: &str) {
        match command {
            "apt install ./balancer_0.2.0-1_amd64.deb" => {}
            "systemctl restart balancer" => {
                self.stop(number);
                self.controllers[number] = Some(self.start(number));
            }
            "until balancer ready; do sleep 1; done" => {
                wait("it is not ready again", || self.try_cli(number, &["ready"]).is_ok());
            }
            _ => {
                let words: Vec<&str> = command.split_whitespace().collect();
                assert_eq!(words.first(), Some(&"balancer"), "say in this test what becomes of `{command}`");
                self.cli(number, &words[1..]);
                if words.contains(&"withdraw") {
                    // A router would also send no more packets to a member that has withdrawn.
                    let others: Vec<usize> = self.members().filter(|&other| other != number).collect();
                    self.route(&others);
                }
            }
        }
    }
}

#[test]
fn when_members_join_leave_and_are_upgraded_then_clients_stay() {
    let mut fleet = Fleet::new();
    let homes = fleet.one_answer();
    fleet.cli(0, &["backend", "weight", "web/web1", "10"]);
    fleet.cli(0, &["backend", "weight", "web6/web1", "10"]);
    fleet.wait_in_step();
    fleet.spread("1");
    let load = fleet.under_load(|fleet| {
        // A fourth member joins the fleet, and gets clients once it is ready.
        fleet.start_again(3);
        fleet.route_to_all();
        wait("lb4 is not seen", || fleet.members().all(|number| fleet.shown(number).members.len() == 4));
        // Each member ends and starts again, as for an upgrade.
        for number in [1, 2, 3, 0] {
            upgrade().for_each(|command| fleet.types(number, command));
            fleet.route_to_all();
        }
        // One member leaves the fleet permanently.
        fleet.cli(2, &["withdraw", "--wait"]);
        fleet.route(&[0, 1, 3]);
        fleet.stop(2);
        wait("lb3 is still a member", || fleet.members().all(|number| fleet.shown(number).members.len() == 3));
    });
    load.assert_answered(200);
    assert_eq!(moved(&homes, &fleet.one_answer(), ""), BTreeMap::new());
    fleet.hear_of_another_version();
}

impl Fleet {
    /// The etcd record of a fifth member names a version with different lookup tables. The other members warn until
    /// etcd no longer contains the record.
    fn hear_of_another_version(&self) {
        let etcdctl = |arguments: &[&str]| {
            let address = Topology::host_address(Family::V4, ENGINES[0]);
            let output = self.etcd.client(&self.engines[0], address).args(arguments).output().unwrap();
            assert!(output.status.success(), "{output:?}");
            String::from_utf8(output.stdout).unwrap()
        };
        let key = |member: &str| format!("/balancer/site1/live/members/{member}");
        let mut card: Value = etcdctl(&["get", &key("lb1"), "--print-value-only"]).parse().unwrap();
        let steering = &mut card["steering"];
        assert!(steering.as_u64().is_some_and(|number| number != 0), "{steering}");
        *steering = 1.into();
        card["in_step"] = false.into();
        etcdctl(&["put", &key("lb5"), &card.to_string()]);
        let warning = "WARNING: lb5 computes other lookup tables than this balancer";
        wait("nobody warns", || self.members().all(|number| self.cli(number, &["fleet"]).contains(warning)));
        etcdctl(&["del", &key("lb5")]);
        wait("somebody warns still", || self.members().all(|number| !self.cli(number, &["fleet"]).contains("WARNING")));
        let lines = self.cli(0, &["events"]);
        assert!(
            lines.contains("lb5 computes other lookup tables") && lines.contains("all members steer alike"),
            "{lines}"
        );
    }
}
