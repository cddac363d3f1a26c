//! Tests of `balancer doctor --try`, which tries backends before clients come.

use balancer_common::map_types::Forwarding;
use balancer_testkit::{
    namespace::run,
    site::Site,
    topology::{Family, Shape},
};

use super::fault::{Report, examine, lab};
use crate::support::wait;

/// The requests that the doctor has sent, as `BACKEND SOURCE INTERFACE`.
fn tried(report: &Report) -> Vec<String> {
    let words =
        |of: &super::fault::Tried| format!("{} {} {}", of.backend, of.source, of.answered_by.as_deref().unwrap_or("-"));
    report.tried.iter().map(words).collect()
}

/// Tries the backends, of which each answers.
#[track_caller]
fn answered(site: &Site, argument: &str, expected: &[&str]) {
    let (code, report) = examine(site, &[argument]);
    assert_eq!((code, report.findings.as_slice()), (0, &[][..]), "{report:?}");
    assert_eq!(tried(&report), expected);
}

#[test]
fn when_backends_are_tried_before_clients_come_then_missing_routes_of_servers_are_found() {
    let site = lab(Shape::OneLegged, Forwarding::Nat, &[Family::V4]);
    let healthy = ["web1 10.1.255.254 eth0", "web2 10.1.255.254 eth0"];
    answered(&site, "--try", &healthy);

    // Answers do not come back: by the doctor's own connections, nothing is wrong.
    let web1 = &site.topology().backends()[0];
    web1.ip("route replace 10.1.0.0/16 via 10.0.0.2").unwrap();
    assert_eq!(examine(&site, &[]).1.findings, []);
    let (code, report) = examine(&site, &["--try"]);
    assert_eq!((code, report.findings.len()), (1, 1), "{report:?}");
    let finding = &report.findings[0];
    assert_eq!((finding.kind.as_str(), finding.backend.as_deref()), ("replies", Some("web1")));
    assert_eq!(tried(&report), ["web1 10.1.255.254 -", "web2 10.1.255.254 eth0"]);
    run(web1.command("sh").args(["-c", &finding.cure.commands[0]])).unwrap();
    answered(&site, "--try", &healthy);
    let backends = site.status().unwrap().services.remove(0).backends;
    assert!(backends.iter().all(|of| of.connections == 0), "no request passes the program: {backends:?}");

    // A client that sends more than the machine that got the answers is tried from then on.
    let client = site.topology().client_address(Family::V4, 7);
    let line = format!("tried web/web1 at 10.0.0.11:8080 from the client {client}: the answer came by eth0\n");
    wait("the busiest client is not tried", || {
        (0..20).for_each(|_| assert_eq!(site.homes(Family::V4, 7..=7).unwrap().len(), 1));
        String::from_utf8_lossy(&site.output(&["doctor", "--try"]).unwrap().stdout).contains(&line)
    });

    // The host has all clients again, and the first step is not made into the fault.
    site.cli(&["service", "steer", "web", "0"]).unwrap();
    web1.ip("route replace 10.1.0.0/16 via 10.0.0.2").unwrap();
    for step in [&["service", "steer", "web", "10"][..], &["plan", "service", "steer", "web", "10"]] {
        let refused = site.cli(step).unwrap_err().to_string();
        let words = "nothing was changed: web/web1: replies do not come back through the balancer (no answer came";
        assert!(refused.contains(words), "{refused}");
        site.cli(&[step, &["--force"]].concat()).unwrap();
        site.cli(&["service", "steer", "web", "0"]).unwrap();
    }
    run(web1.command("sh").args(["-c", &finding.cure.commands[0]])).unwrap();
    site.cli(&["service", "steer", "web", "10"]).unwrap();
}

#[test]
fn when_answers_do_not_pass_the_balancer_or_come_to_its_own_address_then_that_address_is_tried() {
    for forwarding in [Forwarding::Snat, Forwarding::Dsr] {
        let site = lab(Shape::OneLegged, forwarding, &[Family::V4]);
        answered(&site, "--try", &["web1 10.0.0.1 eth0", "web2 10.0.0.1 eth0"]);
        let (code, report) = examine(&site, &[]);
        assert_eq!((code, tried(&report)), (0, Vec::new()));
    }
}
