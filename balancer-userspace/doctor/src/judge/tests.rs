//! Each test makes one fact wrong, and expects exactly one finding, which concerns this fact.

use std::collections::BTreeMap;

use balancer_api::model::{
    Action, AgentView, BackendView, ClientTableView, DiscoverView, Fitness, FlowTableView, HealthView, InterfaceView,
    ListenerView, Readiness, RuleView, ServiceView, StatusView, UnansweredView, Verdicts, VipView, begin_of_unattached,
};

use super::judge;
use crate::{
    facts::{
        Address, Backend, Chain, Controller, Direct, Direction, Duplicates, Facts, Filters, Forwards, Hanging, Link,
        Mac, Neighbour, Offloads, Outcome, Path, Pool, Program, Refusal, Rejection, Said, ServiceProbe, TcFilter,
        Unsteered, Vip, Way, WayBack, XdpFeatures,
    },
    finding::{Finding, Kind},
};

pub(super) const MODES: [&str; 5] = ["dsr", "nat", "snat", "ipip", "gue"];
const OWN: Mac = [2, 0, 0, 0, 0, 1];
const WEB1: Mac = [2, 0, 0, 0, 0, 11];

fn backend_view(name: &str) -> BackendView {
    BackendView {
        agent: None,
        bound: None,
        max_clients: None,
        max_connections: None,
        full: false,
        name: name.to_owned(),
        address: "10.0.0.11:80".to_owned(),
        families: Vec::new(),
        weight: 100,
        backup: false,
        from: None,
        admin: "ready".to_owned(),
        health: "up".to_owned(),
        state: "up".to_owned(),
        drain_seconds_left: None,
        reason: String::new(),
        slots: 65_537,
        known_clients: 0,
        active: None,
        connections: 0,
        packets: 0,
        bytes: 0,
        rates: None,
        unanswered: None,
        handshakes: None,
        unattached: None,
    }
}

fn status(forwarding: &str) -> StatusView {
    let interface = InterfaceView {
        name: "eth0".to_owned(),
        ifindex: 2,
        xdp_mode: "native".to_owned(),
        packets_seen: Verdicts::default(),
    };
    let service = ServiceView {
        drop_in: None,
        name: "web".to_owned(),
        address: "10.2.0.10:80".to_owned(),
        protocol: "tcp".to_owned(),
        listeners: vec![ListenerView { listener: "10.2.0.10:80/tcp".to_owned(), packets: None, connections: None }],
        forwarding: forwarding.to_owned(),
        table_size: 65_537,
        table_generation: 1,
        steer: 100,
        watched: false,
        unsteered_packets: 0,
        host_connection_packets: 0,
        sharing: None,
        quic: None,
        outage_seconds: None,
        warnings: Vec::new(),
        deny: None,
        discover: Vec::new(),
        rates: None,
        silence: None,
        expected: None,
        backends: vec![backend_view("web1")],
    };
    StatusView {
        interfaces: vec![interface],
        redirect_errors: BTreeMap::new(),
        services: vec![service],
        generation: 0,
        changed_at_run_time: Vec::new(),
        ready: Readiness { state: Fitness::Ready, reasons: Vec::new() },
        withdrawn: false,
        vips: Vec::new(),
        fleet: None,
        client_table: ClientTableView { capacity: 1000, entries: 10, evictions: 0, unrecorded: 0 },
        flow_table: None,
        drops: BTreeMap::new(),
    }
}

fn health() -> HealthView {
    HealthView {
        service: "web".to_owned(),
        backend: "web1".to_owned(),
        target: "10.0.0.11:80".to_owned(),
        check: "http GET /healthz every 2s".to_owned(),
        verdict: "up".to_owned(),
        verdict_seconds: 9.0,
        forced: None,
        state: "up".to_owned(),
        reason: String::new(),
        last_result: Some("passed".to_owned()),
        last_reason: String::new(),
        last_duration_seconds: None,
        last_seconds_ago: None,
        passes: 3,
        failures: 0,
        next_verdict: String::new(),
    }
}

/// Facts about a machine without any problem.
pub(super) fn healthy(forwarding: &str) -> Facts {
    let link = Link {
        ifindex: 2,
        name: "eth0".to_owned(),
        up: true,
        carrier: true,
        mtu: 1500,
        kind: Some("veth".to_owned()),
        mac: Some(OWN),
        rx_queues: 1,
        programs: vec![Program { id: 7, name: Some("balancer".to_owned()), native: true }],
        xdp: Some(XdpFeatures { runs_programs: true, takes_frames: true }),
        carries_vlans: false,
        offloads: Some(Offloads { lro: false, gro: true, strips_tags: true }),
        forwards: Forwards { v4: Some(matches!(forwarding, "nat" | "snat")), v6: Some(false) },
        answers_for_all: Some(true),
    };
    let probe = ServiceProbe {
        echo: true,
        bare_echo: matches!(forwarding, "ipip" | "gue").then_some(true),
        tcp: Some(Outcome::Connected),
        by: Some(2),
        refused_outer: false,
        rejected: None,
    };
    let backend = Backend {
        service: "web".to_owned(),
        name: "web1".to_owned(),
        forwarding: forwarding.to_owned(),
        address: "10.0.0.11:80".parse().unwrap(),
        vip: Some("10.2.0.10:80".parse().unwrap()),
        way: Way::Known { ifindex: 2, next_hop: "10.0.0.11".parse().unwrap() },
        source: Some("10.0.0.1".parse().unwrap()),
        route_mtu: None,
        neighbour: Some(Neighbour { known: Some(WEB1), permanent: false, answered: vec![WEB1] }),
        direct: Some(Direct {
            outcome: Outcome::Connected,
            left: true,
            came: true,
            checksum_wrong: false,
            rejected: None,
        }),
        service_probe: (!matches!(forwarding, "nat" | "snat")).then_some(probe),
        datagram: None,
        path: Some(Path { wanted: 1500, passed: 1500, segment: None }),
        replied: false,
        untranslated: Vec::new(),
        attempt: None,
    };
    let address = |address: &str, length| {
        let address = address.parse().unwrap();
        Address { ifindex: 2, address, length, duplicates: Duplicates::None }
    };
    Facts {
        kernel: "6.12.1".to_owned(),
        kernel_build: "#1 SMP PREEMPT_DYNAMIC".to_owned(),
        controller: Some(Controller {
            before: status(forwarding),
            after: status(forwarding),
            health: vec![health()],
            rules: Vec::new(),
            asks_generic: Some(false),
            clients: None,
            client: None,
            oom_kills: Some(0),
        }),
        links: vec![link],
        addresses: vec![address("10.0.0.1", 16), address("10.2.0.10", 32)],
        backends: vec![backend],
        vips: vec![Vip {
            service: "web".to_owned(),
            address: "10.2.0.10".parse().unwrap(),
            answered: Vec::new(),
            asked: true,
            listeners: vec!["10.2.0.10:80/tcp".parse().unwrap()],
            unsteered: Vec::new(),
        }],
        ways_back: Vec::new(),
        filters: Filters { chains: Some(Vec::new()), ..Filters::default() },
        pools: Vec::new(),
        hanging: None,
        unseen: Vec::new(),
    }
}

