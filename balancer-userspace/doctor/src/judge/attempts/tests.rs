use super::super::{
    judge, judge_attempts,
    tests::{healthy, kinds, only},
};
use crate::{
    facts::{Arrival, Attempt, Facts, Outcome},
    finding::Kind,
};

const SOURCE: &str = "198.18.0.1";

fn tried(mode: &str, answer: Option<Arrival>) -> Facts {
    let mut facts = healthy(mode);
    let to = "10.0.0.11:8080".parse().unwrap();
    facts.backends[0].attempt = Some(Attempt { source: SOURCE.parse().unwrap(), network: None, to, answer });
    facts
}

fn arrival(ifindex: u32) -> Arrival {
    Arrival { ifindex, refused: false, dropped: None }
}

#[test]
fn when_an_answer_comes_by_an_attached_interface_then_the_doctor_says_which_and_finds_nothing() {
    for mode in ["nat", "snat"] {
        let report = judge(&tried(mode, Some(arrival(2))));
        assert_eq!(report.findings, []);
        assert_eq!(report.tried.len(), 1);
        assert_eq!(report.tried[0].answered_by.as_deref(), Some("eth0"));
        assert_eq!(report.tried[0].as_client, mode == "nat");
    }
}

#[test]
fn when_a_nat_backend_does_not_answer_a_client_then_its_route_is_the_cure() {
    let finding = only(&tried("nat", None));
    assert_eq!((finding.kind, finding.backend.as_deref()), (Kind::Replies, Some("web1")));
    assert_eq!(finding.cure.commands[0], "ip route replace default via 10.0.0.1");
    assert!(finding.cure.commands[1].ends_with(SOURCE), "{finding:?}");
    let mut behind = tried("nat", None);
    behind.backends[0].attempt.as_mut().unwrap().network = Some("198.18.0.0/24".parse().unwrap());
    assert_eq!(only(&behind).cure.commands[0], "ip route replace 198.18.0.0/24 via 10.0.0.1");
}

#[test]
fn when_a_snat_backend_does_not_answer_an_address_of_the_pool_then_no_route_is_replaced() {
    let finding = only(&tried("snat", None));
    assert_eq!(finding.kind, Kind::Replies);
    assert!(finding.cure.commands.iter().all(|command| command.starts_with('#')), "{finding:?}");
}

#[test]
fn when_a_backend_does_not_answer_this_machine_either_then_only_that_is_found() {
    let mut facts = tried("nat", None);
    let direct = facts.backends[0].direct.as_mut().unwrap();
    (direct.outcome, direct.came) = (Outcome::Silent, false);
    assert_eq!(kinds(&facts), [Kind::Server]);
}

#[test]
fn when_only_checks_have_asked_a_backend_then_their_verdict_counts() {
    let mut facts = tried("nat", None);
    facts.backends[0].direct = None;
    assert_eq!(judge_attempts(&facts).len(), 1);
    facts.controller.as_mut().unwrap().health[0].verdict = "down".to_owned();
    assert_eq!(judge_attempts(&facts), []);
}

#[test]
fn when_an_answer_comes_by_an_interface_without_the_program_then_the_interface_is_named() {
    let mut facts = tried("nat", Some(arrival(3)));
    let mut link = facts.links[0].clone();
    (link.ifindex, link.name) = (3, "eth1".to_owned());
    link.programs.clear();
    facts.links.push(link);
    let finding = only(&facts);
    assert_eq!(finding.kind, Kind::NotAttached);
    assert!(finding.what.contains("eth1"), "{finding:?}");
}

#[test]
fn when_the_program_drops_an_answer_then_the_reason_is_named() {
    let finding = only(&tried("nat", Some(Arrival { dropped: Some("no_route".to_owned()), ..arrival(2) })));
    assert_eq!(finding.kind, Kind::Replies);
    assert!(finding.what.contains("(no_route)"), "{finding:?}");
}

#[test]
fn when_the_port_of_clients_is_shut_and_that_of_checks_is_open_then_the_port_is_named() {
    let finding = only(&tried("snat", Some(Arrival { refused: true, ..arrival(2) })));
    assert_eq!(finding.kind, Kind::Server);
    assert!(finding.what.contains("port 8080"), "{finding:?}");
}

#[test]
fn when_another_machine_has_the_vip_then_no_server_is_accused() {
    let mut standby = tried("nat", None);
    standby.addresses.retain(|own| own.address != standby.vips[0].address);
    standby.vips[0].answered = vec![(2, [2, 0, 0, 0, 0, 9])];
    let report = judge(&standby);
    assert_eq!(report.findings, []);
    assert_eq!(report.not_looked_at[0].what, "answers to clients of service web");
}
