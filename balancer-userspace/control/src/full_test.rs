//! Backends at their limits: which other backends take their new clients, and when a full backend has room again.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use balancer_common::map_types::{ALL_DOWN, Forwarding};
use balancer_config::{
    config::{ServiceConfig, WhenAllDown, WhenFull},
    fixture::{name, web},
    limits::{Enough, Full, Limits},
    states::{Admin, BackendState},
};

use crate::{
    controller_test::Bench,
    full::{DWELL, Member, Watch, members},
    io::{Change, Command, Event, PortsInUse, Refused},
    table::Tier,
};

const WEB1: &str = "web/web1";
const MOST: Limits = Limits { clients: Some(100), connections: None };

/// A service in which every backend takes at most 100 clients.
fn limited(when_full: WhenFull) -> ServiceConfig {
    let mut service = ServiceConfig { when_full, remember: Duration::from_secs(600), ..web() };
    service.backends.iter_mut().for_each(|backend| backend.limits = MOST);
    service
}

impl Bench {
    fn limited(service: ServiceConfig) -> Self {
        let (mut bench, _) = Self::new(vec![service]);
        for backend in ["web/web1", "web/web2", "web/web3", "web/web4"] {
            bench.pass(backend);
        }
        bench
    }

    fn fill(&mut self, names: &[&str]) -> Result<(String, Vec<Command>), Refused> {
        let full = Full { of: Enough::Clients, had: 103, most: 100 };
        let full = names.iter().map(|name| ((*name).to_owned(), full)).collect();
        self.controller.change(Change::Full { service: "web".to_owned(), full }, self.now)
    }

    fn limit(&mut self, limits: Limits) -> Result<String, Refused> {
        self.controller.change(Change::SetLimits { name: name(WEB1), limits }, self.now).map(|(message, _)| message)
    }

    fn all_slots(&self) -> [u32; 4] {
        ["web/web1", "web/web2", "web/web3", "web/web4"]
            .map(|backend| self.controller.backend(&name(backend)).unwrap().slots())
    }

    fn is_full(&self) -> bool {
        self.controller.backend(&name(WEB1)).unwrap().full().is_some()
    }

    fn rejects(&self) -> bool {
        self.controller.services()[0].spec().reject
    }
}

#[test]
fn when_a_backend_is_full_then_the_next_take_its_new_clients_and_it_keeps_those_it_has() {
    let mut bench = Bench::limited(limited(WhenFull::Open));
    let before = bench.controller.services()[0].live_table().to_vec();
    let id = bench.controller.backend(&name(WEB1)).unwrap().id().0;
    let (message, _) = bench.fill(&["web1"]).unwrap();
    assert!(
        message.starts_with("service web: web1 had 103 of at most 100 clients and takes no new clients: "),
        "{message}"
    );
    assert_eq!(bench.shown(WEB1), (BackendState::Up, "full: had 103 of at most 100 clients".to_owned()));
    assert_eq!(bench.all_slots()[0], 0);
    assert!(bench.controller.backend(&name(WEB1)).unwrap().keeps_known());
    let after = bench.controller.services()[0].live_table();
    assert!(before.iter().zip(after).all(|(before, after)| before == after || *before == id), "others' slots moved");
    let (message, _) = bench.fill(&[]).unwrap();
    assert!(message.starts_with("service web: web1 has room again: "), "{message}");
    assert_eq!(bench.controller.services()[0].live_table(), before);
}

#[test]
fn when_all_are_full_then_when_full_decides() {
    let all = ["web1", "web2", "web3", "web4"];
    for (when_full, tier, rejects) in [
        (WhenFull::Open, Tier::Primaries, false),
        (WhenFull::Drop, Tier::AllDown, false),
        (WhenFull::Reject, Tier::AllDown, true),
    ] {
        let mut bench = Bench::limited(limited(when_full));
        let whole = bench.all_slots();
        bench.fill(&all[..3]).unwrap();
        assert_eq!((bench.all_slots()[3], bench.rejects()), (65_537, false));
        let (message, commands) = bench.fill(&all).unwrap();
        assert!(message.contains("; all backends are full"), "{message}");
        assert_eq!((bench.controller.services()[0].tier(), bench.rejects()), (tier, rejects), "{when_full:?}");
        let published = commands.iter().any(|command| matches!(command, Command::PublishServices(_)));
        assert_eq!(published, rejects, "{when_full:?}");
        match when_full {
            WhenFull::Open => assert_eq!(bench.all_slots(), whole),
            WhenFull::Drop | WhenFull::Reject => {
                assert!(bench.controller.services()[0].live_table().iter().all(|&slot| slot == ALL_DOWN));
            }
        }
        assert!(bench.controller.backend(&name(WEB1)).unwrap().keeps_known(), "{when_full:?}");
        // A backend that is not up has no room for clients.
        bench.fill(&all[1..]).unwrap();
        bench.admin(WEB1, Admin::Maint);
        assert_eq!((bench.controller.services()[0].tier(), bench.rejects()), (tier, rejects), "{when_full:?}");
    }
}

