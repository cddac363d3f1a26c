//! Outages of (nearly) all backends of a service, in which known clients stay at their backends.

use std::time::{Duration, UNIX_EPOCH};

use balancer_common::map_types::{ALL_DOWN, Forwarding};
use balancer_config::{
    config::{Outage, ServiceConfig, WhenAllDown},
    fixture::{KEY, backend, check, config, name, service, web},
    states::{Admin, BackendState, Forced},
};

use crate::{
    controller::Controller,
    controller_test::{Bench, entries, lines},
    fixture::next_hop,
    io::{Change, CheckOutcome, Command, Event},
    state::Clocks,
};

const ALL: [&str; 4] = ["web/web1", "web/web2", "web/web3", "web/web4"];
const FAST: Duration = Duration::from_millis(500);

fn remembering() -> ServiceConfig {
    ServiceConfig { remember: Duration::from_secs(3600), ..web() }
}

/// A test bench with the service `web`, in which all backends are up and have 50 known clients each.
fn site(web: ServiceConfig) -> Bench {
    let mut bench = Bench::new(vec![web]).0;
    let backends: Vec<String> =
        bench.service().backends().iter().map(|backend| format!("web/{}", backend.name())).collect();
    let all: Vec<&str> = backends.iter().map(String::as_str).collect();
    for address in bench.service().backends().iter().map(|backend| backend.address().ip()).collect::<Vec<_>>() {
        bench.controller.handle(Event::NextHop { address, next_hop: Ok(next_hop(1)) }, bench.now);
    }
    round(&mut bench, &all, &CheckOutcome::Passed);
    let known = bench.service().backends().iter().map(|backend| (backend.id(), 50)).collect();
    bench.controller.handle(Event::Swept { known }, bench.now);
    bench
}

fn refused() -> CheckOutcome {
    CheckOutcome::Hard("connect: refused".to_owned())
}

/// Checks each of these backends once, after the interval of fast checks.
fn round(bench: &mut Bench, backends: &[&str], outcome: &CheckOutcome) -> Vec<Command> {
    bench.now += FAST;
    let events: Vec<Event> = backends.iter().map(|backend| bench.checked(backend, outcome.clone())).collect();
    let mut commands = bench.controller.handle_all(events, bench.now);
    commands.extend(bench.controller.handle(Event::Tick, bench.now));
    commands
}

fn rounds(bench: &mut Bench, backends: &[&str], outcome: &CheckOutcome, count: usize) -> Vec<Command> {
    (0..count).flat_map(|_| round(bench, backends, outcome)).collect()
}

/// Waits until the next deadline.
fn wait(bench: &mut Bench) -> Vec<Command> {
    bench.now = bench.controller.next_deadline().expect("nothing is due");
    bench.controller.handle(Event::Tick, bench.now)
}

/// Returns for each backend whether its known clients stay.
fn keeping(bench: &Bench) -> Vec<bool> {
    bench.service().backends().iter().map(|backend| backend.keeps_known()).collect()
}

fn states(bench: &Bench) -> Vec<BackendState> {
    bench.service().backends().iter().map(|backend| backend.state()).collect()
}

/// Counts the rows of backends that keep no clients, so that their known clients move.
fn moved(commands: &[Command]) -> usize {
    let moves = |command: &&Command| matches!(command, Command::WriteBackend(row) if !row.keeps_known);
    commands.iter().filter(moves).count()
}

/// Lets all of these backends fail for so long that the controller declares an outage. Returns the reports of the
/// controller.
fn fail(bench: &mut Bench, backends: &[&str]) -> Vec<String> {
    let mut commands = rounds(bench, backends, &refused(), 3);
    commands.extend(wait(bench));
    assert_eq!(moved(&commands), 0);
    lines(&commands).into_iter().map(str::to_owned).collect()
}

fn restart(bench: &mut Bench, web: ServiceConfig) {
    let clocks = Clocks { now: bench.now, wall: UNIX_EPOCH + Duration::from_secs(1_700_000_000) };
    let state = serde_json::to_string(&bench.controller.export(clocks)).unwrap();
    let state = serde_json::from_str(&state).unwrap();
    bench.controller = Controller::restore(config(vec![web]), KEY, state, clocks).unwrap();
    let commands = bench.controller.start(bench.now);
    assert_eq!(moved(&commands), 0, "{commands:?}");
}

