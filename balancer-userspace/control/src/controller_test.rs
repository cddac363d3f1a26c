//! Tests of the controller from the users' point of view: the backends to which it steers, the order of its commands,
//! the text of its lines.

use std::{
    collections::BTreeSet,
    net::IpAddr,
    time::{Duration, Instant, UNIX_EPOCH},
};

use balancer_common::map_types::{ALL_DOWN, Forwarding, NO_BACKEND};
use balancer_config::{
    config::{CheckConfig, CheckKind, ServiceConfig, WhenAllDown},
    fixture::{KEY, address, backend, config, name, now, service, web},
    states::{Admin, BackendState, Forced},
    table_size::TableSize,
};

use crate::{
    controller::Controller,
    fixture::next_hop,
    health::Health,
    io::{BackendId, Change, CheckOutcome, CheckSpec, Command, Event, Refused, ReportLevel},
    service::Service,
    state::Clocks,
    table::Tier,
};

/// A controller with a clock and the last output of the controller.
pub(super) struct Bench {
    pub(super) controller: Controller,
    pub(super) now: Instant,
}

impl Bench {
    pub(super) fn new(services: Vec<ServiceConfig>) -> (Self, Vec<Command>) {
        let mut controller = Controller::new(config(services), KEY);
        let now = now();
        let commands = controller.start(now);
        (Self { controller, now }, commands)
    }

    pub(super) fn web() -> Self {
        Self::new(vec![web()]).0
    }

    pub(super) fn service(&self) -> &Service {
        &self.controller.services()[0]
    }

    pub(super) fn id(&self, backend: &str) -> BackendId {
        self.controller.backend(&name(backend)).unwrap().id()
    }

    pub(super) fn shown(&self, backend: &str) -> (BackendState, String) {
        let backend = self.controller.backend(&name(backend)).unwrap();
        (backend.state(), backend.reason().to_owned())
    }

    pub(super) fn check(&mut self, backend: &str, outcome: CheckOutcome) -> Vec<Command> {
        self.now += Duration::from_secs(2);
        self.controller.handle(self.checked(backend, outcome), self.now)
    }

    /// Makes the event of a check that ended with this outcome, even for a backend that has no check.
    pub(super) fn checked(&self, backend: &str, outcome: CheckOutcome) -> Event {
        let check = self.controller.backend(&name(backend)).unwrap().check_number().unwrap_or_default();
        Event::Checked { backend: self.id(backend), check, outcome, took: Duration::from_millis(1), asked: false }
    }

    pub(super) fn refuse(&mut self, backend: &str) -> Vec<Command> {
        (0..3).flat_map(|_| self.check(backend, CheckOutcome::Hard("connect: refused".to_owned()))).collect()
    }

    pub(super) fn pass(&mut self, backend: &str) -> Vec<Command> {
        (0..2).flat_map(|_| self.check(backend, CheckOutcome::Passed)).collect()
    }

    pub(super) fn change(&mut self, change: Change) -> Result<(String, Vec<Command>), Refused> {
        self.controller.change(change, self.now)
    }

    pub(super) fn admin(&mut self, backend: &str, admin: Admin) -> (String, Vec<Command>) {
        self.change(Change::SetAdmin { name: name(backend), admin, timeout: None }).unwrap()
    }

    pub(super) fn force(&mut self, backend: &str, forced: Option<Forced>) -> (String, Vec<Command>) {
        self.change(Change::ForceHealth { name: name(backend), forced }).unwrap()
    }

    pub(super) fn add(&mut self, backend: &str, at: &str) -> Result<(String, Vec<Command>), Refused> {
        let address = at.parse::<IpAddr>().unwrap();
        self.change(Change::Add {
            name: name(backend),
            address,
            address6: None,
            port: Some(8080),
            weight: None,
            backup: false,
            limits: Default::default(),
        })
    }

    /// Reports that the next hop of an address was found.
    fn reach(&mut self, address: &str) {
        let found = Event::NextHop { address: address.parse().unwrap(), next_hop: Ok(next_hop(1)) };
        self.controller.handle(found, self.now);
    }

    pub(super) fn remove(&mut self, backend: &str) -> (String, Vec<Command>) {
        self.change(Change::Remove { name: name(backend), force: false }).unwrap()
    }

    pub(super) fn reload(&mut self, services: Vec<ServiceConfig>) -> Result<(String, Vec<Command>), Refused> {
        self.change(Change::Reload(Box::new(config(services))))
    }
}

