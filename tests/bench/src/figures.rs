//! Computes statistics about the figures of many rounds.

use std::time::Duration;

/// The spread of the figures of all rounds.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Spread {
    pub least: f64,
    /// The median, or the lower one of two medians.
    pub median: f64,
    /// The 95th percentile, which 19 of 20 figures do not exceed.
    pub p95: f64,
    pub most: f64,
}

impl Spread {
    /// Computes the spread of `figures`; without figures, all values are NaN.
    pub fn of(figures: impl IntoIterator<Item = f64>) -> Self {
        let mut figures: Vec<f64> = figures.into_iter().collect();
        figures.sort_unstable_by(f64::total_cmp);
        let at = |share| rank(figures.len(), share).and_then(|rank| figures.get(rank)).copied().unwrap_or(f64::NAN);
        Self { least: at(0.0), median: at(0.5), p95: at(0.95), most: at(1.0) }
    }
}

/// Returns a percentile of times in ascending order, in µs; `share` is from 0 to 1. Returns NaN if the list of times is
/// empty.
#[must_use]
pub fn percentile(sorted: &[Duration], share: f64) -> f64 {
    let time = rank(sorted.len(), share).and_then(|rank| sorted.get(rank));
    time.map_or(f64::NAN, |time| time.as_secs_f64() * 1e6)
}

/// Returns the nearest rank of a percentile, counted from 0.
fn rank(count: usize, share: f64) -> Option<usize> {
    let rank = (count as f64 * share).ceil() as usize;
    (count > 0).then(|| rank.clamp(1, count) - 1)
}

#[must_use]
pub fn milliseconds(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::{Spread, percentile};

    #[test]
    fn when_a_percentile_is_computed_then_the_nearest_rank_is_used() {
        let spread = Spread::of([5.0, 1.0, 4.0, 2.0, 3.0]);
        assert_eq!(spread, Spread { least: 1.0, median: 3.0, p95: 5.0, most: 5.0 });
        let spread = Spread::of((1..=40).map(f64::from));
        assert_eq!(spread, Spread { least: 1.0, median: 20.0, p95: 38.0, most: 40.0 });
        let times: Vec<Duration> = (1..=100).map(Duration::from_micros).collect();
        assert_eq!((percentile(&times, 0.5), percentile(&times, 0.99)), (50.0, 99.0));
    }

    #[test]
    fn when_there_are_no_figures_then_there_is_no_number() {
        assert!(Spread::of([]).median.is_nan());
        assert!(percentile(&[], 0.5).is_nan());
    }
}
