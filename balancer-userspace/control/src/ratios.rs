//! Ratios that show how many known clients keep their backends, and how evenly clients are spread over backends.

/// The ratio of `part` to `whole`; `None`: `whole` is 0.
#[must_use]
pub fn share(part: u64, whole: u64) -> Option<f64> {
    (whole > 0).then(|| part as f64 / whole as f64)
}

/// Returns the ratio of kept connections to all connections of known clients; `None` if no known client opened a
/// connection.
#[must_use]
pub fn stickiness(kept: u64, moved: u64) -> Option<f64> {
    let [kept, moved] = [kept, moved].map(|count| count as f64);
    (kept + moved > 0.0).then(|| kept / (kept + moved))
}

/// The largest ratio of a backend's actual share to its expected share, among backends that take new clients; each pair
/// belongs to one backend.
///
/// Backends with an expected share of zero (drained, down, weight 0) count in neither sum: their remaining clients
/// would make all other backends look too small.
#[must_use]
pub fn imbalance(shares: impl IntoIterator<Item = (Option<f64>, Option<f64>)>) -> Option<f64> {
    let eligible: Vec<(f64, f64)> =
        shares.into_iter().filter_map(|(share, expected)| Some((share?, expected.filter(|&of| of > 0.0)?))).collect();
    let whole: f64 = eligible.iter().map(|(share, _)| share).sum();
    let ratios = eligible.iter().map(|(share, expected)| share / whole / expected);
    ratios.max_by(f64::total_cmp).filter(|_| whole > 0.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn when_two_of_three_backends_are_drained_then_the_third_alone_is_balanced() {
        let drained = (Some(0.465), Some(0.0));
        assert_eq!(imbalance([(Some(0.07), Some(1.0)), drained, drained]), Some(1.0));
    }

    #[test]
    fn when_a_backend_drains_then_the_others_are_compared_with_each_other() {
        let ratio = imbalance([(Some(0.3), Some(0.5)), (Some(0.1), Some(0.5)), (Some(0.6), Some(0.0))]);
        assert!((ratio.unwrap_or_default() - 1.5).abs() < 1e-9, "{ratio:?}");
    }

    #[test]
    fn when_no_backend_that_takes_new_clients_has_any_then_there_is_no_ratio() {
        assert_eq!(imbalance([(Some(0.0), Some(1.0)), (Some(1.0), Some(0.0))]), None);
        assert_eq!(imbalance([(None, Some(1.0))]), None);
        assert_eq!(imbalance([(Some(1.0), None)]), None);
    }
}
