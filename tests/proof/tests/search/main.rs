//! Searches of the small worlds, and mutants of the rule that the searches must find.
#![expect(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]
#![expect(clippy::wildcard_enum_match_arm, reason = "a mutant changes one rule")]

mod decisions;
mod rows;
mod stores;

use std::{env, fmt::Debug};

use balancer_proof::search::{Searched, World, search};

/// Visits up to `most` states of `world`, an expression in Rust, and says how many there were. `PROOF_STATES` sets
/// another number.
fn holds<W: World>(expression: &str, world: &W, most: usize) -> Searched<W::Event> {
    let most = env::var("PROOF_STATES").map_or(Ok(most), |number| number.parse()).unwrap();
    let searched = search(world, most);
    if let Some(broken) = &searched.broken {
        panic!("{}", broken.test(expression));
    }
    println!("{expression}: {searched}");
    searched
}

/// Asserts that the search finds a mutant, prints the shortest sequence as a test, and returns its length.
fn finds<W: World<Event: Debug>>(expression: &str, world: &W, most: usize) -> usize {
    let searched = search(world, most);
    let Some(broken) = &searched.broken else { panic!("{expression} survives: {searched}") };
    println!("{searched}\n{}", broken.test(expression));
    broken.events.len()
}