#[test]
fn when_a_service_rejects_and_drops_what_is_full_then_each_has_its_own_answer() {
    let drops = ServiceConfig { reject: true, when_all_down: WhenAllDown::Drop, ..limited(WhenFull::Drop) };
    let mut bench = Bench::limited(drops);
    assert!(bench.rejects());
    bench.fill(&["web1", "web2", "web3", "web4"]).unwrap();
    assert!(!bench.rejects());
    for backend in ["web/web1", "web/web2", "web/web3", "web/web4"] {
        bench.admin(backend, Admin::Maint);
    }
    assert!(bench.rejects(), "nobody is full, all are in maint");
}

#[test]
fn when_all_primaries_are_full_then_backups_take_new_clients() {
    let mut service = limited(WhenFull::Drop);
    service.backends[3].backup = true;
    service.backends[3].limits = Limits::default();
    let mut bench = Bench::limited(service);
    bench.fill(&["web1", "web2", "web3"]).unwrap();
    assert_eq!((bench.controller.services()[0].tier(), bench.all_slots()), (Tier::Backups, [0, 0, 0, 65_537]));
}

#[test]
fn when_a_limit_is_set_at_run_time_then_it_is_merged_with_the_file_as_a_weight_is() {
    let mut bench = Bench::limited(limited(WhenFull::Open));
    bench.fill(&["web1"]).unwrap();
    let more = Limits { clients: Some(200), connections: None };
    let message = bench.limit(more).unwrap();
    assert!(message.starts_with("backend web/web1 max_clients 100 → max_clients 200: "), "{message}");
    assert!(!bench.is_full(), "it is looked at anew");
    assert_eq!(bench.limit(more).unwrap(), "backend web/web1 has max_clients 200 already: nothing changed");
    let connections = Limits { clients: None, connections: Some(7) };
    assert!(matches!(bench.limit(connections), Err(Refused::Invalid(why)) if why.contains("snat")));
    let listed = bench.controller.changed_at_run_time();
    assert_eq!(listed[0].change, "max_clients 200 (file: max_clients 100)");
    // While the file does not change, the setting made at run time stays in effect. If the file changes this setting,
    // the file takes precedence.
    bench.reload(vec![limited(WhenFull::Drop)]).unwrap();
    assert_eq!(bench.controller.backend(&name(WEB1)).unwrap().config().limits, more);
    let mut file = limited(WhenFull::Drop);
    file.backends[0].limits = Limits::default();
    bench.reload(vec![file]).unwrap();
    assert!(bench.controller.backend(&name(WEB1)).unwrap().config().limits.is_none());
    assert!(bench.fill(&["web1"]).is_ok());
    assert!(!bench.is_full(), "it has no limit");
}

#[test]
fn when_a_limit_is_planned_then_the_plan_shows_what_becomes_full_and_what_has_room_again() {
    let limits = |clients| Limits { clients, connections: None };
    let plan = |bench: &Bench, clients| {
        let change = Change::SetLimits { name: name(WEB1), limits: limits(clients) };
        let (plan, after) = bench.controller.plan_with_limits(change, bench.now).unwrap();
        let slots = after.backend(&name(WEB1)).unwrap().slots();
        let planned = plan.counted(|_| {});
        (planned.message, planned.services[0].slots_moved, slots)
    };
    let (mut bench, all) =
        (Bench::limited(limited(WhenFull::Open)), Bench::limited(limited(WhenFull::Open)).all_slots());
    let known = vec![(bench.id(WEB1), 40)];
    bench.controller.handle(Event::Swept { known }, bench.now);

    let (message, moved, slots) = plan(&bench, Some(50));
    assert_eq!((moved, slots), (0, all[0]), "{message}");
    assert!(!message.contains("; then "), "{message}");
    let (message, moved, slots) = plan(&bench, Some(40));
    assert_eq!((moved, slots), (all[0], 0), "{message}");
    let follows = "; then service web: web1 had 40 of at most 40 clients and takes no new clients: ";
    assert!(
        message.starts_with("backend web/web1 max_clients 100 → max_clients 40: ") && message.contains(follows),
        "{message}"
    );
    assert_eq!((bench.all_slots(), bench.is_full()), (all, false), "a plan alters nothing");

    // A full backend has room immediately after its limit was raised or removed, unless the new limit is still below
    // its number of clients.
    bench.limit(limits(Some(30))).unwrap();
    bench.fill(&["web1"]).unwrap();
    let (_, moved, slots) = plan(&bench, None);
    assert_eq!((moved, slots), (all[0], all[0]));
    let (_, moved, slots) = plan(&bench, Some(20));
    assert_eq!((moved, slots), (0, 0));
}

