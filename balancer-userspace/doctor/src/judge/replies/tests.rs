//! Tests of findings about clients that complete no connection: this machine's own faults come before accusations, and
//! traffic that proves the contrary prevents them.

use std::collections::BTreeMap;

use balancer_api::model::{HealthView, UnansweredView};

use crate::{
    facts::{Backend, Facts, Link, Neighbour, Path, Untranslated, Way, WayBack},
    finding::{Finding, Kind},
    judge::{
        judge,
        tests::{MODES, after, expect, healthy, kinds},
    },
};

#[test]
fn when_clients_are_not_answered_though_this_machine_is_then_their_replies_are_lost() {
    let wait = |begun, seconds| {
        move |facts: &mut Facts| {
            after(facts).services[0].backends[0].unanswered = Some(UnansweredView { begun, seconds });
        }
    };
    expect(&MODES, Kind::Replies, wait(3, 4.0));
    // The handshakes in these cases are no problem: they are too few, too recent, or too old, or they began before the
    // backend came up.
    for (begun, seconds) in [(2, 4.0), (3, 0.5), (100, 4000.0), (9, 9.5)] {
        let mut facts = healthy("nat");
        wait(begun, seconds)(&mut facts);
        assert_eq!(kinds(&facts), [], "{begun} in {seconds} s");
    }
    // The path MTU is the cause of these handshakes.
    expect(&MODES, Kind::Mtu, |facts| {
        wait(9, 8.0)(facts);
        facts.backends[0].path = Some(Path { wanted: 1500, passed: 1404, segment: Some(false) });
    });
}

#[test]
fn when_the_replies_of_nat_are_lost_then_the_route_for_the_clients_is_named() {
    let mut facts = healthy("nat");
    after(&mut facts).services[0].backends[0].unanswered = Some(UnansweredView { begun: 5, seconds: 2.0 });
    flow(&mut facts, 5, 5);
    let command = |facts: &Facts| judge(facts).findings[0].cure.commands[0].clone();
    assert_eq!(command(&facts), "ip route replace default via 10.0.0.1");
    facts.controller.as_mut().unwrap().clients = Some("10.1.0.0/16".parse().unwrap());
    assert_eq!(command(&facts), "ip route replace 10.1.0.0/16 via 10.0.0.1");
}

/// Facts about a machine whose clients complete no connection with `web1`.
fn waiting(forwarding: &str) -> Facts {
    let mut facts = healthy(forwarding);
    after(&mut facts).services[0].backends[0].unanswered = Some(UnansweredView { begun: 5, seconds: 2.0 });
    let way = Way::Known { ifindex: 2, next_hop: "10.0.0.3".parse().unwrap() };
    facts.ways_back.push(WayBack {
        service: "web".to_owned(),
        client: "10.1.0.7".parse().unwrap(),
        way,
        lookup: "ip route get 10.1.0.7 from 10.2.0.10".to_owned(),
        neighbour: Some(Neighbour { known: Some([3; 6]), permanent: false, answered: vec![[3; 6]] }),
    });
    facts
}

#[track_caller]
fn finding(facts: &Facts) -> Finding {
    let findings = judge(facts).findings;
    assert_eq!(findings.len(), 1, "{findings:#?}");
    findings.into_iter().next().unwrap()
}

/// Whether the finding accuses nobody: it has no command, and nothing that a server should do.
fn accuses_nobody(finding: &Finding) -> bool {
    let Finding { kind, cure, .. } = finding;
    *kind == Kind::Replies
        && cure.on == "this machine"
        && !cure.commands.is_empty()
        && cure.commands.iter().all(|command| command.starts_with('#'))
}

/// Lets packets flow during the examination: to the backend, and all that the program sends.
fn flow(facts: &mut Facts, to_backend: u64, sent: u64) {
    let backend = &mut after(facts).services[0].backends[0];
    (backend.packets, backend.connections) = (backend.packets + to_backend, backend.connections + to_backend);
    after(facts).interfaces[0].packets_seen.tx += sent;
}

