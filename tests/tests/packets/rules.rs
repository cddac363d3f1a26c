//! Tests of rules for client prefixes: rules that pin, spread or deny, in every mode and also for rare packets.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use balancer_common::{
    client::{self, HashKey},
    features::Features,
    map_types::RULE_COUNTERS,
    verdict::{Decision, DropReason},
};
use balancer_control::io::{RuleAction, RuleSpec};
use balancer_testkit::{
    frame::{ACK, Frame, SYN, Transport, options},
    rig::{ROUTER_MAC, Rig, Setup, TABLE_SIZE, backend_id, backend_mac},
};

use crate::{
    cases::{Case, Then, services},
    rows::{self, rows},
};

/// Services with rules: the VIP, the additional backend in the lookup table, and the backend that takes no clients.
const SERVICES: [(&str, &str, &str); 9] = [
    ("198.51.100.10:80", "10.0.0.111", "10.0.0.211"),
    ("[2001:db8::10]:80", "fd00::111", "fd00::211"),
    ("198.51.100.20:80", "10.0.0.121", "10.0.0.221"),
    ("[2001:db8::20]:80", "fd00::121", "fd00::221"),
    ("198.51.100.50:80", "10.0.0.150", "10.0.0.250"),
    ("[2001:db8::52]:80", "fd00::152", "fd00::252"),
    ("198.51.100.60:80", "10.0.0.160", "10.0.0.240"),
    ("198.51.100.70:53", "10.0.0.170", "10.0.0.241"),
    ("[2001:db8::70]:53", "fd00::170", "fd00::242"),
];

/// Returns the number of the backend to which a rule pins clients, by the service's index in [`SERVICES`].
const fn pinned(place: usize) -> usize {
    100 + place
}

/// Returns the number of the backend that takes no clients, by the service's index in [`SERVICES`].
const fn unwilling(place: usize) -> usize {
    150 + place
}

struct Clients {
    pinned: &'static str,
    denied: &'static str,
    spread: &'static str,
    falls_back: &'static str,
    free: &'static str,
}

const V4: Clients = Clients {
    pinned: "203.0.113.7",
    denied: "203.0.113.8",
    spread: "203.0.113.20",
    falls_back: "203.0.113.40",
    free: "192.0.2.7",
};
const V6: Clients = Clients {
    pinned: "2001:db8:c::7",
    denied: "2001:db8:c::8",
    spread: "2001:db8:c:1::20",
    falls_back: "2001:db8:c:2::40",
    free: "2001:db8:e::7",
};

fn clients(vip: &str) -> &'static Clients {
    if vip.starts_with('[') { &V6 } else { &V4 }
}

fn rules(place: usize) -> Vec<RuleSpec> {
    let (vip, ..) = SERVICES[place];
    let prefixes: [&str; 4] = if vip.starts_with('[') {
        ["2001:db8:c::/48", "2001:db8:c::8/128", "2001:db8:c:1::/64", "2001:db8:c:2::/64"]
    } else {
        ["203.0.113.0/24", "203.0.113.8/32", "203.0.113.16/28", "203.0.113.32/28"]
    };
    let pin = |number: usize| RuleAction::Pin(Some(backend_id(number)));
    let actions = [pin(pinned(place)), RuleAction::Deny, RuleAction::Spread, pin(unwilling(place))];
    let rules = prefixes.iter().zip(actions);
    rules.map(|(prefix, action)| RuleSpec { prefix: prefix.parse().expect("a prefix"), action }).collect()
}

fn prepare(rig: &mut Rig) -> anyhow::Result<()> {
    (0..SERVICES.len()).try_for_each(|place| prepare_service(rig, place))
}

/// Adds the backends and the rules of a service, by its index in [`SERVICES`].
fn prepare_service(rig: &mut Rig, place: usize) -> anyhow::Result<()> {
    let (vip, added, down) = SERVICES[place];
    rig.add_backend(vip, pinned(place), added.parse()?, true)?;
    rig.add_backend(vip, unwilling(place), down.parse()?, false)?;
    rig.set_rules(vip, &rules(place))
}

fn from(client: &str, port: u16) -> String {
    SocketAddr::new(client.parse().expect("an address"), port).to_string()
}

fn packet(client: &str, port: u16, vip: &str, flags: u8) -> Frame {
    let transport = if vip.ends_with(":53") { Transport::Udp } else { Transport::Tcp(flags) };
    Frame::new(&from(client, port), vip, transport)
}

/// Returns the MAC address of the backend that the lookup table names for a client, or for one connection of the
/// client.
fn by_table(rig: &Rig, place: usize, client: &str, connection: Option<u16>) -> [u8; 6] {
    let key = HashKey { k0: 1, k1: 2 };
    let words: [u64; 2] = match client.parse().expect("an address") {
        IpAddr::V4(client) => [u64::from(u32::from_ne_bytes(client.octets())), 0],
        IpAddr::V6(client) => {
            let [high, _]: [u64; 2] = bytemuck::cast(client.octets());
            [high, 0]
        }
    };
    let hash = match connection {
        Some(port) => client::hash_connection(key, words, port.to_be()),
        None if client.contains(':') => client::hash_v6(key, words),
        None => client::hash_v4(key, words[0] as u32),
    };
    let first = rig.service(SERVICES[place].0).expect("a service of the rig");
    backend_mac(if client::slot(hash, TABLE_SIZE as u32).is_multiple_of(2) { first } else { pinned(place) })
}