#[test]
fn when_something_happens_to_a_full_backend_then_it_stays_full_as_long_as_it_has_its_clients() {
    let mut bench = Bench::limited(limited(WhenFull::Open));
    bench.fill(&["web1"]).unwrap();
    bench.admin(WEB1, Admin::Drain);
    bench.admin(WEB1, Admin::Ready);
    assert!(bench.is_full(), "a drain keeps its clients");
    let mut file = limited(WhenFull::Open);
    file.backends[0].weight = 300;
    bench.reload(vec![file]).unwrap();
    assert!(bench.is_full(), "its weight does not matter");
    bench.admin(WEB1, Admin::Maint);
    bench.admin(WEB1, Admin::Ready);
    assert!(!bench.is_full(), "its clients are gone");
    // Without client memory, the balancer counts no clients.
    bench.fill(&["web1"]).unwrap();
    bench.reload(vec![ServiceConfig { remember: Duration::ZERO, ..limited(WhenFull::Open) }]).unwrap();
    assert!(!bench.is_full());
    assert!(matches!(bench.fill(&["web1"]), Err(Refused::Conflict(_))));
}

#[test]
fn when_clients_come_and_go_then_a_backend_is_full_at_once_and_has_room_with_a_margin_and_no_sooner_than_after_a_while()
{
    let mut bench = Bench::limited(limited(WhenFull::Open));
    let mut watch = Watch::default();
    let id = bench.controller.backend(&name(WEB1)).unwrap().id();
    let mut look = |bench: &mut Bench, known, later: Duration| {
        bench.now += later;
        bench.controller.handle(Event::Swept { known: vec![(id, known)] }, bench.now);
        let full = watch.look(&members(bench.controller.services().iter()), bench.now)?;
        bench.controller.change(Change::Full { service: "web".to_owned(), full: full.clone() }, bench.now).unwrap();
        Some(full.into_keys().collect::<Vec<_>>())
    };
    let second = Duration::from_secs(1);
    assert_eq!(look(&mut bench, 99, second), None);
    assert_eq!(look(&mut bench, 100, second), Some(vec!["web1".to_owned()]));
    assert_eq!(look(&mut bench, 80, second), None, "too soon");
    assert_eq!(look(&mut bench, 96, DWELL), None, "too many");
    assert_eq!(look(&mut bench, 95, second), Some(Vec::new()));
}

#[test]
fn when_a_limit_is_small_or_one_of_two_then_each_has_its_margin() {
    let mut watch = Watch::default();
    let now = balancer_config::fixture::now();
    let full = Some(Full { of: Enough::Connections, had: 1, most: 1 });
    let limits = Limits { clients: Some(10), connections: Some(1) };
    let mut look = |clients, connections, full| {
        let member = Member { limits, clients, connections, ports: None, serves: true, full };
        watch.look(&BTreeMap::from([("web1".to_owned(), member)]), now)
    };
    assert_eq!(look(9, 0, None), None);
    assert!(look(9, 1, None).is_some_and(|full| full["web1"].of == Enough::Connections));
    assert!(look(10, 0, None).is_some_and(|full| full["web1"].of == Enough::Clients));
    assert_eq!(look(0, 0, full), None, "it has just become full");
    let gone = Member { limits, clients: 10, connections: 1, ports: None, serves: false, full: None };
    assert_eq!(watch.look(&BTreeMap::from([("web1".to_owned(), gone)]), now), None, "it has no part in it");
}

#[test]
fn when_connections_hold_all_but_a_few_ports_then_a_snat_backend_is_full_until_a_tenth_is_free() {
    let mut bench = Bench::limited(ServiceConfig { forwarding: Forwarding::Snat, ..web() });
    let (mut watch, mut filled) = (Watch::default(), Vec::new());
    let id = bench.controller.backend(&name(WEB1)).unwrap().id();
    let mut look = |bench: &mut Bench, taken, later: Duration| {
        bench.now += later;
        let ports = BTreeMap::from([(id, PortsInUse { taken, all: 1000 })]);
        let of = BTreeMap::from([(id, u64::from(taken))]);
        bench.controller.handle(Event::Flows { of, ports, active: BTreeSet::new() }, bench.now);
        let full = watch.look(&members(bench.controller.services().iter()), bench.now)?;
        let (message, _) =
            bench.controller.change(Change::Full { service: "web".to_owned(), full }, bench.now).unwrap();
        filled.push(message);
        Some(bench.all_slots()[0])
    };
    let second = Duration::from_secs(1);
    assert_eq!(look(&mut bench, 949, second), None);
    assert_eq!(look(&mut bench, 950, second), Some(0));
    assert_eq!(look(&mut bench, 800, second), None, "too soon");
    assert_eq!(look(&mut bench, 904, DWELL), None, "too many");
    assert!(look(&mut bench, 903, second).is_some_and(|slots| slots > 0));
    assert_eq!(look(&mut bench, 1000, second), Some(0));
    let [first, _, last] = &filled[..] else { panic!("{filled:?}") };
    assert!(
        first.starts_with("service web: web1 had 950 of at most 1,000 ports and takes no new clients: "),
        "{first}"
    );
    assert!(last.contains("web1 had 1,000 of at most 1,000 ports"), "{last}");
    let web1 = bench.controller.backend(&name(WEB1)).unwrap();
    assert_eq!((web1.filled(), web1.keeps_known()), ([0, 0, 2], true));
}
