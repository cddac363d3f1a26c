//! Tests of the state that a restart preserves, with client memory; the model test covers the tables and ids of random
//! sequences.

use std::time::{Duration, UNIX_EPOCH};

use balancer_common::map_types::Forwarding;
use balancer_config::{
    config::ServiceConfig,
    fixture::{KEY, backend, config, name, service, web},
    states::{Admin, BackendState},
    table_size::TableSize,
};

use crate::{
    controller::{Controller, Gone},
    controller_test::{Bench, lines},
    fixture::next_hop,
    io::{BackendId, Change, Command, Event},
    state::{Clocks, SavedState},
};

const WALL: Duration = Duration::from_secs(1_700_000_000);

fn remembering() -> ServiceConfig {
    ServiceConfig { remember: Duration::from_secs(3600), ..web() }
}

fn export(bench: &Bench) -> SavedState {
    let state = bench.controller.export(Clocks { now: bench.now, wall: UNIX_EPOCH + WALL });
    serde_json::from_str(&serde_json::to_string(&state).unwrap()).unwrap()
}

/// Continues in another process after this `pause`; the other process reads the configuration file `file`.
pub(super) fn restart(bench: &mut Bench, pause: Duration, file: Vec<ServiceConfig>) -> Vec<Command> {
    let state = export(bench);
    bench.now += pause;
    let clocks = Clocks { now: bench.now, wall: UNIX_EPOCH + WALL + pause };
    bench.controller = Controller::restore(config(file), KEY, state, clocks).unwrap();
    bench.controller.start(bench.now)
}

#[test]
fn when_a_backend_was_down_then_after_a_restart_it_is_down_at_once_and_slots_stay() {
    let mut bench = Bench::web();
    for backend in ["web/web1", "web/web2", "web/web4"] {
        bench.pass(backend);
    }
    bench.refuse("web/web3");
    let table = bench.service().live_table().to_vec();
    let commands = restart(&mut bench, Duration::from_secs(5), vec![web()]);
    assert_eq!(bench.shown("web/web3"), (BackendState::Down, "connect: refused".to_owned()));
    assert_eq!(bench.service().live_table(), table);
    assert_eq!(commands.iter().filter(|command| matches!(command, Command::StartChecks(_))).count(), 4);
    let back = bench.pass("web/web3");
    assert!(lines(&back)[0].ends_with("was down for 9s"), "{:?}", lines(&back));
}

#[test]
fn when_a_restart_happens_during_drains_then_they_end_at_their_time() {
    let mut bench = Bench::new(vec![remembering()]).0;
    let known = [("web/web1", 10), ("web/web2", 10)].map(|(backend, known)| (bench.id(backend), known));
    bench.controller.handle(Event::Swept { known: known.to_vec() }, bench.now);
    let timeout = Some(Duration::from_secs(100));
    bench.change(Change::SetAdmin { name: name("web/web1"), admin: Admin::Drain, timeout }).unwrap();
    bench.remove("web/web2");
    restart(&mut bench, Duration::from_secs(40), vec![remembering()]);
    assert_eq!(bench.controller.next_deadline(), Some(bench.now + Duration::from_secs(60)));
    assert_eq!(bench.shown("web/web1").0, BackendState::Draining);
    assert!(bench.controller.backend(&name("web/web2")).unwrap().is_leaving());
    // The deadline passes before the other process starts.
    restart(&mut bench, Duration::from_secs(60), vec![remembering()]);
    assert_eq!(bench.shown("web/web1").0, BackendState::Drained);
    let commands = restart(&mut bench, Duration::from_secs(3600), vec![remembering()]);
    assert!(bench.controller.backend(&name("web/web2")).is_err());
    assert!(lines(&commands).contains(&"backend web/web2 removed, it is drained"), "{:?}", lines(&commands));
}

#[test]
fn when_the_wall_clock_was_set_back_then_nothing_lasts_longer() {
    let timeout = Some(Duration::from_secs(100));
    let web = ServiceConfig { slow_start: Duration::from_secs(60), ..remembering() };
    let mut bench = Bench::new(vec![web.clone()]).0;
    bench.change(Change::SetAdmin { name: name("web/web1"), admin: Admin::Drain, timeout }).unwrap();
    bench.remove("web/web2");
    let mut state = export(&bench);
    let back = Clocks { now: bench.now, wall: UNIX_EPOCH + WALL - Duration::from_secs(7 * 86_400) };
    state.bound(back.moment(back.now));
    bench.controller = Controller::restore(config(vec![web]), KEY, state, back).unwrap();
    bench.controller.start(bench.now);
    let until =
        |backend| bench.controller.backend(&name(backend)).unwrap().drain_deadline().map(|until| until - bench.now);
    assert_eq!(until("web/web1"), timeout);
    assert_eq!(until("web/web2"), Some(remembering().drain_timeout));
    assert!(bench.controller.next_deadline().unwrap() <= bench.now + Duration::from_secs(100));
}

