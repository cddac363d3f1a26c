//! Tests of a fleet with tens of thousands of clients that use datagrams and connections.

use std::{collections::BTreeSet, net::SocketAddr, sync::atomic::AtomicBool, thread};

use balancer_config::config::Protocol;
use balancer_testkit::{datagrams, stop::StopOnDrop, topology::Family};

use crate::{
    fleet::{Fleet, PORT, Plan},
    support::{homes, requests},
};

const CLIENTS: u16 = 20_000;
/// The number of clients that also open connections.
const CONNECTING: u16 = 1_000;

impl Fleet {
    /// Returns the backend that answers each client's datagram.
    #[track_caller]
    fn homes_by_datagrams(&self, family: Family) -> Vec<String> {
        let vip = SocketAddr::new(self.topology.vip(family), PORT);
        datagrams::ask(&self.topology, family, 1..=CLIENTS, vip, b"?").unwrap().into_values().collect()
    }

    /// Returns the backend that answers a connection from each of the first clients.
    #[track_caller]
    fn homes_by_connections(&self, family: Family) -> Vec<String> {
        homes(&self.topology, &requests(&self.topology, family, PORT, 1..=CONNECTING))
    }

    /// Checks that all clients reach the backends `homes` through each set of members, with datagrams and with
    /// connections.
    #[track_caller]
    fn all_at(&self, homes: &[String], family: Family, ways: &[&[usize]]) {
        for way in ways {
            self.route(way);
            let moved = self.homes_by_datagrams(family).iter().zip(homes).filter(|(now, then)| now != then).count();
            assert_eq!(moved, 0, "clients that moved, of {CLIENTS}, through {way:?}");
            assert_eq!(self.homes_by_connections(family), homes[..CONNECTING.into()], "through {way:?}");
        }
    }
}

#[test]
fn when_a_fleet_has_twenty_thousand_clients_then_they_have_one_answer() {
    let family = Family::V4;
    let mut fleet = Fleet::planned(Plan { datagrams: Some(Protocol::Udp), ..Plan::default() });
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        fleet.answer_datagrams(scope, family, &stop);
        let _stop = StopOnDrop(&stop);
        fleet.route(&[0]);
        let homes = fleet.homes_by_datagrams(family);
        assert_eq!(homes.iter().collect::<BTreeSet<_>>().len(), 3);
        fleet.all_at(&homes, family, &[&[1], &[2]]);
        // From this point, the router also hashes ports. The test makes each change at a different member.
        fleet.spread("1");
        fleet.cli(1, &["backend", "add", "web/web4", &fleet.topology.backend_address(family, 3).to_string()]);
        fleet.cli(2, &["backend", "drain", "web/web2"]);
        fleet.cli(0, &["backend", "weight", "web/web1", "10"]);
        fleet.wait_in_step();
        fleet.all_at(&homes, family, &[&[0], &[1], &[2], &[0, 1, 2]]);
        fleet.route(&[0, 2]);
        fleet.kill(1);
        fleet.all_at(&homes, family, &[&[0], &[2]]);
        fleet.start_again(1);
        fleet.all_at(&homes, family, &[&[1], &[0, 1, 2]]);
    });
}