pub(super) fn kinds(facts: &Facts) -> Vec<Kind> {
    judge(facts).findings.iter().map(|finding| finding.kind).collect()
}

/// Checks that the change to the facts causes exactly this finding, in each of these forwarding modes.
#[track_caller]
pub(super) fn expect(modes: &[&str], kind: Kind, change: impl Fn(&mut Facts)) {
    for mode in modes {
        let mut facts = healthy(mode);
        change(&mut facts);
        assert_eq!(kinds(&facts), [kind], "{mode}: {:#?}", judge(&facts).findings);
    }
}

pub(super) fn after(facts: &mut Facts) -> &mut StatusView {
    &mut facts.controller.as_mut().unwrap().after
}

fn direct(facts: &mut Facts, outcome: Outcome, left: bool, came: bool, checksum_wrong: bool) {
    facts.backends[0].direct = Some(Direct { outcome, left, came, checksum_wrong, rejected: None });
    // The probe also fails, because it takes the path of clients' packets.
    if let Some(probe) = &mut facts.backends[0].service_probe {
        *probe = SILENT;
    }
}

/// No probe to the VIP is answered.
const SILENT: ServiceProbe = ServiceProbe {
    echo: false,
    bare_echo: None,
    tcp: Some(Outcome::Silent),
    by: None,
    refused_outer: false,
    rejected: None,
};

fn probe(facts: &mut Facts) -> &mut ServiceProbe {
    facts.backends[0].service_probe.as_mut().unwrap()
}

#[test]
fn when_nothing_is_wrong_then_nothing_is_found() {
    for mode in MODES {
        assert_eq!(kinds(&healthy(mode)), [], "{mode}");
    }
    // A host that answers no pings is no fault, and neither is a gateway that answers no ARP for another network.
    let mut quiet = healthy("ipip");
    (probe(&mut quiet).echo, probe(&mut quiet).bare_echo) = (false, Some(false));
    (quiet.backends[0].path, quiet.backends[0].neighbour.as_mut().unwrap().answered) = (None, Vec::new());
    assert_eq!(kinds(&quiet), []);
    // Without probes (no CAP_NET_RAW), there are no findings that need probes.
    let mut blind = healthy("gue");
    let backend = &mut blind.backends[0];
    (backend.neighbour, backend.direct, backend.service_probe, backend.path) = (None, None, None, None);
    assert_eq!(kinds(&blind), []);
}

#[test]
fn when_an_interface_passes_nothing_then_what_lies_behind_it_is_not_blamed() {
    for (up, carrier) in [(false, false), (true, false)] {
        expect(&MODES, Kind::Link, |facts| {
            (facts.links[0].up, facts.links[0].carrier) = (up, carrier);
            facts.backends[0].way = Way::None("network is unreachable".to_owned());
            after(facts).ready = Readiness { state: Fitness::Degraded, reasons: vec!["eth0 is down".to_owned()] };
        });
    }
}

#[test]
fn when_a_connection_of_this_machine_fails_then_the_place_where_it_ends_is_named() {
    let direct = &direct;
    for (kind, outcome, left, came, wrong) in [
        (Kind::Server, Outcome::Refused, true, true, false),
        (Kind::Server, Outcome::Silent, true, false, false),
        (Kind::Dropped, Outcome::Silent, true, true, false),
        (Kind::Dropped, Outcome::Silent, false, false, false),
        (Kind::Dropped, Outcome::NotSent("permission denied".to_owned()), false, false, false),
        // Nobody else refuses what has not left.
        (Kind::Dropped, Outcome::Refused, false, true, false),
        (Kind::Checksum, Outcome::Silent, true, true, true),
    ] {
        expect(&MODES, kind, |facts| direct(facts, outcome.clone(), left, came, wrong));
    }
    // If the connection succeeds, the checksum matters only if packets with such checksums pass the program.
    let unfinished = |facts: &mut Facts| facts.backends[0].direct.as_mut().unwrap().checksum_wrong = true;
    expect(&["nat", "snat"], Kind::Checksum, unfinished);
    let mut offloaded = healthy("dsr");
    unfinished(&mut offloaded);
    assert_eq!(kinds(&offloaded), []);
}

fn chain(place: &str, hook: &str) -> Chain {
    Chain { place: place.to_owned(), hook: hook.to_owned() }
}

