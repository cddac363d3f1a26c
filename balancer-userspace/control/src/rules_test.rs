//! Tests of rules in the configuration file together with rules that users add at run time.

use std::{sync::Arc, time::Duration};

use balancer_common::map_types::Forwarding;
use balancer_config::{
    config::ServiceConfig,
    fixture::{service, web},
    listeners::Listener,
    rule::{Action, RuleConfig},
};

use crate::{
    controller_test::{Bench, kinds, lines},
    io::{Change, Command, Refused, RuleAction, RuleSpec},
    report::NOTHING_CHANGED,
    state_test::restart,
};

/// Rules from `PREFIX ACTION [SECONDS]` lines; any word that is not an action is the backend of a pin.
fn rules(lines: &[&str]) -> Vec<RuleConfig> {
    let one = |line: &&str| {
        let mut words = line.split(' ');
        let prefix = words.next().unwrap().parse().unwrap();
        let action = match words.next().unwrap() {
            "deny" => Action::Deny,
            "spread" => Action::Spread,
            backend => Action::Pin { backend: backend.to_owned() },
        };
        RuleConfig { prefix, action, ttl: words.next().map(|ttl| Duration::from_secs(ttl.parse().unwrap())) }
    };
    lines.iter().map(one).collect()
}

fn with(lines: &[&str]) -> ServiceConfig {
    ServiceConfig { rules: rules(lines), ..web() }
}

/// The current rules, with their remaining lifetimes, in the form that [`rules`] reads.
fn shown(bench: &Bench) -> Vec<String> {
    let all = bench.controller.services().iter().flat_map(|service| service.rules().iter());
    let shown = all.map(|rule| {
        let ends = rule.ends.map(|ends| format!(" {}", (ends - bench.now).as_secs())).unwrap_or_default();
        format!("{} {}{ends}", rule.prefix, rule.action.to_string().trim_start_matches("pin "))
    });
    shown.collect()
}

fn add(bench: &mut Bench, line: &str) -> (String, Vec<Command>) {
    let RuleConfig { prefix, action, ttl } = rules(&[line]).remove(0);
    bench.change(Change::AddRule { service: "web".to_owned(), prefix, action, ttl }).unwrap()
}

fn remove(bench: &mut Bench, prefix: &str) {
    bench.change(Change::RemoveRule { service: "web".to_owned(), prefix: prefix.parse().unwrap() }).unwrap();
}

fn told(commands: &[Command]) -> Vec<Arc<[RuleSpec]>> {
    let rules =
        |command: &Command| if let Command::SetRules { rules, .. } = command { Some(rules.clone()) } else { None };
    commands.iter().filter_map(rules).collect()
}

#[test]
fn when_a_rule_would_end_at_once_then_it_is_refused_and_moves_nobody() {
    let (mut bench, _) = Bench::new(vec![with(&[])]);
    for (ttl, expected) in [(0, Some("ttl 0s")), (999, Some("ttl 999ms")), (1000, None)] {
        let RuleConfig { prefix, action, .. } = rules(&["10.1.0.0/16 web2"]).remove(0);
        let (service, ttl) = ("web".to_owned(), Some(Duration::from_millis(ttl)));
        let added = bench.change(Change::AddRule { service, prefix, action, ttl });
        let refused = expected.map(|ttl| format!("{ttl} is too short; give 1s and more, or leave it out"));
        assert_eq!(added.err().map(|error| error.to_string()), refused);
    }
    assert_eq!(shown(&bench), ["10.1.0.0/16 web2 1"]);
}

#[test]
fn when_the_file_has_rules_then_a_start_tells_them_before_its_service_has_packets() {
    let file = with(&["10.1.0.0/16 web2", "10.2.0.0/16 deny", "10.3.0.0/16 spread 60"]);
    let (bench, commands) = Bench::new(vec![file]);
    assert_eq!(shown(&bench), ["10.1.0.0/16 web2", "10.2.0.0/16 deny", "10.3.0.0/16 spread 60"]);
    let rules = told(&commands);
    let actions: Vec<RuleAction> = rules[0].iter().map(|rule| rule.action).collect();
    assert_eq!(actions, [RuleAction::Pin(Some(bench.id("web/web2"))), RuleAction::Deny, RuleAction::Spread]);
    assert!(kinds(&commands).contains(&"publish"), "{:?}", kinds(&commands));
}

