//! A simulated site, in which known clients stay at their servers whatever happens for a few seconds.
//!
//! The controller, the rules about which checks count, the client table, the memory rule and imports are the real code.
//! Time, servers, packets and forged packets are simulated. A client may leave its server only if the server has been
//! unreachable for so long that the checks found it down. In the end, the next connection of each client goes to the
//! server of its last one.

mod clients;
mod event;
mod list;
mod prober;
mod server;
mod world;

use proptest::{
    prelude::*,
    test_runner::{RngSeed, TestRunner},
};

use self::{event::story, world::World};

/// The number of sequences for each change, unless `PROPTEST_CASES` sets another number.
const CASES: u32 = 200;

/// Plays random sequences of events; `PROPTEST_RNG_SEED` selects other sequences than `seed`.
fn known_clients_stay(cases: u32, seed: u64) {
    let mut config = ProptestConfig { max_shrink_iters: 500, ..ProptestConfig::default() };
    if std::env::var_os("PROPTEST_CASES").is_none() {
        config.cases = cases;
    }
    if config.rng_seed == RngSeed::Random {
        config.rng_seed = RngSeed::Fixed(seed);
    }
    let said = format!("PROPTEST_RNG_SEED, {:?}", config.rng_seed);
    let played = TestRunner::new(config).run(&story(), |story| {
        World::new(story.forwarding, story.seed).play(&story.events).map_err(TestCaseError::fail)
    });
    if let Err(error) = played {
        panic!("{said}: {error}");
    }
}

#[test]
fn when_anything_happens_for_seconds_then_known_clients_are_where_they_were() {
    known_clients_stay(CASES, 1);
}

mod release {
    #[test]
    fn when_anything_happens_for_seconds_then_known_clients_are_where_they_were() {
        super::known_clients_stay(10_000, 2);
    }
}