#[test]
fn when_all_backends_fail_and_come_back_then_nobody_is_moved() {
    let mut bench = site(remembering());
    let table = bench.service().live_table().to_vec();
    let said = fail(&mut bench, &ALL);
    assert_eq!(said.last().unwrap(), "outage of web: 4 of 4 backends fail, 200 known clients kept");
    assert_eq!((states(&bench), keeping(&bench)), (vec![BackendState::Down; 4], vec![true; 4]));
    assert_eq!(bench.service().live_table(), table);
    assert_eq!(bench.shown("web/web1").1, "outage, known clients stay: connect: refused");
    let began = bench.now;

    bench.now += Duration::from_secs(18);
    let first = rounds(&mut bench, &ALL[..1], &CheckOutcome::Passed, 2);
    assert_eq!((moved(&first), keeping(&bench)), (0, vec![true; 4]));
    assert_eq!(entries(bench.service()).len(), 1, "new clients go to the one that is back");
    let line = bench.service().outage(bench.now).unwrap().1;
    assert!(line.starts_with("outage of web for 20s: 3 of 4 backends down, 150 known clients kept"), "{line}");
    let others = rounds(&mut bench, &ALL[1..], &CheckOutcome::Passed, 2);
    assert_eq!(moved(&others), 0);
    let over = "outage of web over after 21s: 0 known clients moved";
    assert_eq!(lines(&others).last(), Some(&over), "began {:?} ago", bench.now - began);
    assert_eq!(bench.service().live_table(), table);
    assert_eq!((bench.service().outage(bench.now), bench.controller.next_deadline()), (None, None));
}

#[test]
fn when_the_ways_to_all_backends_are_gone_at_once_then_known_clients_stay() {
    let mut bench = site(remembering());
    let addresses: Vec<_> = bench.service().backends().iter().map(|backend| backend.address().ip()).collect();
    let mut commands = Vec::new();
    for &address in &addresses {
        // The backends fail one after the other within a short time.
        bench.now += Duration::from_millis(1);
        let event = Event::NextHop { address, next_hop: Err("eth1 is down".to_owned()) };
        commands.extend(bench.controller.handle(event, bench.now));
    }
    assert_eq!(keeping(&bench), [true; 4]);
    commands = wait(&mut bench);
    assert!(lines(&commands).contains(&"outage of web: 4 of 4 backends fail, 200 known clients kept"));
    // The first two backends had failed before the controller could detect an outage.
    bench.now += Duration::from_secs(20);
    commands.clear();
    for &address in addresses.iter().rev() {
        bench.now += Duration::from_secs(1);
        let event = Event::NextHop { address, next_hop: Ok(next_hop(1)) };
        commands.extend(bench.controller.handle(event, bench.now));
        assert_eq!(keeping(&bench), [true; 4]);
    }
    assert_eq!((moved(&commands), states(&bench)), (0, vec![BackendState::Up; 4]));
}

#[test]
fn when_one_of_four_does_not_come_back_then_its_clients_alone_are_moved_and_once() {
    let mut bench = site(remembering());
    fail(&mut bench, &ALL);
    rounds(&mut bench, &ALL[..3], &CheckOutcome::Passed, 2);
    assert_eq!(keeping(&bench), [true; 4]);
    let after = wait(&mut bench);
    assert_eq!(keeping(&bench), [true, true, true, false]);
    assert_eq!(moved(&after), 1);
    let said = lines(&after);
    assert!(said.last().unwrap().ends_with(": 50 known clients moved from web4, which is still down"), "{said:?}");
    assert_eq!(bench.shown("web/web4"), (BackendState::Down, "connect: refused".to_owned()));
    let back = rounds(&mut bench, &ALL[3..], &CheckOutcome::Passed, 2);
    assert_eq!(moved(&back), 0);
}

