//! Whole fleets at random: members with data paths, a store, users, clients, and everything that can go wrong.

mod flaps;
mod node;
mod plane;
mod store;
mod world;

use std::panic::{AssertUnwindSafe, catch_unwind};

use crate::member::Mutation;
use world::World;

/// A fleet's life: `rounds` of trouble and calm.
fn live(seed: u64, rounds: usize, mutation: Option<Mutation>) -> World {
    let mut world = World::new(seed, mutation);
    world.settle();
    for _ in 0..rounds {
        let events = world.rng.usize(5..40);
        let trouble = world.rng.u8(1..=6);
        for _ in 0..events {
            for _ in 0..world.rng.usize(..12) {
                let client = world.rng.u32(..120);
                world.packet(client);
            }
            match world.rng.u8(..10) {
                0..=2 => world.wish(),
                roll if roll < 2 + trouble => world.disturb(),
                _ => {}
            }
            let time = world.rng.u64(10..1500);
            world.pass(time / 10 * 10);
        }
        world.settle();
    }
    world
}

fn seeds() -> std::ops::Range<u64> {
    let count = std::env::var("FLEET_SEEDS").ok().and_then(|count| count.parse().ok()).unwrap_or(12);
    let first = std::env::var("FLEET_FIRST_SEED").ok().and_then(|first| first.parse().ok()).unwrap_or(0);
    first..first + count
}

/// What goes wrong in a fleet's life, if something does.
fn fate(seed: u64, mutation: Option<Mutation>) -> Result<World, String> {
    catch_unwind(AssertUnwindSafe(|| live(seed, 3, mutation))).map_err(|panic| {
        let text = panic.downcast_ref::<String>().cloned();
        text.or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned())).unwrap_or_default()
    })
}

#[test]
fn deliberate_mistakes_are_found() {
    for mutation in [Mutation::TellsNothingByItself, Mutation::JoinsWithoutClients] {
        let found = (0..60).find_map(|seed| fate(seed, Some(mutation)).err().map(|why| (seed, why)));
        let (seed, why) = found.unwrap_or_else(|| panic!("{mutation:?} is not found"));
        println!("{mutation:?}: seed {seed}: {}", why.lines().next().unwrap_or_default());
    }
}

#[test]
fn members_agree_and_nobody_moves_without_a_cause() {
    let mut sum = [0; 4];
    let mut failures = Vec::new();
    for seed in seeds() {
        match fate(seed, None) {
            Ok(world) => {
                for (sum, count) in sum.iter_mut().zip([world.packets, world.moved, world.skewed, world.granted]) {
                    *sum += count;
                }
            }
            Err(why) => failures.push((seed, why)),
        }
    }
    let [packets, moved, skewed, granted] = sum;
    println!("{packets} packets, {moved} moves, {skewed} by skew, {granted} changes");
    for (seed, why) in &failures {
        println!("seed {seed}: {}", why.lines().next().unwrap_or_default());
    }
    if let Some((seed, why)) = failures.first() {
        panic!("{} fail; seed {seed}: {why}", failures.len());
    }
    assert!(packets > 0 && moved > 0 && granted > 0, "nothing happened");
}
