//! Tests of drop-ins beside the configuration file, and of what meets them: reloads, resets, restarts, changes made at
//! run time, and a fleet.

use std::time::Duration;

use balancer_common::map_types::Forwarding;
use balancer_config::{
    config::ServiceConfig,
    fixture::{KEY, backend, config, name, service, web},
    states::Admin,
};

use crate::{
    controller::Controller,
    controller_test::{Bench, lines},
    io::{Change, Command, Refused},
    state_test::{many, restart},
};

/// A service of a drop-in, at `address`.
fn shop(address: &str) -> ServiceConfig {
    service("shop", address, Forwarding::Nat, &["shop1 10.1.0.1:8080", "shop2 10.1.0.2:8080"])
}

fn at_80() -> ServiceConfig {
    shop("198.51.100.20:80")
}

fn set(bench: &mut Bench, name: &str, services: Vec<ServiceConfig>) -> Result<(String, Vec<Command>), Refused> {
    bench.change(Change::SetDropIn { name: name.to_owned(), text: format!("# {name}\n"), services })
}

fn with_shop() -> Bench {
    let mut bench = Bench::web();
    set(&mut bench, "k8s", vec![at_80()]).unwrap();
    bench
}

fn names(bench: &Bench) -> Vec<(&str, Option<&str>)> {
    bench.controller.services().iter().map(|service| (service.name(), service.drop_in())).collect()
}

fn weight(bench: &Bench, backend: &str) -> u16 {
    bench.controller.backend(&name(backend)).unwrap().weight()
}

const BOTH: [(&str, Option<&str>); 2] = [("web", None), ("shop", Some("k8s"))];

#[test]
fn when_a_drop_in_is_applied_then_its_services_exist_beside_those_of_the_file_until_it_is_removed() {
    let mut bench = Bench::web();
    let table = bench.service().live_table().to_vec();
    let (said, _) = set(&mut bench, "k8s", vec![at_80()]).unwrap();
    assert_eq!(said, "drop-in k8s applied, 1 service added, 2 backends added: 0 of 131,074 slots moved, 0 needless");
    assert_eq!(names(&bench), BOTH);
    assert_eq!(bench.controller.services_of_drop_in("k8s").collect::<Vec<_>>(), ["shop"]);
    assert_eq!(bench.controller.drop_ins()["k8s"], "# k8s\n");
    assert_eq!(bench.controller.changed_at_run_time(), []);
    assert_eq!(bench.service().live_table(), table);
    let (said, _) = set(&mut bench, "k8s", Vec::new()).unwrap();
    assert!(said.starts_with("drop-in k8s removed, 1 service removed"), "{said}");
    assert_eq!(names(&bench), BOTH[..1]);
    assert!(bench.controller.drop_ins().is_empty());
}

#[test]
fn when_a_drop_in_is_applied_again_then_changes_at_run_time_stay_where_the_text_is_the_same() {
    let mut bench = with_shop();
    bench.admin("shop/shop1", Admin::Drain);
    bench.change(Change::SetWeight { name: name("shop/shop2"), weight: 7 }).unwrap();
    bench.add("shop/shop9", "10.1.0.9").unwrap();
    let shown: Vec<String> = bench.controller.changed_at_run_time().iter().map(ToString::to_string).collect();
    assert_eq!(
        shown,
        ["backend shop/shop1: drain", "backend shop/shop2: weight 7 (file: 100)", "backend shop/shop9: added"]
    );
    let mut more = at_80();
    more.backends.push(backend("shop3", "10.1.0.3:80"));
    set(&mut bench, "k8s", vec![more.clone()]).unwrap();
    assert_eq!(bench.shown("shop/shop1").0.word(), "drained");
    assert_eq!(weight(&bench, "shop/shop2"), 7);
    assert!(bench.controller.backend(&name("shop/shop9")).is_ok());
    assert!(bench.controller.backend(&name("shop/shop3")).is_ok());
    let generation = bench.controller.generation();
    assert_eq!(set(&mut bench, "k8s", vec![more]).unwrap().0, "drop-in k8s applied: nothing changed");
    assert_eq!(bench.controller.generation(), generation + 1);
    let (said, commands) = set(&mut bench, "k8s", Vec::new()).unwrap();
    assert!(said.starts_with("drop-in k8s removed"), "{said}");
    assert!(lines(&commands).contains(&"service shop is no longer in drop-in k8s: removed"), "{:?}", lines(&commands));
}

#[test]
fn when_the_file_is_applied_or_everything_is_reset_then_drop_ins_stay() {
    let mut bench = with_shop();
    bench.change(Change::SetWeight { name: name("shop/shop1"), weight: 7 }).unwrap();
    let other = service("api", "198.51.100.30:80", Forwarding::Nat, &["api1 10.2.0.1:8080"]);
    bench.reload(vec![web(), other.clone()]).unwrap();
    assert_eq!(names(&bench), [BOTH[0], ("api", None), BOTH[1]]);
    assert_eq!(weight(&bench, "shop/shop1"), 7);
    bench.reload(vec![web()]).unwrap();
    assert_eq!(names(&bench), BOTH);
    bench.change(Change::Reset(Box::new(config(vec![web()])))).unwrap();
    assert_eq!(names(&bench), BOTH);
    assert_eq!(weight(&bench, "shop/shop1"), 100, "the drop-in says so");
    assert!(bench.controller.has_applied(&config(vec![web()]).services));
    assert!(!bench.controller.has_applied(&config(vec![web(), other]).services));
}

