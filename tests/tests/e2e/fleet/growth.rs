//! Tests of members whose kernel maps grow.

use std::{collections::BTreeMap, fmt::Write as _, fs};

use super::{Fleet, moved};
use crate::support::wait;

/// The number of services that one change adds: their tables need more slots than the maps have at the start.
pub(super) const AT_ONCE: u32 = 20;

fn service(number: u32) -> String {
    format!(
        "[[service]]\nname = \"more{number}\"\naddress = \"198.18.0.{number}:80\"\nforwarding = \"dsr\"\n\
         table_size = 65537\ncheck = {{ type = \"none\" }}\n\
         [[service.backend]]\nname = \"far\"\naddress = \"10.0.0.11\"\n"
    )
}

impl Fleet {
    /// Applies a file with so many more services at a member. All members must apply the file, and the exit code must say
    /// so.
    #[track_caller]
    fn apply_more(&self, number: usize, services: u32) {
        let (said, is_whole) = self.try_apply(number, services);
        assert_eq!(said.contains("; applied by 3 of 3 members"), is_whole, "{said}");
        self.assert_applied(number, &said, 3);
    }

    /// Applies a file with so many more services at a member. Returns the answer, and whether the exit code says that all
    /// members apply the file.
    #[track_caller]
    pub(super) fn try_apply(&self, number: usize, services: u32) -> (String, bool) {
        let file = self.files.path().join(format!("lb{}/balancer.toml", number + 1));
        let own = fs::read_to_string(&file).unwrap();
        let mut text = own.clone();
        (1..=services).for_each(|number| write!(text, "\n{}", service(number)).unwrap());
        let larger = self.files.path().join(format!("lb{}/larger.toml", number + 1));
        fs::write(&larger, text).unwrap();
        let output = self.controllers[number].as_ref().unwrap().cli(&["apply", larger.to_str().unwrap()]).unwrap();
        let (said, error) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        assert!(output.status.success() || output.status.code() == Some(5), "{said}{error}");
        (said.trim().to_owned(), output.status.success())
    }
}

/// Adds services at once and then this number one by one, so that the maps of all members grow as often as `grows` says.
/// Afterwards kills a backend, drains another one, and replaces the leader.
pub(super) fn members_agree(one_by_one: u32, grows: usize) {
    let mut fleet = Fleet::new();
    let homes = fleet.one_answer();
    let load = fleet.under_load(|fleet| {
        fleet.apply_more(1, AT_ONCE);
        for more in 1..=one_by_one {
            fleet.apply_more(more as usize % 3, AT_ONCE + more);
        }
        fleet.wait_in_step();
    });
    load.assert_answered(200);
    for number in fleet.members() {
        let log = fs::read_to_string(fleet.files.path().join(format!("lb{}/balancer.log", number + 1))).unwrap();
        assert!(log.matches("the kernel's maps have grown").count() >= grows, "{log}");
        assert!(!log.contains("is not applied"), "{log}");
    }
    assert_eq!(moved(&homes, &fleet.one_answer(), ""), BTreeMap::new());

    // Verdicts and changes go on, also while another member begins to lead.
    fleet.backends[0] = None;
    fleet.wait_for("web1", "down");
    let after = fleet.one_answer();
    assert_eq!(moved(&homes, &after, "web1"), BTreeMap::new());
    assert!(after.iter().flatten().all(|home| home != "web1"));
    let drained = fleet.cli(2, &["backend", "drain", "web/web2", "--timeout", "1h"]);
    fleet.assert_applied(2, &drained, 3);
    assert_eq!(moved(&after, &fleet.one_answer(), ""), BTreeMap::new());
    let old: Vec<usize> = fleet.members().collect();
    let next = fleet.replace_leader();
    let changed = fleet.cli(next, &["backend", "weight", "web/web3", "150"]);
    fleet.assert_applied(next, &changed, 2);
    assert_eq!(moved(&after, &fleet.one_answer(), ""), BTreeMap::new());
    fleet.start_backend(1);
    fleet.wait_for("web1", "up");

    // The member that was killed starts with a file without these services, and gets them from the fleet.
    let gone = old.into_iter().find(|&number| fleet.controllers[number].is_none()).unwrap();
    fleet.start_again(gone);
    wait("the member that starts again lacks services", || {
        let all: Vec<usize> = fleet.members().map(|number| fleet.states(number).len()).collect();
        all.len() == 3 && all.iter().all(|states| *states == all[0])
    });
    assert_eq!(moved(&after, &fleet.one_answer(), ""), BTreeMap::new());
    assert!(fleet.members().all(|number| fleet.cli(number, &["ready"]) == "ready"));
}

#[test]
fn when_services_exceed_the_maps_of_all_members_then_the_maps_grow_and_members_agree() {
    members_agree(2, 1);
}