pub(super) fn kinds(commands: &[Command]) -> Vec<&'static str> {
    let kind = |command: &Command| match command {
        Command::WriteBackend(_) => "write",
        Command::RetireBackend(_) => "retire",
        Command::SwapTable { .. } => "swap",
        Command::PublishServices(_) => "publish",
        Command::SetRules { .. } => "rules",
        Command::WatchNextHop(_) => "watch",
        Command::UnwatchNextHop(_) => "unwatch",
        Command::StartChecks(_) => "check",
        Command::StopChecks(_) => "uncheck",
        Command::Report(_) => "report",
    };
    let mut kinds: Vec<_> = commands.iter().map(kind).collect();
    kinds.dedup();
    kinds
}

pub(super) fn lines(commands: &[Command]) -> Vec<&str> {
    commands
        .iter()
        .filter_map(|command| if let Command::Report(report) = command { Some(report.message.as_str()) } else { None })
        .collect()
}

pub(super) fn entries(service: &Service) -> BTreeSet<u16> {
    service.live_table().iter().copied().collect()
}

#[test]
fn when_it_starts_then_rows_are_written_before_tables_and_tables_before_services() {
    let (bench, commands) = Bench::new(vec![web()]);
    assert_eq!(kinds(&commands), ["watch", "write", "swap", "publish", "check"]);
    assert_eq!((bench.service().table_generation(), bench.service().slots_moved()), (1, (0, 0)));
    assert_eq!(bench.shown("web/web1"), (BackendState::Checking, String::new()));
    assert_eq!(bench.controller.next_deadline(), None);
}

#[test]
fn when_a_backend_fails_and_returns_then_the_reports_have_numbers() {
    let mut bench = Bench::web();
    let before = bench.service().live_table().to_vec();
    let commands = bench.refuse("web/web2");
    assert_eq!(kinds(&commands), ["swap", "report"]);
    assert_eq!(
        lines(&commands),
        ["backend web/web2 down (connect: refused), 16,384 of 65,537 slots moved to 3 backends"]
    );
    assert_eq!(bench.shown("web/web2"), (BackendState::Down, "connect: refused".to_owned()));
    assert_eq!(bench.service().slots_moved(), (16_384, 0));

    let commands = bench.pass("web/web2");
    assert_eq!(
        lines(&commands),
        ["backend web/web2 up, 16,384 of 65,537 slots moved from 3 backends, was down for 4s"]
    );
    assert_eq!(bench.service().live_table(), before);
    assert_eq!((bench.service().table_generation(), bench.service().slots_moved()), (3, (32_768, 0)));
    let backend = bench.controller.backend(&name("web/web2")).unwrap();
    assert_eq!(backend.checks(), [2, 0, 3]);
    assert_eq!(backend.last_check().unwrap().took, Duration::from_millis(1));
    assert_eq!(backend.transitions(), [1, 0, 0, 0, 0, 1, 0]);
    assert_eq!((backend.health_word(), backend.slots(), backend.takes_new_clients()), ("up", 16_384, true));
}

#[test]
fn when_a_backend_flaps_then_no_client_moves_but_the_state_is_shown() {
    let mut bench = Bench::web();
    bench.pass("web/web1");
    let generation = bench.service().table_generation();
    for _ in 0..2 {
        assert_eq!(bench.check("web/web1", CheckOutcome::Soft("status 503".to_owned())), []);
    }
    assert_eq!(bench.shown("web/web1"), (BackendState::Up, "status 503, 2 of 3 failures".to_owned()));
    assert_eq!(bench.check("web/web1", CheckOutcome::Passed), []);
    assert_eq!(bench.shown("web/web1"), (BackendState::Up, String::new()));
    assert_eq!(bench.service().table_generation(), generation);
}

#[test]
fn when_a_service_without_memory_has_a_soft_failure_then_the_backend_is_down() {
    let mut bench = Bench::web();
    for _ in 0..3 {
        bench.check("web/web1", CheckOutcome::Soft("status 503".to_owned()));
    }
    assert_eq!(bench.shown("web/web1"), (BackendState::Down, "status 503".to_owned()));
}

