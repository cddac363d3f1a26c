//! Tests of fleets whose members have different views of backends.

use std::{
    collections::BTreeMap,
    env,
    time::{Duration, Instant},
};

use balancer_api::statistics::StatsView;
use balancer_common::map_types::Forwarding;
use balancer_testkit::{
    http_client::{Request, send_all},
    site::WORKERS,
    topology::Family,
};

use super::{CLIENTS, Fleet, PORT, Plan, moved};
use crate::support::{homes, requests, wait};

/// Returns how often the backend fails and recovers. `FLEET_FLAPS=1000` makes the test longer.
fn flaps() -> usize {
    env::var("FLEET_FLAPS").ok().and_then(|flaps| flaps.parse().ok()).unwrap_or(12)
}

impl Fleet {
    /// Cuts a member's route to a backend if `verb` is `"add"`, or restores the route if `verb` is `"del"`.
    fn cut(&self, verb: &str, member: usize, backend: u16) {
        for (family, flag, length) in [(Family::V4, "-4", 32), (Family::V6, "-6", 128)] {
            let address = self.topology.backend_address(family, backend - 1);
            self.namespace(member).ip(&format!("{flag} route {verb} blackhole {address}/{length}")).unwrap();
        }
    }

    /// Returns whether some other member reports that the view of `member` about the given backends differs from the
    /// fleet's view.
    fn differs(&self, member: usize, backends: &[&str]) -> bool {
        let name = format!("lb{}", member + 1);
        let shown = self.shown((member + 1) % 3).members;
        shown.iter().any(|of| of.name == name && of.votes_differ == backends)
    }

