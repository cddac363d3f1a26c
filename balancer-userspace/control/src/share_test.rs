//! Tests of the share of a service's clients that the balancer steers: at run time, in the file, after restarts, and in
//! plans.

use std::time::{Duration, UNIX_EPOCH};

use balancer_common::{client_table::Entry, share::Share};
use balancer_config::{
    config::ServiceConfig,
    fixture::{KEY, config, now, web},
};

use crate::{
    controller::Controller,
    controller_test::{Bench, kinds, lines},
    io::{Change, Command, Event, Refused},
    plan::ComingClients,
    state::Clocks,
};

const HOUR: Duration = Duration::from_secs(3600);

fn steering(steer: u8) -> ServiceConfig {
    ServiceConfig { steer, remember: HOUR, ..web() }
}

fn set(bench: &mut Bench, steer: u8) -> (String, Vec<Command>) {
    bench.change(Change::SetSteer { service: "web".to_owned(), steer }).unwrap()
}

/// Returns the share that the commands last set for the only service.
fn told(commands: &[Command]) -> Option<Share> {
    commands.iter().rev().find_map(|command| {
        if let Command::PublishServices(services) = command { services.first().map(|spec| spec.share) } else { None }
    })
}

fn later(bench: &mut Bench, time: Duration) -> Vec<Command> {
    bench.now += time;
    bench.controller.handle(Event::Tick, bench.now)
}

fn restart(bench: &mut Bench, services: Vec<ServiceConfig>) {
    let wall = UNIX_EPOCH + 1000 * HOUR;
    let state = bench.controller.export(Clocks { now: bench.now, wall });
    let clocks = Clocks { now: bench.now + HOUR / 4, wall: wall + HOUR / 4 };
    bench.now = clocks.now;
    bench.controller = Controller::restore(config(services), KEY, state, clocks).unwrap();
    bench.controller.start(bench.now);
}

#[test]
fn when_the_share_changes_then_what_it_was_counts_for_an_hour() {
    let (mut bench, commands) = Bench::new(vec![steering(0)]);
    assert_eq!(told(&commands), Some(Share::always(0)));
    assert_eq!(bench.controller.next_deadline(), None);
    let (message, commands) = set(&mut bench, 10);
    assert_eq!(message, "service web steer 0 → 10: 10% more of the clients are steered, and no client moves");
    assert_eq!((kinds(&commands), told(&commands)), (vec!["publish"], Some(Share { now: 10, least: 0, most: 10 })));
    later(&mut bench, HOUR / 2);
    assert_eq!(told(&set(&mut bench, 100).1), Some(Share { now: 100, least: 0, most: 100 }));
    let (message, commands) = set(&mut bench, 40);
    assert_eq!(message, "service web steer 100 → 40: 60% of the clients go back to the host");
    assert_eq!(told(&commands), Some(Share { now: 40, least: 0, most: 100 }));
    // The hour begins at the last change of the share.
    assert_eq!(later(&mut bench, HOUR - Duration::from_secs(1)), []);
    let commands = later(&mut bench, Duration::from_secs(1));
    assert_eq!(told(&commands), Some(Share::always(40)));
    let said = "service web steers 40% of its clients; the program no longer looks for connections from before the \
                change";
    assert_eq!(lines(&commands), [said]);
    assert_eq!(bench.controller.next_deadline(), None);
    assert_eq!(bench.service().slots_moved(), (0, 0), "nobody moves");
}

#[test]
fn when_nothing_changes_or_a_share_is_none_then_it_is_said() {
    let mut bench = Bench::web();
    let (message, commands) = set(&mut bench, 100);
    assert_eq!((message.as_str(), commands), ("service web has steer 100 already: nothing changed", vec![]));
    let refused = bench.change(Change::SetSteer { service: "web".to_owned(), steer: 101 }).unwrap_err();
    assert!(matches!(refused, Refused::Invalid(_)), "{refused:?}");
    let refused = bench.change(Change::SetSteer { service: "wbe".to_owned(), steer: 1 }).unwrap_err();
    assert!(matches!(&refused, Refused::NotFound(said) if said.contains("web")), "{refused:?}");
    assert_eq!(bench.service().share(), Share::ALL);
}