#[track_caller]
pub(super) fn only(facts: &Facts) -> Finding {
    let findings = judge(facts).findings;
    assert_eq!(findings.len(), 1, "{findings:#?}");
    findings.into_iter().next().unwrap()
}

#[test]
fn when_this_machine_drops_packets_then_what_may_drop_them_is_named() {
    let filter = |direction| TcFilter { ifindex: 2, direction, name: "bpf shaper".to_owned() };
    let raw = chain("ip raw pre", "prerouting");
    let blocks = |chains: &[Chain], legacy, tc: &[TcFilter], came| {
        let mut facts = healthy("nat");
        direct(&mut facts, Outcome::Silent, true, came, false);
        if !came {
            direct(&mut facts, Outcome::Silent, false, false, false);
        }
        facts.filters = Filters { chains: Some(chains.to_vec()), legacy, tc: tc.to_vec() };
        only(&facts)
    };
    let found = blocks(&[raw.clone(), chain("inet f out", "output"), chain("ip6 f in", "input")], false, &[], true);
    assert_eq!(
        (found.kind, found.cure.commands[0].as_str()),
        (Kind::Firewall, "nft insert rule ip raw pre ip saddr 10.0.0.11 tcp sport 80 accept")
    );
    assert!(found.what.ends_with("most likely, chain ip raw pre (prerouting) does"), "{found:?}");
    let found = blocks(&[chain("inet f out", "output")], false, &[filter(Direction::Ingress)], false);
    assert_eq!(found.cure.commands[0], "nft insert rule inet f out ip daddr 10.0.0.11 accept");
    // A command would mend only one of several causes.
    for (chains, legacy, tc) in [
        (&[raw][..], false, &[filter(Direction::Ingress)][..]),
        (&[], false, &[filter(Direction::Ingress)]),
        (&[], true, &[]),
        (&[], false, &[]),
        (&[], false, &[filter(Direction::Egress)]),
    ] {
        let found = blocks(chains, legacy, tc, true);
        assert!(found.cure.commands.iter().all(|command| command.starts_with('#')), "{found:?}");
        let named = tc.iter().any(|tc| tc.direction == Direction::Ingress);
        assert_eq!(found.what.contains("a tc filter on eth0 (bpf shaper)"), named, "{found:?}");
    }
    // What `nft` cannot list may be a firewall.
    let mut unknown = healthy("nat");
    direct(&mut unknown, Outcome::Silent, true, true, false);
    unknown.filters.chains = None;
    assert!(only(&unknown).cure.commands[0].starts_with("iptables -I INPUT"));
}

#[test]
fn when_a_probe_is_rejected_by_icmp_then_the_sender_and_its_words_are_told() {
    for (from, said, words, on) in [
        ("10.0.0.11", Said::Prohibited, "administratively prohibited", "web1 (10.0.0.11)"),
        ("10.0.0.11", Said::PortUnreachable, "port unreachable", "web1 (10.0.0.11)"),
        ("10.9.0.1", Said::HostUnreachable, "host unreachable", "10.9.0.1"),
    ] {
        let rejection = Some(Rejection { from: from.parse().unwrap(), said });
        for outcome in [Outcome::Refused, Outcome::Silent] {
            let mut facts = healthy("nat");
            direct(&mut facts, outcome, true, false, false);
            facts.backends[0].direct.as_mut().unwrap().rejected = rejection;
            let found = only(&facts);
            assert_eq!((found.kind, found.cure.on.as_str()), (Kind::Rejected, on));
            assert!(found.what.contains("10.0.0.11:80") && found.seen.contains(words), "{found:?}");
        }
        let mut facts = healthy("dsr");
        *probe(&mut facts) = ServiceProbe { rejected: rejection, ..SILENT };
        assert_eq!(only(&facts).kind, Kind::Rejected, "{from}");
    }
    // A firewall of this machine rejects its own packets by a message from its own address.
    let mut own = healthy("nat");
    direct(&mut own, Outcome::Refused, false, false, false);
    let rejection = Rejection { from: "10.0.0.1".parse().unwrap(), said: Said::PortUnreachable };
    own.backends[0].direct.as_mut().unwrap().rejected = Some(rejection);
    own.filters.chains = Some(vec![chain("inet f out", "output")]);
    assert_eq!((only(&own).kind, only(&own).cure.on), (Kind::Firewall, "this machine".to_owned()));
    // A backend without the VIP forwards packets for it, and finds no neighbour.
    let mut forwards = healthy("dsr");
    let rejection = Rejection { from: "10.0.0.11".parse().unwrap(), said: Said::HostUnreachable };
    *probe(&mut forwards) = ServiceProbe { rejected: Some(rejection), ..SILENT };
    let found = only(&forwards);
    assert_eq!(
        (found.kind, found.what.as_str()),
        (Kind::VipMissing, "web/web1: the backend does not have the VIP 10.2.0.10")
    );
}

#[test]
fn when_nothing_for_the_vip_is_answered_then_a_firewall_of_the_server_is_told_as_well() {
    let mut facts = healthy("dsr");
    *probe(&mut facts) = SILENT;
    let found = only(&facts);
    assert!(found.what.contains("most likely, the backend does not have the VIP"), "{found:?}");
    let last = "# if the backend has it already (ip address show to 10.2.0.10): a firewall there drops packets for it: \
                nft list ruleset; iptables-save";
    assert_eq!(found.cure.commands[1..], ["ip addr add 10.2.0.10/32 dev lo", last]);
}