#[test]
fn when_the_balancer_restarts_then_drop_ins_are_as_before() {
    let mut bench = with_shop();
    bench.admin("shop/shop1", Admin::Drain);
    restart(&mut bench, Duration::from_secs(5), vec![web()]);
    assert_eq!(names(&bench), BOTH);
    assert_eq!(bench.controller.drop_ins()["k8s"], "# k8s\n");
    assert_eq!(bench.shown("shop/shop1").0.word(), "drained");
    set(&mut bench, "k8s", Vec::new()).unwrap();
    restart(&mut bench, Duration::from_secs(5), vec![web()]);
    assert_eq!(names(&bench), BOTH[..1]);
}

#[test]
fn when_services_contradict_each_other_then_the_change_is_refused_and_a_restart_leaves_out_the_drop_ins() {
    let mut bench = with_shop();
    let before = names(&bench).len();
    for (drop_in, service, why) in [
        ("k8s", web(), "service web is in the file already"),
        ("other", at_80(), "service shop is in drop-in k8s already"),
        (
            "other",
            service("more", "198.51.100.20:80", Forwarding::Nat, &[]),
            "198.51.100.20:80 is service shop already",
        ),
        ("k8s", shop("198.51.100.10:80"), "198.51.100.10:80 is service web already"),
    ] {
        let refused = set(&mut bench, drop_in, vec![service]).unwrap_err().to_string();
        assert!(refused.contains(why), "{refused}");
        assert_eq!((names(&bench).len(), bench.controller.drop_ins().len()), (before, 1));
    }
    let taken = service("api", "198.51.100.20:80", Forwarding::Nat, &["api1 10.2.0.1:8080"]);
    let refused = bench.reload(vec![web(), taken.clone()]).unwrap_err().to_string();
    assert!(refused.contains("198.51.100.20:80 is service api already"), "{refused}");
    let extra = service("extra", "198.51.100.21:80", Forwarding::Nat, &["extra1 10.1.0.7:8080"]);
    set(&mut bench, "k8s", vec![at_80(), extra]).unwrap();
    bench.admin("web/web1", Admin::Drain);
    let commands = restart(&mut bench, Duration::from_secs(5), vec![web(), taken]);
    assert_eq!(names(&bench), [BOTH[0], ("api", None), ("extra", Some("k8s"))]);
    assert!(lines(&commands).iter().any(|line| line.starts_with("service shop of drop-in k8s is left out: ")));
    assert_eq!(bench.shown("web/web1").0.word(), "drained", "nothing else is lost");
}

#[test]
fn when_the_data_path_has_no_room_for_a_service_then_the_cure_is_named() {
    let mut bench = Bench::web();
    let refused = set(&mut bench, "k8s", vec![ServiceConfig { forwarding: Forwarding::Snat, ..at_80() }]).unwrap_err();
    assert!(refused.to_string().contains("write [flow_table] capacity = 262144 into a configuration file"));
    let remembering = || vec![ServiceConfig { remember: Duration::from_secs(60), ..at_80() }];
    let refused = set(&mut bench, "k8s", remembering()).unwrap_err();
    assert!(refused.to_string().contains("remember needs a client table"), "{refused}");
    let mut empty = Bench::new(Vec::new()).0;
    set(&mut empty, "k8s", remembering()).unwrap();
    restart(&mut empty, Duration::ZERO, vec![web()]);
    set(&mut empty, "k8s", remembering()).unwrap();
}

#[test]
fn when_another_controller_follows_then_it_has_the_drop_ins() {
    let bench = with_shop();
    let clocks = crate::state::Clocks { now: bench.now, wall: std::time::UNIX_EPOCH };
    let mut follower = Controller::follower(config(vec![web()]), KEY, bench.now);
    follower.follow(bench.controller.agreed_state(clocks), clocks).unwrap();
    assert_eq!(follower.drop_ins(), bench.controller.drop_ins());
    let mut decider =
        Controller::decider_from(config(vec![web()]), KEY, follower.agreed_state(clocks), clocks).unwrap();
    decider.decide_services(vec![web()], false, bench.now).unwrap();
    assert_eq!(decider.services_of_drop_in("k8s").count(), 1);
}

#[test]
fn when_a_start_cannot_continue_the_state_then_drop_ins_are_there_all_the_same() {
    let mut bench = Bench::new(vec![many('a', 33_000)]).0;
    set(&mut bench, "k8s", vec![at_80()]).unwrap();
    let commands = restart(&mut bench, Duration::ZERO, vec![many('b', 33_000)]);
    let said = lines(&commands).join("\n");
    assert!(said.contains("starting with the file and the drop-ins alone"), "{said}");
    assert_eq!(bench.controller.drop_ins()["k8s"], "# k8s\n");
    assert!(bench.controller.backend(&name("shop/shop1")).is_ok());
}
