//! Lists of targets from the users' point of view: which backends drain and come back, and which backends remain after
//! a reload and after a restart.

use std::{path::PathBuf, time::UNIX_EPOCH};

use balancer_config::{
    config::ServiceConfig,
    discover::{DiscoverConfig, Floor, Own, Source, Target},
    dns::{DnsSource, Records},
    fixture::{KEY, config, name, web},
    states::Admin,
};
use proptest::prelude::*;

use crate::{
    controller::Controller,
    controller_test::{Bench, lines},
    fixture::next_hop,
    io::{Change, Command, Event, Refused},
    run_time::summary,
    state::Clocks,
};

fn list() -> Source {
    Source::File(PathBuf::from("/t.json"))
}

fn listed() -> ServiceConfig {
    let discover = vec![DiscoverConfig { source: list(), min: Floor::default(), own: None }];
    let mut web = ServiceConfig { discover, remember: std::time::Duration::from_secs(3600), ..web() };
    web.backends.truncate(1);
    web
}

fn targets(names: &[&str]) -> Vec<Target> {
    let target = |name: &&str| {
        let host = 20 + name.bytes().last().unwrap() % 16;
        let addresses = vec![[10, 0, 0, host].into()];
        Target { name: (*name).to_owned(), addresses, why: None, port: Some(8080), weight: 100, backup: false }
    };
    names.iter().map(target).collect()
}

fn discover(bench: &mut Bench, names: &[&str]) -> Result<(String, Vec<Command>), Refused> {
    let change = Change::Discover { service: "web".to_owned(), source: list(), targets: targets(names) };
    bench.change(change)
}

/// A test service with targets a, b and c, which are up and have one known client each.
fn bench() -> Bench {
    let mut bench = Bench::new(vec![listed()]).0;
    discover(&mut bench, &["a", "b", "c"]).unwrap();
    for host in ["10.0.0.11", "10.0.0.21", "10.0.0.22", "10.0.0.23"] {
        let found = Event::NextHop { address: host.parse().unwrap(), next_hop: Ok(next_hop(1)) };
        bench.controller.handle(found, bench.now);
    }
    for backend in ["web/web1", "web/a", "web/b", "web/c"] {
        bench.pass(backend);
    }
    let known = ["web/a", "web/b", "web/c"].iter().map(|backend| (bench.id(backend), 1)).collect();
    bench.controller.handle(Event::Swept { known }, bench.now);
    bench
}

fn shown(bench: &Bench) -> Vec<(String, Admin, bool)> {
    let backends = bench.service().backends().iter();
    backends.map(|of| (of.name().to_owned(), of.admin(), of.is_leaving())).collect()
}

fn state(bench: &Bench, backend: &str) -> (Admin, bool) {
    let (_, admin, leaving) = shown(bench).into_iter().find(|(name, ..)| name == backend).unwrap();
    (admin, leaving)
}

#[test]
fn when_a_target_is_gone_then_it_drains_and_when_it_is_back_then_nothing_is_as_if_it_had_been_gone() {
    let mut bench = bench();
    let table = bench.service().live_table().to_vec();
    let before = shown(&bench);
    let (message, commands) = discover(&mut bench, &["c", "a"]).unwrap();
    assert!(message.starts_with("service web discovers: 1 backend no longer listed; "), "{message}");
    assert!(
        lines(&commands).contains(&"backend web/b drains before it is removed, it is no longer a target of /t.json")
    );
    assert_eq!(state(&bench, "b"), (Admin::Drain, true));
    assert_eq!(shown(&bench).len(), 4);
    discover(&mut bench, &["a", "b", "c"]).unwrap();
    assert_eq!((shown(&bench), bench.service().live_table().to_vec()), (before, table.clone()));
    let (message, _) = discover(&mut bench, &["b", "c", "a"]).unwrap();
    assert_eq!(message, "service web discovers what it has: nothing changed");
    assert_eq!(bench.service().live_table(), table);
}

#[test]
fn when_a_drained_target_is_gone_and_comes_back_then_the_operators_drain_is_still_there() {
    let mut bench = bench();
    bench.admin("web/b", Admin::Drain);
    discover(&mut bench, &["a", "c"]).unwrap();
    discover(&mut bench, &["a", "b", "c"]).unwrap();
    assert_eq!(state(&bench, "b"), (Admin::Drain, false));
}

#[test]
fn when_a_gone_target_has_nobody_left_or_its_deadline_comes_then_it_is_removed() {
    let mut bench = bench();
    discover(&mut bench, &["a", "b"]).unwrap();
    bench.now += std::time::Duration::from_secs(301);
    let commands = bench.controller.handle(Event::Tick, bench.now);
    assert!(lines(&commands).iter().any(|line| line.starts_with("backend web/c removed")), "{:?}", lines(&commands));
    assert_eq!(shown(&bench).len(), 3);
}