#[test]
fn when_two_machines_answer_for_a_backend_with_a_fault_then_both_are_told() {
    type Change = fn(&mut Facts);
    let faults: [Change; 3] = [
        |facts| *probe(facts) = SILENT,
        |facts| probe(facts).tcp = Some(Outcome::Refused),
        |facts| direct(facts, Outcome::Silent, true, false, false),
    ];
    for change in faults {
        let mut facts = healthy("dsr");
        change(&mut facts);
        facts.backends[0].neighbour.as_mut().unwrap().answered.push([9; 6]);
        let found = only(&facts);
        assert_eq!(found.kind, Kind::AddressDuplicate);
        assert!(found.seen.starts_with("02:00:00:00:00:0b and 09:09:09:09:09:09 answered"), "{found:?}");
        assert!(found.cure.commands.iter().all(|command| command.starts_with('#')), "{found:?}");
    }
    // Two interfaces of a server that serves are no fault.
    let mut served = healthy("nat");
    served.backends[0].neighbour.as_mut().unwrap().answered.push([9; 6]);
    assert_eq!(kinds(&served), []);
}

#[test]
fn when_answers_come_then_the_entry_of_the_neighbour_is_not_accused() {
    for mode in MODES {
        let mut facts = healthy(mode);
        facts.backends[0].neighbour.as_mut().unwrap().answered = vec![[9; 6]];
        assert_eq!(kinds(&facts), [], "{mode}");
    }
}

#[test]
fn when_an_ipv6_neighbour_is_silent_then_no_firewall_is_accused() {
    let mut facts = healthy("nat");
    let backend = &mut facts.backends[0];
    backend.address = "[fd00::11]:80".parse().unwrap();
    backend.way = Way::Known { ifindex: 2, next_hop: "fd00::11".parse().unwrap() };
    (backend.neighbour, backend.path) = (Some(Neighbour::default()), None);
    direct(&mut facts, Outcome::Silent, false, false, false);
    let found = only(&facts);
    assert_eq!(found.kind, Kind::Neighbour);
    assert!(found.seen.contains("neighbour solicitations for fd00::11"), "{found:?}");
}

#[test]
fn when_several_backends_have_a_fault_then_one_finding_names_them() {
    let mut facts = healthy("dsr");
    for number in 2..=7 {
        let mut backend = facts.backends[0].clone();
        backend.name = format!("web{number}");
        backend.address.set_ip(format!("10.0.0.1{number}").parse().unwrap());
        facts.backends.push(backend);
    }
    for backend in &mut facts.backends[..6] {
        backend.service_probe.as_mut().unwrap().tcp = Some(Outcome::Refused);
    }
    facts.backends[6].service_probe = Some(SILENT);
    let findings = judge(&facts).findings;
    let kinds: Vec<Kind> = findings.iter().map(|finding| finding.kind).collect();
    assert_eq!(kinds, [Kind::ServerBound, Kind::VipMissing]);
    let found = &findings[0];
    let names = "web/web1, web/web2, web/web3, web/web4, web/web5 and 1 more";
    assert_eq!(found.what, format!("{names}: the server does not listen on the VIP 10.2.0.10:80"));
    assert!(found.cure.on.starts_with("web1 (10.0.0.11), web2 (10.0.0.12), "), "{found:?}");
    assert_eq!((found.backends.len(), &found.backend), (6, &None));
    assert_eq!(findings[1].backend.as_deref(), Some("web7"));
    // A command with an address is given for each backend.
    for backend in &mut facts.backends {
        let next_hop = backend.address.ip();
        backend.way = Way::Known { ifindex: 2, next_hop };
        backend.service_probe = None;
        backend.path = Some(Path { wanted: 1500, passed: 1404, segment: Some(false) });
    }
    assert_eq!(only(&facts).backends.len(), 7);
}

#[test]
fn when_only_large_pings_are_lost_then_no_command_is_given() {
    let found = |segment| {
        let mut facts = healthy("nat");
        facts.backends[0].path = Some(Path { wanted: 1500, passed: 1404, segment });
        only(&facts).cure.commands
    };
    assert_eq!(found(Some(false))[0], "ip link set dev INTERFACE mtu 1500");
    assert!(found(None).iter().all(|command| command.starts_with('#')));
}

#[test]
fn when_a_fact_of_this_machine_alone_keeps_clients_away_then_the_fact_is_found() {
    let v6 = |duplicates| {
        move |facts: &mut Facts| {
            facts.vips[0].address = "fd00:2::a".parse().unwrap();
            facts.addresses.push(Address { ifindex: 2, address: facts.vips[0].address, length: 128, duplicates });
            facts.links[0].forwards.v6 = Some(true);
        }
    };
    expect(&MODES, Kind::VipUnusable, v6(Duplicates::Found));
    expect(&MODES, Kind::VipUnusable, v6(Duplicates::Searching));
    let mut routed = healthy("dsr");
    v6(Duplicates::Found)(&mut routed);
    after(&mut routed).services[0].backends[0].packets = 9;
    assert_eq!(kinds(&routed), [], "a router sends its packets here");

    let pool = |address: &str| {
        let mut facts = healthy("snat");
        facts.pools = vec![Pool { service: "web".to_owned(), address: address.parse().unwrap(), ports: None }];
        kinds(&facts)
    };
    assert_eq!(pool("10.0.0.77"), [Kind::Pool]);
    assert_eq!(pool("10.0.0.1"), [], "this machine has it");
    assert_eq!(pool("192.0.2.7"), [], "routes on other machines may lead here");

    let never = DiscoverView {
        file: Some("/etc/targets.json".to_owned()),
        dns: None,
        dns_a: None,
        etcd: None,
        address: None,
        targets: None,
        read_seconds_ago: None,
        error: Some("No such file or directory".to_owned()),
        left_out: Vec::new(),
        waiting: Vec::new(),
        habit: None,
    };
    expect(&MODES, Kind::Discover, |facts| {
        after(facts).services[0].backends.clear();
        facts.backends.clear();
        after(facts).services[0].discover = vec![never.clone()];
        let reasons = vec!["a list of targets is not taken over: No such file or directory".to_owned()];
        after(facts).ready = Readiness { state: Fitness::Degraded, reasons };
    });
}

