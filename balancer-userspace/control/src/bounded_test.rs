//! Tests of bounded load: which backends give slots away, which slots move, and when backends get slots back.

use std::time::Duration;

use balancer_config::{
    agent::Said,
    bounded::{Bound, BoundedLoad, Load},
    config::{AgentConfig, ServiceConfig},
    fixture::{self, name, web},
    states::{Admin, BackendState},
};

use crate::{
    bounded::{DWELL, LOOK, Watch, members},
    controller_test::Bench,
    io::{Change, CheckOutcome, Event, Refused},
};

const WEB1: &str = "web/web1";
const RULE: BoundedLoad = BoundedLoad { factor: 1.25, by: Load::Clients };
const BY_LATENCY: BoundedLoad = BoundedLoad { by: Load::Latency, ..RULE };

fn bounded() -> ServiceConfig {
    ServiceConfig { bounded_load: Some(RULE), remember: Duration::from_secs(600), ..web() }
}

impl Bench {
    fn bounded(service: ServiceConfig) -> Self {
        let (mut bench, _) = Self::new(vec![service]);
        for backend in ["web/web1", "web/web2", "web/web3", "web/web4"] {
            bench.pass(backend);
        }
        bench
    }

    fn bound(&mut self, bounds: &[(&str, u8)]) -> Result<String, Refused> {
        let bounds = bounds.iter().map(|&(name, keeps)| (name.to_owned(), Bound { keeps, load: 150 })).collect();
        let change = Change::Bound { service: "web".to_owned(), bounds };
        self.controller.change(change, self.now).map(|(message, _)| message)
    }

    fn slots_of(&self, backend: &str) -> u32 {
        self.controller.backend(&name(backend)).unwrap().slots()
    }

    fn bound_of(&self, backend: &str) -> Option<Bound> {
        self.controller.backend(&name(backend)).unwrap().bound()
    }

    fn table(&self) -> Vec<u16> {
        self.controller.services()[0].live_table().to_vec()
    }

    /// Evaluates these loads, in the order of the backends, and returns the percentage of slots that each backend
    /// keeps.
    fn look(&mut self, watch: &mut Watch, rule: BoundedLoad, loads: [f64; 4]) -> Option<Vec<(String, u8)>> {
        self.now += LOOK;
        let members = members(self.controller.services().iter());
        for (name, load) in members.keys().zip(loads) {
            watch.note(name, self.now, load);
        }
        let bounds = watch.look(&rule, &members, self.now)?;
        let keeps = bounds.iter().map(|(name, bound)| (name.clone(), bound.keeps)).collect();
        self.controller.change(Change::Bound { service: "web".to_owned(), bounds }, self.now).unwrap();
        Some(keeps)
    }

    /// Ends a check of each backend, and evaluates the checks: the check of web1 has the given outcome and duration,
    /// and the checks of the other backends take 4 ms. Returns the percentage of its slots that web1 keeps, if the
    /// percentage changes.
    fn checks(&mut self, watch: &mut Watch, web1: CheckOutcome, took: Duration) -> Option<u8> {
        self.now += LOOK;
        let quick = (CheckOutcome::Passed, Duration::from_millis(4));
        let others = ["web/web2", "web/web3", "web/web4"].map(|name| (name, quick.clone()));
        for (name, (outcome, took)) in [(WEB1, (web1, took))].into_iter().chain(others) {
            let Event::Checked { backend, check, outcome, asked, .. } = self.checked(name, outcome) else { panic!() };
            self.controller.handle(Event::Checked { backend, check, outcome, took, asked }, self.now);
        }
        watch.note_checks(self.controller.services().iter());
        let bounds = watch.look(&BY_LATENCY, &members(self.controller.services().iter()), self.now)?;
        bounds.get("web1").map(|bound| bound.keeps)
    }

    fn wait(&mut self, time: Duration) {
        self.now += time;
    }
}