#[test]
fn when_a_next_hop_is_lost_then_it_is_a_hard_failure() {
    let mut bench = Bench::web();
    bench.pass("web/web1");
    let at = address("10.0.0.11:0").ip();
    let found = Event::NextHop { address: at, next_hop: Ok(next_hop(11)) };
    let commands = bench.controller.handle(found.clone(), bench.now);
    let [Command::WriteBackend(row)] = commands.as_slice() else { panic!("{commands:?}") };
    assert_eq!((row.id, row.next_hop), (bench.id("web/web1"), Some(next_hop(11))));
    assert_eq!(bench.controller.handle(found.clone(), bench.now), [], "nothing new");

    let lost = Event::NextHop { address: at, next_hop: Err("no route to 10.0.0.11".to_owned()) };
    let commands = bench.controller.handle(lost, bench.now);
    assert_eq!(kinds(&commands), ["write", "swap", "report"]);
    assert_eq!(bench.shown("web/web1"), (BackendState::Down, "no next hop: no route to 10.0.0.11".to_owned()));
    assert!(lines(&commands)[0].starts_with("backend web/web1 down (no next hop: no route to 10.0.0.11), 16,38"));
    assert_eq!(bench.controller.backend(&name("web/web1")).unwrap().health_word(), "down");
    bench.controller.handle(found, bench.now);
    assert_eq!(bench.shown("web/web1"), (BackendState::Up, String::new()));

    let unknown = Event::NextHop { address: address("10.9.9.9:0").ip(), next_hop: Ok(next_hop(9)) };
    assert_eq!(bench.controller.handle(unknown, bench.now), []);
}

#[test]
fn when_a_backend_drains_and_returns_then_it_gets_no_clients_and_then_the_same_slots() {
    let mut bench = Bench::web();
    let before = bench.service().live_table().to_vec();
    let (message, commands) = bench.admin("web/web1", Admin::Drain);
    assert_eq!(message, "backend web/web1 drained: 16,385 of 65,537 slots moved, 0 needless");
    assert_eq!(kinds(&commands), ["swap"], "the change itself is told by its message");
    assert_eq!(bench.shown("web/web1").0, BackendState::Drained);
    assert!(!entries(bench.service()).contains(&bench.id("web/web1").0));
    assert_eq!(bench.admin("web/web1", Admin::Drain).0, "backend web/web1 is drained already: nothing changed");
    let (message, _) = bench.admin("web/web1", Admin::Ready);
    assert_eq!(message, "backend web/web1 ready: 16,385 of 65,537 slots moved, 0 needless");
    assert_eq!(bench.service().live_table(), before);
}

#[test]
fn when_a_backend_is_in_maintenance_then_checks_stop_and_the_verdict_is_forgotten() {
    let mut bench = Bench::web();
    bench.refuse("web/web1");
    let (message, commands) = bench.admin("web/web1", Admin::Maint);
    assert_eq!(message, "backend web/web1 in maintenance: 0 of 65,537 slots moved, 0 needless");
    assert_eq!(commands, [Command::StopChecks(bench.id("web/web1"))]);
    assert_eq!(bench.check("web/web1", CheckOutcome::Passed), [], "a check that was under way");
    assert_eq!(bench.controller.backend(&name("web/web1")).unwrap().checks(), [0, 0, 3]);
    let (_, commands) = bench.admin("web/web1", Admin::Ready);
    assert_eq!(kinds(&commands), ["swap", "check"]);
    assert_eq!(bench.shown("web/web1"), (BackendState::Checking, String::new()));
}

fn started(commands: &[Command]) -> Vec<&CheckSpec> {
    commands
        .iter()
        .filter_map(|command| if let Command::StartChecks(spec) = command { Some(&**spec) } else { None })
        .collect()
}

#[test]
fn when_the_address_changes_then_an_answer_to_an_earlier_check_does_not_count() {
    let mut bench = Bench::web();
    bench.pass("web/web1");
    let under_way = bench.checked("web/web1", CheckOutcome::Hard("connect: refused".to_owned()));
    let mut file = bench.controller.services()[0].config();
    file.backends[0].address = address("10.0.0.99:80");
    let (_, commands) = bench.controller.change(Change::Reload(Box::new(config(vec![file]))), bench.now).unwrap();
    assert_eq!(started(&commands).len(), 1);
    assert_eq!(started(&commands)[0].health, Health::default());
    for _ in 0..3 {
        assert_eq!(bench.controller.handle(under_way.clone(), bench.now), []);
    }
    assert_eq!(bench.controller.backend(&name("web/web1")).unwrap().health(), &Health::default());
}

#[test]
fn when_a_check_changes_then_counting_continues_unless_it_asks_something_else() {
    let mut bench = Bench::web();
    bench.pass("web/web1");
    bench.check("web/web1", CheckOutcome::Hard("connect: refused".to_owned()));
    let mut file = bench.controller.services()[0].config();
    let mut reload = |change: &dyn Fn(&mut CheckConfig)| {
        change(&mut file.check);
        let reload = Change::Reload(Box::new(config(vec![file.clone()])));
        let (_, commands) = bench.controller.change(reload, bench.now).unwrap();
        let spec = started(&commands).into_iter().find(|spec| spec.name == name("web/web1")).unwrap().clone();
        (spec.health.streak(), spec.health.verdict().word(), spec.number)
    };
    let (streak, verdict, first) = reload(&|check| check.interval *= 2);
    assert_eq!((streak, verdict), ((0, 1), "up"));
    let (streak, verdict, second) = reload(&|check| check.kind = CheckKind::Tcp { port: Some(81), talk: None });
    assert_eq!((streak, verdict), ((0, 0), "up"));
    assert!(second > first);
}