#[test]
fn when_a_removed_backend_is_still_known_then_its_id_stays_reserved() {
    let mut bench = Bench::new(vec![remembering()]).0;
    bench.controller.handle(Event::Swept { known: vec![(bench.id("web/web2"), 7)] }, bench.now);
    let id = bench.id("web/web2");
    bench.change(Change::Remove { name: name("web/web2"), force: true }).unwrap();
    let commands = restart(&mut bench, Duration::ZERO, vec![remembering()]);
    let row = |command: &Command| matches!(command, Command::WriteBackend(row) if row.id == id && !row.keeps_known);
    assert!(commands.iter().any(row));
    assert_eq!(bench.controller.gone()[0].known, 7);
    for _ in 1..Gone::ENOUGH_SWEEPS {
        bench.controller.handle(Event::Swept { known: Vec::new() }, bench.now);
        assert_eq!(bench.controller.gone().len(), 1);
    }
    let commands = bench.controller.handle(Event::Swept { known: Vec::new() }, bench.now);
    assert_eq!(commands, [Command::RetireBackend(id)]);
}

#[test]
fn when_the_file_has_changed_during_a_restart_then_the_changes_are_applied() {
    let mut bench = Bench::web();
    bench.add("web/web5", "10.0.0.15").unwrap();
    let address = "10.0.0.15".parse().unwrap();
    bench.controller.handle(Event::NextHop { address, next_hop: Ok(next_hop(5)) }, bench.now);
    bench.change(Change::SetWeight { name: name("web/web1"), weight: 50 }).unwrap();
    let mut file = web();
    file.backends[1].weight = 10;
    file.backends.push(backend("web6", "10.0.0.16:8080"));
    let ids = ["web/web1", "web/web5"].map(|backend| bench.id(backend));
    let commands = restart(&mut bench, Duration::ZERO, vec![file]);
    let weights: Vec<u16> = bench.service().backends().iter().map(|backend| backend.weight()).collect();
    assert_eq!(weights, [50, 10, 100, 100, 100, 100]);
    assert_eq!(ids, ["web/web1", "web/web5"].map(|backend| bench.id(backend)));
    let said = lines(&commands);
    for line in [
        "backend web/web5 10.0.0.15:8080 was added at run time and is kept",
        "weight of web/web1: 50 set at run time is kept, the file says 100 as before",
    ] {
        assert!(said.contains(&line), "{said:?}");
    }
}

#[test]
fn when_a_state_contradicts_itself_then_it_is_refused() {
    let bench = Bench::web();
    let clocks = Clocks { now: bench.now, wall: UNIX_EPOCH + WALL };
    type Spoil = fn(&mut SavedState);
    let spoilt: [(Spoil, &str); 4] = [
        (|state| state.services[0].backends[1].id = state.services[0].backends[0].id, "another's"),
        (|state| state.services[0].backends[1].id.0 = 0, "out of range"),
        (
            |state| state.services[0].backends[1].config.name = "web1".to_owned(),
            "service web: the backend name \"web1\" is taken",
        ),
        (|state| state.services.push(state.services[0].clone()), "one id"),
    ];
    for (spoil, words) in spoilt {
        let mut state = export(&bench);
        spoil(&mut state);
        let error = Controller::restore(config(vec![web()]), KEY, state, clocks).unwrap_err();
        assert!(error.contains(words), "{error}");
    }
}

#[test]
fn when_the_configuration_has_a_key_then_it_is_not_saved() {
    let bench = Bench::web();
    let state = export(&bench);
    assert_eq!(state.hash_key, None);
    let mut config = config(vec![web()]);
    config.hash_key = None;
    let mut controller = Controller::new(config, KEY);
    controller.start(bench.now);
    let kept = controller.export(Clocks { now: bench.now, wall: UNIX_EPOCH + WALL });
    assert_eq!((kept.hash_key, kept.key_fingerprint), (Some(KEY), state.key_fingerprint));
}

/// A service of `count` backends named after `letter`.
pub(super) fn many(letter: char, count: u32) -> ServiceConfig {
    let mut service = remembering();
    let address = |number: u32| std::net::Ipv4Addr::from_bits(0x0a00_0000 + number);
    service.backends = (0..count).map(|n| backend(&format!("{letter}{n}"), &format!("{}:8080", address(n)))).collect();
    service
}

#[test]
fn when_a_file_cannot_replace_the_saved_state_then_the_start_uses_the_file_alone() {
    let mut bench = Bench::new(vec![many('a', 33_000)]).0;
    let refused = bench.change(Change::Reload(Box::new(config(vec![many('b', 33_000)])))).unwrap_err();
    assert!(refused.to_string().contains("33,000 backends to add"), "{refused}");
    let commands = restart(&mut bench, Duration::ZERO, vec![many('b', 33_000)]);
    assert!(!bench.controller.goes_on());
    assert!(bench.service().backends().iter().all(|backend| backend.name().starts_with('b')));
    assert_eq!(bench.service().backends().len(), 33_000);
    assert!(lines(&commands).last().unwrap().contains("starting with the file alone"));
    // The commands concern only objects that differ in the file.
    let written = commands.iter().filter(|command| matches!(command, Command::WriteBackend(_))).count();
    assert_eq!(written, 33_000);
}

