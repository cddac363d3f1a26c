//! Drains with client memory: when a drain ends, what ends it early, and how a removal, a failure, an operator or a new
//! configuration affects a drain in progress.

use std::time::Duration;

use balancer_common::verdict::MoveCause;
use balancer_config::{
    config::ServiceConfig,
    fixture::{name, web},
    states::{Admin, BackendState},
};

use crate::{
    controller::{Gone, Precomputed},
    controller_test::{Bench, kinds, lines},
    io::{BackendId, Change, CheckOutcome, Command, Event},
    service::Backend,
};

const TIMEOUT: Duration = Duration::from_secs(300);

fn remembering() -> ServiceConfig {
    ServiceConfig { remember: Duration::from_secs(3600), ..web() }
}

/// A test service with the backends web1 to web4, all up, with ten known clients each.
fn bench() -> Bench {
    let mut bench = Bench::new(vec![remembering()]).0;
    for backend in ["web/web1", "web/web2", "web/web3", "web/web4"] {
        bench.pass(backend);
    }
    sweep(&mut bench, &[("web/web1", 10), ("web/web2", 10), ("web/web3", 10), ("web/web4", 10)]);
    bench
}

fn sweep(bench: &mut Bench, known: &[(&str, u64)]) -> Vec<Command> {
    let known: Vec<(BackendId, u64)> = known.iter().map(|&(backend, clients)| (bench.id(backend), clients)).collect();
    bench.controller.handle(Event::Swept { known }, bench.now)
}

fn wait(bench: &mut Bench, time: Duration) -> Vec<Command> {
    bench.now += time;
    bench.controller.handle(Event::Tick, bench.now)
}

fn drain(bench: &mut Bench, timeout: Option<Duration>) -> (String, Vec<Command>) {
    bench.change(Change::SetAdmin { name: name("web/web1"), admin: Admin::Drain, timeout }).unwrap()
}

fn remove(bench: &mut Bench, force: bool) -> (String, Vec<Command>) {
    bench.change(Change::Remove { name: name("web/web1"), force }).unwrap()
}

/// Returns for each row that the controller writes whether known clients stay, or the cause of their moves.
fn kept(commands: &[Command]) -> Vec<Result<(), MoveCause>> {
    let row = |command: &Command| {
        let Command::WriteBackend(row) = command else { return None };
        Some(if row.keeps_known { Ok(()) } else { Err(row.cause) })
    };
    commands.iter().filter_map(row).collect()
}

fn state(bench: &Bench) -> BackendState {
    bench.shown("web/web1").0
}

fn exists(bench: &Bench) -> bool {
    bench.controller.backend(&name("web/web1")).is_ok()
}

#[test]
fn when_the_deadline_comes_then_a_drain_ends() {
    for timeout in [None, Some(Duration::from_secs(7))] {
        let mut bench = bench();
        let lasts = timeout.unwrap_or(TIMEOUT);
        let (message, commands) = drain(&mut bench, timeout);
        assert_eq!(message, "backend web/web1 draining: 16,385 of 65,537 slots moved, 0 needless");
        assert!(kept(&commands).into_iter().all(|kept| kept.is_ok()), "{commands:?}");
        assert_eq!(
            (state(&bench), bench.controller.next_deadline()),
            (BackendState::Draining, Some(bench.now + lasts))
        );
        assert_eq!(wait(&mut bench, lasts.saturating_sub(Duration::from_millis(1))), []);
        assert_eq!(state(&bench), BackendState::Draining);

        let commands = wait(&mut bench, Duration::from_millis(1));
        assert_eq!(kinds(&commands), ["write", "report"], "the table is as it was");
        assert_eq!(kept(&commands), [Err(MoveCause::Drain)]);
        assert_eq!((state(&bench), bench.controller.next_deadline()), (BackendState::Drained, None));
    }
}

#[test]
fn when_a_drain_is_due_then_another_backends_check_ends_it() {
    let mut bench = bench();
    drain(&mut bench, None);
    bench.now += TIMEOUT;
    let commands = bench.refuse("web/web2");
    assert!(kept(&commands).contains(&Err(MoveCause::Drain)), "{commands:?}");
    assert_eq!((state(&bench), bench.controller.next_deadline()), (BackendState::Drained, None));
}