#[test]
fn when_a_change_is_undone_then_check_numbers_are_not_reused() {
    let mut bench = Bench::web();
    let before = bench.controller.clone();
    let add = Change::Add {
        name: name("web/new"),
        address: "10.0.0.99".parse().unwrap(),
        address6: None,
        port: None,
        weight: None,
        backup: false,
        limits: Default::default(),
    };
    let (_, commands) = bench.controller.change(add.clone(), bench.now).unwrap();
    let undone = started(&commands)[0].number;
    bench.controller.undo(before);
    let (_, commands) = bench.controller.change(add, bench.now).unwrap();
    assert!(started(&commands)[0].number > undone);
}

#[test]
fn when_a_backend_is_added_then_its_replies_can_return_before_clients_come() {
    let mut bench = Bench::web();
    let (message, commands) = bench.add("web/web5", "10.0.0.15").unwrap();
    assert_eq!(kinds(&commands), ["watch", "write", "publish", "check"], "no client before its next hop is known");
    assert_eq!(message, "backend web/web5 added: 0 of 65,537 slots moved, 0 needless");
    assert_eq!(bench.shown("web/web5"), (BackendState::Checking, "its next hop is not known yet".to_owned()));
    assert!(bench.controller.waits_for_next_hop(&name("web/web5")));
    let found = Event::NextHop { address: address("10.0.0.15:0").ip(), next_hop: Ok(next_hop(15)) };
    let commands = bench.controller.handle(found, bench.now);
    assert_eq!(kinds(&commands), ["write", "swap"]);
    assert!(!bench.controller.waits_for_next_hop(&name("web/web5")));
    let (required, needless) = bench.service().slots_moved();
    let total = balancer_config::words::grouped(required + needless);
    let message = bench.controller.added(&name("web/web5"), (0, 0));
    assert_eq!(message, format!("backend web/web5 added: {total} of 65,537 slots moved, {needless} needless"));
    assert!((required + needless).abs_diff(13_107) < 1_966 && needless <= 393, "{message}");
    let added = bench.controller.backend(&name("web/web5")).unwrap();
    assert_eq!((added.weight(), added.slots(), added.address()), (100, 13_107, address("10.0.0.15:8080")));
    assert_eq!(bench.service().backends().last().map(|backend| backend.name()), Some("web5"));

    let (message, commands) = bench.remove("web/web5");
    assert!(message.starts_with("backend web/web5 removed: 13,"), "{message}");
    assert_eq!(kinds(&commands), ["swap", "publish", "uncheck", "retire", "unwatch"]);
}

#[test]
fn when_an_addition_is_invalid_then_nothing_changes() {
    let mut bench = Bench::new(vec![web(), service("dns", "198.51.100.11:53", Forwarding::Dsr, &[])]).0;
    let generation = bench.service().table_generation();
    let error = |result: Result<(String, Vec<Command>), Refused>| result.unwrap_err();
    assert_eq!(
        error(bench.add("web/web1", "10.0.0.15")),
        Refused::Conflict("backend web/web1 exists already: choose another name, or remove it first".to_owned())
    );
    assert_eq!(
        error(bench.add("wbe/web5", "10.0.0.15")),
        Refused::NotFound("no service \"wbe\": did you mean \"web\"?".to_owned())
    );
    assert!(matches!(error(bench.add("web/web5", "10.0.0.11")), Refused::Conflict(line) if line.contains("web/web1")));
    assert!(matches!(error(bench.add("web/we b", "10.0.0.15")), Refused::Invalid(_)));
    assert!(matches!(error(bench.add("web/web5", "2001:db8::1")), Refused::Invalid(_)));
    assert!(matches!(error(bench.add("dns/a", "10.0.0.15")), Refused::Invalid(line) if line.contains("dsr")));
    let unknown = Change::Remove { name: name("web/wbe1"), force: true };
    assert_eq!(
        error(bench.change(unknown)),
        Refused::NotFound("no backend in service web: \"wbe1\": did you mean \"web1\"?".to_owned())
    );
    assert_eq!((bench.service().backends().len(), bench.service().table_generation()), (4, generation));
}