fn when_several_prefixes_match_then_the_longest_decides(rig: &mut Rig) -> Vec<Case> {
    prepare(rig).expect("rules");
    let mut cases = Vec::new();
    for (place, (vip, ..)) in SERVICES.into_iter().enumerate() {
        let of = clients(vip);
        for (flags, port) in [(SYN, 40_000), (ACK, 40_001), (SYN, 40_002), (ACK, 40_003), (SYN, 40_004)] {
            let mut case = |what: &str, client: &str, to: Option<[u8; 6]>| {
                let frame = packet(client, port, vip, flags);
                let tagged = Frame { vlans: vec![7], ..frame.clone() };
                let then = || to.map_or(Then::Drop(DropReason::Denied), Then::To);
                cases.push(Case::new(format!("{vip} {what} from port {port}"), &frame, then()));
                cases.push(Case::new(format!("{vip} {what} from port {port}, tagged"), &tagged, then()));
            };
            case("pinned", of.pinned, Some(backend_mac(pinned(place))));
            case("denied", of.denied, None);
            case("spread", of.spread, Some(by_table(rig, place, of.spread, Some(port))));
            case("pinned to one that takes nobody", of.falls_back, Some(by_table(rig, place, of.falls_back, None)));
            case("without a rule", of.free, Some(by_table(rig, place, of.free, None)));
        }
    }
    cases
}

fn when_connections_are_spread_then_they_reach_both_backends(rig: &mut Rig) -> Vec<Case> {
    prepare(rig).expect("rules");
    for (place, (vip, ..)) in SERVICES.into_iter().enumerate() {
        let of = clients(vip);
        let ports = 40_000..40_100;
        let there = ports.filter(|&port| by_table(rig, place, of.spread, Some(port)) == backend_mac(pinned(place)));
        let there = there.count();
        assert!((25..75).contains(&there), "{vip}: {there} of 100 connections at the second backend");
    }
    (0..100)
        .map(|port| {
            let port = 40_000 + port;
            let frame = packet(V4.spread, port, SERVICES[0].0, SYN);
            Case::new(format!("port {port}"), &frame, Then::To(by_table(rig, 0, V4.spread, Some(port))))
        })
        .collect()
}

fn when_packets_are_rare_then_rules_apply_as_well(rig: &mut Rig) -> Vec<Case> {
    prepare(rig).expect("rules");
    let mut cases = Vec::new();
    for (place, id) in [(7, 70), (8, 80)] {
        let (vip, ..) = SERVICES[place];
        let of = clients(vip);
        let parts = |client: &str, id| {
            let whole = Frame { payload: vec![3; 200], ..packet(client, 41_000, vip, 0) };
            whole.fragments(80, id)
        };
        let mut all = |what: &str, client: &str, id, alone: Option<Then>, then: &dyn Fn() -> Then| {
            if let Some(alone) = alone {
                let part = parts(client, id + 1).remove(1);
                cases.push(Case::new(format!("{vip} {what}: a later part alone"), &part, alone));
            }
            for (index, part) in parts(client, id).iter().enumerate() {
                cases.push(Case::new(format!("{vip} {what}, part {index}"), part, then()));
            }
        };
        let to = |mac: [u8; 6]| move || Then::To(mac);
        let pin = backend_mac(pinned(place));
        all("pinned", of.pinned, id, Some(Then::To(pin)), &to(pin));
        let denied = || Then::Drop(DropReason::Denied);
        all("denied", of.denied, id + 2, Some(denied()), &denied);
        let spread = by_table(rig, place, of.spread, Some(41_000));
        let unknown = Then::Drop(DropReason::FragmentUnknown);
        all("spread", of.spread, id + 4, Some(unknown), &to(spread));
        let back = by_table(rig, place, of.falls_back, None);
        all("falls back", of.falls_back, id + 6, Some(Then::To(back)), &to(back));
    }
    for place in [1, 3, 5] {
        let (vip, ..) = SERVICES[place];
        let with_options =
            |client: &str| Frame { extensions: vec![options(60, 1)], ..packet(client, 42_000, vip, SYN) };
        let spread = by_table(rig, place, V6.spread, Some(42_000));
        for (what, client, then) in [
            ("pinned", V6.pinned, Then::To(backend_mac(pinned(place)))),
            ("denied", V6.denied, Then::Drop(DropReason::Denied)),
            ("spread", V6.spread, Then::To(spread)),
        ] {
            cases.push(Case::new(format!("{vip} {what} behind options"), &with_options(client), then));
        }
    }
    cases
}

