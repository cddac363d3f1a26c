//! Tests of lists of targets in a fleet: the leader reads the lists, and all members use the leader's decisions.

use std::{
    path::Path,
    thread,
    time::{Duration, Instant},
};

use balancer_api::model::ServiceView;
use balancer_testkit::{
    pace::patience,
    site::{PATIENCE, Settings, write_config},
    topology::Family,
};
use serde_json::json;

use super::{Fleet, PORT};
use crate::{discovery::replace, support::wait};

impl Fleet {
    /// Applies the configuration file of lb1 with only the IPv4 service. Only the lines `lines` provide backends of the
    /// service.
    pub(super) fn apply_with(&self, lines: &str) {
        let files = self.files.path().join("lb1");
        let settings = Settings {
            families: vec![Family::V4],
            backends: Vec::new(),
            service_lines: format!("{}\n{lines}", self.plan.service_lines),
            lines: self.lines(1),
            ..self.settings.clone()
        };
        let file = write_config(&self.topology, &settings, &files).unwrap();
        let applied = self.cli(0, &["apply", file.to_str().unwrap()]);
        self.assert_applied(0, &applied, 3);
    }

    fn web(&self, number: usize) -> Option<ServiceView> {
        let status = self.controllers[number].as_ref().unwrap().status().ok()?;
        status.services.into_iter().find(|service| service.name == "web")
    }

    /// Waits until all members have the expected backends with their administrative states, and report the expected
    /// number of targets.
    #[track_caller]
    pub(super) fn wait_for_pool(&self, expected: &[&str], targets: u64) {
        let pool = |number| {
            let web = self.web(number)?;
            let backends = web.backends.iter().map(|backend| format!("{} {}", backend.name, backend.admin));
            let mut backends: Vec<String> = backends.collect();
            backends.sort_unstable();
            Some((backends, web.discover.first().and_then(|list| list.targets)))
        };
        let as_expected = || {
            self.members()
                .all(|number| pool(number).is_some_and(|(has, count)| has == expected && count == Some(targets)))
        };
        let deadline = Instant::now() + patience(3 * PATIENCE);
        while !as_expected() {
            let pools = || self.members().map(|number| (number, pool(number), self.reasons(number)));
            assert!(Instant::now() < deadline, "not {expected:?} but {:?}", pools().collect::<Vec<_>>());
            thread::sleep(Duration::from_millis(50));
        }
    }

    /// Waits until all members show all backends as up. A member learns the backends' states only from its own checks.
    #[track_caller]
    pub(super) fn wait_for_all_up(&self) {
        wait("not all are up", || {
            self.members().all(|number| {
                self.web(number).is_some_and(|web| web.backends.iter().all(|backend| backend.state == "up"))
            })
        });
    }

    pub(super) fn reasons(&self, number: usize) -> String {
        self.controllers[number].as_ref().unwrap().status().unwrap().ready.reasons.join("; ")
    }
}

impl Fleet {
    fn list(&self, file: &Path, numbers: &[u16]) {
        let target = |&number: &u16| {
            let address = format!("{}:{PORT}", self.topology.backend_address(Family::V4, number - 1));
            json!({ "targets": [address], "labels": { "name": format!("web{number}") } })
        };
        replace(file, &serde_json::Value::from(numbers.iter().map(target).collect::<Vec<_>>()).to_string());
    }
}

#[test]
fn when_a_list_changes_in_a_fleet_then_its_leader_decides_once_and_the_next_leader_goes_on() {
    let mut fleet = Fleet::new();
    let homes = fleet.homes(Family::V4);
    let file = fleet.files.path().join("targets.json");
    fleet.list(&file, &[1, 2, 3]);
    // The list of targets names the backends of the file, which therefore keep their clients.
    fleet.apply_with(&format!("discover = [{{ file = {file:?}, keep = \"0s\" }}]"));
    fleet.wait_for_pool(&["web1 ready", "web2 ready", "web3 ready"], 3);
    let follows = |number: &usize| fleet.web(*number).unwrap().discover[0].read_seconds_ago.is_none();
    assert_eq!(fleet.members().filter(follows).count(), 2, "one member reads the list");
    assert_eq!(fleet.homes(Family::V4), homes);

    fleet.list(&file, &[3, 1]);
    fleet.wait_for_pool(&["web1 ready", "web2 drain", "web3 ready"], 2);
    assert_eq!(fleet.homes(Family::V4), homes, "known clients stay where they are");

    // The next leader reads the list of targets itself. Backends that return to the list keep their clients, and new
    // backends get new clients.
    let leader = fleet.replace_leader();
    fleet.wait_for_pool(&["web1 ready", "web2 drain", "web3 ready"], 2);
    fleet.list(&file, &[4, 3, 2, 1]);
    fleet.wait_for_pool(&["web1 ready", "web2 ready", "web3 ready", "web4 ready"], 4);
    fleet.wait_for_all_up();
    assert_eq!(fleet.homes(Family::V4), homes);

    // The leader ignores a list with too few targets, and only the leader reports the reason.
    replace(&file, "[]");
    let short = "has 0 targets, fewer than min = 1";
    wait("the leader does not say what is wrong", || fleet.reasons(leader).contains(short));
    assert!(fleet.members().filter(|&number| number != leader).all(|number| fleet.reasons(number).is_empty()));
    let backends = |number: usize| fleet.web(number).unwrap().backends;
    assert!(
        fleet.members().all(|number| backends(number).iter().filter(|backend| backend.admin == "ready").count() == 4)
    );
    assert_eq!(fleet.homes(Family::V4), homes);
}