/// Backends return three seconds after each other, as servers do that are started one by one.
#[test]
fn when_backends_come_back_one_after_the_other_then_clients_of_the_others_are_kept_until_nobody_follows() {
    let mut bench = site(remembering());
    fail(&mut bench, &ALL);
    let mut commands = rounds(&mut bench, &ALL[..1], &CheckOutcome::Passed, 2);
    for backend in 1..3 {
        bench.now += 8 * Duration::from_secs(1);
        commands.extend(bench.controller.handle(Event::Tick, bench.now));
        commands.extend(rounds(&mut bench, &ALL[backend..=backend], &CheckOutcome::Passed, 2));
        assert_eq!((moved(&commands), keeping(&bench)), (0, vec![true; 4]));
    }
    let last = bench.now;
    let after = wait(&mut bench);
    assert_eq!(bench.now - last, Outage::hold_by_default());
    assert_eq!((moved(&after), keeping(&bench)), (1, vec![true, true, true, false]));
}

/// The service's own `hold` replaces the default, but leaves checks the time that they need.
#[test]
fn when_a_service_has_its_own_hold_then_the_others_have_that_long_to_return() {
    for (hold, kept) in [(60, 60), (0, check().return_takes().as_secs())] {
        let outage = Outage { hold: Duration::from_secs(hold), ..Outage::default() };
        let mut bench = site(ServiceConfig { outage, ..remembering() });
        fail(&mut bench, &ALL);
        rounds(&mut bench, &ALL[..1], &CheckOutcome::Passed, 2);
        let last = bench.now;
        wait(&mut bench);
        assert_eq!((bench.now - last).as_secs(), kept);
        assert_eq!(keeping(&bench), [true, false, false, false]);
    }
}

#[test]
fn when_no_more_than_the_share_fail_then_their_clients_move_at_once() {
    for failing in 1..=2 {
        let mut bench = site(remembering());
        rounds(&mut bench, &ALL[..failing], &refused(), 2);
        let commands = round(&mut bench, &ALL[..failing], &refused());
        assert_eq!(moved(&commands), failing);
        assert!(states(&bench)[..failing].iter().all(|state| *state == BackendState::Down));
        assert_eq!((bench.service().outage(bench.now), bench.controller.next_deadline()), (None, None));
    }
    let mut two = remembering();
    two.backends.truncate(2);
    let mut bench = site(two);
    let commands = rounds(&mut bench, &ALL[..1], &refused(), 3);
    assert_eq!(moved(&commands), 1);
}

#[test]
fn when_two_of_three_or_the_only_one_fail_then_known_clients_stay() {
    for (there, failing) in [(3, 2), (2, 2), (1, 1)] {
        let mut web = remembering();
        web.backends.truncate(there);
        let mut bench = site(web);
        let said = fail(&mut bench, &ALL[..failing]);
        assert!(said.last().unwrap().starts_with("outage of web"), "{said:?}");
        assert_eq!(keeping(&bench), vec![true; there]);
        // New clients go to the only backend that works.
        assert_eq!(entries(bench.service()).len(), if there == 3 { 1 } else { there });
        assert_eq!(moved(&rounds(&mut bench, &ALL[..failing], &CheckOutcome::Passed, 2)), 0);
        assert_eq!(states(&bench), vec![BackendState::Up; there]);
    }
}

#[test]
fn when_others_pass_within_a_round_then_the_suspects_that_still_fail_are_down() {
    let mut bench = site(remembering());
    rounds(&mut bench, &ALL[..3], &refused(), 2);
    let commands = round(&mut bench, &ALL[..1], &refused());
    assert_eq!(moved(&commands), 0);
    let reason = "suspect, too many others fail as well: connect: refused".to_owned();
    assert_eq!(bench.shown("web/web1"), (BackendState::DrainingHealth, reason));
    assert_eq!(entries(bench.service()).len(), 3, "new clients go to those that are not suspect");
    assert_eq!(moved(&round(&mut bench, &ALL[1..3], &CheckOutcome::Passed)), 0);
    let until = bench.controller.next_deadline().unwrap();
    assert!(until <= bench.now + check().fast_round());
    let commands = wait(&mut bench);
    assert_eq!((moved(&commands), keeping(&bench)), (1, vec![false, true, true, true]));
    assert!(lines(&commands)[0].starts_with("backend web/web1 down (connect: refused)"), "{:?}", lines(&commands));
    assert_eq!((bench.service().outage(bench.now), bench.controller.next_deadline()), (None, None));
}