fn one(keeps: u8) -> Option<Vec<(String, u8)>> {
    Some(vec![("web1".to_owned(), keeps)])
}

#[test]
fn when_a_backend_gives_slots_away_then_they_go_to_all_others_and_the_same_ones_come_back() {
    let mut bench = Bench::bounded(bounded());
    let (before, whole) = (bench.table(), bench.slots_of(WEB1));
    let id = bench.controller.backend(&name(WEB1)).unwrap().id().0;
    let message = bench.bound(&[("web1", 70)]).unwrap();
    assert!(
        message.starts_with(
            "service web, bounded load: web1 keeps 70% of its slots, had 1.50 times its share of clients: "
        ),
        "{message}"
    );
    assert!(message.contains("0 needless"), "{message}");
    let after = bench.table();
    assert!(before.iter().zip(&after).all(|(before, after)| before == after || *before == id));
    assert!(bench.slots_of(WEB1).abs_diff(whole * 7 / 10) < 10);
    for other in ["web/web2", "web/web3", "web/web4"] {
        assert!(bench.slots_of(other).abs_diff(whole + whole / 10) < whole / 50, "{other}");
    }
    let shown = bench.shown(WEB1);
    assert_eq!(shown, (BackendState::Up, "bounded load: keeps 70% of its slots, had 1.50 times its share".to_owned()));
    assert!(bench.controller.backend(&name(WEB1)).unwrap().keeps_known());
    let message = bench.bound(&[]).unwrap();
    assert!(message.contains("web1 has all its slots again"), "{message}");
    assert_eq!((bench.table(), bench.shown(WEB1).1), (before, String::new()));
}

#[test]
fn when_two_balancers_have_the_same_bounds_then_they_have_the_same_table_whatever_came_before() {
    let (mut one, mut other) = (Bench::bounded(bounded()), Bench::bounded(bounded()));
    for bounds in [&[("web3", 20)][..], &[("web1", 10), ("web2", 90)], &[("web1", 70), ("web4", 50)]] {
        one.bound(bounds).unwrap();
    }
    other.bound(&[("web1", 70), ("web4", 50)]).unwrap();
    assert_eq!(one.table(), other.table());
}

#[test]
fn when_all_backends_would_give_slots_away_then_nobody_does() {
    let mut bench = Bench::bounded(bounded());
    let before = bench.table();
    bench.bound(&[("web1", 70), ("web2", 70), ("web3", 10), ("web4", 50)]).unwrap();
    assert_eq!(bench.table(), before);
}

#[test]
fn when_the_key_is_taken_away_then_the_slots_come_back_and_another_factor_or_a_reset_leaves_them() {
    let mut bench = Bench::bounded(bounded());
    let before = bench.table();
    bench.bound(&[("web1", 50)]).unwrap();
    let given = bench.table();
    let other = BoundedLoad { factor: 2.0, ..RULE };
    bench.reload(vec![ServiceConfig { bounded_load: Some(other), ..bounded() }]).unwrap();
    assert_eq!(bench.table(), given);
    bench.reload(vec![ServiceConfig { bounded_load: None, ..bounded() }]).unwrap();
    assert_eq!((bench.table(), bench.bound_of(WEB1)), (before, None));
    assert_eq!(bench.bound(&[]), Err(Refused::Conflict("service web has no bounded_load".to_owned())));
}

#[test]
fn when_a_backend_drains_then_its_bound_stays_and_when_it_fails_it_ends() {
    let mut bench = Bench::bounded(bounded());
    let whole = bench.slots_of(WEB1);
    bench.bound(&[("web1", 50)]).unwrap();
    let half = bench.slots_of(WEB1);
    let admin = |admin| Change::SetAdmin { name: name(WEB1), admin, timeout: None };
    bench.controller.change(admin(Admin::Drain), bench.now).unwrap();
    assert_eq!(bench.slots_of(WEB1), 0);
    bench.controller.change(admin(Admin::Ready), bench.now).unwrap();
    assert_eq!(bench.slots_of(WEB1), half);
    while bench.shown(WEB1).0 != BackendState::Down {
        bench.refuse(WEB1);
    }
    assert_eq!(bench.bound_of(WEB1), None);
    while bench.shown(WEB1).0 != BackendState::Up {
        bench.pass(WEB1);
    }
    assert_eq!(bench.slots_of(WEB1), whole);
}

