//! Tests of rules for client prefixes: which clients a rule moves, that these clients move only once, that no other
//! client notices, and how users manage rules.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use anyhow::Result;
use balancer_common::{
    map_types::Forwarding,
    verdict::{Decision, DropReason, MoveCause},
};
use balancer_config::states::Admin;
use balancer_control::{
    io::{Change, CheckOutcome},
    rules::Action,
};
use balancer_dataplane::Dataplane as _;
use balancer_packet_model::world::{World, client};
use balancer_testkit::{
    frame::{ACK, SYN},
    site::Site,
    topology::{Family, Shape},
};
use ipnet::IpNet;
use serde_json::{Value, json};

const CLIENTS: u32 = 10_000;
const REMEMBER: &str = "remember = \"60s\"";
/// A prefix that contains 256 of the clients, whose addresses start at 172.16.0.0.
const PREFIX: &str = "172.16.3.0/24";

type Homes = BTreeMap<u32, String>;

fn pin(backend: &str) -> Action {
    Action::Pin { backend: backend.to_owned() }
}

fn add(world: &mut World, prefix: &str, action: Action, ttl: Option<u64>) -> Result<String> {
    let (service, prefix) = ("web".to_owned(), prefix.parse()?);
    world.change(Change::AddRule { service, prefix, action, ttl: ttl.map(Duration::from_secs) })
}

fn remove(world: &mut World, prefix: &str) -> Result<String> {
    world.change(Change::RemoveRule { service: "web".to_owned(), prefix: prefix.parse()? })
}

fn within(number: u32) -> bool {
    PREFIX.parse::<IpNet>().is_ok_and(|prefix| prefix.contains(&std::net::IpAddr::from(client(number))))
}

fn connect_all(world: &mut World) -> Result<Homes> {
    (0..CLIENTS).map(|number| Ok((number, world.connect(client(number))?))).collect()
}

fn moved(before: &Homes, after: &Homes) -> BTreeSet<u32> {
    before.iter().filter(|(number, backend)| after.get(number) != Some(backend)).map(|(&number, _)| number).collect()
}

/// Returns the clients that must move if a rule pins [`PREFIX`] to `backend`.
fn concerned(homes: &Homes, backend: &str) -> BTreeSet<u32> {
    homes.iter().filter(|&(&number, home)| within(number) && home != backend).map(|(&number, _)| number).collect()
}

#[test]
fn when_a_prefix_is_pinned_then_its_clients_move_once_and_at_the_end_none_moves() -> Result<()> {
    let mut world = World::new(REMEMBER, 4, 262_144)?;
    let homes = connect_all(&mut world)?;
    world.pass(3)?;
    add(&mut world, PREFIX, pin("web2"), None)?;
    let pinned = connect_all(&mut world)?;
    let gone = concerned(&homes, "web2");
    assert_eq!(moved(&homes, &pinned), gone);
    assert!((100..256).contains(&gone.len()));
    let counters = world.counters()?;
    assert_eq!(counters.moved(MoveCause::Rule), gone.len() as u64);
    assert_eq!(counters.moves.iter().sum::<u64>(), gone.len() as u64);
    assert_eq!(counters.decided(Decision::Moved), gone.len() as u64);
    assert_eq!(counters.decided(Decision::Pinned), 256 - gone.len() as u64);

    world.pass(5)?;
    assert_eq!(connect_all(&mut world)?, pinned);
    let counters = world.counters()?;
    assert_eq!(counters.moved(MoveCause::Rule), gone.len() as u64, "each is moved once");
    assert_eq!(counters.decided(Decision::Pinned), 512 - gone.len() as u64);

    remove(&mut world, PREFIX)?;
    assert_eq!(connect_all(&mut world)?, pinned, "known clients stay where they are");
    for _ in 0..5 {
        world.pass(5)?;
        assert_eq!(connect_all(&mut world)?, pinned);
    }
    let counters = world.counters()?;
    assert_eq!(counters.moves.iter().sum::<u64>(), gone.len() as u64);
    assert_eq!(counters.decisions.iter().sum::<u64>(), counters.connections);
    let exceptions = world.dataplane().memory()?.exceptions;
    assert!((1..=gone.len() as u64).contains(&exceptions), "{exceptions} slots have somebody elsewhere");
    Ok(())
}