#[test]
fn when_the_way_back_to_clients_is_wrong_on_this_machine_then_no_server_is_accused() {
    type Change = fn(&mut Facts);
    let faults: [(Kind, Change); 6] = [
        (Kind::Route, |facts| facts.ways_back[0].way = Way::None("Network is unreachable".to_owned())),
        (Kind::Neighbour, |facts| facts.ways_back[0].neighbour = Some(Neighbour::default())),
        (Kind::NeighbourEntry, |facts| {
            facts.ways_back[0].neighbour =
                Some(Neighbour { known: Some([9; 6]), permanent: true, answered: vec![[3; 6]] });
        }),
        (Kind::Link, |facts| {
            let (ifindex, name) = (3, "eth1".to_owned());
            facts.links.push(Link { ifindex, name, carrier: false, ..facts.links[0].clone() });
            facts.ways_back[0].way = Way::Known { ifindex, next_hop: "10.0.0.3".parse().unwrap() };
        }),
        (Kind::Route, |facts| {
            let client = "10.1.0.7".parse().unwrap();
            facts.backends[0].untranslated = vec![Untranslated { ifindex: 2, client }];
        }),
        (Kind::Replies, |facts| after(facts).drops = BTreeMap::from([("no_route".to_owned(), 2)])),
    ];
    for mode in ["nat", "snat"] {
        for (kind, change) in faults {
            let mut facts = waiting(mode);
            change(&mut facts);
            let Finding { kind: found, backend, cure, .. } = finding(&facts);
            assert_eq!((found, backend), (kind, None), "{mode}");
            assert!(
                !cure.on.contains("web1") && !cure.commands.iter().any(|of| of.contains("via 10.0.0.1")),
                "{cure:?}"
            );
        }
    }
    // A client on the link that has gone explains nothing.
    let mut gone = waiting("nat");
    gone.ways_back[0].way = Way::Known { ifindex: 2, next_hop: "10.1.0.7".parse().unwrap() };
    gone.ways_back[0].neighbour = Some(Neighbour::default());
    flow(&mut gone, 5, 5);
    assert_eq!(finding(&gone).cure.on, "web1 (10.0.0.11)");
    // Clients of another service, and drops from before the examination, explain nothing here.
    let mut other = waiting("nat");
    (other.ways_back[0].service, other.ways_back[0].way) = ("api".to_owned(), Way::None("unreachable".to_owned()));
    let old = BTreeMap::from([("no_route".to_owned(), 2)]);
    after(&mut other).drops.clone_from(&old);
    other.controller.as_mut().unwrap().before.drops = old;
    flow(&mut other, 5, 5);
    assert_eq!(finding(&other).cure.on, "web1 (10.0.0.11)");
}

#[test]
fn when_replies_come_in_where_the_program_is_not_then_that_interface_is_named() {
    let mut facts = waiting("nat");
    facts.links.push(Link { ifindex: 3, name: "lb1".to_owned(), ..facts.links[0].clone() });
    let client = "10.1.0.7".parse().unwrap();
    facts.backends[0].untranslated = vec![Untranslated { ifindex: 3, client }];
    let Finding { kind, what, cure, .. } = finding(&facts);
    assert_eq!(kind, Kind::NotAttached);
    assert!(what.contains("come in by lb1"), "{what}");
    assert_eq!(cure.commands[0], "# in the configuration: interfaces = [\"eth0\", \"lb1\"]");
}

#[test]
fn when_answers_of_a_backend_pass_then_no_command_is_given() {
    // Five SYNs went to the backend, and each was answered.
    let mut scanned = waiting("nat");
    flow(&mut scanned, 5, 10);
    let found = finding(&scanned);
    assert!(accuses_nobody(&found) && found.what.contains("whose answers pass this machine"), "{found:?}");
    // A connection has carried a reply.
    let mut replied = waiting("snat");
    replied.backends[0].replied = true;
    let found = finding(&replied);
    assert!(accuses_nobody(&found) && found.what.contains("whose answers pass this machine"), "{found:?}");
}

#[test]
fn when_nothing_but_clients_packets_pass_then_the_route_of_the_server_is_named() {
    // Requests pass, with the program's answers to somebody's pings.
    for sent in [5, 6] {
        let mut lost = waiting("nat");
        flow(&mut lost, 5, sent);
        assert_eq!(finding(&lost).cure.commands[0], "ip route replace default via 10.0.0.1", "{sent}");
    }
    // Replies of another backend prove nothing about this one.
    let mut other = waiting("nat");
    flow(&mut other, 2, 40);
    let controller = other.controller.as_mut().unwrap();
    for (status, packets) in [(&mut controller.before, 0), (&mut controller.after, 20)] {
        let mut backend = status.services[0].backends[0].clone();
        (backend.name, backend.packets, backend.unanswered) = ("web2".to_owned(), packets, None);
        status.services[0].backends.push(backend);
    }
    assert_eq!(finding(&other).cure.on, "web1 (10.0.0.11)");
}

