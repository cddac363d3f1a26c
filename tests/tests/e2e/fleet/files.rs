//! Tests of members whose configuration files differ.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    path::PathBuf,
    time::Duration,
};

use nix::sys::signal::Signal;

use super::{Fleet, moved};
use crate::support::wait;

impl Fleet {
    pub(super) fn file(&self, number: usize) -> PathBuf {
        self.files.path().join(format!("lb{}/balancer.toml", number + 1))
    }

    /// Renames the backend web1 in the configuration file of a member.
    fn rename_web1(&self, number: usize, name: &str) {
        let text = fs::read_to_string(self.file(number)).unwrap();
        let new = format!("renamed_from = \"web1\"\nname = \"{name}\"");
        fs::write(self.file(number), text.replace("name = \"web1\"", &new)).unwrap();
    }

    pub(super) fn reload(&mut self, number: usize) {
        self.controllers[number].as_mut().unwrap().process().signal(Signal::SIGHUP).unwrap();
    }

    fn has(&self, backend: &str) -> bool {
        (0..3).all(|number| self.states(number).iter().any(|state| state.starts_with(&format!("web/{backend} up"))))
    }

    pub(super) fn told(&self, number: usize, words: &str) -> bool {
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
        fleet.cli(1, &["status"]).contains("its file and those of lb3 say other services than the fleet's last one")
    });
    wait("lb1 says that its own file differs", || !fleet.cli(0, &["status"]).contains("its file"));
    let warning = "services in the configuration file of lb2 differ from the fleet's";
    wait("lb1 does not say whose file differs", || fleet.cli(0, &["fleet"]).contains(warning));
    wait("the status of lb1 does not say whose files differ", || {
        fleet.cli(0, &["status"]).contains("the files of lb2, lb3 say other services than the fleet's last one")
    });
    // The fleet's own file is older than a change that its reset is to undo.
    fleet.cli(1, &["backend", "weight", "web/first", "7"]);
    let changed = |fleet: &Fleet| fleet.cli(0, &["status"]).contains("changed at run time: 1 backend");
    wait("the weight has not changed", || changed(&fleet));
    let reset = fleet.cli(0, &["apply", "--reset", file.to_str().unwrap()]);
    fleet.assert_applied(0, &reset, 3);
    assert!(!changed(&fleet), "{reset}");
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
    let refused = fleet.try_cli(1, &["apply", "--reset", copy.to_str().unwrap()]).unwrap_err();
    assert!(refused.contains("older than the file that the fleet applied last"), "{refused}");
    assert!(fleet.has("first"));
    // A file that a user edited after the fleet's last change is newer than the fleet's state.
    fleet.rename_web1(2, "second");
    fleet.reload(2);
    wait("what lb3's file says is not the fleet's", || fleet.has("second"));
    wait("lb3's file differs", || !fleet.cli(2, &["status"]).contains("its file"));
    let forced = fleet.cli(1, &["apply", "--force", copy.to_str().unwrap()]);
    fleet.assert_applied(1, &forced, 3);
}