#[test]
fn when_weights_or_agents_or_a_new_backend_change_the_table_then_a_bound_takes_its_part_of_what_is_left() {
    let agent = Some(AgentConfig { port: 9777, interval: Duration::from_secs(5) });
    let mut bench = Bench::bounded(ServiceConfig { agent, ..bounded() });
    bench.bound(&[("web1", 50)]).unwrap();
    bench.controller.change(Change::SetWeight { name: name(WEB1), weight: 200 }, bench.now).unwrap();
    let slots = f64::from(bench.slots_of(WEB1)) / 65_537.0;
    assert!((slots - 0.2).abs() < 0.001, "{slots}");
    let said = Said { percent: 50, ..Said::default() };
    bench.controller.change(Change::Agent { name: name(WEB1), said }, bench.now).unwrap();
    let slots = f64::from(bench.slots_of(WEB1)) / 65_537.0;
    assert!((slots - 0.125).abs() < 0.001, "{slots}");
    let address = "10.0.0.9".parse().unwrap();
    let add = Change::Add {
        name: name("web/web9"),
        address,
        address6: None,
        port: None,
        weight: None,
        backup: false,
        limits: Default::default(),
    };
    bench.controller.change(add, bench.now).unwrap();
    assert_eq!((bench.bound_of(WEB1).map(|bound| bound.keeps), bench.bound_of("web/web9")), (Some(50), None));
}

#[test]
fn when_a_backend_has_too_many_clients_then_it_takes_fewer_at_once_and_the_next_change_waits() {
    let mut bench = Bench::bounded(bounded());
    let mut watch = Watch::new(Load::Clients);
    assert_eq!(bench.look(&mut watch, RULE, [1000.0, 1000.0, 1000.0, 1000.0]), None);
    assert_eq!(bench.look(&mut watch, RULE, [1300.0, 1000.0, 1000.0, 1000.0]), None, "1.21 is below the factor");
    assert_eq!(bench.look(&mut watch, RULE, [2000.0, 1000.0, 1000.0, 1000.0]), one(70));
    let mut looks = 0;
    while bench.look(&mut watch, RULE, [2000.0, 1000.0, 1000.0, 1000.0]).is_none() {
        looks += 1;
    }
    assert!(LOOK * looks >= DWELL - LOOK, "{looks} looks");
    assert_eq!(bench.bound_of(WEB1).unwrap().keeps, 50);
}

#[test]
fn when_its_load_falls_already_then_a_backend_is_left_alone_and_below_the_middle_slots_come_back() {
    let mut bench = Bench::bounded(bounded());
    let mut watch = Watch::new(Load::Clients);
    assert_eq!(bench.look(&mut watch, RULE, [2000.0, 1000.0, 1000.0, 1000.0]), one(70));
    bench.look(&mut watch, RULE, [2000.0, 1000.0, 1000.0, 1000.0]);
    for (loads, keeps) in [
        ([1800.0, 1000.0, 1000.0, 1000.0], None),
        ([1300.0, 1000.0, 1000.0, 1000.0], None),
        ([1000.0, 1000.0, 1000.0, 1000.0], one(80)),
    ] {
        bench.wait(DWELL);
        assert_eq!(bench.look(&mut watch, RULE, loads), keeps, "{loads:?}");
        bench.look(&mut watch, RULE, loads);
    }
    bench.wait(DWELL);
    assert_eq!(bench.look(&mut watch, RULE, [700.0, 1000.0, 1000.0, 1000.0]), Some(Vec::new()));
}