#[test]
fn when_a_service_is_empty_and_no_packet_comes_then_nothing_is_found() {
    for mode in MODES {
        let mut facts = healthy(mode);
        after(&mut facts).services[0].backends.clear();
        facts.backends.clear();
        assert_eq!(kinds(&facts), [], "{mode}");
        assert!(judge(&facts).looked_at.iter().any(|line| line.starts_with("web: it has no backends")));
    }
}

#[test]
fn when_a_fact_contradicts_that_clients_are_served_then_there_is_a_finding() {
    expect(&MODES, Kind::NoneEligible, |facts| {
        let backend = &mut after(facts).services[0].backends[0];
        (backend.slots, backend.state) = (0, "checking".to_owned());
    });
    expect(&MODES, Kind::Drops, |facts| after(facts).drops = BTreeMap::from([("no_next_hop".to_owned(), 2)]));
    expect(&MODES, Kind::Drops, |facts| after(facts).interfaces[0].packets_seen.aborted = 1);
    // Scans and attacks have other reasons, and another service may be at fault.
    let mut attacked = healthy("nat");
    after(&mut attacked).drops = BTreeMap::from([("malformed".to_owned(), 2), ("denied".to_owned(), 5)]);
    assert_eq!(kinds(&attacked), []);
    let mut other = healthy("nat");
    after(&mut other).drops = BTreeMap::from([("all_down".to_owned(), 2)]);
    let mut api = after(&mut other).services[0].clone();
    api.name = "api".to_owned();
    after(&mut other).services.push(api);
    assert_eq!(kinds(&other), []);
}

#[test]
fn when_the_operator_holds_a_backend_up_then_its_failing_check_is_no_fault() {
    let mut facts = healthy("nat");
    let view = &mut facts.controller.as_mut().unwrap().health[0];
    (view.verdict, view.last_reason) = ("down".to_owned(), "http: status 503".to_owned());
    view.forced = Some(balancer_config::states::Forced::Up);
    assert_eq!(kinds(&facts), []);
}

#[test]
fn when_the_controller_hangs_then_its_process_is_named() {
    let mut facts = Facts { kernel: "6.12.1".to_owned(), ..Facts::default() };
    facts.hanging = Some(Hanging { pid: Some(7), stopped: true, waited_seconds: 5 });
    let found = only(&facts);
    assert_eq!((found.kind, found.cure.commands), (Kind::Controller, vec!["kill -CONT 7".to_owned()]));
    facts.hanging.as_mut().unwrap().stopped = false;
    let found = only(&facts);
    assert!(found.what.contains("process 7") && found.cure.commands.iter().all(|of| of.starts_with('#')), "{found:?}");
}

#[test]
fn when_a_firewall_drops_what_several_backends_answer_then_it_is_one_finding() {
    let mut facts = healthy("nat");
    direct(&mut facts, Outcome::Silent, true, true, false);
    let mut other = facts.backends[0].clone();
    other.name = "web2".to_owned();
    facts.backends.push(other);
    facts.filters.chains = Some(vec![chain("inet filter in", "input")]);
    assert_eq!(kinds(&facts), [Kind::Firewall]);
    let finding = &judge(&facts).findings[0];
    assert!(finding.backend.is_none() && finding.what.starts_with("web/web1, web/web2: this machine drops"));
    assert!(finding.what.ends_with("most likely, chain inet filter in (input) does"), "{finding:?}");
    let expected = [
        "nft insert rule inet filter in ct state established,related accept",
        "# to see all rules: nft list ruleset; iptables-save",
    ];
    assert_eq!(finding.cure.commands, expected);
}

#[test]
fn when_the_vip_does_not_serve_on_a_backend_then_the_reason_is_told_from_what_answers() {
    let direct = ["dsr", "ipip", "gue"];
    let tunnels = ["ipip", "gue"];
    expect(&direct, Kind::ServerBound, |facts| probe(facts).tcp = Some(Outcome::Refused));
    expect(&direct, Kind::Server, |facts| probe(facts).tcp = Some(Outcome::Silent));
    expect(&direct, Kind::VipMissing, |facts| {
        let bare = probe(facts).bare_echo.map(|_| false);
        *probe(facts) = ServiceProbe { bare_echo: bare, ..SILENT };
    });
    expect(&tunnels, Kind::NoDecap, |facts| (probe(facts).echo, probe(facts).tcp) = (false, Some(Outcome::Silent)));
    expect(&tunnels, Kind::NoDecap, |facts| {
        *probe(facts) = ServiceProbe { refused_outer: true, ..SILENT };
    });
}

