//! Health states that the operator sets, and checks that the balancer cannot make.

use balancer_config::{
    config::CheckKind,
    fixture::{address, name, web},
    states::{BackendState, Forced},
};

use crate::{
    controller_test::{Bench, kinds},
    fixture::next_hop,
    io::{CheckOutcome, Event},
};

#[test]
fn when_health_is_forced_then_it_overrides_the_checks_until_auto() {
    let mut bench = Bench::web();
    bench.pass("web/web1");
    let (message, commands) = bench.force("web/web1", Some(Forced::Down));
    assert_eq!(message, "backend web/web1 forced down: 16,385 of 65,537 slots moved, 0 needless");
    assert_eq!(kinds(&commands), ["swap"]);
    assert_eq!(bench.shown("web/web1"), (BackendState::Down, "forced down by operator".to_owned()));
    assert_eq!(
        bench.force("web/web1", Some(Forced::Down)).0,
        "backend web/web1 is forced down already: nothing changed"
    );
    assert_eq!(bench.pass("web/web1"), [], "the checks go on, and change nothing");

    bench.force("web/web1", Some(Forced::Up));
    assert_eq!(bench.shown("web/web1"), (BackendState::Up, "forced up by operator".to_owned()));
    assert_eq!(bench.refuse("web/web1"), []);
    let reason = "forced up by operator, checks: connect: refused".to_owned();
    assert_eq!(bench.shown("web/web1"), (BackendState::Up, reason));
    let address = address("10.0.0.11:1").ip();
    bench.controller.handle(Event::NextHop { address, next_hop: Err("no route".to_owned()) }, bench.now);
    assert_eq!(bench.shown("web/web1"), (BackendState::Down, "no next hop: no route".to_owned()));
    bench.controller.handle(Event::NextHop { address, next_hop: Ok(next_hop(1)) }, bench.now);
    assert_eq!(bench.shown("web/web1").0, BackendState::Up);

    let (message, _) = bench.force("web/web1", None);
    assert_eq!(message, "backend web/web1 follows its checks again, is down: 16,385 of 65,537 slots moved, 0 needless");
    assert_eq!(bench.shown("web/web1"), (BackendState::Down, "connect: refused".to_owned()));
    assert_eq!(bench.force("web/web1", None).0, "backend web/web1 follows its checks already: nothing changed");
}

#[test]
fn when_a_backend_without_checks_is_forced_then_it_stays_so_over_a_reload() {
    let mut unchecked = web();
    unchecked.check.kind = CheckKind::None;
    let (mut bench, _) = Bench::new(vec![unchecked.clone()]);
    bench.force("web/web2", Some(Forced::Down));
    unchecked.backends[1].weight = 50;
    bench.reload(vec![unchecked]).unwrap();
    assert_eq!(bench.shown("web/web2"), (BackendState::Down, "forced down by operator".to_owned()));
    let backend = bench.controller.backend(&name("web/web2")).unwrap();
    assert_eq!((backend.forced(), backend.health_word()), (Some(Forced::Down), "down"));
    assert_eq!(
        bench.force("web/web2", None).0.split(':').next(),
        Some("backend web/web2 follows its checks again, is up")
    );
}

#[test]
fn when_a_check_cannot_be_made_then_nothing_changes() {
    let mut bench = Bench::web();
    bench.pass("web/web1");
    for _ in 0..5 {
        assert_eq!(bench.check("web/web1", CheckOutcome::Hindered("no sockets".to_owned())), []);
    }
    let backend = bench.controller.backend(&name("web/web1")).unwrap();
    assert_eq!((backend.checks(), backend.state()), ([2, 0, 0], BackendState::Up));
    assert_eq!(backend.last_check().unwrap().outcome.words(), ("hindered", "no sockets"));
    let service = &bench.controller.services()[0];
    let hindered = |index: usize| service.hindered(&service.backends()[index]);
    assert_eq!((hindered(0), hindered(1)), (Some("no sockets"), None));
}