#[test]
fn when_backends_share_an_address_then_they_share_a_watch() {
    let mut dns = service("dns", "198.51.100.11:53", Forwarding::Dsr, &["dns1 10.0.0.11:53"]);
    dns.check.kind = CheckKind::None;
    let (mut bench, commands) = Bench::new(vec![web(), dns]);
    assert_eq!(commands.iter().filter(|command| matches!(command, Command::WatchNextHop(_))).count(), 4);
    assert_eq!(
        bench.shown("dns/dns1"),
        (BackendState::Up, String::new()),
        "without a check there is no verdict to wait for"
    );
    assert_eq!(bench.controller.backend(&name("dns/dns1")).unwrap().health_word(), "unknown");
    let found = Event::NextHop { address: address("10.0.0.11:0").ip(), next_hop: Ok(next_hop(1)) };
    assert_eq!(bench.controller.handle(found, bench.now).len(), 2);
    assert!(!kinds(&bench.remove("dns/dns1").1).contains(&"unwatch"));
    assert!(kinds(&bench.remove("web/web1").1).contains(&"unwatch"));
}

#[test]
fn when_the_last_backend_is_removed_then_the_service_drops() {
    let mut bench = Bench::new(vec![service("web", "198.51.100.10:80", Forwarding::Nat, &["web1 10.0.0.11:80"])]).0;
    let (message, commands) = bench.remove("web/web1");
    assert_eq!(entries(bench.service()), [NO_BACKEND].into());
    assert_eq!(
        message,
        "backend web/web1 removed: 65,537 of 65,537 slots moved, 0 needless; service web has no backends: drops"
    );
    assert_eq!(lines(&commands), ["service web has no backends: drops"]);
    let Some(Command::Report(report)) = commands.last() else { panic!("{commands:?}") };
    assert_eq!((report.level, report.about.as_ref().unwrap().backend.as_str()), (ReportLevel::Warn, ""));
}

#[test]
fn when_no_backend_is_eligible_then_the_policy_decides() {
    for (policy, tier) in [(WhenAllDown::Open, Tier::AsIfUp), (WhenAllDown::Drop, Tier::AllDown)] {
        let mut web = web();
        web.when_all_down = policy;
        let mut bench = Bench::new(vec![web]).0;
        let before = bench.service().live_table().to_vec();
        for backend in ["web/web1", "web/web2", "web/web3"] {
            assert_eq!(lines(&bench.refuse(backend)).len(), 1);
        }
        let commands = bench.refuse("web/web4");
        assert_eq!(bench.service().tier(), tier);
        assert!(lines(&commands)[1].starts_with("service web has no backend that takes clients: "));
        match policy {
            WhenAllDown::Open => {
                assert_eq!(bench.service().live_table(), before);
                bench.admin("web/web1", Admin::Maint);
                assert!(!entries(bench.service()).contains(&bench.id("web/web1").0));
            }
            WhenAllDown::Drop => {
                assert_eq!(entries(bench.service()), [ALL_DOWN].into());
                assert!(lines(&commands)[0].ends_with("65,537 of 65,537 slots without a backend"));
            }
        }
        let commands = bench.pass("web/web4");
        assert_eq!(entries(bench.service()), [bench.id("web/web4").0].into());
        assert_eq!(lines(&commands)[1], "service web steers to its backends");
    }
}

#[test]
fn when_all_backends_are_in_maintenance_then_packets_are_dropped_even_if_open() {
    let mut bench = Bench::web();
    for backend in ["web/web1", "web/web2", "web/web3", "web/web4"] {
        bench.admin(backend, Admin::Maint);
    }
    assert_eq!(entries(bench.service()), [ALL_DOWN].into());
}

#[test]
fn when_a_primary_is_left_then_backups_wait() {
    let mut web = web();
    web.backends[2].backup = true;
    web.backends[3].backup = true;
    let mut bench = Bench::new(vec![web]).0;
    let ids = |bench: &Bench, names: [&str; 2]| BTreeSet::from(names.map(|name| bench.id(name).0));
    assert_eq!(entries(bench.service()), ids(&bench, ["web/web1", "web/web2"]));
    bench.refuse("web/web1");
    bench.refuse("web/web2");
    assert_eq!(entries(bench.service()), ids(&bench, ["web/web3", "web/web4"]));
    assert_eq!(bench.service().tier(), Tier::Backups);
    bench.pass("web/web1");
    assert_eq!(entries(bench.service()), [bench.id("web/web1").0].into());
}

