//! Tests of two controllers for Kubernetes that share one Lease.

use std::{
    thread,
    time::{Duration, Instant},
};

use nix::sys::signal::Signal;

use super::World;

impl World {
    /// Returns the name of the controller that holds the Lease.
    fn holder(&self) -> String {
        let lease = self.api.get("lease", "kube-system", "balancer-kubernetes").unwrap().unwrap_or_default();
        lease["spec"]["holderIdentity"].as_str().unwrap_or_default().to_owned()
    }

    /// Returns the name of the controller that acts, and the name of the controller that waits.
    fn roles(&self) -> (&'static str, &'static str) {
        self.wait("one has the Lease", |world| ["one", "two"].contains(&world.holder().as_str()));
        if self.holder() == "one" { ("one", "two") } else { ("two", "one") }
    }

    /// Waits until the controller `holder` holds the Lease, and returns how long the wait took.
    fn wait_holder(&self, how: &str, holder: &str) -> Duration {
        let start = Instant::now();
        self.wait("the other takes over", |world| world.holder() == holder);
        println!("the controller {how}: the other has the Lease after {:.1} s", start.elapsed().as_secs_f64());
        start.elapsed()
    }
}

#[test]
#[ignore = "needs a real API server, which `cargo xtask lab kubernetes` has"]
fn when_the_controller_that_acts_ends_dies_or_hangs_then_the_other_goes_on_and_only_one_acts() {
    let mut world = World::start();
    world.controller("one", &[]);
    world.controller("two", &[]);
    world.service();
    world.pods(&[1, 2, 3, 4], &[]);
    world.wait_pods("four pods are up", &[("up", &[1, 2, 3, 4])]);
    let homes = world.homes(1..=200);

    let (acts, waits) = world.roles();
    let process = world.controllers.get_mut(acts).unwrap();
    assert!(process.stop().unwrap().success());
    world.wait_holder("ends in order", waits);
    world.pods(&[1, 2, 3, 4, 5], &[]);
    world.wait_pods("the other adds a pod", &[("up", &[1, 2, 3, 4, 5])]);

    world.controller(acts, &[]);
    world.pods(&[1, 2, 3, 4, 5, 6], &[]);
    world.kill(waits);
    world.wait_holder("is killed", acts);
    world.wait_pods("a pod is not lost", &[("up", &[1, 2, 3, 4, 5, 6])]);

    // One controller hangs in the middle of its work, and resumes while the second controller acts.
    world.controller(waits, &[]);
    world.pods(&[2, 3, 4, 5, 6], &[1]);
    world.controllers.get_mut(acts).unwrap().signal(Signal::SIGSTOP).unwrap();
    world.wait_holder("hangs", waits);
    world.wait_pods("one drains", &[("draining", &[1]), ("up", &[2, 3, 4, 5, 6])]);
    world.controllers.get_mut(acts).unwrap().signal(Signal::SIGCONT).unwrap();
    world.pods(&[2, 3, 4, 5, 6], &[]);
    world.wait_pods("it is gone", &[("up", &[2, 3, 4, 5, 6])]);
    thread::sleep(Duration::from_secs(8));
    assert_eq!(world.holder(), waits, "whoever woke leaves it to the other");
    world.wait_pods("nobody undoes it", &[("up", &[2, 3, 4, 5, 6])]);
    let after = world.homes(1..=200);
    assert!(homes.iter().filter(|(_, home)| *home != "web1").all(|(client, home)| after[client] == *home));
    world.delete();
    world.wait_gone();
    world.assert_nothing_was_refused();
}
