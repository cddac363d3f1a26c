//! Random sequences of events and changes, run against an in-memory data plane and a model. The data plane refuses
//! commands that would break a real data plane, and the model derives the expected state anew after each step.
//!
//! The command `cargo xtask soak` runs a hundred thousand of these sequences.

mod disk;
mod inspect;
mod plain_maglev;
mod plane;
mod step;
mod world;

use proptest::{
    prelude::*,
    test_runner::{RngSeed, TestRunner},
};

use self::{step::step, world::World};

/// The number of random sequences in each test, unless `PROPTEST_CASES` sets another number.
const CASES: u32 = 500;

/// Runs the random sequences of `seed`; `PROPTEST_RNG_SEED` selects other sequences.
fn the_data_plane_survives_everything(seed: u64) {
    let mut config = ProptestConfig { max_shrink_iters: 20_000, ..ProptestConfig::default() };
    if std::env::var_os("PROPTEST_CASES").is_none() {
        config.cases = CASES;
    }
    if config.rng_seed == RngSeed::Random {
        config.rng_seed = RngSeed::Fixed(seed);
    }
    let said = format!("{:?}", config.rng_seed);
    let sequences = prop::collection::vec(step(), 5..=30);
    let played = TestRunner::new(config).run(&sequences, |steps| {
        let mut world = World::new();
        for step in steps {
            world.step(step);
        }
        Ok(())
    });
    if let Err(error) = played {
        panic!("{said}: {error}");
    }
}

#[test]
fn when_anything_happens_then_the_data_plane_survives_1() {
    the_data_plane_survives_everything(1);
}

#[test]
fn when_anything_happens_then_the_data_plane_survives_2() {
    the_data_plane_survives_everything(2);
}

#[test]
fn when_anything_happens_then_the_data_plane_survives_3() {
    the_data_plane_survives_everything(3);
}

#[test]
fn when_anything_happens_then_the_data_plane_survives_4() {
    the_data_plane_survives_everything(4);
}
