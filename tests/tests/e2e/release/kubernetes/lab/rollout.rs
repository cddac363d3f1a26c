//! Tests of rollouts, scaling and deletion while the tests kill controllers.

use std::{io::ErrorKind, time::Duration};

use balancer_testkit::{site::PATIENCE, topology::Family};

use super::{World, at, clients};

const LONE: &[&str] = &["--lease", "none"];

/// The pauses after which the test kills the controller, in ms. After each pause, the kill interrupts another step of
/// the controller's work.
const PAUSES: [u64; 4] = [20, 150, 300, 700];

#[test]
#[ignore = "needs a real API server, which `cargo xtask lab kubernetes` has"]
fn when_a_deployment_is_rolled_out_and_controllers_are_killed_then_clients_stay_until_their_pod_ends() {
    let mut world = World::start();
    world.controller("one", LONE);
    world.service();
    world.pods(&[1, 2, 3, 4], &[]);
    world.wait_pods("four pods are up", &[("up", &[1, 2, 3, 4])]);
    let vip = world.site.topology().vip(Family::V4).to_string();
    world.wait("the address is in the status", |world| world.address().as_ref() == Some(&vip));
    let known = 1..=clients();
    let first = world.homes(known.clone());
    world.under_load(known.clone(), 20, |world| {
        // The number of pods grows from four to eight, and the test kills the controller after each new pod.
        for (number, pause) in (5..).zip(PAUSES) {
            world.pods(&(1..=number).collect::<Vec<_>>(), &[]);
            world.kill_after("one", Duration::from_millis(pause), LONE);
        }
        world.wait_pods("eight pods are up", &[("up", &[1, 2, 3, 4, 5, 6, 7, 8])]);
        assert_eq!(world.homes(known.clone()), first, "nobody known moves");
        let strangers = clients() + 1..=clients() + clients() / 4;
        let second = world.homes(strangers.clone());
        let stay = at(&second, 5..=8);
        assert!(4 * stay.len() > second.len(), "new clients come to new pods");

        // The number of pods shrinks from eight to four: clients at an ending pod stay while the pod drains.
        world.pods(&[5, 6, 7, 8], &[1, 2, 3, 4]);
        world.kill_after("one", Duration::from_millis(50), LONE);
        world.wait_pods("four drain", &[("draining", &[1, 2, 3, 4]), ("up", &[5, 6, 7, 8])]);
        assert_eq!((world.homes(known.clone()), world.homes(strangers.clone())), (first.clone(), second));
        world.pods(&[5, 6, 7, 8], &[]);
        world.kill_after("one", Duration::from_millis(50), LONE);
        world.wait_pods("four are left", &[("up", &[5, 6, 7, 8])]);
        let (moved, after) = (world.homes(known.clone()), world.homes(strangers));
        assert!(stay.iter().all(|(client, home)| after[client] == *home), "clients of pods that stay do not move");
        assert_eq!(world.homes(known.clone()), moved, "whoever has moved stays there");
        println!("{} clients moved when their pods ended; {} of other pods did not", first.len(), stay.len());
    });

    // The user scales the deployment to zero pods and back.
    world.pods(&[], &[]);
    world.kill_after("one", Duration::from_millis(100), LONE);
    world.wait_pods("no pod is left", &[]);
    let refused = world.site.ask(Family::V4, 1..=5, PATIENCE).unwrap();
    assert!(
        refused.iter().all(|reply| reply.as_ref().is_err_and(|error| error.kind() == ErrorKind::ConnectionRefused))
    );
    world.pods(&[1, 2], &[]);
    world.kill_after("one", Duration::from_millis(100), LONE);
    world.wait_pods("two are back", &[("up", &[1, 2])]);
    world.homes(known);
    assert_eq!(world.address(), Some(vip), "the address stays");

    for pause in PAUSES {
        world.delete();
        world.kill_after("one", Duration::from_millis(pause), LONE);
        world.wait_gone();
        world.service();
        world.wait_pods("it is served again", &[("up", &[1, 2])]);
    }
    // In addition, a user deletes the Service while no controller runs.
    world.kill("one");
    world.delete();
    assert!(world.shown().is_some(), "the finalizer keeps it");
    world.controller("one", LONE);
    world.wait_gone();
    world.assert_nothing_was_refused();
}