#[test]
fn when_nothing_shows_that_replies_are_lost_then_the_causes_are_told_and_no_server_is_accused() {
    // Nobody tried to connect during the examination, as after a scan.
    let mut quiet = waiting("nat");
    let found = finding(&quiet);
    assert!(accuses_nobody(&found), "{found:?}");
    assert!(found.cure.commands[0].contains("ip route replace default via 10.0.0.1"), "{found:?}");
    // A client goes on with its connection.
    flow(&mut quiet, 5, 5);
    after(&mut quiet).services[0].backends[0].packets += 1;
    assert!(accuses_nobody(&finding(&quiet)));
    // Replies of another service pass, so that nobody knows whose replies are missing.
    let mut busy = waiting("nat");
    flow(&mut busy, 5, 40);
    let mut api = after(&mut busy).services[0].clone();
    (api.name, api.backends[0].packets, api.backends[0].unanswered) = ("api".to_owned(), 20, None);
    after(&mut busy).services.push(api);
    assert!(accuses_nobody(&finding(&busy)));
}

#[test]
fn when_servers_answer_clients_directly_then_the_causes_are_told_and_nobody_is_accused() {
    for mode in ["dsr", "snat", "ipip", "gue"] {
        let mut facts = waiting(mode);
        let mut other = facts.backends[0].clone();
        other.name = "web2".to_owned();
        facts.backends.push(other);
        let controller = facts.controller.as_mut().unwrap();
        for status in [&mut controller.before, &mut controller.after] {
            let mut backend = status.services[0].backends[0].clone();
            backend.name = "web2".to_owned();
            status.services[0].backends.push(backend);
        }
        let found = finding(&facts);
        assert!(accuses_nobody(&found) && found.what.ends_with("web/web1, web/web2"), "{mode}: {found:?}");
    }
}

#[test]
fn when_clients_are_containers_of_this_machine_then_no_command_is_given_before_their_checksums_are_looked_at() {
    for mode in MODES {
        let mut facts = waiting(mode);
        flow(&mut facts, 5, 5);
        facts.ways_back[0].way = Way::Known { ifindex: 2, next_hop: facts.ways_back[0].client };
        let found = finding(&facts);
        assert!(found.cure.commands.iter().all(|command| command.starts_with('#')), "{mode}: {found:?}");
        let last = found.cure.commands.last().unwrap();
        assert!(last.contains("clients such as 10.1.0.7, behind eth0, are containers"), "{mode}: {found:?}");
    }
}

/// As [`waiting`], with a second backend whose checks say `verdict`.
fn waiting_beside_web2(forwarding: &str, verdict: &str) -> Facts {
    let mut facts = waiting(forwarding);
    let name = "web2".to_owned();
    let other = Backend { name: name.clone(), ..facts.backends[0].clone() };
    facts.backends.push(other);
    let controller = facts.controller.as_mut().unwrap();
    let health = controller.health[0].clone();
    controller.health.push(HealthView { backend: name, verdict: verdict.to_owned(), ..health });
    facts
}

#[test]
fn when_replies_of_several_backends_are_lost_then_one_finding_names_the_route() {
    let mut facts = waiting_beside_web2("nat", "up");
    let controller = facts.controller.as_mut().unwrap();
    for status in [&mut controller.before, &mut controller.after] {
        let mut backend = status.services[0].backends[0].clone();
        backend.name = "web2".to_owned();
        status.services[0].backends.push(backend);
    }
    flow(&mut facts, 5, 8);
    let backend = &mut after(&mut facts).services[0].backends[1];
    (backend.packets, backend.connections) = (3, 3);
    backend.unanswered = Some(UnansweredView { begun: 3, seconds: 3.0 });
    let found = finding(&facts);
    assert_eq!(found.what, "web/web1, web/web2: replies do not come back through the balancer");
    assert_eq!(found.cure.commands[0], "ip route replace default via 10.0.0.1");
}

#[test]
fn when_a_backend_is_unhealthy_then_the_lost_replies_of_another_are_found_as_well() {
    let facts = waiting_beside_web2("nat", "down");
    assert_eq!(kinds(&facts), [Kind::Unhealthy, Kind::Replies]);
}
