//! Tests with an API server that is unreachable, and with an API server that forgets old versions of objects.

use std::{
    thread,
    time::{Duration, Instant},
};

use balancer_testkit::site::PATIENCE;

use super::{World, at, clients, number};
use crate::support::wait_for;

const LONE: &[&str] = &["--lease", "none"];

#[test]
#[ignore = "needs a real API server, which `cargo xtask lab kubernetes` has"]
fn when_the_api_server_is_away_while_a_pod_dies_then_only_its_clients_move_and_all_is_well_when_it_is_back() {
    let mut world = World::start();
    world.controller("one", LONE);
    world.service();
    world.pods(&[1, 2, 3, 4], &[]);
    world.wait_pods("four pods are up", &[("up", &[1, 2, 3, 4])]);
    let before = world.homes(1..=clients());
    // Connections to a pod that dies fail until the balancer's check has noticed the failure.
    world.under_load(1..=clients(), 2_000, |world| {
        let end = Instant::now() + Duration::from_secs(number("LAB_AWAY_SECONDS", 600));
        world.api.go_away().unwrap();
        world.site.kill_backend(1).unwrap();
        world.wait_pods("the dead pod is down", &[("down", &[1]), ("up", &[2, 3, 4])]);
        let moved = world.homes(1..=clients());
        assert!(at(&moved, 1..=1).is_empty());
        assert!(at(&before, 2..=4).iter().all(|(client, home)| moved[client] == *home), "nobody else moves");
        thread::sleep(end.saturating_duration_since(Instant::now()));
        assert_eq!(world.homes(1..=clients()), moved, "nobody moves while it is away");
        let lines = world.log().lines().count();
        // The API server has forgotten the versions that controllers know, so controllers have to list all objects
        // again.
        world.api.compact().unwrap();
        world.api.come_back().unwrap();
        world.pods(&[2, 3, 4, 5], &[]);
        world.wait_pods("the dead pod is gone and another is there", &[("up", &[2, 3, 4, 5])]);
        let after = world.homes(1..=clients());
        assert_eq!(at(&after, 2..=4), at(&moved, 2..=4), "nobody moves when it is back");
        println!("{} of {} clients moved; {lines} lines in the log", at(&before, 1..=1).len(), clients());
    });
    world.delete();
    world.wait_gone();
}

#[test]
#[ignore = "needs a real API server, which `cargo xtask lab kubernetes` has"]
fn when_the_api_server_restarts_again_and_again_then_no_change_is_lost() {
    let mut world = World::start();
    world.controller("one", LONE);
    world.service();
    for round in 1..=4 {
        world.pods(&(1..=round + 1).collect::<Vec<_>>(), &[]);
        world.api.go_away().unwrap();
        world.api.compact().unwrap();
        world.api.come_back().unwrap();
        let pods: Vec<u16> = (1..=round + 2).collect();
        world.pods(&pods, &[]);
        world.wait_pods("all pods are there", &[("up", &pods)]);
    }
    // The log may contain refused requests: an API server that has just started denies all requests for a second.
    world.delete();
    world.wait_gone();
}

#[test]
#[ignore = "needs a real API server, which `cargo xtask lab kubernetes` has"]
fn when_the_token_of_the_service_account_is_replaced_then_the_controller_takes_the_new_one() {
    let mut world = World::start();
    world.controller("one", &[]);
    world.service();
    world.pods(&[1], &[]);
    world.wait_pods("a pod is up", &[("up", &[1])]);
    world.api.go_away().unwrap();
    world.api.invalidate_tokens().unwrap();
    world.api.come_back().unwrap();
    world.wait("the old token is of no use", |world| world.log().contains("401"));
    // The kubelet of a real cluster replaces the token before the token becomes invalid.
    world.api.service_account(&world.site.files().join("account")).unwrap();
    world.pods(&[1, 2], &[]);
    wait_for(4 * PATIENCE, "the new token is not used", || world.states().len() == 2);
    world.delete();
    world.wait_gone();
}