/// The lookup table alone still steers clients without a rule, so the slots of these clients need no flags.
#[test]
fn when_a_rule_pins_some_then_only_their_slots_have_exceptions() -> Result<()> {
    let mut world = World::new(REMEMBER, 4, 262_144)?;
    add(&mut world, PREFIX, pin("web2"), None)?;
    connect_all(&mut world)?;
    for _ in 0..4 {
        world.pass(5)?;
    }
    let exceptions = world.dataplane().memory()?.exceptions;
    assert!((100..=256).contains(&exceptions), "{exceptions} slots have exceptions, where 256 clients are pinned");
    Ok(())
}

#[test]
fn when_the_backend_of_a_pin_takes_no_new_clients_then_those_pinned_stay_there() -> Result<()> {
    let mut world = World::new(REMEMBER, 4, 262_144)?;
    let homes = connect_all(&mut world)?;
    for _ in 0..4 {
        world.pass(5)?;
    }
    // The balancer has seen every client at the lookup table's backend in this period, so the table alone steers the
    // clients' segments.
    (0..CLIENTS).try_for_each(|number| world.send(client(number), ACK).map(drop))?;
    add(&mut world, PREFIX, pin("web2"), None)?;
    let pinned = connect_all(&mut world)?;
    assert_eq!(moved(&homes, &pinned), concerned(&homes, "web2"));
    world.admin("web2", Admin::Drain, None)?;
    for number in 0..CLIENTS {
        assert_eq!(world.send(client(number), ACK)?.as_ref(), pinned.get(&number), "{number}");
    }
    assert_eq!(connect_all(&mut world)?, pinned);
    Ok(())
}

#[test]
fn when_a_pin_ends_before_any_sweep_then_segments_of_those_pinned_stay_there() -> Result<()> {
    let mut world = World::new(REMEMBER, 4, 262_144)?;
    connect_all(&mut world)?;
    for _ in 0..4 {
        world.pass(5)?;
    }
    (0..CLIENTS).try_for_each(|number| world.send(client(number), ACK).map(drop))?;
    add(&mut world, PREFIX, pin("web2"), None)?;
    let pinned = connect_all(&mut world)?;
    remove(&mut world, PREFIX)?;
    for number in 0..CLIENTS {
        assert_eq!(world.send(client(number), ACK)?.as_ref(), pinned.get(&number), "{number}");
    }
    Ok(())
}

/// All addresses of the client prefix are one client with one entry, so the balancer refuses a pin for only some of the
/// addresses.
#[test]
fn when_a_pin_names_a_part_of_a_client_then_it_is_refused_and_nobody_moves() -> Result<()> {
    let mut world = World::new(&format!("{REMEMBER}\nclient_prefix = {{ v4 = 24 }}"), 4, 262_144)?;
    let home = world.connect(client(0x301))?;
    let other = ["web1", "web2", "web3", "web4"].into_iter().find(|name| *name != home).expect("four backends");
    let address = format!("{}/32", std::net::IpAddr::from(client(0x301)));
    let refused = add(&mut world, &address, pin(other), None).expect_err("a pin of a part").to_string();
    assert!(refused.contains("by their first 24 bits") && refused.contains("pin that"), "{refused}");
    for number in [0x301, 0x302] {
        assert_eq!(world.connect(client(number))?, home);
    }
    // A rule that needs no entry may name some of a client's addresses.
    add(&mut world, &address, Action::Deny, None)?;
    assert_eq!(world.connect(client(0x302))?, home);
    Ok(())
}

#[test]
fn when_clients_become_larger_than_a_pin_then_it_is_not_active_until_they_are_smaller_again() -> Result<()> {
    let mut world = World::new(REMEMBER, 4, 262_144)?;
    let home = world.connect(client(0x301))?;
    let other = ["web1", "web2", "web3", "web4"].into_iter().find(|name| *name != home).expect("four backends");
    add(&mut world, &format!("{}/32", std::net::IpAddr::from(client(0x301))), pin(other), None)?;
    assert_eq!(world.connect(client(0x301))?, other);
    world.reload(&format!("{REMEMBER}\nclient_prefix = {{ v4 = 24 }}"), 4, 262_144)?;
    let whole = world.connect(client(0x302))?;
    assert_eq!(world.connect(client(0x301))?, whole, "one client, one place");
    let service = &world.controller().services()[0];
    let reason = service.rules().iter().find_map(|rule| service.inactive(rule)).expect("a reason");
    assert!(reason.contains("is a part of the client 172.16.3.0/24"), "{reason}");
    world.reload(REMEMBER, 4, 262_144)?;
    assert_eq!(world.connect(client(0x301))?, other);
    Ok(())
}