#[test]
fn when_a_drain_has_no_time_then_it_is_over_at_once() {
    let mut bench = bench();
    let (_, commands) = drain(&mut bench, Some(Duration::ZERO));
    assert_eq!((state(&bench), kept(&commands)), (BackendState::Drained, vec![Err(MoveCause::Drain)]));
}

#[test]
fn when_two_sweeps_find_no_client_then_a_drain_ends() {
    let mut bench = bench();
    drain(&mut bench, None);
    for known in [0, 3, 0] {
        assert_eq!(sweep(&mut bench, &[("web/web1", known)]), []);
        assert_eq!(state(&bench), BackendState::Draining);
    }
    assert_eq!(kept(&sweep(&mut bench, &[])), [Err(MoveCause::Drain)]);
    assert_eq!(state(&bench), BackendState::Drained);
    assert_eq!(sweep(&mut bench, &[]), []);
    // In an open table without other backends, a new client may still come to the draining backend. Such a client does
    // not restart the drain.
    assert_eq!(sweep(&mut bench, &[("web/web1", 1)]), []);
    bench.change(Change::SetWeight { name: name("web/web2"), weight: 50 }).unwrap();
    assert_eq!(state(&bench), BackendState::Drained);
}

#[test]
fn when_another_timeout_is_set_then_it_replaces_the_deadline() {
    let mut bench = bench();
    drain(&mut bench, None);
    assert_eq!(drain(&mut bench, None).0, "backend web/web1 is draining already: nothing changed");
    wait(&mut bench, Duration::from_secs(100));
    drain(&mut bench, Some(Duration::from_secs(5)));
    assert_eq!(bench.controller.next_deadline(), Some(bench.now + Duration::from_secs(5)));
}

#[test]
fn when_a_draining_backend_is_set_ready_then_no_client_has_moved() {
    let mut bench = bench();
    let before = bench.service().live_table().to_vec();
    drain(&mut bench, Some(Duration::from_secs(5)));
    wait(&mut bench, Duration::from_secs(4));
    let (_, commands) = bench.admin("web/web1", Admin::Ready);
    assert!(kept(&commands).into_iter().all(|kept| kept.is_ok()), "{commands:?}");
    assert_eq!((state(&bench), bench.controller.next_deadline()), (BackendState::Up, None));
    assert_eq!(bench.service().live_table(), before);
    drain(&mut bench, None);
    assert_eq!(bench.controller.next_deadline(), Some(bench.now + TIMEOUT), "a new one, with the service's timeout");
}

#[test]
fn when_a_draining_backend_fails_hard_then_its_clients_move_and_the_deadline_stays() {
    let mut bench = bench();
    drain(&mut bench, None);
    let deadline = bench.controller.next_deadline();
    assert_eq!(kept(&bench.refuse("web/web1")), [Err(MoveCause::Down)]);
    assert_eq!((state(&bench), bench.controller.next_deadline()), (BackendState::Down, None));
    assert_eq!(kept(&bench.pass("web/web1")), [Ok(())]);
    assert_eq!((state(&bench), bench.controller.next_deadline()), (BackendState::Draining, deadline));

    bench.refuse("web/web1");
    wait(&mut bench, TIMEOUT);
    assert_eq!(kept(&bench.pass("web/web1")), [Err(MoveCause::Drain)]);
    assert_eq!(state(&bench), BackendState::Drained, "the deadline passed meanwhile");
    bench.refuse("web/web1");
    bench.pass("web/web1");
    assert_eq!(state(&bench), BackendState::Drained, "once drained, it stays so");
}

#[test]
fn when_backends_fail_softly_then_each_drains_until_its_own_deadline() {
    let mut bench = bench();
    let soft = |bench: &mut Bench| -> Vec<Command> {
        (0..3).flat_map(|_| bench.check("web/web1", CheckOutcome::Soft("status 503".to_owned()))).collect()
    };
    soft(&mut bench);
    assert_eq!(
        (state(&bench), bench.controller.next_deadline()),
        (BackendState::DrainingHealth, Some(bench.now + TIMEOUT))
    );
    bench.pass("web/web1");
    assert_eq!((state(&bench), bench.controller.next_deadline()), (BackendState::Up, None));
    soft(&mut bench);
    assert_eq!(bench.controller.next_deadline(), Some(bench.now + TIMEOUT));
    assert_eq!(kept(&wait(&mut bench, TIMEOUT)), [Err(MoveCause::Drain)]);
    assert_eq!(state(&bench), BackendState::Down);
    assert_eq!(kept(&bench.pass("web/web1")), [Ok(())]);
    assert_eq!(state(&bench), BackendState::Up);
}