#[test]
fn when_a_udp_service_has_a_sign_of_a_fault_then_the_fault_is_found() {
    let refused = |to: &str, said| {
        let from = "10.0.0.11".parse().unwrap();
        Some(Refusal { to: to.parse().unwrap(), rejection: Rejection { from, said } })
    };
    for (said, kind) in [(Said::PortUnreachable, Kind::Server), (Said::Prohibited, Kind::Rejected)] {
        expect(&["dsr", "ipip", "gue"], kind, |facts| facts.backends[0].datagram = refused("10.2.0.10:53", said));
        expect(&["nat", "snat"], kind, |facts| facts.backends[0].datagram = refused("10.0.0.11:53", said));
    }
    // The backend's error has the VIP as its source, which this machine has as well.
    expect(&["dsr"], Kind::Server, |facts| {
        facts.backends[0].datagram = refused("10.2.0.10:53", Said::PortUnreachable);
        facts.backends[0].datagram.as_mut().unwrap().rejection.from = "10.2.0.10".parse().unwrap();
    });
    // A ping to the VIP that is not answered shows something only if pings to the backend are.
    let udp = ServiceProbe { tcp: None, ..SILENT };
    let mut quiet = healthy("dsr");
    (*probe(&mut quiet), quiet.backends[0].path) = (udp.clone(), None);
    assert_eq!(kinds(&quiet), []);
    expect(&["dsr"], Kind::VipMissing, |facts| *probe(facts) = udp.clone());
    // This machine has no route to any client that has sent datagrams.
    let way = |way| WayBack {
        service: "web".to_owned(),
        client: "10.1.0.7".parse().unwrap(),
        way,
        lookup: "ip route get 10.1.0.7".to_owned(),
        neighbour: None,
    };
    let none = || way(Way::None("Network is unreachable".to_owned()));
    expect(&["nat", "snat"], Kind::Route, |facts| facts.ways_back = vec![none()]);
    let mut some = healthy("nat");
    some.ways_back = vec![none(), way(Way::Known { ifindex: 2, next_hop: "10.0.0.3".parse().unwrap() })];
    assert_eq!(kinds(&some), []);
}

#[test]
fn when_this_machine_is_a_backend_then_it_needs_the_vip_where_packets_stay_for_it() {
    for mode in MODES {
        let mut facts = healthy(mode);
        facts.backends[0].way = Way::Local;
        assert_eq!(kinds(&facts), [], "{mode}");
        let vip = facts.backends[0].vip.unwrap().ip();
        facts.addresses.retain(|of| of.address != vip);
        let translated = facts.backends[0].answers_the_balancer();
        assert_eq!(kinds(&facts).contains(&Kind::VipMissing), !translated, "{mode}");
    }
}

#[test]
fn when_the_way_to_a_backend_is_wrong_then_that_is_the_only_finding() {
    expect(&MODES, Kind::Route, |facts| facts.backends[0].way = Way::None("unreachable".to_owned()));
    expect(&MODES, Kind::Neighbour, |facts| {
        facts.backends[0].neighbour.as_mut().unwrap().answered.clear();
        facts.backends[0].path = None;
        direct(facts, Outcome::Silent, false, false, false);
    });
    expect(&MODES, Kind::NeighbourEntry, |facts| {
        facts.backends[0].neighbour = Some(Neighbour { known: Some([9; 6]), permanent: true, answered: vec![WEB1] });
        facts.backends[0].path = None;
        direct(facts, Outcome::Silent, true, false, false);
    });
    let narrow = Path { wanted: 1500, passed: 1404, segment: Some(false) };
    expect(&MODES, Kind::Mtu, |facts| facts.backends[0].path = Some(narrow));
}

#[test]
fn when_a_gateway_does_not_answer_then_it_is_told_once() {
    let mut facts = healthy("nat");
    let backend = &mut facts.backends[0];
    backend.way = Way::Known { ifindex: 2, next_hop: "10.0.0.254".parse().unwrap() };
    (backend.neighbour, backend.path, backend.direct) = (Some(Neighbour::default()), None, None);
    let mut other = facts.backends[0].clone();
    other.name = "web2".to_owned();
    facts.backends.push(other);
    assert_eq!(kinds(&facts), [Kind::Neighbour]);
    assert_eq!(judge(&facts).findings[0].what, "the gateway 10.0.0.254 does not answer on eth0");
}

#[test]
fn when_another_machine_has_the_vip_then_it_is_told_who() {
    let answer = |mac: Mac| move |facts: &mut Facts| facts.vips[0].answered = vec![(2, mac)];
    expect(&MODES, Kind::VipDuplicate, answer([9; 6]));
    expect(&["dsr", "ipip", "gue"], Kind::VipAnswered, answer(WEB1));
    expect(&["nat"], Kind::VipDuplicate, answer(WEB1));
    // The answer comes from a bridge of this machine, which has an address of this machine.
    let mut own = healthy("nat");
    own.vips[0].answered = vec![(2, OWN)];
    assert_eq!(kinds(&own), []);
}

#[test]
fn when_this_machine_does_not_hold_the_vip_then_nothing_is_said_about_who_does() {
    // The machine that answers has VRRP's virtual hardware address, its own hardware address as with the sample for
    // keepalived, or it is the other one of two machines that are both servers and balancers.
    for mac in [[0, 0, 0x5e, 0, 1, 51], [9; 6], WEB1] {
        for mode in MODES {
            let mut standby = healthy(mode);
            standby.addresses.retain(|own| own.length == 16);
            standby.vips[0].address = "10.0.0.200".parse().unwrap();
            standby.vips[0].answered = vec![(2, mac)];
            assert_eq!(kinds(&standby), [], "{mode} {mac:?}");
        }
    }
    // Each of two machines that are both servers and balancers has the VIP on its loopback interface.
    for (answers_for_all, expected) in [(Some(false), &[][..]), (Some(true), &[Kind::VipAnswered])] {
        let mut one = healthy("dsr");
        one.links.push(Link { ifindex: 1, name: "lo".to_owned(), mac: None, programs: Vec::new(), ..Link::default() });
        (one.addresses[1].ifindex, one.links[0].answers_for_all) = (1, answers_for_all);
        one.vips[0].answered = vec![(2, WEB1)];
        assert_eq!(kinds(&one), expected, "{answers_for_all:?}");
    }
}

