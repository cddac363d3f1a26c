//! Tests of two balancers with one etcd, as in the book's section "One etcd for two balancers".

use std::{collections::BTreeMap, thread, time::Duration};

use super::{Fleet, Plan, moved};
use crate::support::wait;

/// A duration of several intervals at which members publish their clients.
const PUBLISHED: Duration = Duration::from_secs(4);

#[test]
fn when_the_machine_with_the_only_etcd_dies_then_the_other_balancer_keeps_all_clients() {
    let mut fleet = Fleet::planned(Plan { members: 2, engines: 1, ..Plan::default() });
    // After a failure, clients are at other backends than the lookup table names. Only the first balancer has seen
    // clients before the failure.
    fleet.route(&[0]);
    let first = fleet.all_homes();
    fleet.backends[1] = None;
    fleet.wait_for("web2", "down");
    let homes = fleet.all_homes();
    assert_eq!(moved(&first, &homes, "web2"), BTreeMap::new());
    fleet.start_backend(2);
    fleet.wait_for("web2", "up");
    thread::sleep(PUBLISHED);

    fleet.kill(0);
    fleet.etcd.kill(0).unwrap();
    fleet.route(&[1]);
    assert_eq!(moved(&homes, &fleet.all_homes(), ""), BTreeMap::new());
    wait("lb2 is not degraded", || fleet.cli(1, &["ready", "--json"]).contains("etcd is out of reach"));
    let refused = fleet.try_cli(1, &["backend", "weight", "web/web1", "80"]).unwrap_err();
    assert!(refused.contains("out of reach"), "{refused}");
    // A backend dies while the first balancer is down. The remaining balancer decides alone that the backend is down.
    fleet.backends[2] = None;
    fleet.wait_for("web3", "down");
    let after = fleet.all_homes();
    assert_eq!(moved(&homes, &after, "web3"), BTreeMap::new());
    assert!(after.iter().flatten().all(|home| home != "web3"));

    // The machine of the first balancer returns: both balancers agree, and clients that moved in the meantime stay.
    fleet.etcd.start_member(0, &fleet.engines[0]).unwrap();
    fleet.start_again(0);
    wait("they are not one fleet", || [0, 1].iter().all(|&member| fleet.shown(member).members.len() == 2));
    wait("changes are refused", || fleet.try_cli(1, &["backend", "weight", "web/web1", "80"]).is_ok());
    fleet.wait_in_step();
    thread::sleep(PUBLISHED);
    assert_eq!(moved(&after, &fleet.one_answer(), ""), BTreeMap::new());
}