#[test]
fn when_start_down_is_set_then_a_backend_waits_for_its_first_pass() {
    let mut web = web();
    web.start_down = true;
    web.when_all_down = WhenAllDown::Drop;
    let (mut bench, commands) = Bench::new(vec![web]);
    assert_eq!(lines(&commands), ["service web has no backend that takes clients: drops"]);
    assert_eq!(bench.shown("web/web1"), (BackendState::Checking, "no verdict yet, start_down = true".to_owned()));
    bench.check("web/web1", CheckOutcome::Passed);
    assert_eq!(entries(bench.service()), [bench.id("web/web1").0].into());
}

#[test]
fn when_backends_have_weights_then_shares_follow_them() {
    let mut bench = Bench::new(vec![service(
        "web",
        "198.51.100.10:80",
        Forwarding::Nat,
        &["web1 10.0.0.11:80", "web2 10.0.0.12:80"],
    )])
    .0;
    let (message, commands) = bench.change(Change::SetWeight { name: name("web/web2"), weight: 200 }).unwrap();
    assert!(message.starts_with("backend web/web2 weight 100 → 200: 10,9"), "{message}");
    assert_eq!(kinds(&commands), ["swap"]);
    let slots: Vec<u32> = bench.service().backends().iter().map(|backend| backend.slots()).collect();
    assert_eq!(slots, [21_846, 43_691]);
    bench.change(Change::SetWeight { name: name("web/web1"), weight: 0 }).unwrap();
    assert_eq!(bench.shown("web/web1"), (BackendState::Checking, "weight 0".to_owned()));
    assert_eq!(entries(bench.service()), [bench.id("web/web2").0].into());
}

#[test]
fn when_the_order_or_the_addresses_change_then_the_table_stays() {
    let table = |config: ServiceConfig| {
        let bench = Bench::new(vec![config]).0;
        let named = |id: &u16| {
            bench.service().backends().iter().find(|backend| backend.id().0 == *id).unwrap().name().to_owned()
        };
        bench.service().live_table().iter().map(named).collect::<Vec<_>>()
    };
    let mut other = web();
    other.backends.reverse();
    for backend in &mut other.backends {
        backend.address.set_port(9090);
    }
    assert_eq!(table(web()), table(other));
}

#[test]
fn when_a_file_is_reloaded_then_unchanged_backends_keep_their_state_and_moved_ones_restart() {
    let mut bench = Bench::new(vec![web(), service("old", "198.51.100.11:80", Forwarding::Dsr, &["a 10.0.0.31:80"])]).0;
    bench.refuse("web/web1");
    bench.refuse("web/web2");
    bench.admin("web/web3", Admin::Drain);
    let (message, commands) = {
        let mut web = web();
        web.backends[1].address = address("10.0.0.22:8080");
        web.backends.swap_remove(3);
        web.backends.push(backend("web5", "10.0.0.15:8080"));
        let new = service("new", "198.51.100.12:80", Forwarding::Dsr, &["a 10.0.0.31:80"]);
        bench.reload(vec![new, web]).unwrap()
    };
    assert!(
        message.starts_with(
            "configuration applied, 1 service added, 1 service removed, 2 backends added, 2 backends removed, \
             1 backend changed: "
        ),
        "{message}"
    );
    let order = [
        "watch", "write", "swap", "publish", "write", "swap", "uncheck", "retire", "uncheck", "retire", "unwatch",
        "check", "report",
    ];
    assert_eq!(kinds(&commands), order);
    assert_eq!(bench.controller.services().iter().map(Service::name).collect::<Vec<_>>(), ["new", "web"]);
    assert_eq!(bench.shown("web/web1").0, BackendState::Down, "the verdict stays");
    assert_eq!(bench.shown("web/web2").0, BackendState::Checking, "another address is another server");
    assert_eq!(bench.shown("web/web3").0, BackendState::Drained, "the operator's wish stays");
    let same: Vec<ServiceConfig> = bench.controller.services().iter().map(Service::config).collect();
    assert_eq!(bench.reload(same).unwrap(), ("configuration applied: nothing changed".to_owned(), Vec::new()));
}

#[test]
fn when_a_table_is_resized_then_it_is_replaced_whole() {
    let mut bench = Bench::web();
    let mut web = web();
    web.table_size = 131_071.into();
    let (message, commands) = bench.reload(vec![web]).unwrap();
    assert!(message.starts_with("configuration applied, 1 service changed: "), "{message}");
    assert_eq!(kinds(&commands), ["swap"]);
    assert_eq!(bench.service().live_table().len(), 131_071);
}