#[test]
fn when_the_suspects_pass_again_then_nobody_is_moved() {
    let mut bench = site(remembering());
    rounds(&mut bench, &ALL, &refused(), 3);
    let commands = rounds(&mut bench, &ALL, &CheckOutcome::Passed, 2);
    assert_eq!((moved(&commands), states(&bench)), (0, vec![BackendState::Up; 4]));
    assert!(lines(&commands).iter().all(|line| !line.contains("outage")), "{:?}", lines(&commands));
    assert_eq!(bench.controller.next_deadline(), None);
}

#[test]
fn when_backends_fail_one_after_the_other_within_a_round_then_the_last_ones_keep_their_clients() {
    let mut bench = site(remembering());
    for backend in ALL {
        for _ in 0..3 {
            bench.now += Duration::from_millis(30);
            bench.controller.handle(bench.checked(backend, refused()), bench.now);
        }
    }
    // Two failed backends of four do not make an outage; three failed backends do.
    assert!(bench.shown("web/web3").1.starts_with("suspect"), "{:?}", bench.shown("web/web3"));
    assert!(bench.shown("web/web4").1.starts_with("suspect"), "{:?}", bench.shown("web/web4"));
    assert_eq!(keeping(&bench), [true; 4]);
}

#[test]
fn when_the_share_is_one_then_there_are_no_outages() {
    let off = ServiceConfig { outage: Outage { share: 1.0, ..Outage::default() }, ..remembering() };
    let mut bench = site(off.clone());
    rounds(&mut bench, &ALL[..3], &refused(), 3);
    assert_eq!(keeping(&bench), [false, false, false, true]);

    // The user switches off the rule for outages during an outage.
    let mut bench = site(remembering());
    fail(&mut bench, &ALL[..3]);
    let (_, commands) = bench.reload(vec![off]).unwrap();
    assert_eq!((moved(&commands), keeping(&bench)), (3, vec![false, false, false, true]));
    assert!(lines(&commands).iter().any(|line| line.contains("150 known clients moved")), "{:?}", lines(&commands));
}

#[test]
fn when_the_share_is_raised_in_an_outage_then_fewer_failures_are_none_and_more_still_are() {
    for (share, over) in [(0.9, true), (0.6, false)] {
        let mut bench = site(remembering());
        fail(&mut bench, &ALL[..3]);
        bench.reload(vec![ServiceConfig { outage: Outage { share, ..Outage::default() }, ..remembering() }]).unwrap();
        assert_eq!((bench.service().outage(bench.now).is_none(), keeping(&bench)[0]), (over, !over), "{share}");
    }
}

#[test]
fn when_there_is_no_memory_then_the_table_stays_as_if_all_were_up() {
    for when_all_down in [WhenAllDown::Open, WhenAllDown::Drop] {
        let mut bench = site(ServiceConfig { when_all_down, ..web() });
        let table = bench.service().live_table().to_vec();
        fail(&mut bench, &ALL[..3]);
        assert_eq!((bench.service().live_table(), bench.service().table_generation()), (&*table, 1));
        rounds(&mut bench, &ALL[..1], &CheckOutcome::Passed, 2);
        assert_eq!(bench.service().live_table(), table);
        wait(&mut bench);
        assert_eq!(entries(bench.service()).len(), 2, "those of backends that are still down move");
    }
}

#[test]
fn when_all_fail_and_the_service_drops_then_only_known_clients_are_served() {
    let drop = |remember| ServiceConfig { when_all_down: WhenAllDown::Drop, remember, ..web() };
    let mut bench = site(drop(Duration::from_secs(3600)));
    fail(&mut bench, &ALL);
    assert_eq!((keeping(&bench), entries(bench.service())), (vec![true; 4], [ALL_DOWN].into()));
    rounds(&mut bench, &ALL[..1], &CheckOutcome::Passed, 2);
    assert_eq!((keeping(&bench), entries(bench.service()).len()), (vec![true; 4], 1));

    let mut bench = site(drop(Duration::ZERO));
    let table = bench.service().live_table().to_vec();
    fail(&mut bench, &ALL);
    assert_eq!(entries(bench.service()), [ALL_DOWN].into());
    rounds(&mut bench, &ALL[..1], &CheckOutcome::Passed, 2);
    assert_eq!(bench.service().live_table(), table, "the others' slots wait for them");
}

