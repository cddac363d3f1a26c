//! Tests of slow starts: when a slow start begins, how its steps follow, and what ends it.

use std::time::{Duration, Instant};

use balancer_config::{
    config::ServiceConfig,
    fixture::{address, name, web},
    states::{Admin, BackendState, Forced},
};

use crate::{
    controller_test::{Bench, kinds, lines},
    fixture::next_hop,
    io::{Command, Event},
};

fn slow() -> ServiceConfig {
    ServiceConfig { slow_start: Duration::from_secs(9), ..web() }
}

fn bench() -> Bench {
    let mut bench = Bench::new(vec![slow()]).0;
    for number in 1..=4 {
        bench.pass(&format!("web/web{number}"));
    }
    bench
}

fn slots(bench: &Bench, backend: &str) -> u32 {
    bench.controller.backend(&name(backend)).unwrap().slots()
}

/// Advances the clock to the next deadline, and returns the resulting commands.
fn tick(bench: &mut Bench) -> Vec<Command> {
    bench.now = bench.controller.next_deadline().expect("something is due");
    bench.controller.handle(Event::Tick, bench.now)
}

/// The number of slots of `backend` after each step until nothing more is due, and the time of the last step.
fn steps(bench: &mut Bench, backend: &str) -> (Vec<u32>, Instant) {
    let mut seen = vec![slots(bench, backend)];
    while bench.controller.next_deadline().is_some() {
        assert_eq!(kinds(&tick(bench)), ["swap"]);
        seen.push(slots(bench, backend));
    }
    (seen, bench.now)
}

#[test]
fn when_the_balancer_starts_then_there_is_no_slow_start() {
    let bench = bench();
    assert_eq!((bench.controller.next_deadline(), slots(&bench, "web/web1")), (None, 16_385));
    let mut patient = Bench::new(vec![ServiceConfig { start_down: true, ..slow() }]).0;
    for number in 1..=4 {
        patient.pass(&format!("web/web{number}"));
    }
    assert_eq!(patient.controller.next_deadline(), None);
}

#[test]
fn when_a_backend_returns_then_it_gets_its_slots_in_ten_steps() {
    let mut bench = bench();
    let whole = bench.service().live_table().to_vec();
    bench.refuse("web/web2");
    let commands = bench.pass("web/web2");
    assert_eq!(
        lines(&commands),
        [
            "backend web/web2 up (slow start, step 1 of 10), 1,639 of 65,537 slots moved from 3 backends, was down for 4s"
        ]
    );
    assert_eq!(bench.shown("web/web2"), (BackendState::Up, "slow start, step 1 of 10".to_owned()));
    let began = bench.now;
    let (seen, ended) = steps(&mut bench, "web/web2");
    assert_eq!(ended - began, Duration::from_secs(9));
    let expected: Vec<u32> = (1..=10).map(|step| 16_384 * step / 10).collect();
    assert!(seen.len() == 10 && seen.iter().zip(&expected).all(|(seen, expected)| seen.abs_diff(*expected) <= 10));
    assert_eq!(bench.service().live_table(), whole);
    assert_eq!(bench.service().slots_moved(), (2 * 16_384, 0), "each slot moves once away and once back");
    assert_eq!(bench.shown("web/web2"), (BackendState::Up, String::new()));
}

#[test]
fn when_a_backend_was_drained_forced_or_added_then_it_starts_slowly() {
    let mut bench = bench();
    for admin in [Admin::Drain, Admin::Maint] {
        bench.admin("web/web1", admin);
        bench.admin("web/web1", Admin::Ready);
        assert_eq!(slots(&bench, "web/web1"), 1_639, "{admin:?}");
        steps(&mut bench, "web/web1");
    }
    bench.force("web/web1", Some(Forced::Down));
    bench.force("web/web1", None);
    assert_eq!(slots(&bench, "web/web1"), 1_639);
    steps(&mut bench, "web/web1");

    bench.add("web/web5", "10.0.0.15").unwrap();
    assert_eq!(slots(&bench, "web/web5"), 0, "its next hop is not known yet");
    let hop = Event::NextHop { address: address("10.0.0.15:1").ip(), next_hop: Ok(next_hop(5)) };
    bench.controller.handle(hop, bench.now);
    assert_eq!(slots(&bench, "web/web5"), 1_311);
    let (seen, _) = steps(&mut bench, "web/web5");
    assert_eq!((seen.len(), seen.last()), (10, Some(&13_107)));
}

#[test]
fn when_a_slow_start_fails_then_the_next_return_begins_anew() {
    let mut bench = bench();
    bench.refuse("web/web2");
    bench.pass("web/web2");
    tick(&mut bench);
    tick(&mut bench);
    bench.refuse("web/web2");
    assert_eq!((slots(&bench, "web/web2"), bench.controller.next_deadline()), (0, None));
    bench.pass("web/web2");
    assert_eq!(slots(&bench, "web/web2"), 1_639);
    assert_eq!(bench.service().slots_moved().1, 0);
}

#[test]
fn when_no_other_backend_serves_then_there_is_no_slow_start() {
    let mut bench = bench();
    for number in 1..=4 {
        bench.refuse(&format!("web/web{number}"));
    }
    bench.pass("web/web1");
    assert_eq!((slots(&bench, "web/web1"), bench.controller.next_deadline()), (65_537, None));
    bench.pass("web/web2");
    assert!(slots(&bench, "web/web2") < 10_000);
    // The service needs all slots of the only backend that is still available.
    bench.refuse("web/web1");
    assert_eq!((slots(&bench, "web/web2"), bench.controller.next_deadline()), (65_537, None));
}

#[test]
fn when_several_start_slowly_then_they_do_not_exchange_slots() {
    let mut bench = bench();
    let whole = bench.service().live_table().to_vec();
    bench.refuse("web/web2");
    bench.refuse("web/web3");
    let needless = bench.service().slots_moved().1;
    bench.pass("web/web2");
    tick(&mut bench);
    bench.pass("web/web3");
    while bench.controller.next_deadline().is_some() {
        tick(&mut bench);
    }
    assert_eq!(bench.service().live_table(), whole);
    assert_eq!(bench.service().slots_moved().1, needless);
}

#[test]
fn when_the_file_removes_slow_start_then_it_ends() {
    let mut bench = bench();
    bench.refuse("web/web2");
    bench.pass("web/web2");
    bench.reload(vec![web()]).unwrap();
    assert_eq!((slots(&bench, "web/web2"), bench.controller.next_deadline()), (16_384, None));
}
