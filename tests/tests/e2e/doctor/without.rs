//! Tests of the doctor on a host without a controller.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use balancer_common::map_types::Forwarding;
use balancer_testkit::{
    binaries,
    topology::{Shape, Topology},
    xdp::{Hook, Passer},
};

use super::fault::Report;

/// Returns the doctor's exit code, report and standard error.
fn examine(topology: &Topology) -> (Option<i32>, Report, String) {
    let mut command = topology.balancer().command(binaries::balancer().unwrap());
    let output = command.args(["--socket", "/nonexistent/balancer.sock", "doctor", "--json"]).output().unwrap();
    let words = String::from_utf8_lossy(&output.stderr).into_owned();
    (output.status.code(), serde_json::from_slice(&output.stdout).unwrap(), words)
}

#[test]
fn when_there_is_no_controller_then_the_exit_code_is_3_and_another_tools_program_is_found() {
    let topology = Topology::new(Shape::OneLegged, Forwarding::Dsr, 0).unwrap();
    let (code, report, words) = examine(&topology);
    assert_eq!((code, report.controller, report.findings.len()), (Some(3), false, 0), "{report:?}");
    assert!(words.contains("no controller reachable at /nonexistent/balancer.sock"), "{words}");

    let passer = Passer::attach(topology.balancer(), "eth0", Hook::Native).unwrap();
    let (code, report, _) = examine(&topology);
    let kinds: Vec<&str> = report.findings.iter().map(|finding| finding.kind.as_str()).collect();
    assert_eq!((code, kinds.as_slice()), (Some(3), &["foreign-program"][..]), "{report:?}");
    assert!(report.findings[0].what.contains("eth0"), "{report:?}");
    drop(passer);
    assert_eq!(examine(&topology).1.findings, []);
}