#[test]
fn when_backups_are_there_then_they_take_over_at_once() {
    let mut web = remembering();
    web.backends[3].backup = true;
    let mut bench = site(web.clone());
    let commands = rounds(&mut bench, &ALL[..3], &refused(), 3);
    assert_eq!((moved(&commands), keeping(&bench)), (3, vec![false, false, false, true]));

    // A backup backend that fails as well does not help.
    let mut bench = site(web);
    fail(&mut bench, &ALL);
    assert_eq!(keeping(&bench), [true; 4]);
    rounds(&mut bench, &ALL[3..], &CheckOutcome::Passed, 2);
    assert_eq!(keeping(&bench), [true; 4], "the primaries are waited for");
    wait(&mut bench);
    assert_eq!(keeping(&bench), [false, false, false, true]);
}

#[test]
fn when_failures_are_soft_then_they_drain_and_an_outage_keeps_clients_beyond_the_deadline() {
    let mut bench = site(ServiceConfig { drain_timeout: Duration::from_secs(5), ..remembering() });
    let soft = CheckOutcome::Soft("status 503".to_owned());
    let mut commands = rounds(&mut bench, &ALL, &soft, 3);
    assert_eq!(states(&bench), [BackendState::DrainingHealth; 4]);
    commands.extend(wait(&mut bench));
    assert!(lines(&commands).iter().any(|line| line.starts_with("outage of web: 4 of 4")), "{:?}", lines(&commands));
    commands.extend(wait(&mut bench));
    assert_eq!((keeping(&bench), moved(&commands)), (vec![true; 4], 0));
    commands = rounds(&mut bench, &ALL, &CheckOutcome::Passed, 2);
    assert_eq!((states(&bench), moved(&commands)), (vec![BackendState::Up; 4], 0));
}

#[test]
fn when_all_come_back_from_an_outage_then_nobody_starts_slowly() {
    let mut bench = site(ServiceConfig { slow_start: Duration::from_secs(30), ..remembering() });
    let table = bench.service().live_table().to_vec();
    fail(&mut bench, &ALL);
    for backend in ALL {
        rounds(&mut bench, &[backend], &CheckOutcome::Passed, 2);
    }
    assert_eq!(bench.service().live_table(), table);
    assert_eq!(bench.controller.next_deadline(), None);
}

#[test]
fn when_the_controller_restarts_in_an_outage_then_known_clients_stay_as_without_it() {
    for halfway in [false, true] {
        let mut bench = site(remembering());
        fail(&mut bench, &ALL);
        if halfway {
            rounds(&mut bench, &ALL[..1], &CheckOutcome::Passed, 2);
        }
        let (shown, deadline) = (states(&bench), bench.controller.next_deadline());
        restart(&mut bench, remembering());
        assert_eq!((states(&bench), keeping(&bench)), (shown, vec![true; 4]));
        assert_eq!(bench.controller.next_deadline(), deadline);
        let commands = rounds(&mut bench, &ALL[..3], &CheckOutcome::Passed, 2);
        assert_eq!((moved(&commands), keeping(&bench)), (0, vec![true; 4]));
        wait(&mut bench);
        assert_eq!(keeping(&bench), [true, true, true, false]);
    }
    // The controller only suspects the backends so far.
    let mut bench = site(remembering());
    rounds(&mut bench, &ALL, &refused(), 3);
    restart(&mut bench, remembering());
    let commands = wait(&mut bench);
    assert!(lines(&commands)[0].starts_with("backend web/web1 down (outage"), "{:?}", lines(&commands));
    assert_eq!(keeping(&bench), [true; 4]);
}