/// A service of `count` backends with an automatic table size.
fn automatic(count: usize) -> ServiceConfig {
    let backends: Vec<String> = (1..=count).map(|n| format!("web{n} 10.0.1.{n}:8080")).collect();
    let backends: Vec<&str> = backends.iter().map(String::as_str).collect();
    ServiceConfig { table_size: TableSize::Auto, ..service("web", "198.51.100.10:80", Forwarding::Nat, &backends) }
}

#[test]
fn when_the_table_size_is_automatic_then_it_follows_the_number_of_backends() {
    let (mut bench, _) = Bench::new(vec![automatic(39)]);
    assert_eq!((bench.service().table_size(), bench.service().live_table().len()), (4099, 4099));
    let before = bench.service().slots_moved();
    let plan = |bench: &Bench| {
        let add = Change::Add {
            name: name("web/new"),
            address: "10.0.2.9".parse().unwrap(),
            address6: None,
            port: Some(8080),
            weight: None,
            backup: false,
            limits: Default::default(),
        };
        bench.controller.plan(add, bench.now).unwrap()
    };
    assert!(plan(&bench).message.ends_with("needless"), "{}", plan(&bench).message);
    bench.add("web/more", "10.0.2.1").unwrap();
    bench.reach("10.0.2.1");
    assert_eq!(bench.service().table_size(), 4099);
    assert!(!bench.controller.added(&name("web/more"), before).contains("grows"));

    let (more, message) = (plan(&bench), "; the table grows from 4,099 to 16,411 slots");
    assert!(more.message.ends_with(message), "{}", more.message);
    assert_eq!(more.counted(|_| {}).services[0].table_size, 16_411);

    // The controller treats an unreachable backend as if it were not configured, so that clients move only once.
    let before = bench.service().slots_moved();
    bench.add("web/last", "10.0.2.2").unwrap();
    assert_eq!(bench.service().table_size(), 4099);
    bench.reach("10.0.2.2");
    assert_eq!(bench.service().table_size(), 16_411);
    let added = bench.controller.added(&name("web/last"), before);
    assert!(added.ends_with(message), "{added}");
    // Earlier configurations have no effect on the table.
    let fresh = {
        let mut config = automatic(39);
        config.backends.push(backend("more", "10.0.2.1:8080"));
        config.backends.push(backend("last", "10.0.2.2:8080"));
        Bench::new(vec![config]).0
    };
    let names = |bench: &Bench| -> Vec<String> {
        let of = |id: &u16| bench.service().backends().iter().find(|backend| backend.id().0 == *id).unwrap();
        bench.service().live_table().iter().map(|id| of(id).name().to_owned()).collect()
    };
    assert_eq!(names(&bench), names(&fresh));

    let (message, _) = bench.remove("web/web1");
    assert!(message.ends_with("; the table shrinks from 16,411 to 4,099 slots"), "{message}");
    let (message, _) = bench.reload(vec![automatic(165)]).unwrap();
    assert!(message.ends_with("; the table grows from 4,099 to 65,537 slots"), "{message}");
    let two = |size: TableSize| {
        let one = ServiceConfig { table_size: size, ..automatic(50) };
        let other = service("other", "198.51.100.11:80", Forwarding::Nat, &["a 10.0.3.1:8080"]);
        vec![one, ServiceConfig { table_size: size, ..other }]
    };
    bench.reload(two(TableSize::Fixed(251))).unwrap();
    let (message, _) = bench.reload(two(TableSize::Auto)).unwrap();
    assert!(message.ends_with("; the tables of 2 services have other sizes"), "{message}");
}

#[test]
fn when_a_service_has_both_families_then_their_tables_have_one_size() {
    let mut config = automatic(40);
    let mut second = config.listen[0];
    second.address = "2001:db8::10".parse().unwrap();
    config.listen.push(second);
    for (backend, number) in config.backends.iter_mut().zip(1..) {
        backend.address6 = Some(address(&format!("[2001:db8:1::{number}]:8080")));
    }
    let (mut bench, commands) = Bench::new(vec![config.clone()]);
    assert_eq!(lines(&commands), [""; 0]);
    let mut more = config.backends[0].clone();
    (more.name, more.address, more.address6) =
        ("more".to_owned(), address("10.0.2.1:8080"), Some(address("[2001:db8:2::1]:8080")));
    config.backends.push(more);
    bench.reload(vec![config]).unwrap();
    for address in ["10.0.2.1", "2001:db8:2::1"] {
        bench.reach(address);
    }
    let sizes: Vec<u32> = bench.controller.services().iter().map(Service::table_size).collect();
    assert_eq!(sizes, [16_411, 16_411]);
}