#[test]
fn when_the_file_is_read_again_then_its_share_wins_only_if_it_is_another_one() {
    for (file, at_run_time, then, said) in [
        (10, Some(50), 50, "steer of web: 50 set at run time is kept, the file says 10 as before"),
        (20, Some(50), 20, "steer of web: 50 set at run time, the file now says 20"),
        (50, Some(50), 50, ""),
        (20, None, 20, ""),
    ] {
        let (mut bench, _) = Bench::new(vec![steering(10)]);
        if let Some(steer) = at_run_time {
            set(&mut bench, steer);
        }
        let (_, commands) = bench.reload(vec![steering(file)]).unwrap();
        assert_eq!(bench.service().share().now, then, "{file}");
        assert_eq!(lines(&commands).iter().any(|line| line.contains("steer of web")), !said.is_empty());
        assert!(said.is_empty() || lines(&commands).iter().any(|line| line.contains(said)), "{commands:?}");
    }
}

#[test]
fn when_the_controller_restarts_then_the_share_and_what_it_was_are_those_of_before() {
    let (mut bench, _) = Bench::new(vec![steering(10)]);
    set(&mut bench, 60);
    restart(&mut bench, vec![steering(10)]);
    assert_eq!(bench.service().share(), Share { now: 60, least: 10, most: 60 });
    let commands = later(&mut bench, 3 * HOUR / 4);
    assert_eq!(told(&commands), Some(Share::always(60)));
    restart(&mut bench, vec![steering(10)]);
    assert_eq!(bench.service().share(), Share::always(60));
}

#[test]
fn when_a_change_of_the_share_is_planned_then_the_known_clients_that_change_sides_are_counted() {
    let (mut bench, _) = Bench::new(vec![steering(50)]);
    bench.pass("web/web1");
    let id = bench.id("web/web1").0;
    let clients = || (0..10_000u32).map(|client| Entry::new(client.wrapping_mul(0x0019_660d), id, 1));
    let on =
        |share: Share| clients().filter(move |entry| share.side(entry.tag()) != balancer_common::share::Side::Host);
    let half = on(Share::always(50)).count() as u64;
    for (steer, taken_over, sent_back) in
        [(50, 0, 0), (100, 10_000 - half, 0), (0, 0, half), (20, 0, half - on(Share::always(20)).count() as u64)]
    {
        let change = Change::SetSteer { service: "web".to_owned(), steer };
        let planned = bench.controller.plan(change, bench.now).unwrap();
        let planned =
            planned.counted(|count| clients().for_each(|entry| count(entry, Duration::ZERO, entry.tag() % 2 == 0)));
        let [of] = planned.services.as_slice() else { panic!("{planned:?}") };
        assert_eq!((of.known_clients_taken_over, of.known_clients_sent_back), (taken_over, sent_back), "{steer}");
        assert_eq!((of.steer, of.does_something()), ([50, steer], steer != 50));
        let ComingClients { served, reported, guessed } = of.coming;
        assert_eq!(served + reported + guessed, taken_over);
        assert!(served == 0 && (reported == 0) == (taken_over == 0) && reported.abs_diff(guessed) < 500, "{of:?}");
    }
}

#[test]
fn when_a_fleet_decides_on_a_share_then_every_member_steers_the_same_clients() {
    let mut bench = Bench { controller: Controller::decider(config(vec![steering(20)]), KEY, now()), now: now() };
    let wall = UNIX_EPOCH + 1000 * HOUR;
    let change = Change::SetSteer { service: "web".to_owned(), steer: 70 };
    bench.controller.decide_change(change, bench.now).unwrap();
    let clocks = Clocks { now: bench.now, wall };
    let mut member = Controller::follower(config(Vec::new()), KEY, bench.now);
    let commands = member.follow(bench.controller.agreed_state(clocks), clocks).unwrap();
    let both = Share { now: 70, least: 20, most: 70 };
    assert_eq!((bench.service().share(), told(&commands)), (both, Some(both)));
    // The fleet also decides when the earlier share no longer matters.
    bench.now += HOUR;
    bench.controller.decide_what_is_due(bench.now);
    let clocks = Clocks { now: bench.now, wall: wall + HOUR };
    let commands = member.follow(bench.controller.agreed_state(clocks), clocks).unwrap();
    assert_eq!(told(&commands), Some(Share::always(70)));
}