#[test]
fn when_a_rule_ends_by_itself_then_clients_pinned_meanwhile_stay() -> Result<()> {
    let mut world = World::new(REMEMBER, 4, 262_144)?;
    // The test adds the rule long before a client of the rule connects. Until that connection, the sweep must not clear
    // the flags of the slots.
    add(&mut world, PREFIX, pin("web2"), Some(20))?;
    world.pass(10)?;
    let homes = connect_all(&mut world)?;
    assert!(homes.iter().filter(|(number, _)| within(**number)).all(|(_, home)| home == "web2"));
    assert_eq!(world.counters()?.decided(Decision::Pinned), 256);
    assert_eq!(world.controller().services()[0].rules().len(), 1);
    world.pass(10)?;
    assert_eq!(world.controller().services()[0].rules().len(), 0, "it has ended");
    world.pass(3)?;
    assert_eq!(connect_all(&mut world)?, homes);
    // A packet of an open connection also goes to the pinned backend.
    for number in (0..CLIENTS).filter(|&number| within(number)) {
        assert_eq!(world.send(client(number), ACK)?.as_deref(), Some("web2"));
    }
    let counters = world.counters()?;
    assert_eq!(counters.moves, [0; MoveCause::COUNT]);
    assert_eq!(counters.decided(Decision::Kept), u64::from(CLIENTS));
    Ok(())
}

#[test]
fn when_a_pin_names_a_backend_without_new_clients_then_it_has_no_effect() -> Result<()> {
    let mut world = World::new(REMEMBER, 4, 262_144)?;
    add(&mut world, PREFIX, pin("web2"), None)?;
    let homes = connect_all(&mut world)?;
    world.pass(2)?;
    // Known clients stay with a draining backend, and new clients go to other backends.
    world.admin("web2", Admin::Drain, None)?;
    assert_eq!(moved(&homes, &connect_all(&mut world)?), BTreeSet::new());
    world.checked("web2", &CheckOutcome::Hard("connect: refused".to_owned()), 3)?;
    let down = connect_all(&mut world)?;
    assert!(!down.values().any(|home| home == "web2"));
    let lost = homes.values().filter(|home| *home == "web2").count() as u64;
    assert_eq!(moved(&homes, &down).len() as u64, lost);
    assert_eq!(world.counters()?.moved(MoveCause::Down), lost);
    let service = world.controller().services()[0].id();
    assert_eq!(world.dataplane().rule_fallbacks(service)?, 512);
    let rule = world.controller().services()[0].rules().iter().next().cloned().unwrap();
    let why = world.controller().services()[0].inactive(&rule);
    assert_eq!(why.as_deref(), Some("backend web2 is down (connect: refused)"));

    // When the pinned backend returns, the pin is active again and moves the clients back. The balancer counts the rule
    // as the cause of these moves.
    world.checked("web2", &CheckOutcome::Passed, 2)?;
    world.admin("web2", Admin::Ready, None)?;
    let back = connect_all(&mut world)?;
    assert_eq!(moved(&down, &back), (0..CLIENTS).filter(|&number| within(number)).collect());
    assert_eq!(world.counters()?.moved(MoveCause::Rule), 256);
    // A backend with a weight of 0 gets clients only from rules.
    world.change(Change::SetWeight {
        name: balancer_config::names::BackendName { service: "web".to_owned(), backend: "web2".to_owned() },
        weight: 0,
    })?;
    assert_eq!(moved(&back, &connect_all(&mut world)?), BTreeSet::new());
    Ok(())
}

