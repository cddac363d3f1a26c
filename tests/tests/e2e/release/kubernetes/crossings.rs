//! Tests of Kubernetes Services together with other features of the balancer: outages, slow start, agents and backups.

use std::{collections::BTreeMap, io::ErrorKind};

use balancer_testkit::{site::PATIENCE, topology::Family};

use super::{Controller, SERVICE, World};
use crate::{agents::Agent, support::wait};

const CLIENTS: std::ops::RangeInclusive<u16> = 1..=200;

impl World {
    /// Starts a Service with the given annotations and pods, and waits until all pods are up.
    fn serving(annotations: &[(&str, &str)], pods: &[u16]) -> (Self, Controller) {
        let world = Self::start();
        let controller = world.controller();
        world.service_with(annotations);
        world.pods(pods, &[]);
        world.wait_states("pods are up", "up", pods);
        (world, controller)
    }

    fn slots(&self) -> BTreeMap<String, u32> {
        let services = self.site.status().unwrap().services;
        let service = services.into_iter().find(|service| service.name == SERVICE).unwrap();
        service.backends.into_iter().map(|backend| (backend.name, backend.slots)).collect()
    }

    /// Kills the controller for Kubernetes and starts another one, which reads the drop-in.
    fn another_controller(&self, controller: &mut Controller) {
        drop(std::mem::replace(controller, self.controller()));
    }
}

#[test]
fn when_all_pods_fail_at_once_then_nobody_moves_whether_kubernetes_takes_them_for_not_ready_or_not() {
    let (mut world, mut controller) = World::serving(&[("drain", "2m")], &[1, 2, 3, 4]);
    let homes = world.homes(CLIENTS);
    for unready in [false, true] {
        for number in 1..=4 {
            world.site.kill_backend(number).unwrap();
        }
        world.wait_states("all pods are down", "down", &[1, 2, 3, 4]);
        if unready {
            // The probes of the kubelet fail as well, so the pods are not ready.
            world.pods(&[], &[1, 2, 3, 4]);
            wait("they are to drain", || world.admins().values().all(|admin| admin == "drain"));
        }
        world.another_controller(&mut controller);
        for number in 1..=4 {
            world.site.start_backend(number).unwrap();
        }
        world.pods(&[1, 2, 3, 4], &[]);
        world.wait_states("all pods are up again", "up", &[1, 2, 3, 4]);
        wait("none is to drain", || world.admins().values().all(|admin| admin == "ready"));
        assert_eq!(world.homes(CLIENTS), homes, "not ready: {unready}");
    }
}

#[test]
fn when_pods_start_slowly_then_new_ones_take_few_clients_at_first_also_if_the_controller_starts_anew() {
    let (world, mut controller) = World::serving(&[("slow_start", "20s")], &[1, 2]);
    wait("the first pods have their whole shares", || {
        let slots = world.slots();
        slots["pod1"].abs_diff(slots["pod2"]) <= 1
    });
    let homes = world.homes(CLIENTS);
    let whole = world.slots().values().sum::<u32>() / 3;
    world.pods(&[1, 2, 3], &[]);
    world.wait_states("a third is up", "up", &[3]);
    let first = world.slots()["pod3"];
    assert!(first < whole / 2, "{first} of {whole}");
    world.another_controller(&mut controller);
    world.pods(&[1, 2, 3], &[]);
    let mut last = first;
    wait("it has its whole share", || {
        let slots = world.slots()["pod3"];
        assert!(slots >= last, "{slots} after {last}");
        last = slots;
        slots >= whole - 1
    });
    assert_eq!(world.homes(CLIENTS), homes);
}

#[test]
fn when_pods_have_agents_then_their_words_and_kubernetes_words_both_count() {
    let (world, mut controller) = World::serving(&[("agent", "{ port = 9777, interval = \"1s\" }")], &[1, 2]);
    let whole = world.slots()["pod1"];
    let homes = world.homes(CLIENTS);
    let agent = Agent::start(&world.site.topology().backends()[0], "50%");
    wait("the agent's weight counts", || world.slots()["pod1"] < whole);
    agent.says("drain");
    world.wait_states("the agent drains its pod", "draining", &[1]);
    assert_eq!(world.admins()["pod1"], "ready", "the drain is the agent's");
    world.another_controller(&mut controller);
    agent.says("ready 100%");
    world.wait_states("the agent has it ready", "up", &[1]);
    world.pods(&[2], &[1]);
    world.wait_states("Kubernetes drains it", "draining", &[1]);
    agent.says("up ready");
    world.pods(&[2, 3], &[1]);
    world.wait_states("another is there", "up", &[3]);
    assert_eq!((world.states()["pod1"].as_str(), world.admins()["pod1"].as_str()), ("draining", "drain"));
    assert_eq!(world.homes(CLIENTS), homes);
}

#[test]
fn when_a_backup_was_added_by_hand_then_it_serves_while_there_is_no_pod_and_stays() {
    let (world, mut controller) = World::serving(&[("outage", "{ share = 1 }")], &[1, 2]);
    let spare = world.site.backend_address(Family::V4, 8).to_string();
    world.site.cli(&["backend", "add", &format!("{SERVICE}/spare"), &spare, "--backup"]).unwrap();
    let homes = world.homes(CLIENTS);
    assert!(!homes.values().any(|home| home == "web8"), "a backup takes nobody while pods are there");
    world.another_controller(&mut controller);
    world.pods(&[], &[]);
    wait("no pod is left", || world.states().len() == 1);
    wait("the backup is up", || world.states()["spare"] == "up");
    assert!(world.homes(CLIENTS).values().all(|home| home == "web8"), "the backup serves");
    world.pods(&[1, 2], &[]);
    world.wait_states("pods are back", "up", &[1, 2]);
    let strangers = world.homes(301..=400);
    assert!(!strangers.values().any(|home| home == "web8"), "new clients come to pods");
    world.site.cli(&["backend", "remove", &format!("{SERVICE}/spare")]).unwrap();
    world.pods(&[], &[]);
    wait("nothing is left", || world.states().is_empty());
    let refused = world.site.ask(Family::V4, 1..=5, PATIENCE).unwrap();
    assert!(
        refused.iter().all(|reply| reply.as_ref().is_err_and(|error| error.kind() == ErrorKind::ConnectionRefused))
    );
}