#[test]
fn when_a_load_is_far_too_much_then_a_backend_still_keeps_a_tenth_of_its_slots() {
    let mut bench = Bench::bounded(bounded());
    let mut watch = Watch::new(Load::Clients);
    let mut keeps = Vec::new();
    for _ in 0..8 {
        keeps.extend(bench.look(&mut watch, RULE, [1e6, 1000.0, 1000.0, 1000.0]).map(|bounds| bounds[0].1));
        bench.look(&mut watch, RULE, [1e6, 1000.0, 1000.0, 1000.0]);
        bench.wait(DWELL);
    }
    assert_eq!(keeps, [50, 30, 20, 10]);
}

#[test]
fn when_there_are_few_clients_then_chance_bounds_nobody() {
    let mut bench = Bench::bounded(bounded());
    let mut watch = Watch::new(Load::Clients);
    assert_eq!(bench.look(&mut watch, RULE, [12.0, 5.0, 5.0, 5.0]), None);
    assert_eq!(bench.look(&mut watch, RULE, [0.0; 4]), None);
}

#[test]
fn when_counters_are_compared_then_their_rates_of_a_minute_count() {
    let rule = BoundedLoad { by: Load::Connections, ..RULE };
    let mut bench = Bench::bounded(ServiceConfig { bounded_load: Some(rule), ..bounded() });
    let mut watch = Watch::new(Load::Connections);
    for second in (0..40).step_by(10).map(f64::from) {
        let loads = [1e9 + 200.0 * second, 100.0 * second, 100.0 * second, 100.0 * second];
        assert_eq!(bench.look(&mut watch, rule, loads), None, "nothing is known after {second} s");
    }
    let loads = [1e9 + 200.0 * 60.0, 100.0 * 60.0, 100.0 * 60.0, 100.0 * 60.0];
    bench.wait(LOOK);
    assert_eq!(bench.look(&mut watch, rule, loads), one(70));
}

#[test]
fn when_checks_of_one_take_longer_then_it_takes_fewer_clients_and_one_slow_check_alone_does_nothing() {
    let rule = BY_LATENCY;
    let mut bench = Bench::bounded(ServiceConfig { bounded_load: Some(rule), ..bounded() });
    let mut watch = Watch::new(Load::Latency);
    for check in 0..8 {
        let slow = if check == 5 { 2.0 } else { 0.004 };
        assert_eq!(bench.look(&mut watch, rule, [slow, 0.004, 0.0035, 0.0045]), None);
    }
    let mut found = None;
    for _ in 0..8 {
        found = found.or(bench.look(&mut watch, rule, [0.012, 0.004, 0.0035, 0.0045]));
    }
    assert_eq!(found, one(50));
}

fn timeout() -> CheckOutcome {
    CheckOutcome::Hard("connect: timeout after 1s".to_owned())
}

/// The timeout of the fixture's checks.
const TIMEOUT: Duration = Duration::from_secs(1);

#[test]
fn when_a_backend_is_so_slow_that_most_checks_run_into_their_timeout_then_it_takes_fewer_clients() {
    let mut bench = Bench::bounded(ServiceConfig { bounded_load: Some(BY_LATENCY), ..bounded() });
    let mut watch = Watch::new(Load::Latency);
    let mut found = None;
    for round in 0..9 {
        let passes = (CheckOutcome::Passed, Duration::from_millis(4));
        let (outcome, took) = if round % 3 == 2 { passes } else { (timeout(), TIMEOUT) };
        found = found.or(bench.checks(&mut watch, outcome, took));
        assert_eq!(bench.shown(WEB1).0, BackendState::Up);
    }
    assert_eq!(found, Some(50));
}

