//! Tests of fleets whose members have different views of backends, which take longer than a landing has time for.

use std::{
    collections::BTreeMap,
    env,
    time::{Duration, Instant},
};

use balancer_common::map_types::Forwarding;
use balancer_testkit::{
    http_client::{Request, send_all},
    site::WORKERS,
    topology::Family,
};

use crate::{
    fleet::{CLIENTS, Fleet, PORT, Plan, moved, verdicts::the_clients_of_one_member_tell_all},
    support::{homes, requests, wait},
};

/// Returns how often the backend fails and recovers. `FLEET_FLAPS=1000` makes the test longer.
fn flaps() -> usize {
    env::var("FLEET_FLAPS").ok().and_then(|flaps| flaps.parse().ok()).unwrap_or(12)
}

#[test]
fn when_the_machine_of_a_server_is_silent_then_the_clients_of_one_member_tell_all_and_no_connection_fails() {
    the_clients_of_one_member_tell_all(Forwarding::Dsr);
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
        let all = Family::BOTH.into_iter().flat_map(|family| requests(&fleet.topology, family, PORT, CLIENTS));
        let requests: Vec<Request> =
            all.map(|request| Request { timeout: Duration::from_secs(5), ..request }).collect();
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