#[test]
fn when_routers_send_a_vip_to_several_balancers_then_each_may_answer_for_it() {
    let at = |address: &str| {
        let mut one = healthy("nat");
        one.links.push(Link { ifindex: 1, name: "lo".to_owned(), mac: None, programs: Vec::new(), ..Link::default() });
        one.addresses[1].ifindex = 1;
        (one.addresses[1].address, one.vips[0].address) = (address.parse().unwrap(), address.parse().unwrap());
        one.vips[0].answered = vec![(2, [9; 6])];
        one
    };
    for (address, expected) in [("10.2.0.10", &[][..]), ("10.0.0.200", &[Kind::VipDuplicate])] {
        let mut member = at(address);
        after(&mut member).fleet = Some(balancer_api::model::FleetSnapshot::example());
        assert_eq!(kinds(&member), expected, "a fleet, {address}");
        let mut announced = at(address);
        let assigned = VipView { address: address.parse().unwrap(), interface: "lo".to_owned() };
        after(&mut announced).vips = vec![assigned];
        assert_eq!(kinds(&announced), expected, "assign_vip = \"lo\", {address}");
    }
    assert_eq!(kinds(&at("10.2.0.10")), [Kind::VipDuplicate], "another machine's VIP");
}

#[test]
fn when_nobody_has_a_vip_within_a_prefix_then_that_is_found_and_one_beyond_is_not() {
    let mut facts = healthy("nat");
    facts.addresses.retain(|own| own.length == 16);
    assert_eq!(kinds(&facts), [], "it is routed here");
    facts.vips[0].address = "10.0.0.200".parse().unwrap();
    assert_eq!(kinds(&facts), [Kind::VipUnowned]);
    let mut routed = facts.clone();
    after(&mut routed).services[0].backends[0].packets = 9;
    assert_eq!(kinds(&routed), [], "a router sends its packets here");
    after(&mut facts).withdrawn = true;
    assert_eq!(kinds(&facts), [Kind::Withdrawn]);
}

#[test]
fn when_clients_packets_are_not_taken_then_it_is_said_where_they_come_in() {
    let seen = |ifindex, for_another| {
        move |facts: &mut Facts| {
            facts.links.push(Link { ifindex: 3, name: "eth1".to_owned(), ..facts.links[0].clone() });
            facts.vips[0].unsteered = vec![Unsteered { ifindex, for_another, packets: 2 }];
        }
    };
    expect(&MODES, Kind::NotAttached, seen(3, false));
    expect(&MODES, Kind::WrongMac, seen(2, true));
    // A switch also floods frames for other machines, and interfaces above an attached interface receive the packets
    // that the program has passed.
    let mut others = healthy("nat");
    seen(3, true)(&mut others);
    assert_eq!(kinds(&others), []);
    let mut flooded = healthy("nat");
    seen(2, true)(&mut flooded);
    after(&mut flooded).services[0].backends[0].packets = 9;
    assert_eq!(kinds(&flooded), []);
}

#[test]
fn when_the_operator_keeps_clients_away_then_that_is_said() {
    expect(&MODES, Kind::NoneEligible, |facts| after(facts).services[0].backends[0].admin = "maint".to_owned());
    expect(&MODES, Kind::NoneEligible, |facts| after(facts).services[0].backends[0].weight = 0);
    for (weight_percent, admin, down) in [(0, "ready", None), (100, "drain", None), (100, "ready", Some("no disk"))] {
        let (says, down) = (String::new(), down.map(str::to_owned));
        let agent =
            AgentView { says, weight_percent, admin: admin.to_owned(), down, heard_seconds_ago: None, silent: None };
        expect(&MODES, Kind::NoneEligible, |facts| {
            after(facts).services[0].backends[0].agent = Some(agent.clone());
        });
    }
    expect(&MODES, Kind::NoBackends, |facts| {
        after(facts).services[0].backends.clear();
        facts.backends.clear();
        after(facts).drops = BTreeMap::from([("no_backend".to_owned(), 1)]);
    });
    expect(&MODES, Kind::Withdrawn, |facts| after(facts).withdrawn = true);
    let rule = |prefix: &str| RuleView {
        service: "web".to_owned(),
        prefix: prefix.to_owned(),
        action: Action::Deny,
        in_file: false,
        active: true,
        reason: String::new(),
        expires_in_seconds: None,
        packets: 0,
        fallbacks: 0,
    };
    for prefixes in [&["0.0.0.0/0"][..], &["0.0.0.0/1", "128.0.0.0/1"], &["::/0"]] {
        let rules: Vec<RuleView> = prefixes.iter().map(|prefix| rule(prefix)).collect();
        expect(&MODES, Kind::DeniesAll, |facts| facts.controller.as_mut().unwrap().rules.clone_from(&rules));
    }
    let mut some = healthy("nat");
    some.controller.as_mut().unwrap().rules = vec![rule("203.0.113.0/24")];
    assert_eq!(kinds(&some), []);
    // All but some clients are denied on purpose.
    let allowed = RuleView { action: Action::Spread, ..rule("203.0.113.0/24") };
    some.controller.as_mut().unwrap().rules = vec![rule("0.0.0.0/0"), allowed];
    assert_eq!(kinds(&some), []);
}