#[test]
fn when_ids_exceed_the_smallest_maps_then_they_survive_a_restart() {
    let mut bench = Bench::web();
    let mut state = export(&bench);
    state.services[0].backends[1].id = BackendId(40_000);
    let clocks = Clocks { now: bench.now, wall: UNIX_EPOCH + WALL };
    bench.controller = Controller::restore(config(vec![web()]), KEY, state.clone(), clocks).unwrap();
    let largest = bench.controller.largest();
    assert_eq!((largest.ids, largest.highest_id), (4, 40_000));
    bench.controller.set_backend_rows(65_536);
    bench.controller.start(bench.now);
    assert_eq!(bench.id("web/web2"), BackendId(40_000));

    // The file contains other backends; at first, the balancer also serves the old backends.
    let others = ["a 10.0.1.1:80", "b 10.0.1.2:80", "c 10.0.1.3:80"];
    let file = service("other", "198.51.100.11:80", Forwarding::Dsr, &others);
    bench.controller = Controller::restore(config(vec![file]), KEY, state.clone(), clocks).unwrap();
    assert_eq!(bench.controller.largest().ids, 7);

    state.services[0].backends[1].id = BackendId(u16::MAX);
    let why = Controller::restore(config(vec![web()]), KEY, state, clocks).unwrap_err();
    assert_eq!(why, "backend web2 has the id 65535, which is out of range or another's");
}

#[test]
fn when_a_counter_of_a_state_is_absurd_then_the_state_is_refused() {
    let bench = Bench::web();
    let clocks = Clocks { now: bench.now, wall: UNIX_EPOCH + WALL };
    let spoil: [fn(&mut SavedState); 5] = [
        |state| state.generation = u64::MAX,
        |state| state.services[0].slots_moved_required = u64::MAX,
        |state| state.services[0].backends[1].checks[2] = u64::MAX,
        |state| state.services[0].backends[1].transitions[0] = u64::MAX,
        |state| state.services[0].backends[1].known = u64::MAX,
    ];
    for spoil in spoil {
        let mut state = export(&bench);
        spoil(&mut state);
        let why = Controller::restore(config(vec![web()]), KEY, state, clocks).unwrap_err();
        assert_eq!(why, "the count 18446744073709551615 is impossible");
    }
}

#[test]
fn when_a_table_size_is_automatic_then_it_stays_so_over_a_restart() {
    for (size, text) in [(TableSize::Fixed(65_537), "65537"), (TableSize::Auto, "\"auto\"")] {
        assert_eq!(serde_json::to_string(&size).unwrap(), text);
        assert_eq!(serde_json::from_str::<TableSize>(text).unwrap(), size);
    }
    assert!(serde_json::from_str::<TableSize>("\"many\"").is_err());

    let auto = |count: u32| ServiceConfig { table_size: TableSize::Auto, ..many('a', count) };
    let mut bench = Bench::new(vec![auto(40)]).0;
    bench.add("web/one-more", "10.1.0.1").unwrap();
    let address = "10.1.0.1".parse().unwrap();
    bench.controller.handle(Event::NextHop { address, next_hop: Ok(next_hop(5)) }, bench.now);
    let table = bench.service().live_table().to_vec();
    assert_eq!(table.len(), 16_411);
    restart(&mut bench, Duration::ZERO, vec![auto(40)]);
    assert_eq!(bench.service().live_table(), table);
    // The table size in the file is smaller; at first, the balancer also serves the old table.
    let state = export(&bench);
    let clocks = Clocks { now: bench.now, wall: UNIX_EPOCH + WALL };
    let restored = |file| Controller::restore(config(vec![file]), KEY, state.clone(), clocks).unwrap();
    assert_eq!(restored(auto(3)).largest().services[0].slots(), 16_411);
    assert_eq!(restored(ServiceConfig { table_size: 251.into(), ..auto(3) }).largest().services[0].slots(), 16_411);
}

#[test]
fn when_the_file_has_another_mode_than_the_state_then_there_is_room_for_both() {
    let was = ServiceConfig { forwarding: Forwarding::Snat, ..many('a', 3) };
    let bench = Bench::new(vec![was.clone()]).0;
    let state = export(&bench);
    let clocks = Clocks { now: bench.now, wall: UNIX_EPOCH + WALL };
    let file = ServiceConfig { forwarding: Forwarding::Nat, ..was };
    let restored = Controller::restore(config(vec![file]), KEY, state, clocks).unwrap();
    let mut modes: Vec<_> = restored.largest().services.iter().map(|service| service.forwarding).collect();
    modes.sort_by_key(|mode| *mode as u8);
    assert_eq!(modes, [Forwarding::Nat, Forwarding::Snat]);
}
