//! How well clients are kept, and how evenly they are spread.

/// `part` of `whole`; `None` where there is nothing to divide by.
#[must_use]
pub fn share(part: u64, whole: u64) -> Option<f64> {
    (whole > 0).then(|| part as f64 / whole as f64)
}

/// Of connections of known clients, those that were kept; `None` where no known client came.
#[must_use]
pub fn stickiness(kept: u64, moved: u64) -> Option<f64> {
    let [kept, moved] = [kept, moved].map(|count| count as f64);
    (kept + moved > 0.0).then(|| kept / (kept + moved))
}

/// The largest share over expected share.
#[must_use]
pub fn imbalance(shares: impl IntoIterator<Item = (Option<f64>, Option<f64>)>) -> Option<f64> {
    let ratios =
        shares.into_iter().filter_map(|(share, expected)| Some(share? / expected.filter(|&expected| expected > 0.0)?));
    ratios.max_by(f64::total_cmp)
}