#[test]
fn when_an_interface_spoils_frames_then_the_switch_is_named() {
    let offload = |change: fn(&mut Facts)| expect(&MODES, Kind::Offload, change);
    offload(|facts| facts.links[0].offloads.as_mut().unwrap().lro = true);
    offload(|facts| facts.links[0].carries_vlans = true);
    offload(|facts| {
        after(facts).interfaces[0].xdp_mode = "generic".to_owned();
        facts.controller.as_mut().unwrap().asks_generic = Some(true);
    });
    expect(&MODES, Kind::Generic, |facts| {
        after(facts).interfaces[0].xdp_mode = "generic".to_owned();
        facts.links[0].offloads.as_mut().unwrap().gro = false;
    });
    expect(&["nat"], Kind::Forwarding, |facts| facts.links[0].forwards.v4 = Some(false));
    // The clients' family decides, and not that of the backend.
    expect(&["snat"], Kind::Forwarding, |facts| facts.vips[0].address = "fd00:2::a".parse().unwrap());
    expect(&MODES, Kind::ForeignProgram, |facts| facts.links[0].programs[0].name = Some("katran".to_owned()));
    expect(&MODES, Kind::Redirect, |facts| {
        after(facts).redirect_errors.insert("eth1".to_owned(), 3);
    });
    // Errors that the program counted before the examination may be of no current importance.
    let mut old = healthy("nat");
    let controller = old.controller.as_mut().unwrap();
    for status in [&mut controller.before, &mut controller.after] {
        status.redirect_errors.insert("eth1".to_owned(), 3);
    }
    assert_eq!(kinds(&old), []);
}

#[test]
fn when_replies_come_in_by_an_interface_without_the_program_then_the_line_to_write_is_given() {
    for mode in ["nat", "snat"] {
        let mut facts = healthy(mode);
        let reasons = vec![format!("{}replies of web/web1 come in", begin_of_unattached("lb1"))];
        after(&mut facts).ready = Readiness { state: Fitness::Degraded, reasons };
        after(&mut facts).services[0].backends[0].unattached = Some("lb1".to_owned());
        // Clients wait in vain, which is a consequence.
        after(&mut facts).services[0].backends[0].unanswered = Some(UnansweredView { begun: 5, seconds: 2.0 });
        assert_eq!(kinds(&facts), [Kind::NotAttached], "{mode}");
        let finding = &judge(&facts).findings[0];
        assert!(finding.what.contains("replies of web/web1 come in by lb1"), "{finding:?}");
        let commands = ["# in the configuration: interfaces = [\"eth0\", \"lb1\"]", "balancer apply FILE"];
        assert_eq!(finding.cure.commands, commands);
        // Another service was asked for.
        after(&mut facts).services[0].name = "api".to_owned();
        assert_eq!(kinds(&facts), [Kind::NotReady]);
    }
}

#[test]
fn when_as_many_backends_are_up_as_expected_then_a_backend_that_fails_its_check_is_no_finding() {
    let mut facts = healthy("nat");
    let view = &mut facts.controller.as_mut().unwrap().health[0];
    (view.verdict, view.last_reason) = ("down".to_owned(), "http: status 503".to_owned());
    let service = &mut after(&mut facts).services[0];
    (service.backends[0].state, service.backends[0].health) = ("draining (health)".to_owned(), "down".to_owned());
    service.backends.push(backend_view("web2"));
    for (expected, found) in [(None, &[Kind::Unhealthy][..]), (Some(1), &[]), (Some(2), &[Kind::Unhealthy])] {
        after(&mut facts).services[0].expected = expected;
        assert_eq!(kinds(&facts), found, "{expected:?}");
    }
}

#[test]
fn when_the_controller_is_in_trouble_then_that_is_said() {
    expect(&MODES, Kind::Unhealthy, |facts| {
        let view = &mut facts.controller.as_mut().unwrap().health[0];
        (view.verdict, view.last_reason) = ("down".to_owned(), "http: status 503".to_owned());
    });
    expect(&MODES, Kind::NotReady, |facts| {
        let reasons = vec!["etcd is out of reach: changes are refused".to_owned()];
        after(facts).ready = Readiness { state: Fitness::Degraded, reasons };
    });
    expect(&MODES, Kind::ClientTable, |facts| {
        after(facts).client_table = ClientTableView { capacity: 1000, entries: 990, evictions: 5, unrecorded: 0 };
    });
    expect(&["snat"], Kind::FlowTable, |facts| {
        after(facts).flow_table = Some(FlowTableView { capacity: 1000, entries: 950, full_pools: BTreeMap::new() });
        after(facts).drops = BTreeMap::from([("flow_table_full".to_owned(), 3)]);
    });
    expect(&["snat"], Kind::Ports, |facts| {
        let full_pools = BTreeMap::from([("web/web1".to_owned(), 0.85)]);
        after(facts).flow_table = Some(FlowTableView { capacity: 1000, entries: 10, full_pools });
    });
    expect(&MODES, Kind::Memory, |facts| facts.controller.as_mut().unwrap().oom_kills = Some(2));
    expect(&MODES, Kind::Kernel, |facts| facts.kernel = "5.10.0".to_owned());
    expect(&MODES, Kind::Clock, |facts| {
        let mut fleet = balancer_api::model::FleetSnapshot::example();
        fleet.members[1].clock_ahead_seconds = Some(-7.0);
        after(facts).fleet = Some(fleet);
    });
}

#[test]
fn when_there_is_no_controller_then_only_the_machine_is_judged() {
    let mut facts = healthy("nat");
    (facts.controller, facts.backends, facts.vips) = (None, Vec::new(), Vec::new());
    assert_eq!(kinds(&facts), [], "the program of a controller that left it running is the balancer's");
    facts.links[0].programs[0].name = Some(String::new());
    assert_eq!(kinds(&facts), [Kind::ForeignProgram]);
    facts.links[0].programs[0].name = None;
    assert_eq!(kinds(&facts), [], "a name that could not be read says nothing");
}

#[test]
fn when_a_report_is_written_as_json_then_kinds_are_words() {
    let mut facts = healthy("dsr");
    probe(&mut facts).tcp = Some(Outcome::Refused);
    let report = serde_json::to_value(judge(&facts)).unwrap();
    assert_eq!(report["findings"][0]["kind"], "server-bound");
    assert_eq!(report["findings"][0]["cure"]["on"], "web1 (10.0.0.11)");
    assert_eq!(report["controller"], true);
}
