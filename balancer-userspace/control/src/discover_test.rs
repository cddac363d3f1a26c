//! Lists of targets from the users' point of view: which backends drain and come back, and which backends remain after
//! a reload and after a restart.

use std::{collections::BTreeSet, path::PathBuf, time::UNIX_EPOCH};

use balancer_config::{
    config::ServiceConfig,
    discover::{DiscoverConfig, Own, Source, Target},
    dns::{DnsSource, Records},
    fixture::{KEY, config, name, now, web},
    limits::Limits,
    rule::Action,
    states::Admin,
};
use proptest::prelude::*;

use crate::{
    controller::Controller,
    controller_test::{Bench, lines},
    fixture::next_hop,
    io::{BackendId, Change, Command, Event, Refused},
    run_time::summary,
    state::Clocks,
};

fn list() -> Source {
    Source::File(PathBuf::from("/t.json"))
}

fn listed() -> ServiceConfig {
    let discover = vec![DiscoverConfig::new(list())];
    let mut web = ServiceConfig { discover, remember: std::time::Duration::from_secs(3600), ..web() };
    web.backends.truncate(1);
    web
}

pub(crate) fn targets(names: &[&str]) -> Vec<Target> {
    let target = |name: &&str| {
        let host = 20 + name.bytes().last().unwrap() % 16;
        let addresses = vec![[10, 0, 0, host].into()];
        Target {
            name: (*name).to_owned(),
            addresses,
            why: None,
            fault: None,
            port: Some(8080),
            weight: 100,
            backup: false,
        }
    };
    names.iter().map(target).collect()
}