#[test]
fn when_no_backend_takes_clients_then_backups_and_those_of_weight_0_keep_theirs() {
    let mut web = remembering();
    web.backends[2].weight = 0;
    web.backends[3].backup = true;
    let mut bench = Bench::new(vec![web]).0;
    for backend in ["web/web1", "web/web2", "web/web3", "web/web4"] {
        bench.pass(backend);
    }
    let keep = |bench: &Bench| bench.service().backends().iter().map(Backend::keeps_known).collect::<Vec<_>>();
    for backend in ["web/web1", "web/web2", "web/web3"] {
        bench.refuse(backend);
    }
    assert_eq!(keep(&bench), [false, false, false, true]);
    bench.refuse("web/web4");
    assert_eq!(keep(&bench), [true; 4]);
    bench.admin("web/web3", Admin::Maint);
    assert_eq!(keep(&bench), [true, true, false, true]);
    bench.pass("web/web1");
    assert_eq!(keep(&bench), [true, false, false, false]);
}

#[test]
fn when_a_backend_is_removed_then_it_drains_and_its_id_stays_until_no_client_knows_it() {
    let mut bench = bench();
    let (free, id) = (bench.controller.free_ids(), bench.id("web/web1"));
    let (message, commands) = remove(&mut bench, false);
    assert!(
        message.starts_with("backend web/web1 drains before it is removed: 16,385 of 65,537 slots moved"),
        "{message}"
    );
    assert!(message.contains("; 10 known clients"), "{message}");
    assert!(kept(&commands).into_iter().all(|kept| kept.is_ok()), "{commands:?}");
    drain(&mut bench, Some(Duration::from_secs(10)));

    let commands = wait(&mut bench, Duration::from_secs(10));
    assert!(!exists(&bench), "another deadline does not call the removal off");
    assert_eq!(kept(&commands).last(), Some(&Err(MoveCause::Drain)));
    assert!(lines(&commands).contains(&"backend web/web1 removed, it is drained"), "{commands:?}");
    assert_eq!((bench.controller.gone().len(), bench.controller.free_ids()), (1, free));

    let known =
        |bench: &mut Bench, known: u64| bench.controller.handle(Event::Swept { known: vec![(id, known)] }, bench.now);
    assert_eq!([0, 0, 1, 0, 0].map(|clients| known(&mut bench, clients)), [const { Vec::new() }; 5]);
    assert_eq!(known(&mut bench, 0), [Command::RetireBackend(id)]);
    assert_eq!((bench.controller.gone().len(), bench.controller.free_ids()), (0, free + 1));
}

#[test]
fn when_clients_were_counted_for_a_removal_then_it_says_so_many_and_not_those_of_the_sweep() {
    let mut bench = bench();
    bench.controller.expect(Precomputed::default().with_known_clients(Some(102)));
    let (message, _) = remove(&mut bench, false);
    assert!(message.contains("; 102 known clients"), "{message}");
}

#[test]
fn when_a_leaving_backend_is_set_ready_then_the_removal_is_cancelled() {
    let mut bench = bench();
    remove(&mut bench, false);
    bench.admin("web/web1", Admin::Ready);
    wait(&mut bench, 2 * TIMEOUT);
    sweep(&mut bench, &[]);
    sweep(&mut bench, &[]);
    assert_eq!(state(&bench), BackendState::Up);
}

#[test]
fn when_a_removal_is_forced_then_it_happens_at_once_even_during_a_drain() {
    let mut bench = bench();
    remove(&mut bench, false);
    let (message, commands) = remove(&mut bench, true);
    assert!(message.starts_with("backend web/web1 removed: "), "{message}");
    assert_eq!(kept(&commands), [Err(MoveCause::Removed)]);
    assert!(!exists(&bench));
}