#[test]
fn when_a_rules_backend_is_removed_then_the_rule_works_again_with_one_of_that_name() -> Result<()> {
    let mut world = World::new("remember = \"0s\"", 4, 1)?;
    let homes = connect_all(&mut world)?;
    add(&mut world, PREFIX, pin("web2"), None)?;
    assert_eq!(moved(&homes, &connect_all(&mut world)?), concerned(&homes, "web2"));
    let name = balancer_config::names::BackendName { service: "web".to_owned(), backend: "web2".to_owned() };
    world.change(Change::Remove { name, force: true })?;
    // The new backend gets an id that the rule must not confuse with the id of web2.
    world.add("web9", 9)?;
    let service = &world.controller().services()[0];
    let rule = service.rules().iter().next().cloned().unwrap();
    assert_eq!(service.inactive(&rule).as_deref(), Some("there is no backend web2"));
    assert!(!connect_all(&mut world)?.values().any(|home| home == "web2"));
    world.add("web2", 2)?;
    let back = connect_all(&mut world)?;
    assert!(back.iter().filter(|(number, _)| within(**number)).all(|(_, home)| home == "web2"));
    let counters = world.counters()?;
    assert_eq!(counters.moves, [0; MoveCause::COUNT]);
    assert_eq!(counters.decided(Decision::Pinned), 512);
    assert_eq!(counters.decisions.iter().sum::<u64>(), counters.connections);
    remove(&mut world, PREFIX)?;
    let table = connect_all(&mut world)?;
    assert_eq!(moved(&back, &table), concerned_by_table(&table));
    Ok(())
}

/// Returns those clients in [`PREFIX`] for which the lookup table chooses a backend other than web2.
fn concerned_by_table(homes: &Homes) -> BTreeSet<u32> {
    concerned(homes, "web2")
}

#[test]
fn when_rules_spread_or_deny_then_the_client_memory_is_unchanged() -> Result<()> {
    let mut world = World::new(REMEMBER, 4, 262_144)?;
    let homes = connect_all(&mut world)?;
    add(&mut world, PREFIX, Action::Spread, None)?;
    add(&mut world, "172.16.3.128/25", Action::Deny, None)?;
    let stateless = world.counters()?.decided(Decision::Stateless);
    let mut at = BTreeSet::new();
    for number in (0..CLIENTS).filter(|&number| within(number)) {
        let denied = client(number).octets()[3] >= 128;
        let to = world.send(client(number), SYN)?;
        assert_eq!(to.is_none(), denied, "{}", client(number));
        at.extend(to);
    }
    assert_eq!(at.len(), 4, "connections are spread over {at:?}");
    assert_eq!(world.counters()?.decided(Decision::Stateless) - stateless, 128);
    assert_eq!(world.dataplane().drop_stats()?.reasons[DropReason::Denied.index()], 128);
    // After the removal of the rule with the longer prefix, the rule with the shorter prefix applies.
    remove(&mut world, "172.16.3.128/25")?;
    assert!(world.send(client(3 * 256 + 200), SYN)?.is_some());
    remove(&mut world, PREFIX)?;
    assert_eq!(connect_all(&mut world)?, homes, "everybody is where they were known");
    assert_eq!(world.counters()?.moves, [0; MoveCause::COUNT]);
    Ok(())
}

/// Returns the exit code, the standard output and the standard error of a command.
fn balancer(site: &Site, arguments: &[&str]) -> (Option<i32>, String, String) {
    let output = site.output(arguments).unwrap();
    let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap().trim_end().to_owned();
    (output.status.code(), text(&output.stdout), text(&output.stderr))
}