#[test]
fn when_a_list_is_too_short_or_contradicts_the_file_then_the_last_pool_stays() {
    let mut bench = bench();
    let before = shown(&bench);
    for (names, said) in
        [(&[][..], "has 0 targets, fewer than min = 1"), (&["a", "web1"][..], "has a target called web1")]
    {
        let refused = discover(&mut bench, names).unwrap_err();
        assert!(matches!(&refused, Refused::Conflict(text) if text.contains(said)), "{refused}");
        assert_eq!(shown(&bench), before);
    }
}

#[test]
fn when_the_file_is_read_again_or_run_time_is_reset_then_listed_backends_stay() {
    let mut bench = bench();
    let before = shown(&bench);
    assert_eq!(bench.reload(vec![listed()]).unwrap().0, "configuration applied: nothing changed");
    assert_eq!((shown(&bench), bench.controller.changed_at_run_time()), (before.clone(), Vec::new()));
    bench.change(Change::SetWeight { name: name("web/a"), weight: 7 }).unwrap();
    let changes = bench.controller.changed_at_run_time();
    assert_eq!(changes[0].to_string(), "backend web/a: weight 7 (discovered: 100)");
    assert_eq!(summary(&changes).as_deref(), Some("1 backend"));
    discover(&mut bench, &["c", "b"]).unwrap();
    bench.reload(vec![listed()]).unwrap();
    assert_eq!(state(&bench, "a"), (Admin::Drain, true));
    bench.change(Change::Reset(Box::new(config(vec![listed()])))).unwrap();
    assert_eq!(bench.controller.backend(&name("web/a")).unwrap().weight(), 100);
    assert_eq!(state(&bench, "a"), (Admin::Drain, true), "a reset lists nothing");
    discover(&mut bench, &["a", "b", "c"]).unwrap();
    assert_eq!(shown(&bench), before);
}

#[test]
fn when_a_listed_backend_is_to_be_removed_then_that_is_refused_until_the_list_has_it_no_longer() {
    let mut bench = bench();
    let remove = || Change::Remove { name: name("web/a"), force: true };
    let refused = bench.change(remove()).unwrap_err().to_string();
    assert_eq!(refused, "backend web/a is a target of /t.json: take it out there, or drain it here");
    discover(&mut bench, &["b", "c"]).unwrap();
    bench.change(remove()).unwrap();
    assert_eq!(shown(&bench).len(), 3);
}

#[test]
fn when_a_service_has_no_list_any_more_then_listed_backends_drain() {
    let mut bench = bench();
    let (_, commands) = bench.reload(vec![ServiceConfig { discover: Vec::new(), ..listed() }]).unwrap();
    assert!(lines(&commands).iter().any(|line| line.ends_with("its service discovers none any more")));
    assert_eq!((state(&bench, "a"), state(&bench, "web1")), ((Admin::Drain, true), (Admin::Ready, false)));
}

#[test]
fn when_backends_move_from_the_file_to_a_list_then_the_list_decides_about_them() {
    let mut file = listed();
    file.discover.clear();
    let mut bench = Bench::new(vec![file]).0;
    bench.pass("web/web1");
    let id = bench.id("web/web1");
    let (_, commands) = bench.reload(vec![ServiceConfig { backends: Vec::new(), ..listed() }]).unwrap();
    let expected = "backend web/web1 is no longer in the file: the targets of /t.json decide about it";
    assert!(lines(&commands).contains(&expected), "{:?}", lines(&commands));
    let addresses = vec![[10, 0, 0, 11].into()];
    let web1 = Target { name: "web1".to_owned(), addresses, why: None, port: None, weight: 100, backup: false };
    let source = list();
    let change = Change::Discover { service: "web".to_owned(), source, targets: vec![web1] };
    bench.change(change).unwrap();
    assert_eq!((state(&bench, "web1"), bench.id("web/web1")), ((Admin::Ready, false), id));
}

