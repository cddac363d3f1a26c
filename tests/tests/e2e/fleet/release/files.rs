//! Tests of members' own settings, and of two balancers with the same name.

use std::{fs, process::Command};

use balancer_testkit::{
    binaries,
    topology::{Family, Topology},
};

use crate::{fleet::Fleet, support::wait};

#[test]
fn when_a_change_comes_in_at_a_member_then_its_own_audit_file_has_it_and_its_own_readers_only_read() {
    let mut fleet = Fleet::new();
    let directory = fleet.files.path().join("lb2");
    let (audit, readers) = (directory.join("audit.log"), directory.join("balancer-readers.sock"));
    let original = fs::read_to_string(fleet.file(1)).unwrap();
    let control = format!("[control]\nreaders = \"0\"\naudit = {audit:?}\n");
    fs::write(fleet.file(1), original.replace("[control]\n", &control)).unwrap();
    fleet.reload(1);
    wait("lb2 has not read its file", || fleet.told(1, "control.readers, control.audit changed"));
    wait("there is no socket for readers", || readers.exists());
    assert!(!fleet.files.path().join("lb1/balancer-readers.sock").exists());
    fleet.cli(1, &["backend", "weight", "web/web1", "70"]);
    let audited = || fs::read_to_string(&audit).unwrap_or_default();
    wait("the change is not in the audit file", || {
        audited().lines().any(|line| line.contains("weight 100 → 70") && line.contains("applied by 3 of 3 members"))
    });
    fleet.cli(0, &["backend", "weight", "web/web1", "100"]);
    assert!(!audited().contains("70 → 100"), "it came in at another member");

    let read = |words: &[&str]| {
        let mut command = Command::new(binaries::balancer().unwrap());
        command.arg("--socket").arg(&readers).args(words).output().unwrap()
    };
    assert!(read(&["fleet"]).status.success());
    let refused = read(&["backend", "weight", "web/web1", "70"]);
    assert!(String::from_utf8_lossy(&refused.stderr).contains("only reads: ask as root"), "{refused:?}");
    wait("the refusal is not in the audit file", || audited().contains("\"via\":\"readers\""));
    // If a user applies a file at a member, the fleet takes only the services from the file.
    let copy = fleet.files.path().join("services.toml");
    fs::write(&copy, original.replace("weight = 100", "weight = 90")).unwrap();
    fleet.cli(1, &["apply", copy.to_str().unwrap()]);
    // The balancer writes to the audit file after its answer.
    wait("the file is not in the audit file", || audited().contains("POST /v1/configuration"));
    assert!(readers.exists());
}

#[test]
fn when_a_second_balancer_has_a_members_name_then_it_is_refused_and_says_whose_it_is() {
    let mut fleet = Fleet::new();
    fleet.controllers[3] = Some(fleet.start_as(3, 1));
    let address = Topology::balancers_address(Family::V4, 0);
    let refused = "the member name lb1 is in use by another balancer (instance ";
    wait("lb4 is not refused", || fleet.try_cli(3, &["fleet"]).is_ok_and(|said| said.contains(refused)));
    let said = fleet.cli(3, &["fleet"]);
    assert!(said.contains(&format!(" at {address})")), "not {address}: {said}");
    assert!(fleet.try_cli(3, &["ready"]).is_err());
    let refused = fleet.try_cli(3, &["backend", "weight", "web/web1", "50"]).unwrap_err();
    assert!(refused.contains("the member name lb1 is in use by another balancer"), "{refused}");
    for number in 0..3 {
        assert!(fleet.try_cli(number, &["ready", "--strict"]).is_ok());
        assert_eq!(fleet.shown(number).members.len(), 3);
    }
    let changed = fleet.cli(1, &["backend", "weight", "web/web1", "50"]);
    fleet.assert_applied(1, &changed, 3);
    // If the first balancer restarts, it gets its member name back immediately. After the first balancer has died, the
    // second balancer gets the member name.
    fleet.kill(0);
    fleet.controllers[0] = Some(fleet.start(0));
    wait("lb1 is not back", || fleet.try_cli(0, &["ready", "--strict"]).is_ok());
    fleet.kill(0);
    wait("lb4 does not get the name", || fleet.try_cli(3, &["ready"]).is_ok());
}