#[test]
fn when_the_operator_acts_in_an_outage_then_it_is_done() {
    let mut bench = site(remembering());
    fail(&mut bench, &ALL[..3]);
    // A backend in maintenance or forced down keeps no client; a drain continues as usual.
    let (_, commands) = bench.admin("web/web1", Admin::Maint);
    assert_eq!((moved(&commands), keeping(&bench)), (1, vec![false, true, true, true]));
    bench.admin("web/web2", Admin::Drain);
    assert!(bench.service().outage(bench.now).is_none(), "one of two that are eligible is no outage");
    assert_eq!(keeping(&bench), [false, false, false, true], "one that drains and fails is down");

    let mut bench = site(remembering());
    fail(&mut bench, &ALL);
    bench.admin("web/web2", Admin::Drain);
    assert_eq!((bench.shown("web/web2").0, keeping(&bench)), (BackendState::Draining, vec![true; 4]));

    let mut bench = site(remembering());
    fail(&mut bench, &ALL);
    bench.force("web/web4", Some(Forced::Down));
    assert_eq!(keeping(&bench)[..3], [true; 3]);
    bench.force("web/web3", Some(Forced::Up));
    assert_eq!(bench.controller.next_deadline(), None, "nobody has come back");
    assert_eq!(keeping(&bench), [true, true, true, false]);
    bench.change(Change::Remove { name: name("web/web1"), force: true }).unwrap();
    assert!(bench.service().outage(bench.now).is_none(), "one of two");
}

#[test]
fn when_sound_backends_are_added_in_an_outage_then_it_is_over_once_they_are_found_up() {
    let mut bench = site(remembering());
    fail(&mut bench, &ALL[..3]);
    for (number, host) in [(5, 15), (6, 16)] {
        bench.add(&format!("web/web{number}"), &format!("10.0.0.{host}")).unwrap();
        let found = Event::NextHop { address: [10, 0, 0, host].into(), next_hop: Ok(next_hop(1)) };
        bench.controller.handle(found, bench.now);
    }
    assert!(bench.service().outage(bench.now).is_some(), "nothing is known of them yet");
    let commands = rounds(&mut bench, &["web/web5", "web/web6"], &CheckOutcome::Passed, 1);
    assert_eq!((moved(&commands), keeping(&bench)), (3, vec![false, false, false, true, true, true]));
}

#[test]
fn when_backends_fail_again_before_the_outage_is_over_then_it_goes_on() {
    let mut bench = site(remembering());
    fail(&mut bench, &ALL);
    for _ in 0..3 {
        rounds(&mut bench, &ALL[..1], &CheckOutcome::Passed, 2);
        assert!(bench.controller.next_deadline().is_some());
        let commands = rounds(&mut bench, &ALL[..1], &refused(), 3);
        assert_eq!((moved(&commands), keeping(&bench)), (0, vec![true; 4]));
        assert_eq!(bench.controller.next_deadline(), None);
    }
}

#[test]
fn when_one_was_down_for_long_before_an_outage_then_it_counts_for_nothing() {
    let mut bench = site(remembering());
    bench.refuse("web/web4");
    bench.now += Duration::from_secs(60);
    let mut commands = rounds(&mut bench, &ALL[..1], &refused(), 3);
    assert_eq!(moved(&commands), 1, "one of three");
    bench.now += Duration::from_secs(60);
    commands = rounds(&mut bench, &ALL[1..3], &refused(), 3);
    commands.extend(wait(&mut bench));
    assert!(lines(&commands).contains(&"outage of web: 2 of 2 backends fail, 100 known clients kept"));
}

#[test]
fn when_a_switch_fails_with_a_tenth_of_a_thousand_then_they_move_and_with_six_tenths_they_stay() {
    let names: Vec<String> = (0..1_000).map(|n| format!("web/b{n}")).collect();
    let all: Vec<&str> = names.iter().map(String::as_str).collect();
    let backends: Vec<_> =
        (0..1_000).map(|n| backend(&format!("b{n}"), &format!("10.1.{}.{}:80", n / 200, n % 200 + 1))).collect();
    let web = service("web", "198.51.100.10:80", Forwarding::Nat, &[]);
    let web = ServiceConfig { backends, remember: Duration::from_secs(3600), ..web };
    let mut bench = site(web.clone());
    assert_eq!(moved(&rounds(&mut bench, &all[..100], &refused(), 3)), 100);

    let mut bench = site(web);
    let said = fail(&mut bench, &all[..600]);
    assert_eq!(said.last().unwrap(), "outage of web: 600 of 1,000 backends fail, 30,000 known clients kept");
    let commands = rounds(&mut bench, &all[..600], &CheckOutcome::Passed, 2);
    assert_eq!(moved(&commands), 0);
}
