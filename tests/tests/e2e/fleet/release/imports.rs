//! Tests of known clients that a user imports at one member of a fleet.

use std::fs;

use balancer_testkit::topology::Family;

use crate::{
    fleet::{CLIENTS, Fleet},
    support::wait,
};

impl Fleet {
    /// Returns the number of clients of the family `family` that a member knows.
    fn knows(&self, number: usize, family: Family) -> usize {
        let (service, within) = match family {
            Family::V4 => ("web", "10.1.0.0/16"),
            Family::V6 => ("web6", "fd00:1::/112"),
        };
        let text = self.cli(number, &["client", "export", service, "--within", within]);
        text.lines().filter(|line| !line.starts_with('#')).count()
    }

    #[track_caller]
    fn wait_until_all_know(&self) {
        for number in self.members() {
            for family in Family::BOTH {
                wait(&format!("lb{} does not know the clients of {family:?}", number + 1), || {
                    self.knows(number, family) >= CLIENTS.count()
                });
            }
        }
    }
}

/// The lookup table names backends other than the imported ones, so only the client memory can explain why clients
/// reach the imported backends.
#[test]
fn when_clients_are_imported_at_one_member_then_all_members_know_them_and_one_that_comes_later_does() {
    let mut fleet = Fleet::new();
    let (file, mut wanted) = (fleet.files.path().join("clients.txt"), Vec::new());
    for (family, service) in Family::BOTH.into_iter().zip(["web", "web6"]) {
        let lines = CLIENTS.map(|client| {
            let address = fleet.topology.client_address(family, client).to_string();
            let view: serde_json::Value =
                serde_json::from_str(&fleet.cli(0, &["client", "where", &address, "--json"])).unwrap();
            let by_table = view["backend"].as_str().unwrap().to_owned();
            let other = if by_table == "web3" { "web1" } else { "web3" };
            (format!("{address} {other} 60s\n"), other.to_owned())
        });
        let (lines, homes): (Vec<String>, Vec<String>) = lines.unzip();
        fs::write(&file, lines.concat()).unwrap();
        let said = fleet.cli(1, &["client", "import", service, &file.to_string_lossy()]);
        assert_eq!(said, format!("service {service}: {} clients known from the file", CLIENTS.count()));
        wanted.push(homes);
    }
    fleet.wait_until_all_know();
    assert_eq!(fleet.one_answer().to_vec(), wanted);
    // One member restarts without its client table.
    fleet.kill(2);
    fleet.start_again(2);
    fleet.wait_until_all_know();
    assert_eq!(fleet.one_answer().to_vec(), wanted);
}
