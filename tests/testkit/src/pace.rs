//! The pace of this machine: the time limits of waits grow on a slow or busy machine.

use std::{
    hint::black_box,
    sync::LazyLock,
    time::{Duration, Instant},
};

use balancer_common::client::{HashKey, hash_v6};

/// The number of hashes that measure the pace.
const HASHES: u64 = 1_000_000;
/// About the time of the hashes on an idle processor of a machine on which all limits suffice.
const USUAL: Duration = Duration::from_millis(40);
/// The largest factor: the test runner gives a test five minutes, and the longest limits are a minute.
const MOST: f64 = 4.0;

/// The limit of a wait on this machine, given the limit on a machine that is fast enough. The limit says only how late a
/// test fails.
#[must_use]
pub fn patience(limit: Duration) -> Duration {
    static FACTOR: LazyLock<f64> = LazyLock::new(|| factor(measure()));
    limit.mul_f64(*FACTOR)
}

/// How many times as long as elsewhere a wait may last, given the time of the hashes.
fn factor(took: Duration) -> f64 {
    took.div_duration_f64(USUAL).clamp(1.0, MOST)
}

fn measure() -> Duration {
    let began = Instant::now();
    let key = HashKey { k0: 1, k1: 2 };
    let sum = (0..HASHES).fold(0u64, |sum, number| sum.wrapping_add(hash_v6(key, [number, sum])));
    black_box(sum);
    began.elapsed()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn when_the_machine_is_slower_then_limits_are_longer_but_never_shorter() {
        for (took, expected) in [(1, 1.0), (40, 1.0), (80, 2.0), (1000, 4.0)] {
            let factor = factor(Duration::from_millis(took));
            assert!((factor - expected).abs() < 1e-9, "{took} ms: {factor}");
        }
        assert!(patience(Duration::from_secs(1)) >= Duration::from_secs(1));
        println!("{:?}", measure());
    }
}