#[test]
fn when_a_backend_refuses_at_once_now_and_then_then_that_is_no_sign_of_its_speed() {
    let mut bench = Bench::bounded(ServiceConfig { bounded_load: Some(BY_LATENCY), ..bounded() });
    let mut watch = Watch::new(Load::Latency);
    for round in 0..20 {
        let (outcome, millis) =
            if round % 3 == 2 { (CheckOutcome::Passed, 4) } else { (CheckOutcome::Hard("refused".to_owned()), 999) };
        assert_eq!(bench.checks(&mut watch, outcome, Duration::from_millis(millis)), None);
    }
}

#[test]
fn when_a_backend_returns_from_a_failure_then_the_timeouts_before_do_not_count() {
    let mut bench = Bench::bounded(ServiceConfig { bounded_load: Some(BY_LATENCY), ..bounded() });
    let mut watch = Watch::new(Load::Latency);
    while bench.shown(WEB1).0 != BackendState::Down {
        assert_eq!(bench.checks(&mut watch, timeout(), TIMEOUT), None);
    }
    for _ in 0..3 {
        assert_eq!(bench.checks(&mut watch, timeout(), TIMEOUT), None);
    }
    for _ in 0..12 {
        assert_eq!(bench.checks(&mut watch, CheckOutcome::Passed, Duration::from_millis(4)), None);
    }
    assert_eq!(bench.shown(WEB1), (BackendState::Up, String::new()));
}

#[test]
fn when_another_process_or_leader_goes_on_then_it_waits_as_long_after_the_last_change() {
    let mut bench = Bench::bounded(bounded());
    bench.bound(&[("web1", 50)]).unwrap();
    let mut watch = Watch::new(Load::Clients);
    assert_eq!(bench.look(&mut watch, RULE, [2000.0, 1000.0, 1000.0, 1000.0]), None);
    bench.wait(DWELL);
    assert_eq!(bench.look(&mut watch, RULE, [2000.0, 1000.0, 1000.0, 1000.0]), one(40));
}

#[test]
fn when_others_are_down_then_the_shares_are_of_those_that_take_clients() {
    let mut bench = Bench::bounded(bounded());
    let mut watch = Watch::new(Load::Clients);
    for backend in ["web/web3", "web/web4"] {
        let change = Change::SetAdmin { name: name(backend), admin: Admin::Drain, timeout: None };
        bench.controller.change(change, bench.now).unwrap();
    }
    assert_eq!(bench.look(&mut watch, RULE, [1100.0, 900.0, 9000.0, 9000.0]), None);
    assert_eq!(bench.look(&mut watch, RULE, [1600.0, 400.0, 9000.0, 9000.0]), one(70));
}

#[test]
fn when_a_file_is_applied_with_reset_then_bounds_stay_because_nobody_has_set_them_by_hand() {
    let mut bench = Bench::bounded(bounded());
    bench.bound(&[("web1", 70)]).unwrap();
    bench.controller.change(Change::SetWeight { name: name(WEB1), weight: 200 }, bench.now).unwrap();
    let reset = Change::Reset(Box::new(fixture::config(vec![bounded()])));
    let message = bench.controller.change(reset, bench.now).unwrap().0;
    assert!(message.contains("reset: 1 backend"), "{message}");
    assert_eq!(bench.controller.backend(&name(WEB1)).unwrap().weight(), 100);
    assert_eq!(bench.bound_of(WEB1), Some(Bound { keeps: 70, load: 150 }));
}

#[test]
fn when_a_change_is_planned_then_it_moves_only_slots_that_a_bounded_backend_has_left() {
    let mut bench = Bench::bounded(bounded());
    let whole = bench.slots_of(WEB1);
    bench.bound(&[("web1", 50)]).unwrap();
    let left = bench.slots_of(WEB1);
    let drain = Change::SetAdmin { name: name(WEB1), admin: Admin::Drain, timeout: None };
    let after = bench.controller.plan_and_make(drain, bench.now).unwrap().1;
    let moved = after.services()[0].moves_since(bench.service()).total();
    assert_eq!(moved, left);
    assert!(left.abs_diff(whole / 2) < 10, "{left} of {whole}");
}
