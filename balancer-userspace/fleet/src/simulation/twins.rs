//! Tests with two balancers that have the same name.

use balancer_config::config::Failback;

use super::world::{World, service};

fn troubles(world: &World, index: usize) -> String {
    world.nodes[index].as_ref().map(|node| node.member.troubles().join("\n")).unwrap_or_default()
}

fn is_in_step(world: &World, index: usize) -> bool {
    world.nodes[index].as_ref().is_some_and(|node| node.member.is_in_step() && !node.alone)
}

#[test]
fn when_a_second_balancer_has_a_members_name_then_it_is_refused_until_that_has_gone() {
    for seed in 0..4 {
        let mut world = World::of_three(seed, service("web", "198.51.100.1:80", Failback::Stay), None);
        world.settle();
        world.kill(2, true);
        world.pass(10_000);
        world.names.insert(2, 1);
        world.start(2);
        for _ in 0..20 {
            world.pass(1000);
            assert!(!is_in_step(&world, 2) && is_in_step(&world, 0) && is_in_step(&world, 1));
        }
        let said = troubles(&world, 2);
        assert!(
            said.contains("the member name lb1 is in use by another balancer (instance 0000000000000002"),
            "{said}"
        );
        assert_eq!(troubles(&world, 1).matches("already").count(), 0, "{}", troubles(&world, 1));
        // The first balancer restarts in its own home, so it gets its name back at once.
        world.kill(1, false);
        world.start(1);
        world.pass(15_000);
        assert!(is_in_step(&world, 1) && !is_in_step(&world, 2), "{}", troubles(&world, 1));
        world.kill(1, true);
        world.pass(20_000);
        assert!(is_in_step(&world, 2), "{}", troubles(&world, 2));
        // The second balancer has the name at this time.
        world.start(1);
        world.pass(20_000);
        assert!(!is_in_step(&world, 1) && is_in_step(&world, 2), "{}", troubles(&world, 1));
    }
}

#[test]
fn when_two_balancers_of_one_name_start_together_then_one_is_refused() {
    for seed in 0..10 {
        let mut world = World::of_three(seed, service("web", "198.51.100.1:80", Failback::Stay), None);
        world.settle();
        (1..3).for_each(|index| world.kill(index, true));
        world.pass(10_000);
        world.names.insert(2, 1);
        (1..3).for_each(|index| world.start(index));
        world.pass(30_000);
        assert!(is_in_step(&world, 1) != is_in_step(&world, 2), "{} {}", troubles(&world, 1), troubles(&world, 2));
    }
}
