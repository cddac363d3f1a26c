//! Tests of fleets whose members have different views of backends.

use std::collections::BTreeMap;

use balancer_api::statistics::StatsView;
use balancer_common::map_types::Forwarding;
use balancer_testkit::topology::Family;

use super::{Fleet, Plan, moved};
use crate::support::wait;

impl Fleet {
    /// Cuts a member's route to a backend if `verb` is `"add"`, or restores the route if `verb` is `"del"`.
    pub(super) fn cut(&self, verb: &str, member: usize, backend: u16) {
        for (family, flag, length) in [(Family::V4, "-4", 32), (Family::V6, "-6", 128)] {
            let address = self.topology.backend_address(family, backend - 1);
            self.namespace(member).ip(&format!("{flag} route {verb} blackhole {address}/{length}")).unwrap();
        }
    }

    /// Returns whether some other member reports that the view of `member` about the given backends differs from the
    /// fleet's view.
    pub(super) fn differs(&self, member: usize, backends: &[&str]) -> bool {
        let name = format!("lb{}", member + 1);
        let shown = self.shown((member + 1) % 3).members;
        shown.iter().any(|of| of.name == name && of.votes_differ == backends)
    }

    /// Returns the number of moved clients that all members together have counted, by cause and by the backend that the
    /// clients left.
    pub(super) fn counted(&self) -> BTreeMap<String, u64> {
        let mut sum = BTreeMap::new();
        for text in self.members().map(|number| self.metrics(number)) {
            for (labels, count) in
                text.lines().filter_map(|line| line.strip_prefix("balancer_moves_total")?.split_once(' '))
            {
                let count = count.parse::<f64>().unwrap() as u64;
                if count > 0 {
                    *sum.entry(labels.to_owned()).or_default() += count;
                }
            }
        }
        sum
    }

    /// Returns the number of moves since the start that a member shows for the whole fleet.
    fn moves_of_all(&self, member: usize) -> u64 {
        let stats: Vec<StatsView> = serde_json::from_str(&self.cli(member, &["stats", "--json", "--fleet"])).unwrap();
        let periods = stats.iter().flat_map(|service| &service.periods).filter(|period| period.period == "start");
        periods.flat_map(|period| period.moves.values()).sum()
    }

    /// Returns the number of moves that members counted although other members had already counted the same moves.
    fn repeated(&self) -> u64 {
        let texts: Vec<String> = self.members().map(|number| self.metrics(number)).collect();
        let series =
            |line: &str| line.strip_prefix("balancer_fleet_moves_repeated_total{")?.split_once(' ')?.1.parse().ok();
        texts.iter().flat_map(|text| text.lines()).filter_map(series).map(|count: f64| count as u64).sum()
    }

    pub(super) fn taken_over(&self, member: usize) -> u64 {
        self.shown(member).records.taken_over
    }
}

#[test]
fn when_most_members_see_a_backend_down_then_it_is_down() {
    let mut fleet = Fleet::new();
    let homes = fleet.one_answer();
    // The third member loses its route to web2: no client moves, and the member reports the problem.
    fleet.cut("add", 2, 2);
    wait("lb3 does not say that it cannot reach web2", || {
        let ready = fleet.cli(2, &["ready", "--json"]);
        ready.contains("degraded") && ready.contains("web/web2")
    });
    wait("lb1 does not show that lb3 sees something else", || fleet.differs(2, &["web/web2", "web6/web2"]));
    assert!(!fleet.differs(0, &["web/web2", "web6/web2"]));
    let votes = "balancer_fleet_votes_differ{service=\"web\",backend=\"web2\"} 1";
    wait("lb2's metrics do not tell of it", || fleet.metrics(1).contains(votes));
    assert!(fleet.try_cli(2, &["ready", "--strict"]).is_err() && fleet.try_cli(2, &["ready"]).is_ok());
    assert!(fleet.states(0).iter().any(|state| state.starts_with("web/web2 up")), "{:?}", fleet.states(0));
    // The third member could not serve the clients of web2, so the router does not use the third member.
    fleet.route(&[0, 1]);
    assert_eq!(fleet.all_homes(), homes);
    fleet.cut("del", 2, 2);
    wait("lb3 is not ready again", || fleet.try_cli(2, &["ready", "--strict"]).is_ok());
    assert_eq!(moved(&homes, &fleet.one_answer(), ""), BTreeMap::new());

    // The backend web2 dies: its clients move once, and reach the same backends through all members.
    fleet.backends[1] = None;
    fleet.wait_for("web2", "down");
    // Some clients move at several members before the members have exchanged records of the moves.
    let after = fleet.one_answer();
    assert_eq!(moved(&homes, &after, "web2"), BTreeMap::new());
    assert!(after.iter().flatten().all(|home| home != "web2"));
    let leaving = homes.iter().flatten().filter(|home| *home == "web2").count() as u64;
    wait("moves are not counted once", || fleet.counted().values().sum::<u64>() == leaving + fleet.repeated());
    println!("{leaving} clients moved, {} of them at several members at once", fleet.repeated());
    wait("members do not show each move once", || (0..3).all(|member| fleet.moves_of_all(member) == leaving));
    fleet.start_backend(2);
    fleet.wait_for("web2", "up");
    assert_eq!(moved(&after, &fleet.one_answer(), ""), BTreeMap::new());
}

/// With `nat`, checks are an hour apart, so the members learn of the failure only from client packets at one member. With
/// `dsr`, the whole machine is silent, and regular checks must confirm the time-outs.
pub(super) fn the_clients_of_one_member_tell_all(forwarding: Forwarding) {
    let check = if forwarding == Forwarding::Nat {
        r#"{ type = "tcp", interval = "1h", fast_interval = "100ms", timeout = "1s" }"#
    } else {
        r#"{ type = "tcp", interval = "500ms", fast_interval = "500ms", timeout = "500ms" }"#
    };
    let mut fleet = Fleet::planned(Plan { forwarding, check, ..Plan::default() });
    let before = fleet.one_answer();
    fleet.route(&[0]);
    if forwarding == Forwarding::Nat {
        fleet.backends[1] = None;
    } else {
        fleet.topology.switch().ip("link set web2 down").unwrap();
    }
    let after = fleet.all_homes();
    assert_eq!(moved(&before, &after, "web2"), BTreeMap::new(), "{forwarding:?}");
    assert!(after.iter().flatten().all(|home| home != "web2"), "{forwarding:?}");
    fleet.wait_for("web2", "down");
    assert_eq!(fleet.one_answer(), after, "{forwarding:?}");
}

#[test]
fn when_a_server_is_killed_then_the_clients_of_one_member_tell_all_and_no_connection_fails() {
    the_clients_of_one_member_tell_all(Forwarding::Nat);
}