#[test]
fn when_addresses_become_names_then_backends_keep_their_clients_and_follow_the_names() {
    let of = |backend: &str, weight| {
        let records = Records::Backend { backend: backend.to_owned(), port: Some(8080) };
        let dns = DnsSource { records, name: format!("{backend}.internal"), family: None, servers: Vec::new() };
        DiscoverConfig { source: Source::Dns(dns), min: Floor::default(), own: Some(Own { weight, backup: false }) }
    };
    let mut bench = Bench::new(vec![web()]).0;
    bench.pass("web/web1");
    bench.pass("web/web2");
    let ids = ["web/web1", "web/web2"].map(|backend| bench.id(backend));
    let mut names = ServiceConfig { discover: vec![of("web1", 100), of("web2", 100)], ..web() };
    names.backends.retain(|backend| backend.name != "web1" && backend.name != "web2");
    bench.reload(vec![names.clone()]).unwrap();
    let answer = |bench: &mut Bench, list: &DiscoverConfig, host: u8| {
        let target = Target {
            addresses: vec![[10, 0, 0, host].into()],
            ..targets(&[list.source.backend().unwrap()])[0].clone()
        };
        let (service, source) = ("web".to_owned(), list.source.clone());
        bench.change(Change::Discover { service, source, targets: vec![target] }).unwrap();
    };
    answer(&mut bench, &names.discover[0], 77);
    answer(&mut bench, &names.discover[1], 12);
    assert_eq!(["web/web1", "web/web2"].map(|backend| bench.id(backend)), ids);
    assert!(["web1", "web2"].iter().all(|backend| state(&bench, backend) == (Admin::Ready, false)));
    assert_eq!(bench.controller.backend(&name("web/web1")).unwrap().config().address.ip().to_string(), "10.0.0.77");

    // The file changes the weight of a backend, and a backend whose name is no longer in the file drains.
    names.discover = vec![of("web1", 7)];
    bench.reload(vec![names.clone()]).unwrap();
    answer(&mut bench, &names.discover[0], 77);
    assert_eq!(
        (bench.controller.backend(&name("web/web1")).unwrap().weight(), state(&bench, "web1")),
        (7, (Admin::Ready, false))
    );
    assert!(shown(&bench).iter().all(|(name, _, leaving)| name != "web2" || *leaving));

    // The backend has an address again after it had none.
    bench.reload(vec![web()]).unwrap();
    assert_eq!((bench.id("web/web1"), state(&bench, "web1")), (ids[0], (Admin::Ready, false)));
}

#[test]
fn when_the_balancer_starts_again_then_the_last_pool_is_there_without_a_list() {
    let mut bench = bench();
    discover(&mut bench, &["a", "b"]).unwrap();
    let before = shown(&bench);
    let clocks = Clocks { now: bench.now, wall: UNIX_EPOCH + std::time::Duration::from_secs(1_700_000_000) };
    let text = serde_json::to_string(&bench.controller.export(clocks)).unwrap();
    let saved = serde_json::from_str(&text).unwrap();
    let mut controller = Controller::restore(config(vec![listed()]), KEY, saved, clocks).unwrap();
    controller.start(bench.now);
    let mut again = Bench { controller, now: bench.now };
    assert_eq!(shown(&again), before);
    discover(&mut again, &["a", "b", "c"]).unwrap();
    assert_eq!(state(&again, "c"), (Admin::Ready, false));
}

/// Returns the states of the backends and the table after DNS answers with the targets in this order; the answers are
/// mixed with actions of an operator.
fn played(steps: &[(u8, u8)], shuffled: bool) -> Vec<String> {
    const NAMES: [&str; 4] = ["a", "b", "c", "d"];
    let mut bench = bench();
    let mut seen = Vec::new();
    for &(kind, mask) in steps {
        let mut names: Vec<&str> = (0..4).filter(|bit| mask >> bit & 1 == 1).map(|bit| NAMES[bit]).collect();
        if shuffled {
            let len = names.len();
            names.rotate_left(usize::from(mask >> 4) % len.max(1));
            names.reverse();
        }
        let backend = name(&format!("web/{}", NAMES[usize::from(mask & 3)]));
        let done = match kind {
            0 => bench.change(Change::SetWeight { name: backend, weight: u16::from(mask) + 1 }).is_ok(),
            1 => bench.change(Change::SetAdmin { name: backend, admin: Admin::Drain, timeout: None }).is_ok(),
            2 => bench.change(Change::Remove { name: backend, force: true }).is_ok(),
            3 => bench.reload(vec![listed()]).is_ok(),
            4 => bench.change(Change::Reset(Box::new(config(vec![listed()])))).is_ok(),
            5 => {
                bench.now += std::time::Duration::from_secs(u64::from(mask));
                bench.controller.handle(Event::Tick, bench.now);
                true
            }
            _ => discover(&mut bench, &names).is_ok(),
        };
        let weights: Vec<u16> = bench.service().backends().iter().map(crate::service::Backend::weight).collect();
        let mut all: Vec<String> = shown(&bench).into_iter().zip(weights).map(|of| format!("{of:?}")).collect();
        all.sort_unstable();
        let slots = bench.service().live_table().to_vec();
        let of_slot =
            |id: &u16| bench.service().backends().iter().find(|of| of.id().0 == *id).map(|of| of.name().to_owned());
        seen.push(format!("{kind} {done} {all:?} {:?}", slots.iter().map(of_slot).collect::<Vec<_>>()));
    }
    seen
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn when_answers_are_shuffled_then_states_and_tables_are_the_same_whatever_an_operator_does(
        steps in prop::collection::vec((0..12_u8, any::<u8>()), 1..14),
    ) {
        prop_assert_eq!(played(&steps, false), played(&steps, true));
    }
}