fn discover(bench: &mut Bench, names: &[&str]) -> Result<(String, Vec<Command>), Refused> {
    let change = Change::Discover {
        service: "web".to_owned(),
        source: list(),
        targets: targets(names),
        waiting: BTreeSet::new(),
    };
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

/// Applies a list with targets at these addresses, whose names are the last bytes.
fn discover_hosts(bench: &mut Bench, hosts: &[&str]) -> (String, Vec<Command>) {
    let target = |host: &&str| {
        let name = host.rsplit('.').next().unwrap().to_owned();
        Target { name, addresses: vec![host.parse().unwrap()], ..targets(&["a"]).remove(0) }
    };
    let (targets, waiting) = (hosts.iter().map(target).collect(), BTreeSet::new());
    bench.change(Change::Discover { service: "web".to_owned(), source: list(), targets, waiting }).unwrap()
}

#[test]
fn when_targets_cannot_be_backends_of_the_service_then_they_cost_the_others_nothing() {
    let mut bench = Bench::new(vec![listed()]).0;
    // The VIP, an address of the other family, and the address of a backend of the file, whose replies nat could not
    // tell apart.
    let hosts = ["10.0.0.21", "10.0.0.22", "10.0.0.23", "198.51.100.10", "10.0.0.24", "10.0.0.11"];
    let targets = |hosts: &[&str]| -> Vec<Target> {
        hosts
            .iter()
            .map(|host| Target {
                addresses: vec![host.parse().unwrap()],
                name: format!("at-{host}"),
                ..targets(&["a"]).remove(0)
            })
            .collect()
    };
    let (pool, differs) = bench.controller.discovery("web", &list(), &targets(&hosts), &BTreeSet::new()).unwrap();
    assert!(differs);
    assert_eq!((pool.added.len(), pool.left_out.len()), (4, 2), "{:?}", pool.left_out);
    assert!(pool.left_out[0].contains("is the service's own 198.51.100.10"), "{:?}", pool.left_out);
    assert!(pool.left_out[1].starts_with("nat could not tell the tcp replies of"), "{:?}", pool.left_out);
    discover_hosts(&mut bench, &hosts);
    assert_eq!(shown_names(&bench), ["web1", "21", "22", "23", "24"]);
    let refused = bench.controller.discovery("web", &list(), &targets(&hosts[2..]), &BTreeSet::new()).unwrap();
    assert_eq!(refused.0.left_out.len(), 2, "half of the targets");
    let refused = bench.controller.discovery("web", &list(), &targets(&hosts[3..]), &BTreeSet::new()).unwrap_err();
    assert!(refused.to_string().contains("lacks 2 of 3 targets"), "{refused}");
}

#[test]
fn when_a_target_waits_then_its_backend_takes_clients_until_it_drains_as_no_longer_listed() {
    let mut bench = bench();
    let before = shown(&bench);
    let apply = |bench: &mut Bench, waiting: &[&str]| {
        let waiting = waiting.iter().map(|name| (*name).to_owned()).collect();
        let targets = targets(&["a", "c"]);
        bench.change(Change::Discover { service: "web".to_owned(), source: list(), targets, waiting }).unwrap()
    };
    assert_eq!(apply(&mut bench, &["b"]).0, "service web discovers what it has: nothing changed");
    assert_eq!(shown(&bench), before);
    let named = bench.controller.named("web", &list(), &targets(&["a", "c"])).unwrap();
    assert_eq!((named.listed.len(), named.missing.into_iter().collect::<Vec<_>>()), (2, vec!["b".to_owned()]));
    apply(&mut bench, &[]);
    assert_eq!(state(&bench, "b"), (Admin::Drain, true));
    assert_eq!(bench.controller.backend(&name("web/b")).unwrap().reason(), "no longer listed");
}

#[test]
fn when_a_list_is_too_short_or_contradicts_the_file_then_the_last_pool_stays() {
    let mut bench = bench();
    let before = shown(&bench);
    for (names, said) in [(&[][..], "has 0 targets, fewer than min = 1"), (&["web1"][..], "a target is called web1")] {
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
    assert!(lines(&commands).iter().any(|line| line.ends_with("its service discovers no backends any more")));
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
    let web1 =
        Target { name: "web1".to_owned(), addresses, why: None, fault: None, port: None, weight: 100, backup: false };
    let source = list();
    let change = Change::Discover { service: "web".to_owned(), source, targets: vec![web1], waiting: BTreeSet::new() };
    bench.change(change).unwrap();
    assert_eq!((state(&bench, "web1"), bench.id("web/web1")), ((Admin::Ready, false), id));
}

#[test]
fn when_addresses_become_names_then_backends_keep_their_clients_and_follow_the_names() {
    let of = |backend: &str, weight| {
        let records = Records::Backend { backend: backend.to_owned(), port: Some(8080) };
        let dns = DnsSource { records, name: format!("{backend}.internal"), family: None, servers: Vec::new() };
        DiscoverConfig { own: Some(Own { weight, backup: false }), ..DiscoverConfig::new(Source::Dns(dns)) }
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
        bench.change(Change::Discover { service, source, targets: vec![target], waiting: BTreeSet::new() }).unwrap();
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

/// The controller after a restart from its saved state.
fn restarted(bench: &Bench) -> Bench {
    let clocks = Clocks { now: bench.now, wall: UNIX_EPOCH + std::time::Duration::from_secs(1_700_000_000) };
    let text = serde_json::to_string(&bench.controller.export(clocks)).unwrap();
    let saved = serde_json::from_str(&text).unwrap();
    let mut controller = Controller::restore(config(vec![listed()]), KEY, saved, clocks).unwrap();
    controller.start(bench.now);
    Bench { controller, now: bench.now }
}

#[test]
fn when_the_balancer_starts_again_then_the_last_pool_is_there_without_a_list() {
    let mut bench = bench();
    discover(&mut bench, &["a", "b"]).unwrap();
    let before = shown(&bench);
    let mut again = restarted(&bench);
    assert_eq!(shown(&again), before);
    discover(&mut again, &["a", "b", "c"]).unwrap();
    assert_eq!(state(&again, "c"), (Admin::Ready, false));
}

/// Applies a list whose targets are called and placed as in the words `NAME` or `NAME@NAME`; the latter has the address
/// of the test target with the second name.
fn discover_at(bench: &mut Bench, words: &[&str]) -> (String, Vec<Command>) {
    let target = |word: &&str| {
        let (name, at) = word.split_once('@').unwrap_or((word, word));
        Target { name: name.to_owned(), ..targets(&[at]).remove(0) }
    };
    let targets = words.iter().map(target).collect();
    bench
        .change(Change::Discover { service: "web".to_owned(), source: list(), targets, waiting: BTreeSet::new() })
        .unwrap()
}

fn shown_names(bench: &Bench) -> Vec<&str> {
    bench.service().backends().iter().map(crate::service::Backend::name).collect()
}

/// The rows that the commands write, as the backend's id and whether the backend keeps its known clients.
fn rows(commands: &[Command]) -> Vec<(BackendId, bool)> {
    let row = |command: &Command| {
        if let Command::WriteBackend(row) = command { Some((row.id, row.keeps_known)) } else { None }
    };
    commands.iter().filter_map(row).collect()
}

#[test]
fn when_a_target_has_another_name_at_its_address_then_its_backend_goes_on_under_that_name() {
    let mut bench = bench();
    let id = bench.id("web/b");
    let (message, commands) = discover_at(&mut bench, &["a", "new@b", "c"]);
    assert!(message.starts_with("service web discovers: 1 backend renamed; "), "{message}");
    let line = "backend web/b renamed new, because /t.json calls the target at 10.0.0.22:8080 so; 1 known client \
                stays";
    assert!(lines(&commands).contains(&line), "{:?}", lines(&commands));
    assert_eq!((shown_names(&bench), bench.id("web/new")), (vec!["web1", "a", "new", "c"], id));
    assert_eq!((state(&bench, "new"), bench.service().backends()[2].known_clients()), ((Admin::Ready, false), 1));
    assert_eq!(rows(&commands), [], "no row of a backend changes");
    assert_eq!(discover_at(&mut bench, &["c", "a", "new@b"]).0, "service web discovers what it has: nothing changed");

    // A balancer that knows only the present list has the same table, so balancers agree whatever they saw before.
    let mut fresh = Bench::new(vec![listed()]).0;
    discover_at(&mut fresh, &["a", "new@b", "c"]);
    let homes = |bench: &Bench| -> Vec<String> {
        let name = |id: &u16| bench.service().backends().iter().find(|of| of.id().0 == *id).unwrap().name().to_owned();
        bench.service().live_table().iter().map(name).collect()
    };
    for host in ["10.0.0.11", "10.0.0.21", "10.0.0.22", "10.0.0.23"] {
        let found = Event::NextHop { address: host.parse().unwrap(), next_hop: Ok(next_hop(1)) };
        fresh.controller.handle(found, fresh.now);
    }
    assert_eq!(homes(&bench), homes(&fresh));

    // The former name may come back, elsewhere or at its former address.
    discover_at(&mut bench, &["a", "new@b", "c", "b@d"]);
    assert_eq!((shown_names(&bench), bench.id("web/new")), (vec!["web1", "a", "new", "c", "b"], id));
    discover_at(&mut bench, &["a", "c", "b@d"]);
    discover_at(&mut bench, &["a", "c", "b@d", "again@b"]);
    assert_eq!((bench.id("web/again"), state(&bench, "again")), (id, (Admin::Ready, false)));
}

#[test]
fn when_a_target_that_drains_comes_back_under_another_name_then_its_backend_is_as_the_operator_had_it() {
    let mut bench = bench();
    let ids = ["web/b", "web/c"].map(|backend| bench.id(backend));
    bench.admin("web/c", Admin::Drain);
    discover(&mut bench, &["a"]).unwrap();
    assert!(state(&bench, "b").1 && state(&bench, "c").1);
    discover_at(&mut bench, &["a", "b2@b", "c2@c"]);
    assert_eq!((state(&bench, "b2"), state(&bench, "c2")), ((Admin::Ready, false), (Admin::Drain, false)));
    assert_eq!(["web/b2", "web/c2"].map(|backend| bench.id(backend)), ids);
}

#[test]
fn when_a_target_has_another_name_then_what_an_operator_said_about_its_backend_holds() {
    let mut bench = bench();
    let id = bench.id("web/b");
    bench.admin("web/b", Admin::Drain);
    bench.change(Change::SetWeight { name: name("web/b"), weight: 7 }).unwrap();
    let limits = Limits { clients: Some(5), ..Limits::default() };
    bench.change(Change::SetLimits { name: name("web/b"), limits }).unwrap();
    let prefix = "203.0.113.0/24".parse().unwrap();
    let action = Action::Pin { backend: "b".to_owned() };
    bench.change(Change::AddRule { service: "web".to_owned(), prefix, action, ttl: None }).unwrap();
    discover_at(&mut bench, &["a", "new@b", "c"]);
    let backend = bench.controller.backend(&name("web/new")).unwrap();
    assert_eq!((backend.id(), backend.admin(), backend.weight()), (id, Admin::Drain, 7));
    assert_eq!(backend.config().limits, limits);
    let pinned: Vec<_> = bench.service().rules().iter().map(|rule| rule.written().action).collect();
    assert_eq!(pinned, [Action::Pin { backend: "new".to_owned() }]);
    // After a reload of the file and after a restart, the backend is still the same one.
    bench.reload(vec![listed()]).unwrap();
    let mut again = restarted(&bench);
    assert_eq!(again.id("web/new"), id);
    assert_eq!(discover_at(&mut again, &["a", "new@b", "c"]).0, "service web discovers what it has: nothing changed");
}

#[test]
fn when_a_list_gives_the_address_of_a_missing_target_to_a_backend_then_that_one_gets_it_at_once() {
    // The missing target may have been in the last list, or drain already.
    for drains_already in [false, true] {
        let mut bench = bench();
        let [a, b] = ["web/a", "web/b"].map(|backend| bench.id(backend));
        if drains_already {
            discover(&mut bench, &["b", "c"]).unwrap();
        }
        let (message, commands) = discover_at(&mut bench, &["b@a", "c"]);
        assert!(message.contains(": 1 backend changed, 1 backend displaced; "), "{message}");
        let line = "backend web/a removed, because /t.json gives its address 10.0.0.21:8080 to b; 1 known client moves";
        assert!(lines(&commands).contains(&line), "{:?}", lines(&commands));
        assert_eq!((shown_names(&bench), bench.id("web/b")), (vec!["web1", "b", "c"], b));
        assert!(rows(&commands).contains(&(a, false)), "the clients of the removed backend move");
        let at = bench.controller.backend(&name("web/b")).unwrap().config().address;
        assert_eq!(at.to_string(), "10.0.0.21:8080");
        discover(&mut bench, &["a", "b", "c"]).unwrap();
        assert_eq!(shown_names(&bench), ["web1", "b", "c", "a"]);
    }
}

#[test]
fn when_two_targets_exchange_their_addresses_then_each_backend_follows_its_name() {
    let mut bench = bench();
    let ids = ["web/a", "web/b"].map(|backend| bench.id(backend));
    let (message, _) = discover_at(&mut bench, &["a@b", "b@a", "c"]);
    assert!(message.starts_with("service web discovers: 2 backends changed; "), "{message}");
    assert_eq!(["web/a", "web/b"].map(|backend| bench.id(backend)), ids);
    let at = |backend: &str| bench.controller.backend(&name(backend)).unwrap().config().address.ip().to_string();
    assert_eq!([at("web/a"), at("web/b")], ["10.0.0.22", "10.0.0.21"]);
}

#[test]
fn when_a_fleet_follows_a_list_with_a_new_name_then_all_members_rename_the_backend() {
    let mut bench = Bench { controller: Controller::decider(config(vec![listed()]), KEY, now()), now: now() };
    let mut member = Controller::follower(config(Vec::new()), KEY, bench.now);
    let clocks = Clocks { now: bench.now, wall: UNIX_EPOCH + std::time::Duration::from_secs(1_700_000_000) };
    let follow = |member: &mut Controller, bench: &Bench| {
        let state = serde_json::to_string(&bench.controller.agreed_state(clocks)).unwrap();
        member.follow(serde_json::from_str(&state).unwrap(), clocks).unwrap()
    };
    discover_at(&mut bench, &["a", "b", "c"]);
    follow(&mut member, &bench);
    let id = bench.id("web/b");
    let (_, commands) = discover_at(&mut bench, &["a", "b2@b", "c"]);
    let line = "backend web/b renamed b2, because /t.json calls the target at 10.0.0.22:8080 so; its known clients \
                stay";
    assert!(lines(&commands).contains(&line), "{:?}", lines(&commands));
    // The member misses the state in between.
    discover_at(&mut bench, &["a", "b3@b", "c"]);
    let commands = follow(&mut member, &bench);
    assert_eq!((member.backend(&name("web/b3")).unwrap().id(), rows(&commands)), (id, Vec::new()));
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
