//! Tests of a fleet that cannot reach all or some etcd servers.

use std::{
    collections::BTreeMap,
    env, thread,
    time::{Duration, Instant},
};

use balancer_config::value;

use super::{ENGINES, Fleet, Plan, moved};
use crate::support::wait;

/// Returns how long all etcd servers are down. `FLEET_OUTAGE=5m` makes the test longer.
fn outage() -> Duration {
    env::var("FLEET_OUTAGE").ok().map_or(Duration::ZERO, |time| value::duration(&time).unwrap())
}

impl Fleet {
    pub(super) fn kill_all_engines(&mut self) {
        for number in 0..ENGINES.len() {
            self.etcd.kill(number).unwrap();
        }
        wait("nobody is degraded", || {
            self.members().all(|number| self.cli(number, &["ready", "--json"]).contains("degraded"))
        });
    }

    /// Restarts all etcd servers, and waits until the members form one fleet again and accept changes.
    pub(super) fn start_all_engines(&mut self) {
        let begin = Instant::now();
        for (number, namespace) in self.engines.iter().enumerate() {
            self.etcd.start_member(number, namespace).unwrap();
        }
        let started = begin.elapsed();
        wait("changes are refused", || self.try_cli(0, &["backend", "weight", "web/web3", "70"]).is_ok());
        let changes = begin.elapsed();
        self.wait_in_step();
        wait("not all are members again", || self.members().all(|number| self.shown(number).members.len() == 3));
        let one = begin.elapsed();
        println!(
            "after {:.0?}: etcd runs {started:.1?} after its start, changes are made after {changes:.1?}, one fleet after {one:.1?}",
            outage()
        );
    }

    /// While etcd is down, checks through one member after another that clients keep their backends.
    pub(super) fn sit_out(&self, homes: &[Vec<String>; 2], except: &str) {
        let (begin, all) = (Instant::now(), [0, 1, 2]);
        for member in all.into_iter().cycle() {
            if begin.elapsed() >= outage() {
                break;
            }
            thread::sleep(Duration::from_secs(5).min(outage()));
            self.route(&[member]);
            assert_eq!(moved(homes, &self.all_homes(), except), BTreeMap::new(), "after {:?}", begin.elapsed());
        }
        self.route(&all);
    }
}

#[test]
fn when_etcd_is_away_then_the_fleet_goes_on_and_refuses_changes() {
    // The lease of a member is longer than an election of etcd.
    let mut fleet = Fleet::planned(Plan { lease: "5s", ..Plan::default() });
    let homes = fleet.one_answer();
    // The leader among the three etcd servers fails: clients notice nothing.
    let first = fleet.etcd.leader(&fleet.engines[0]).unwrap();
    fleet.etcd.kill(first).unwrap();
    let weight = fleet.cli(1, &["backend", "weight", "web/web1", "90"]);
    fleet.assert_applied(1, &weight, 3);
    // All etcd servers fail.
    fleet.kill_all_engines();
    let alone = fleet.shown(1);
    assert!(!alone.engine.reachable && alone.members.iter().all(|member| member.name == "lb2"), "{alone:?}");
    assert!(fleet.metrics(1).contains("balancer_fleet_engine_reachable 0"));
    let refused = fleet.try_cli(1, &["backend", "weight", "web/web1", "80"]).unwrap_err();
    assert!(refused.contains("out of reach"), "{refused}");
    assert_eq!(moved(&homes, &fleet.one_answer(), ""), BTreeMap::new());
    // A backend dies while etcd is down: each member acts according to its own checks.
    fleet.backends[2] = None;
    fleet.wait_for("web3", "down");
    let after = fleet.one_answer();
    assert_eq!(moved(&homes, &after, "web3"), BTreeMap::new());
    fleet.sit_out(&after, "");
    // The etcd servers return with their data: the members form one fleet, and no client moves.
    fleet.start_all_engines();
    thread::sleep(Duration::from_secs(3));
    assert_eq!(moved(&after, &fleet.one_answer(), ""), BTreeMap::new());
}