#[test]
fn when_a_backend_id_is_freed_then_it_is_reused_last() {
    let mut bench = Bench::web();
    let first = bench.id("web/web1");
    bench.remove("web/web1");
    bench.add("web/web1", "10.0.0.11").unwrap();
    assert_ne!(bench.id("web/web1"), first);
}

#[test]
fn when_ids_run_out_then_additions_are_refused_and_a_restart_makes_room() {
    let mut bench = Bench::web();
    bench.controller.set_backend_rows(8);
    for number in 5..=7 {
        bench.add(&format!("web/web{number}"), &format!("10.0.0.{}", 10 + number)).unwrap();
    }
    let clocks = Clocks { now: bench.now, wall: UNIX_EPOCH };
    let state = bench.controller.export(clocks);
    let refused = Err(Refused::Conflict("1 backend to add and 0 of 7 left; a restart makes room".to_owned()));
    assert_eq!(bench.add("web/web8", "10.0.0.18"), refused);
    assert_eq!(bench.controller.export(clocks), state);
    bench.remove("web/web1");
    bench.add("web/web8", "10.0.0.18").unwrap();
    assert_eq!(bench.id("web/web8"), BackendId(1), "the only one that is free");
}

#[test]
fn when_all_ids_are_in_use_then_one_backend_must_be_removed_first() {
    let backends: Vec<String> =
        (0..65_534u32).map(|n| format!("b{n} 10.{}.{}.{}:80", n >> 16, n >> 8 & 255, n & 255)).collect();
    let backends: Vec<&str> = backends.iter().map(String::as_str).collect();
    let full = service("web", "198.51.100.10:80", Forwarding::Nat, &backends);
    let (mut bench, commands) = Bench::new(vec![full]);
    assert_eq!(lines(&commands), [""; 0]);
    assert_eq!((bench.id("web/b0"), bench.id("web/b65533")), (BackendId(1), BackendId(65_534)));
    let largest = bench.controller.largest();
    assert_eq!((largest.ids, largest.highest_id), (65_534, 65_534));
    let error = "service web: more than 65534 backends over all services; remove some";
    assert_eq!(bench.add("web/one-more", "10.9.9.9"), Err(Refused::Invalid(error.to_owned())));
}

#[test]
fn when_the_first_configuration_cannot_work_then_nothing_is_served() {
    let mut controller = Controller::new(config(vec![web()]), KEY);
    controller.set_backend_rows(4);
    let commands = controller.start(now());
    assert_eq!(lines(&commands), ["nothing is served: 4 backends to add and 3 of 3 left; a restart makes room"]);
    assert!(controller.services().is_empty());
}

#[test]
fn when_ten_backends_fail_in_one_batch_then_the_table_is_swapped_once() {
    let backends: Vec<String> = (1..=20).map(|n| format!("web{n} 10.0.0.{n}:8080")).collect();
    let backends: Vec<&str> = backends.iter().map(String::as_str).collect();
    let (mut bench, _) = Bench::new(vec![service("web", "198.51.100.10:80", Forwarding::Nat, &backends)]);
    let fail = |bench: &Bench| -> Vec<Event> {
        (1..=10)
            .map(|n| bench.checked(&format!("web/web{n}"), CheckOutcome::Hard("connect: refused".to_owned())))
            .collect()
    };
    for _ in 0..2 {
        assert_eq!(bench.controller.handle_all(fail(&bench), bench.now), []);
    }
    let commands = bench.controller.handle_all(fail(&bench), bench.now);
    let swaps = commands.iter().filter(|command| matches!(command, Command::SwapTable { .. })).count();
    assert_eq!((swaps, lines(&commands).len()), (1, 10), "{commands:?}");
    assert_eq!((bench.service().table_generation(), bench.service().slots_moved().1), (2, 0));
    assert!((1..=10).all(|n| bench.shown(&format!("web/web{n}")).0 == BackendState::Down));
}

/// The directory must announce the new port before the first packet goes to that port; from this moment on, the program
/// translates replies from the new port to the VIP's port.
#[test]
fn when_a_backend_is_reached_otherwise_then_the_way_back_is_there_before_the_way_to_it() {
    let (mut bench, _) = Bench::new(vec![web()]);
    let mut file = web();
    file.backends[0].address = address("10.0.0.11:9090");
    let (_, commands) = bench.reload(vec![file]).unwrap();
    let place = |wanted: fn(&Command) -> bool| commands.iter().position(wanted).unwrap();
    let row = place(|command| matches!(command, Command::WriteBackend(row) if row.address.port() == 9090));
    assert!(place(|command| matches!(command, Command::PublishServices(_))) < row, "{commands:?}");
}
