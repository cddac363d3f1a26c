//! The clients: addresses that appear and disappear over the day. Some client addresses have many users.

use std::f64::consts::TAU;

pub(crate) const ABOUT: &str = "20,000 addresses, 500 of them gateways, come and go on ten equal servers for a day. \
    Behind the gateways are as many users again as there are addresses, by Zipf's law with exponent 1.1.";

pub(crate) const ADDRESSES: usize = 20_000;
const GATEWAYS: usize = 500;
const EXPONENT: f64 = 1.1;
/// The total number of users behind all gateways.
const BEHIND: f64 = 20_000.0;
/// How many minutes a client address stays present or absent, on average.
const STAYS: [f64; 2] = [120.0, 600.0];
const AWAY: [f64; 2] = [360.0, 300.0];

/// All client addresses, with the gateways first.
pub(crate) struct Population {
    random: fastrand::Rng,
    /// The number of users of each address.
    pub(crate) users: Vec<f64>,
    /// Whether each client address is present.
    pub(crate) here: Vec<bool>,
}

impl Population {
    pub(crate) fn new(seed: u64) -> Self {
        let mut random = fastrand::Rng::with_seed(seed);
        let weights: Vec<f64> = (1..=GATEWAYS).map(|rank| (rank as f64).powf(-EXPONENT)).collect();
        let all: f64 = weights.iter().sum();
        let mut users: Vec<f64> = weights.iter().map(|weight| (BEHIND * weight / all).round().max(1.0)).collect();
        users.resize(ADDRESSES, 1.0);
        let here = (0..ADDRESSES).map(|_| random.f64() < 0.3).collect();
        Self { random, users, here }
    }

    /// Returns the number of users of the largest present gateway.
    pub(crate) fn largest(&self) -> f64 {
        let here = self.users.iter().zip(&self.here).filter(|&(_, here)| *here);
        here.map(|(&users, _)| users).fold(0.0, f64::max)
    }

    /// Simulates a minute in which client addresses appear and disappear. In the daytime, more client addresses appear
    /// than at night.
    pub(crate) fn minute(&mut self, minute: usize) {
        let day = 1.0 - 0.8 * (TAU * minute as f64 / super::DAY as f64).cos();
        for (index, here) in self.here.iter_mut().enumerate() {
            let kind = usize::from(index < GATEWAYS);
            let chance = if *here { 1.0 / STAYS[kind] } else { day / AWAY[kind] };
            *here ^= self.random.f64() < chance;
        }
    }
}
