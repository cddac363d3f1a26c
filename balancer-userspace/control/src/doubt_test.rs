//! Backends that packets and a time-out of a check, or a shut port, put in doubt: unknown clients go to others, and known
//! clients stay.

use std::time::Duration;

use balancer_config::{
    config::ServiceConfig,
    fixture::web,
    states::{BackendState, Forced},
};

use crate::{
    controller_test::{Bench, kinds},
    io::{CheckOutcome, Command, Event},
};

const ALL: [&str; 4] = ["web/web1", "web/web2", "web/web3", "web/web4"];

fn bench(remember: Duration) -> Bench {
    let mut bench = Bench::new(vec![ServiceConfig { remember, ..web() }]).0;
    ALL.iter().for_each(|backend| drop(bench.pass(backend)));
    bench
}

fn remembering() -> Bench {
    bench(Duration::from_secs(3600))
}

/// Reports the result of a check that packets have asked for.
fn asked(bench: &mut Bench, backend: &str, outcome: CheckOutcome) -> Vec<Command> {
    let Event::Checked { backend, check, outcome, took, .. } = bench.checked(backend, outcome) else { unreachable!() };
    bench.controller.handle(Event::Checked { backend, check, outcome, took, asked: true }, bench.now)
}

fn late() -> CheckOutcome {
    CheckOutcome::Late("connect: timeout after 1s".to_owned())
}

/// Returns which backends get new clients, and whether all backends are up and keep their known clients.
fn takers(bench: &Bench) -> (Vec<&str>, bool) {
    let backends = bench.service().backends();
    let stay = backends.iter().all(|backend| backend.state() == BackendState::Up && backend.keeps_known());
    (backends.iter().filter(|backend| backend.slots() > 0).map(|backend| backend.name()).collect(), stay)
}

#[test]
fn when_a_check_that_packets_asked_for_times_out_then_new_clients_go_elsewhere_until_one_passes() {
    let mut bench = remembering();
    let table = bench.service().live_table().to_vec();
    let commands = asked(&mut bench, "web/web1", late());
    assert_eq!(kinds(&commands), ["swap"]);
    assert_eq!(takers(&bench), (vec!["web2", "web3", "web4"], true));
    assert_eq!(bench.shown("web/web1").1, "doubted: connect: timeout after 1s, 1 of 3 failures");
    let elsewhere = |(now, before): (&u16, &u16)| now == before || *before == bench.id("web/web1").0;
    assert!(bench.service().live_table().iter().zip(&table).all(elsewhere), "slots of others move");
    bench.check("web/web1", late());
    assert_eq!(takers(&bench), (vec!["web2", "web3", "web4"], true));
    bench.check("web/web1", CheckOutcome::Passed);
    assert_eq!((takers(&bench).1, bench.service().live_table()), (true, &table[..]));
}

#[test]
fn when_a_port_is_shut_for_a_moment_then_nobody_moves_and_new_clients_go_elsewhere_until_a_check_passes() {
    let shut = || CheckOutcome::Shut("connect: refused".to_owned());
    let mut bench = remembering();
    let table = bench.service().live_table().to_vec();
    (0..9).for_each(|_| drop(bench.check("web/web1", shut())));
    assert_eq!(takers(&bench), (vec!["web2", "web3", "web4"], true));
    assert_eq!(bench.shown("web/web1").1, "doubted: connect: refused, 2 of 3 failures");
    bench.check("web/web1", CheckOutcome::Passed);
    assert_eq!((takers(&bench).1, bench.service().live_table()), (true, &table[..]));
    (0..9).for_each(|_| drop(bench.check("web/web1", shut())));
    bench.check("web/web1", CheckOutcome::Hard("connect: refused".to_owned()));
    assert_eq!(bench.shown("web/web1").0, BackendState::Down);
}

#[test]
fn when_all_servers_restart_within_a_moment_then_nobody_moves_and_longer_refusals_are_one_outage() {
    let mut bench = remembering();
    let table = bench.service().live_table().to_vec();
    for backend in ALL {
        bench.check(backend, CheckOutcome::Shut("connect: refused".to_owned()));
        assert!(takers(&bench).1);
    }
    assert_eq!(bench.service().live_table(), table);
    for backend in ALL {
        (0..3).for_each(|_| drop(bench.check(backend, CheckOutcome::Hard("connect: refused".to_owned()))));
        assert!(bench.service().backends().iter().all(|backend| backend.keeps_known()));
    }
    assert!(bench.service().outage(bench.now).is_some(), "{:?}", bench.shown("web/web1"));
}

#[test]
fn when_time_outs_go_on_then_the_doubt_becomes_a_verdict() {
    let mut bench = remembering();
    asked(&mut bench, "web/web1", late());
    (0..2).for_each(|_| drop(bench.check("web/web1", late())));
    assert_eq!(bench.shown("web/web1").0, BackendState::Down);
    bench.pass("web/web1");
    assert_eq!(takers(&bench), (vec!["web1", "web2", "web3", "web4"], true));
}

#[test]
fn when_all_backends_are_in_doubt_then_all_get_new_clients() {
    let mut bench = remembering();
    let table = bench.service().live_table().to_vec();
    for (backend, others) in ALL.iter().zip([3, 2, 1, 4]) {
        asked(&mut bench, backend, late());
        assert_eq!((takers(&bench).0.len(), takers(&bench).1), (others, true));
    }
    assert_eq!(bench.service().live_table(), table);
}

#[test]
fn when_nobody_asked_or_a_check_is_refused_or_forced_or_nobody_is_remembered_then_there_is_no_doubt() {
    let all = (vec!["web1", "web2", "web3", "web4"], true);
    let mut bench = remembering();
    bench.check("web/web1", late());
    assert_eq!(takers(&bench), all);
    asked(&mut bench, "web/web2", CheckOutcome::Hard("connect: refused".to_owned()));
    assert_eq!(takers(&bench), all);
    bench.force("web/web3", Some(Forced::Up));
    asked(&mut bench, "web/web3", late());
    assert_eq!(takers(&bench), all);
    let mut forgetful = self::bench(Duration::ZERO);
    asked(&mut forgetful, "web/web1", late());
    assert_eq!(takers(&forgetful).0, all.0);
}