#[test]
fn when_the_file_is_applied_then_its_rules_change_and_those_of_run_time_stay() {
    let mut bench = Bench::new(vec![with(&["10.1.0.0/16 deny", "10.2.0.0/16 deny", "10.5.0.0/16 deny"])]).0;
    add(&mut bench, "10.3.0.0/16 spread");
    add(&mut bench, "10.2.0.0/16 web1");
    remove(&mut bench, "10.5.0.0/16");
    let unchanged = bench.reload(vec![with(&["10.1.0.0/16 deny", "10.2.0.0/16 deny", "10.5.0.0/16 deny"])]).unwrap();
    assert_eq!(unchanged.0, NOTHING_CHANGED);
    assert_eq!(
        lines(&unchanged.1),
        [
            "rule web 10.2.0.0/16 pin web1 was set at run time and is kept, the file says deny as before",
            "rule web 10.5.0.0/16 deny was removed at run time and stays removed",
            "rule web 10.3.0.0/16 spread was added at run time and is kept",
        ]
    );
    let (message, commands) = bench.reload(vec![with(&["10.2.0.0/16 deny", "10.4.0.0/16 deny"])]).unwrap();
    assert_eq!(message, "configuration applied, 1 rule added, 1 rule removed: 0 of 65,537 slots moved, 0 needless");
    assert_eq!(shown(&bench), ["10.2.0.0/16 web1", "10.3.0.0/16 spread", "10.4.0.0/16 deny"]);
    assert_eq!(told(&commands).len(), 1);
}

#[test]
fn when_it_restarts_then_rules_are_as_they_were_and_follow_what_the_file_has_changed() {
    let file = || with(&["10.1.0.0/16 deny", "10.2.0.0/16 deny 100", "10.3.0.0/16 spread 10"]);
    let mut bench = Bench::new(vec![file()]).0;
    remove(&mut bench, "10.1.0.0/16");
    bench.now += Duration::from_secs(20);
    let commands = bench.controller.handle(crate::io::Event::Tick, bench.now);
    assert_eq!(lines(&commands), ["rule web 10.3.0.0/16 spread ended"]);
    restart(&mut bench, Duration::from_secs(40), vec![file()]);
    assert_eq!(shown(&bench), ["10.2.0.0/16 deny 40"], "what has ended or was removed does not come back");
    restart(&mut bench, Duration::from_secs(1), vec![with(&["10.1.0.0/16 web1", "10.2.0.0/16 deny 100"])]);
    assert_eq!(shown(&bench), ["10.1.0.0/16 web1", "10.2.0.0/16 deny 39"]);
}

#[test]
fn when_a_service_has_both_families_then_each_part_has_its_rules() {
    let shop = || {
        let mut shop = service("shop", "198.51.100.10:80", Forwarding::Dsr, &["a 10.0.0.1:0"]);
        shop.listen.push("[2001:db8::10]:80".parse::<Listener>().unwrap());
        shop.backends[0].address6 = Some("[fd00::1]:0".parse().unwrap());
        shop.rules = rules(&["10.1.0.0/16 deny", "2001:db8:1::/48 a"]);
        shop.normalised()
    };
    let mut bench = Bench::new(vec![shop()]).0;
    let of = |bench: &Bench| -> Vec<usize> {
        bench.controller.services().iter().map(|service| service.rules().len()).collect()
    };
    assert_eq!(of(&bench), [1, 1]);
    // The rule for a removed address family waits for a listener of this family.
    let listener: Listener = "[2001:db8::10]:80".parse().unwrap();
    bench.change(Change::RemoveListener { service: "shop".to_owned(), listener }).unwrap();
    bench.reload(vec![shop()]).unwrap();
    assert_eq!(of(&bench), [2]);
    bench.change(Change::AddListener { service: "shop".to_owned(), listener }).unwrap();
    assert_eq!(of(&bench), [1, 1]);
    assert_eq!(bench.reload(vec![shop()]).unwrap().0, NOTHING_CHANGED);
}

#[test]
fn when_a_backend_or_a_service_is_renamed_then_its_rules_follow() {
    let mut bench = Bench::new(vec![with(&["10.1.0.0/16 web2"])]).0;
    add(&mut bench, "10.2.0.0/16 web2");
    let mut file = with(&["10.1.0.0/16 new"]);
    file.name = "shop".to_owned();
    file.renamed_from = Some("web".to_owned());
    file.backends[1].name = "new".to_owned();
    file.backends[1].renamed_from = Some("web2".to_owned());
    let (message, _) = bench.reload(vec![file.clone()]).unwrap();
    assert!(!message.contains("rule"), "{message}");
    assert_eq!(shown(&bench), ["10.1.0.0/16 new", "10.2.0.0/16 new"]);
    file.rules.clear();
    bench.reload(vec![file]).unwrap();
    assert_eq!(shown(&bench), ["10.2.0.0/16 new"]);
}

#[test]
fn when_rules_of_file_and_run_time_are_too_many_together_then_the_file_is_refused_and_nothing_changes() {
    let all: Vec<String> =
        (0..65_536u32).map(|number| format!("10.{}.{}.0/24 deny", number >> 8, number & 255)).collect();
    let many = rules(&all.iter().map(String::as_str).collect::<Vec<_>>());
    let mut bench = Bench::web();
    add(&mut bench, "172.16.0.0/12 deny");
    let before = shown(&bench);
    let refused = bench.reload(vec![ServiceConfig { rules: many.clone(), ..web() }]).unwrap_err();
    assert!(matches!(&refused, Refused::Conflict(text) if text.starts_with("there are 65,536 rules")), "{refused}");
    assert_eq!(shown(&bench), before);
    remove(&mut bench, "172.16.0.0/12");
    bench.reload(vec![ServiceConfig { rules: many, ..web() }]).unwrap();
}
