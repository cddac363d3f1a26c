//! Random sequences of events and changes, against a data plane in memory that refuses what the real one could not
//! survive, and a model that says anew after each step what should be.
//!
//! A hundred thousand of them: `cargo xtask soak`.

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

/// How many sequences each test plays, unless `PROPTEST_CASES` says otherwise.
const CASES: u32 = 500;

/// Sequences that `seed` leads to; another one than these comes by `PROPTEST_RNG_SEED`.
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
fn the_data_plane_survives_everything_1() {
    the_data_plane_survives_everything(1);
}

#[test]
fn the_data_plane_survives_everything_2() {
    the_data_plane_survives_everything(2);
}

#[test]
fn the_data_plane_survives_everything_3() {
    the_data_plane_survives_everything(3);
}

#[test]
fn the_data_plane_survives_everything_4() {
    the_data_plane_survives_everything(4);
}