#[test]
fn when_operators_use_rules_then_commands_and_effects_are_as_documented() {
    let site = Site::start(Shape::OneLegged, Forwarding::Nat, 3, |_, _| Ok(())).unwrap();
    let of = |clients: std::ops::RangeInclusive<u16>| site.homes(Family::V4, clients).unwrap();
    let before = of(1..=60);
    assert_eq!(before.values().collect::<BTreeSet<_>>().len(), 3);
    let done = |arguments: &[&str]| match balancer(&site, arguments) {
        (Some(0), text, _) => text,
        other => panic!("{arguments:?}: {other:?}"),
    };
    let refused = |arguments: &[&str], code: i32| {
        let (answered, _, text) = balancer(&site, arguments);
        assert_eq!(answered, Some(code), "{arguments:?}: {text}");
        text
    };
    let net = IpNet::new(site.topology().client_address(Family::V4, 20), 28).unwrap().trunc();
    let inside = |client: u16| net.contains(&site.topology().client_address(Family::V4, client));
    let prefix = net.to_string();

    assert_eq!(done(&["rule", "add", "web", &prefix, "pin", "web2"]), format!("rule web {prefix} pin web2"));
    let pinned = of(1..=60);
    for (client, home) in &pinned {
        let expected = if inside(*client) { "web2" } else { &before[client] };
        assert_eq!(home, expected, "client {client}");
    }
    let text = done(&["client", "where", &site.topology().client_address(Family::V4, 20).to_string(), "--json"]);
    let view: Value = serde_json::from_str(&text).unwrap();
    assert_eq!((&view["why"], &view["backend"]), (&json!("rule"), &json!("web2")));
    assert_eq!(view["rule"], json!({"prefix": prefix, "action": "pin"}));
    let list: Value = serde_json::from_str(&done(&["rule", "list", "web", "--json"])).unwrap();
    let [rule] = list.as_array().unwrap().as_slice() else { panic!("{list}") };
    assert!(rule["packets"].as_u64().unwrap() >= 15 * 3, "{rule}");
    assert_eq!(
        (&rule["service"], &rule["prefix"], &rule["action"], &rule["backend"], &rule["active"], &rule["reason"]),
        (&json!("web"), &json!(prefix), &json!("pin"), &json!("web2"), &json!(true), &json!(""))
    );

    assert_eq!(
        done(&["rule", "add", "web", &prefix, "spread", "--ttl", "1h"]),
        format!("rule web {prefix} spread for 1h, replaces pin web2")
    );
    let port_matters: BTreeSet<String> = (0..30).flat_map(|_| of(20..=20).into_values()).collect();
    assert!(port_matters.len() > 1, "one client's connections go to {port_matters:?}");
    let address = site.topology().client_address(Family::V4, 20).to_string();
    let view: Value = serde_json::from_str(&done(&["client", "where", &address, "--json"])).unwrap();
    assert_eq!((&view["why"], &view["backend"]), (&json!("rule"), &Value::Null));
    assert!(done(&["client", "where", &address]).contains("each connection its own"));
    let list = done(&["rule", "list"]);
    assert!(list.contains("spread") && list.contains("in 59m"), "{list}");

    assert_eq!(done(&["rule", "add", "web", &address, "deny"]), format!("rule web {address}/32 deny"));
    let view = done(&["client", "where", &address]);
    assert!(view.contains("(dropped)") && view.contains("/32 deny"), "{view}");
    let replies = site.ask(Family::V4, [20], Duration::from_secs(1)).unwrap();
    assert!(replies.iter().all(std::io::Result::is_err), "denied: {replies:?}");
    let metrics = site.metrics().unwrap();
    assert!(metrics.sum("drops_total", &["reason=\"denied\""]).unwrap() > 0.0);
    assert!(metrics.sum("decisions_total", &["result=\"pinned\""]).unwrap() >= 15.0);

    assert_eq!(done(&["rule", "remove", "web", &address]), format!("rule web {address}/32 deny removed"));
    assert_eq!(done(&["rule", "remove", "web", &prefix]), format!("rule web {prefix} spread removed"));
    assert_eq!(of(1..=60), before);
    assert_eq!(done(&["rule", "list", "--json"]), "[]");

    assert!(refused(&["rule", "add", "web", "10.1.2.3/24", "deny"], 2).contains("write 10.1.2.0/24"));
    assert!(refused(&["rule", "add", "web", "10.1.2/24", "deny"], 2).contains("is no prefix"));
    assert!(refused(&["rule", "add", "web", "10.1.2.0/24", "pin"], 2).contains("NAME"));
    assert!(refused(&["rule", "add", "web", "10.1.2.0/24", "pin", "wbe2"], 1).contains("did you mean \"web2\"?"));
    assert!(refused(&["rule", "add", "wbe", "10.1.2.0/24", "deny"], 1).contains("did you mean \"web\"?"));
    assert!(refused(&["rule", "add", "web", "2001:db8::/32", "deny"], 1).contains("service web is IPv4"));
    assert!(refused(&["rule", "remove", "web", "10.1.2.0/24"], 1).contains("has no rule for 10.1.2.0/24"));
    assert!(refused(&["rule", "list", "wbe"], 1).contains("did you mean \"web\"?"));
    assert_eq!(done(&["rule", "list", "--json"]), "[]");
}