/// Returns a router's ICMP error about a packet from the VIP to `client`.
fn error(vip: &str, client: &str, port: u16) -> Frame {
    let quoted = Frame {
        source: vip.parse().expect("an address"),
        destination: from(client, port).parse().expect("an address"),
        ..packet(client, port, vip, ACK)
    };
    let (router, kind, code) =
        if vip.starts_with('[') { ("[2001:db8:ff::77]:0", 1, 4) } else { ("192.0.2.77:0", 3, 1) };
    let mut payload = quoted.packet();
    payload.truncate(48);
    Frame {
        destination: SocketAddr::new(quoted.source.ip(), 0),
        source_mac: ROUTER_MAC,
        payload,
        ..Frame::icmp(router, router, kind, code, [0; 4])
    }
}

fn when_an_error_belongs_to_a_flow_with_a_rule_then_it_goes_where_the_flow_goes(rig: &mut Rig) -> Vec<Case> {
    prepare(rig).expect("rules");
    let mut cases = Vec::new();
    for (place, (vip, ..)) in SERVICES.into_iter().enumerate() {
        let of = clients(vip);
        for port in 43_000..43_004 {
            let spread = by_table(rig, place, of.spread, Some(port));
            for (what, client, then) in [
                ("pinned", of.pinned, Then::To(backend_mac(pinned(place)))),
                ("denied", of.denied, Then::Drop(DropReason::Denied)),
                ("spread", of.spread, Then::To(spread)),
                ("falls back", of.falls_back, Then::To(by_table(rig, place, of.falls_back, None))),
                ("without a rule", of.free, Then::To(by_table(rig, place, of.free, None))),
            ] {
                let frame = error(vip, client, port);
                cases.push(Case::new(format!("{vip} an error about {what}, port {port}"), &frame, then));
            }
        }
    }
    cases
}

fn when_rules_decide_then_everything_is_counted_once(rig: &mut Rig) -> Vec<Case> {
    prepare(rig).expect("rules");
    count_everything(rig)
}

fn when_there_are_more_rules_than_each_cpu_counts_for_itself_then_the_others_are_counted_as_well(
    rig: &mut Rig,
) -> Vec<Case> {
    let others = (0..RULE_COUNTERS).map(|number| {
        let address = IpAddr::from(Ipv4Addr::from(0x0a63_0000 + number));
        RuleSpec { prefix: address.into(), action: RuleAction::Deny }
    });
    let (first, ..) = SERVICES[2];
    rig.set_rules(first, &others.collect::<Vec<_>>()).expect("rules");
    let places = (0..SERVICES.len()).filter(|place| *place != 2);
    places.for_each(|place| prepare_service(rig, place).expect("rules"));
    count_everything(rig)
}

fn count_everything(rig: &Rig) -> Vec<Case> {
    let (vip, ..) = SERVICES[0];
    let first = rig.service(vip).expect("a service of the rig");
    let stats = |number| rig.backend_stats(number).expect("counters");
    let total = |decision: Decision| {
        [first, pinned(0), unwilling(0)].map(|number| stats(number).decisions[decision.index()]).iter().sum::<u64>()
    };
    let ruled = |index: usize| rig.rule_stats(vip, rules(0)[index].prefix).expect("counters");
    for (client, count, decision) in [
        (V4.pinned, 5, Some(Decision::Pinned)),
        (V4.denied, 4, None),
        (V4.spread, 3, Some(Decision::Stateless)),
        (V4.falls_back, 2, Some(Decision::Stateless)),
        (V4.free, 1, Some(Decision::Stateless)),
    ] {
        let before = Decision::ALL.iter().map(|&decision| total(decision)).collect::<Vec<_>>();
        for _ in 0..count {
            for flags in [SYN, ACK] {
                rig.run(&packet(client, 44_000, vip, flags).bytes()).expect("a run");
            }
            rig.run(&error(vip, client, 44_000).bytes()).expect("a run");
        }
        for (&each, before) in Decision::ALL.iter().zip(before) {
            let more = if Some(each) == decision { count } else { 0 };
            assert_eq!(total(each) - before, more, "{client}, {each:?}");
        }
    }
    assert_eq!([0, 1, 2, 3].map(ruled), [(10, 0), (8, 0), (6, 0), (0, 4)]);
    assert_eq!(stats(pinned(0)).decisions[Decision::Pinned.index()], 5);
    vec![Case::new("still", &packet(V4.pinned, 1, vip, ACK), Then::To(backend_mac(pinned(0))))]
}

#[test]
fn when_services_have_rules_then_packets_follow_the_rules() {
    rows::run(
        services(),
        Setup { features: Features::RULES, ..Setup::default() },
        rows![
            when_several_prefixes_match_then_the_longest_decides,
            when_connections_are_spread_then_they_reach_both_backends,
            when_packets_are_rare_then_rules_apply_as_well,
            when_an_error_belongs_to_a_flow_with_a_rule_then_it_goes_where_the_flow_goes,
            when_rules_decide_then_everything_is_counted_once,
            when_there_are_more_rules_than_each_cpu_counts_for_itself_then_the_others_are_counted_as_well
        ],
    );
}