/// A drain does not make a backend keep clients if the backend kept no clients before.
#[test]
fn when_a_backend_keeps_no_client_then_it_is_removed_at_once() {
    type Begin = fn(&mut Bench) -> Vec<Command>;
    let situations: [(Begin, MoveCause); 3] = [
        (|bench| bench.admin("web/web1", Admin::Maint).1, MoveCause::Maint),
        (|bench| bench.refuse("web/web1"), MoveCause::Down),
        (|bench| drain(bench, Some(Duration::ZERO)).1, MoveCause::Drain),
    ];
    for (begin, cause) in situations {
        let mut bench = bench();
        let mut all = begin(&mut bench);
        assert_eq!(kept(&all).last(), Some(&Err(cause)));
        let (message, commands) = remove(&mut bench, false);
        assert!(message.starts_with("backend web/web1 removed: "), "{message}");
        assert!(!kinds(&commands).contains(&"check"), "{commands:?}");
        all.extend(commands);
        assert_eq!(kept(&all).last(), Some(&Err(cause)), "those still to come are moved for what moved the others");
        assert!(!exists(&bench));
    }
}

#[test]
fn when_a_leaving_backend_fails_then_it_is_removed_soon() {
    let mut bench = bench();
    remove(&mut bench, false);
    let mut commands = bench.refuse("web/web1");
    commands.extend(sweep(&mut bench, &[("web/web1", 10)]));
    assert_eq!(kept(&commands), [Err(MoveCause::Down)]);
    assert!(!exists(&bench));
}

#[test]
fn when_a_file_is_reloaded_then_drains_continue_and_backends_it_lists_anew_return() {
    let mut bench = bench();
    drain(&mut bench, None);
    let deadline = bench.controller.next_deadline();
    bench.now += Duration::from_secs(60);
    let mut config = remembering();
    config.drain_timeout = Duration::from_secs(10);
    config.backends[1].weight = 7;
    let (_, commands) = bench.reload(vec![config.clone()]).unwrap();
    assert!(kept(&commands).into_iter().all(|kept| kept.is_ok()), "{commands:?}");
    assert_eq!((state(&bench), bench.controller.next_deadline()), (BackendState::Draining, deadline));

    remove(&mut bench, false);
    bench.reload(vec![config.clone()]).unwrap();
    assert_eq!(state(&bench), BackendState::Draining, "the file says what it said before");
    config.backends[0].weight = 90;
    let (message, commands) = bench.reload(vec![config.clone()]).unwrap();
    assert!(message.starts_with("configuration applied, 1 backend changed: "), "{message}");
    assert!(kept(&commands).into_iter().all(|kept| kept.is_ok()), "{commands:?}");
    assert_eq!(state(&bench), BackendState::Up);

    remove(&mut bench, false);
    config.backends.remove(0);
    let (_, commands) = bench.reload(vec![config]).unwrap();
    assert!(!exists(&bench));
    assert_eq!(kept(&commands), [Err(MoveCause::Removed)]);
}

#[test]
fn when_a_service_is_removed_then_the_next_one_with_its_id_knows_no_client() {
    let mut bench = bench();
    let id = bench.service().id();
    bench.reload(Vec::new()).unwrap();
    assert_eq!(bench.controller.gone().len(), 4);
    bench.reload(vec![remembering()]).unwrap();
    assert_ne!(bench.service().id(), id, "clients are still known at the old one's backends");
    (0..Gone::ENOUGH_SWEEPS).for_each(|_| drop(sweep(&mut bench, &[])));
    assert_eq!(bench.controller.gone().len(), 0);
}

#[test]
fn when_a_removed_backend_is_added_again_then_its_clients_are_at_home() {
    let mut bench = bench();
    let id = bench.id("web/web1");
    let known = |bench: &Bench| bench.controller.backend(&name("web/web1")).unwrap().known_clients();
    let clients = known(&bench);
    remove(&mut bench, true);
    let free = bench.controller.free_ids();
    let (_, commands) = bench.add("web/web1", "10.0.0.11").unwrap();
    assert_eq!((bench.id("web/web1"), known(&bench), bench.controller.gone().len()), (id, clients, 0));
    assert_eq!(bench.controller.free_ids(), free);
    assert!(!commands.contains(&Command::RetireBackend(id)), "{commands:?}");

    // A backend with another address or another name is a different backend.
    remove(&mut bench, true);
    bench.add("web/web1", "10.0.0.99").unwrap();
    assert_ne!(bench.id("web/web1"), id);
    bench.add("web/web9", "10.0.0.11").unwrap();
    assert_ne!(bench.id("web/web9"), id);
    assert_eq!(bench.controller.gone().len(), 1);
}