    /// Returns the number of moved clients that all members together have counted, by cause and by the backend that the
    /// clients left.
    fn counted(&self) -> BTreeMap<String, u64> {
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

    fn taken_over(&self, member: usize) -> u64 {
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
#[test]
fn when_a_server_is_killed_then_the_clients_of_one_member_tell_all_and_no_connection_fails() {
    for forwarding in [Forwarding::Nat, Forwarding::Dsr] {
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
}

#[test]
fn when_two_of_three_members_cannot_reach_a_backend_then_its_clients_move_once() {
    let fleet = Fleet::new();
    let homes = fleet.one_answer();
    fleet.cut("add", 0, 2);
    fleet.cut("add", 1, 2);
    fleet.wait_for("web2", "down");
    // The third member sees the backend up, but follows the other members.
    wait("lb3 does not differ", || fleet.differs(2, &["web/web2", "web6/web2"]));
    // lb3 also shows that its view of web2 differs from the view of the majority.
    wait("lb3 shows others that differ", || {
        let differing = |member: &&balancer_api::model::FleetMember| !member.votes_differ.is_empty();
        let shown = fleet.shown(2).members;
        shown.iter().filter(differing).map(|member| member.name.as_str()).collect::<Vec<_>>() == ["lb3"]
    });
    let votes = "balancer_fleet_votes_differ{service=\"web\",backend=\"web2\"} 1";
    (0..3).for_each(|number| wait("a member counts other votes", || fleet.metrics(number).contains(votes)));
    let leaving = homes.iter().flatten().filter(|home| *home == "web2").count();
    let heard = [0, 1].map(|member| fleet.taken_over(member));
    fleet.route(&[2]);
    let after = fleet.all_homes();
    assert_eq!(moved(&homes, &after, "web2"), BTreeMap::new());
    assert!(leaving > 0 && after.iter().flatten().all(|home| home != "web2"));
    wait("lb1 and lb2 have not heard of all that moved", || {
        [0, 1].iter().all(|&member| fleet.taken_over(member) >= heard[member] + leaving as u64)
    });
    assert_eq!(fleet.one_answer(), after);
    let counted = |fleet: &Fleet| {
        let counted = fleet.counted();
        assert!(counted.keys().all(|labels| labels.contains("web2") && labels.contains("down")), "{counted:?}");
        counted.values().sum::<u64>()
    };
    assert_eq!(counted(&fleet), leaving as u64);
    fleet.cut("del", 0, 2);
    fleet.cut("del", 1, 2);
    fleet.wait_for("web2", "up");
    for number in fleet.members() {
        wait("a member is not ready again", || fleet.try_cli(number, &["ready", "--strict"]).is_ok());
    }
    assert_eq!(fleet.one_answer(), after);
    assert_eq!(counted(&fleet), leaving as u64);
}

/// New clients arrive before each failure, so that the backend always has some clients. Each group of new clients uses
/// a different member.
#[test]
fn when_a_backend_flaps_then_no_client_loses_its_session_twice() {
    const NEWCOMERS: u16 = 6;
    let fleet = Fleet::new();
    let (begin, mut places, mut moves) = (Instant::now(), BTreeMap::new(), BTreeMap::new());
    let mut known = *CLIENTS.end();
    let mut connect = |fleet: &Fleet, clients: std::ops::RangeInclusive<u16>, member: usize, may_leave: bool| {
        fleet.route(&[member]);
        let answers = homes(&fleet.topology, &requests(&fleet.topology, Family::V4, PORT, clients.clone()));
        for (client, home) in clients.zip(answers) {
            if let Some(before) = places.insert(client, home.clone())
                && before != home
            {
                assert!(may_leave && before == "web2", "client {client} moved from {before} to {home}");
                *moves.entry(client).or_insert(0_u64) += 1;
            }
        }
    };
    for round in 0..flaps() {
        let (one, other, third) = (round % 3, (round + 1) % 3, (round + 2) % 3);
        let recent = known.saturating_sub(*CLIENTS.end() - 1)..=known;
        connect(&fleet, recent.clone(), one, false);
        // Only one of the members cannot reach the backend.
        fleet.cut("add", one, 2);
        wait("the others do not see what one says", || fleet.differs(one, &["web/web2", "web6/web2"]));
        connect(&fleet, recent.clone(), other, false);
        // Two of the members cannot reach the backend.
        fleet.cut("add", other, 2);
        fleet.wait_for("web2", "down");
        connect(&fleet, recent.clone(), third, true);
        fleet.cut("del", one, 2);
        fleet.cut("del", other, 2);
        fleet.wait_for("web2", "up");
        connect(&fleet, recent, other, false);
        known = known.saturating_add(NEWCOMERS).min(60_000);
    }
    println!("{} flaps in {:.0?}, {} clients moved", flaps(), begin.elapsed(), moves.len());
    assert!(!moves.is_empty() && moves.values().all(|&count| count == 1), "{moves:?}");
    let counted = fleet.counted();
    assert!(counted.keys().all(|labels| labels.contains("web2") && labels.contains("down")), "{counted:?}");
    assert_eq!(counted.values().sum::<u64>(), moves.values().sum::<u64>(), "{counted:?}");
    assert_eq!(fleet.one_answer().iter().flatten().filter(|home| home.is_empty()).count(), 0);
}

/// The fleet decides without a client table, but the member that receives the request counts clients in its own client
/// table.
#[test]
fn when_a_backend_is_removed_then_the_answer_says_who_counted_its_clients() {
    let fleet = Fleet::new();
    let at_web2 = fleet.all_homes().iter().flatten().filter(|home| *home == "web2").count();
    let shown = || fleet.controllers[1].as_ref().unwrap().status().unwrap();
    wait("lb2 does not know its clients", || {
        let backends = shown().services.into_iter().filter(|service| service.name == "web").flat_map(|of| of.backends);
        backends.filter(|backend| backend.name == "web2").any(|backend| backend.known_clients > 0)
    });
    let said = fleet.cli(1, &["backend", "remove", "web/web2"]);
    assert!(said.contains("its known clients leave first") && !said.contains("0 known clients"), "{said}");
    let (_, count) = said.split_once("lb2 knew ").expect(&said);
    let count: usize = count.split(' ').next().unwrap().parse().unwrap();
    assert!((1..=at_web2).contains(&count), "{said}");
}

/// Clients send packets through only one member, and checks are an hour apart. The observation of one member must make
/// all members check the backend at once.
#[test]
fn when_one_member_has_a_signal_then_all_check_at_once() {
    const HOURLY: &str = r#"{ type = "tcp", interval = "1h", fast_interval = "100ms", timeout = "1s" }"#;
    for forwarding in [Forwarding::Dsr, Forwarding::Nat] {
        let mut fleet = Fleet::planned(Plan { forwarding, check: HOURLY, ..Plan::default() });
        fleet.answer_through(&[2]);
        fleet.route(&[2]);
        let homes = fleet.all_homes();
        fleet.backends[1] = None;
        let mut requests: Vec<Request> = Vec::new();
        for family in Family::BOTH {
            requests.extend(self::requests(&fleet.topology, family, PORT, CLIENTS));
        }
        for request in &mut requests {
            request.timeout = Duration::from_secs(5);
        }
        // With dsr, the machine of the dead server refuses connections. With nat, connections reach another backend one
        // second after the failure.
        wait("web2 is not down", || {
            let replies = send_all(fleet.topology.client(), &requests, WORKERS).unwrap();
            assert!(forwarding == Forwarding::Dsr || replies.iter().all(Result::is_ok), "{replies:?}");
            fleet.members().all(|number| {
                let down = |service| {
                    fleet.states(number).iter().any(|line| line.starts_with(&format!("{service}/web2 down ")))
                };
                down("web") && down("web6")
            })
        });
        for number in [0, 1] {
            let told = |line: &&str| {
                line.starts_with("balancer_signals_total{")
                    && line.contains("signal=\"member\"")
                    && !line.ends_with(" 0")
            };
            assert!(fleet.metrics(number).lines().any(|line| told(&line)), "{}", fleet.metrics(number));
        }
        assert_eq!(moved(&homes, &fleet.all_homes(), "web2"), BTreeMap::new());
    }
}
