//! Tests that list the changes made at run time and undo them.

use std::net::IpAddr;

use balancer_config::{
    config::ServiceConfig,
    fixture::{name, web},
    listeners::Listener,
    rule::{Action, RuleConfig},
    states::{Admin, BackendState, Forced},
};

use crate::{
    controller_test::{Bench, lines},
    io::{BackendId, Change, Command},
    report::NOTHING_CHANGED,
    run_time::summary,
};

fn file() -> ServiceConfig {
    let deny = |prefix: &str| RuleConfig { prefix: prefix.parse().unwrap(), action: Action::Deny, ttl: None };
    ServiceConfig { rules: vec![deny("10.1.0.0/16"), deny("10.2.0.0/16")], ..web() }
}

fn shown(bench: &Bench) -> Vec<String> {
    bench.controller.changed_at_run_time().iter().map(ToString::to_string).collect()
}

fn reset(bench: &mut Bench, services: Vec<ServiceConfig>) -> (String, Vec<Command>) {
    let config = balancer_config::fixture::config(services);
    bench.change(Change::Reset(Box::new(config))).unwrap()
}

/// The name of the backend of each slot.
fn homes(bench: &Bench) -> Vec<Option<String>> {
    let name = |id: &u16| bench.controller.name_of(BackendId(*id)).map(str::to_owned);
    bench.service().live_table().iter().map(name).collect()
}

/// Makes one change of each kind at run time.
fn change_all(bench: &mut Bench) {
    let web = || "web".to_owned();
    bench.add("web/new", "10.0.0.99").unwrap();
    bench.change(Change::Remove { name: name("web/web4"), force: true }).unwrap();
    bench.change(Change::SetWeight { name: name("web/web1"), weight: 50 }).unwrap();
    bench.admin("web/web1", Admin::Drain);
    bench.force("web/web2", Some(Forced::Down));
    bench.change(Change::SetSteer { service: web(), steer: 50 }).unwrap();
    let listener: Listener = "198.51.100.10:443/udp".parse().unwrap();
    bench.change(Change::AddListener { service: web(), listener }).unwrap();
    bench.change(Change::RemoveRule { service: web(), prefix: "10.1.0.0/16".parse().unwrap() }).unwrap();
    let (prefix, action) = ("10.3.0.0/16".parse().unwrap(), Action::Spread);
    bench.change(Change::AddRule { service: web(), prefix, action, ttl: None }).unwrap();
}

#[test]
fn when_something_is_changed_at_run_time_then_it_is_listed_and_a_reset_undoes_it() {
    let mut bench = Bench::new(vec![file()]).0;
    assert_eq!((shown(&bench), summary(&bench.controller.changed_at_run_time())), (Vec::new(), None));
    let before = bench.controller.present();
    let table = homes(&bench);
    change_all(&mut bench);
    let expected = [
        "service web: steer 50 (file: 100)",
        "listener web 198.51.100.10:443/udp: added",
        "backend web/web1: weight 50 (file: 100), drain",
        "backend web/web2: forced down",
        "backend web/new: added",
        "backend web/web4: removed",
        "rule web 10.1.0.0/16: deny removed",
        "rule web 10.3.0.0/16: spread added",
    ];
    assert_eq!(shown(&bench), expected);
    let changes = bench.controller.changed_at_run_time();
    assert_eq!(summary(&changes).as_deref(), Some("1 service, 1 listener, 4 backends, 2 rules"));

    let plan =
        bench.controller.plan(Change::Reset(Box::new(balancer_config::fixture::config(vec![file()]))), bench.now);
    assert_eq!(plan.unwrap().changed, changes);
    assert_eq!(shown(&bench), expected, "a plan changes nothing");
    let (message, commands) = reset(&mut bench, vec![file()]);
    assert!(
        message.starts_with("configuration applied, reset: 1 service, 1 listener, 4 backends, 2 rules"),
        "{message}"
    );
    let told: Vec<String> = expected.iter().map(|line| format!("reset: {line}")).collect();
    let lines: Vec<&str> = lines(&commands).into_iter().filter(|line| !line.starts_with("backend web/")).collect();
    assert_eq!(lines, told);
    assert_eq!(shown(&bench), [""; 0]);
    assert_eq!(bench.controller.present(), before);
    let found = crate::io::Event::NextHop {
        address: "10.0.0.14".parse::<IpAddr>().unwrap(),
        next_hop: Ok(crate::fixture::next_hop(14)),
    };
    bench.controller.handle(found, bench.now);
    assert!(homes(&bench) == table, "not everybody is at home");
    assert_eq!(reset(&mut bench, vec![file()]).0, NOTHING_CHANGED);
}

#[test]
fn when_the_file_is_only_applied_then_what_was_changed_at_run_time_stays_listed() {
    let mut bench = Bench::new(vec![file()]).0;
    change_all(&mut bench);
    let before = shown(&bench);
    bench.reload(vec![file()]).unwrap();
    assert_eq!(shown(&bench), before);
}

#[test]
fn when_a_backend_that_is_being_removed_is_reset_then_it_is_as_if_that_had_never_been() {
    let remembering = || ServiceConfig { remember: std::time::Duration::from_secs(3600), ..web() };
    let mut bench = Bench::new(vec![remembering()]).0;
    bench.remove("web/web3");
    bench.add("web/new", "10.0.0.99").unwrap();
    bench.remove("web/new");
    assert_eq!(shown(&bench), ["backend web/web3: being removed", "backend web/new: added, being removed"]);
    reset(&mut bench, vec![remembering()]);
    assert_eq!(shown(&bench), [""; 0]);
    assert!(matches!(bench.shown("web/web3").0, BackendState::Up | BackendState::Checking));
    assert!(bench.controller.backend(&name("web/new")).is_err());
}

#[test]
fn when_a_reset_brings_another_file_then_the_file_is_what_there_is() {
    let mut bench = Bench::new(vec![file()]).0;
    change_all(&mut bench);
    let mut other = file();
    other.backends.remove(0);
    other.rules.remove(1);
    let (_, commands) = reset(&mut bench, vec![other.clone()]);
    assert_eq!(shown(&bench), [""; 0]);
    assert!(lines(&commands).contains(&"rule web 10.2.0.0/16 deny is no longer in the file: removed"));
    let services = bench.controller.present();
    assert_eq!((services.len(), &*services[0]), (1, &other));
}
