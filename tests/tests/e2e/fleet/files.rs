//! Tests of members whose configuration files differ, and of two balancers with the same name.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    path::PathBuf,
    process::Command,
    time::Duration,
};

use balancer_testkit::{
    binaries,
    topology::{Family, Topology},
};
use nix::sys::signal::Signal;

use super::{Fleet, moved};
use crate::support::wait;

impl Fleet {
    fn file(&self, number: usize) -> PathBuf {
        self.files.path().join(format!("lb{}/balancer.toml", number + 1))
    }

    /// Renames the backend web1 in the configuration file of a member.
    fn rename_web1(&self, number: usize, name: &str) {
        let text = fs::read_to_string(self.file(number)).unwrap();
        let new = format!("renamed_from = \"web1\"\nname = \"{name}\"");
        fs::write(self.file(number), text.replace("name = \"web1\"", &new)).unwrap();
    }

    fn reload(&mut self, number: usize) {
        self.controllers[number].as_mut().unwrap().process().signal(Signal::SIGHUP).unwrap();
    }

    fn has(&self, backend: &str) -> bool {
        (0..3).all(|number| self.states(number).iter().any(|state| state.starts_with(&format!("web/{backend} up"))))
    }

    fn told(&self, number: usize, words: &str) -> bool {
        self.cli(number, &["events"]).contains(words)
    }
}

#[test]
fn when_a_member_reads_a_stale_file_again_then_only_its_own_keys_change() {
    let mut fleet = Fleet::new();
    let homes = fleet.one_answer();
    fleet.rename_web1(0, "first");
    let file = fleet.file(0);
    fleet.cli(0, &["apply", file.to_str().unwrap()]);
    wait("the fleet has not changed", || fleet.has("first"));
    // The configuration file of lb2 is outdated.
    wait("lb2 does not say that its file differs", || {
        fleet.cli(1, &["status"]).contains("its file says other services than the fleet's last one")
    });
    wait("lb1 says that its own file differs", || !fleet.cli(0, &["status"]).contains("its file says other services"));
    let warning = "the configuration file of lb2 says other services than the fleet's last one";
    wait("lb1 does not say whose file differs", || fleet.cli(0, &["fleet"]).contains(warning));
    // The user changes only settings of one member in that member's file, but the write makes this file the newest.
    let stale = fs::read_to_string(fleet.file(1)).unwrap();
    let copy = fleet.files.path().join("stale.toml");
    fs::write(&copy, &stale).unwrap();
    File::open(&copy).unwrap().set_modified(std::time::SystemTime::now() - Duration::from_secs(3600)).unwrap();
    fs::write(fleet.file(1), format!("statistics.sample_interval = 7\n{stale}")).unwrap();
    fleet.reload(1);
    wait("lb2 has not read its file", || fleet.told(1, "statistics.sample_interval changed"));
    std::thread::sleep(Duration::from_secs(2));
    assert!(fleet.has("first"), "{:?}", fleet.states(0));
    assert_eq!(moved(&homes, &fleet.one_answer(), ""), BTreeMap::new());
    // The member reports the settings that need a restart, and applies none of the changes in the file.
    fs::write(fleet.file(1), format!("client_table.capacity = 5\nstatistics.sample_interval = 9\n{stale}")).unwrap();
    fleet.reload(1);
    let log = fleet.files.path().join("lb2/balancer.log");
    wait("lb2 does not say what takes a restart", || {
        fs::read_to_string(&log).unwrap().contains("client_table.capacity cannot change while the balancer runs")
    });
    // `balancer apply` asks for confirmation, because the file is outdated.
    let dry = fleet.cli(1, &["apply", "--dry-run", copy.to_str().unwrap()]);
    assert!(dry.contains("is older than the newest change in the fleet"), "{dry}");
    let refused = fleet.try_cli(1, &["apply", copy.to_str().unwrap()]).unwrap_err();
    assert!(refused.contains("older than the newest change in the fleet") && refused.contains("--force"), "{refused}");
    assert!(fleet.has("first"));
    // A file that a user edited after the fleet's last change is newer than the fleet's state.
    fleet.rename_web1(2, "second");
    fleet.reload(2);
    wait("what lb3's file says is not the fleet's", || fleet.has("second"));
    wait("lb3's file differs", || !fleet.cli(2, &["status"]).contains("its file says other services"));
    let forced = fleet.cli(1, &["apply", "--force", copy.to_str().unwrap()]);
    fleet.assert_applied(1, &forced, 3);
}

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
    let refused = "another balancer is lb1 already (instance ";
    wait("lb4 is not refused", || fleet.try_cli(3, &["fleet"]).is_ok_and(|said| said.contains(refused)));
    let said = fleet.cli(3, &["fleet"]);
    assert!(said.contains(&format!(" at {address})")), "not {address}: {said}");
    assert!(fleet.try_cli(3, &["ready"]).is_err());
    let refused = fleet.try_cli(3, &["backend", "weight", "web/web1", "50"]).unwrap_err();
    assert!(refused.contains("another balancer is lb1 already"), "{refused}");
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
