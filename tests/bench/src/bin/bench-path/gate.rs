//! Whether the kernel program has become slower: what paths cost in yardsticks of the same series, against what they cost
//! when that was recorded.

use std::collections::BTreeMap;

use anyhow::{Result, ensure};

/// Slower by a greater part than this fails.
pub(crate) const TOLERANCE: f64 = 0.15;
/// The same where each packet is another client's: what that costs depends on what the machine's other work has left in the
/// caches.
pub(crate) const TOLERANCE_OF_MISSES: f64 = 0.30;
/// ns: a difference below this never fails, whatever part it is.
const NOISE: f64 = 2.0;
/// How often what is too slow is measured again.
pub(crate) const FURTHER_SERIES: usize = 3;

/// What paths cost: ratios by yardstick and path.
pub(crate) type Ratios = BTreeMap<String, BTreeMap<String, f64>>;

/// What a path cost in one series.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Figure {
    /// The path.
    pub(crate) path: String,
    /// ns per packet, net.
    pub(crate) ns: f64,
    /// What it is compared with.
    pub(crate) yardstick: String,
    /// ns per packet, net.
    pub(crate) yardstick_ns: f64,
    /// Slower by a greater part than this fails.
    pub(crate) tolerance: f64,
}

impl Figure {
    pub(crate) fn ratio(&self) -> f64 {
        self.ns / self.yardstick_ns
    }

    /// The greatest ratio that does not fail.
    fn limit(&self, committed: f64) -> f64 {
        (committed * (1.0 + self.tolerance)).max(committed + NOISE / self.yardstick_ns)
    }

    fn is_slower(&self, committed: f64) -> bool {
        self.ratio() > self.limit(committed)
    }

    fn is_faster(&self, committed: f64) -> bool {
        self.ratio() < (committed * (1.0 - self.tolerance)).min(committed - NOISE / self.yardstick_ns)
    }
}

/// A path's last figure, and what is committed.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Judged {
    /// What was measured last.
    pub(crate) figure: Figure,
    /// The committed ratio.
    pub(crate) committed: f64,
    /// Whether it was beyond its limit in every series.
    pub(crate) slower: bool,
    /// Whether what is committed should be recorded anew.
    pub(crate) faster: bool,
}

impl Judged {
    fn new(figure: Figure, committed: &Ratios) -> Result<Self> {
        let committed = committed.get(&figure.yardstick).and_then(|paths| paths.get(&figure.path)).copied();
        let Some(committed) = committed else { return Err(missing(&figure.path, &figure.yardstick)) };
        let (slower, faster) = (figure.is_slower(committed), figure.is_faster(committed));
        Ok(Self { figure, committed, slower, faster })
    }

    /// What is wrong with a path that is too slow.
    pub(crate) fn complaint(&self) -> String {
        let Self { figure, committed, .. } = self;
        let (measured, limit) = (figure.ratio(), figure.limit(*committed));
        format!(
            "{}: {:.1} ns, {measured:.2} times {} ({:.1} ns); committed is {committed:.2}, the limit {limit:.2} ({:.1} ns)",
            figure.path,
            figure.ns,
            figure.yardstick,
            figure.yardstick_ns,
            limit * figure.yardstick_ns,
        )
    }
}

fn missing(path: &str, yardstick: &str) -> anyhow::Error {
    anyhow::anyhow!(
        "{path}, in {yardstick}: measured, but no ratio is committed; record with `cargo xtask bench path --record`"
    )
}

/// Complains unless just the paths that are `measured`, each with its yardstick, are committed.
pub(crate) fn ensure_complete(committed: &Ratios, measured: &[(String, String)]) -> Result<()> {
    for (yardstick, path) in measured {
        let known = committed.get(yardstick).is_some_and(|paths| paths.contains_key(path));
        ensure!(known, missing(path, yardstick));
    }
    for (yardstick, paths) in committed {
        for path in paths.keys() {
            let known = measured.iter().any(|(own, name)| own == yardstick && name == path);
            ensure!(
                known,
                "{path}, in {yardstick}: a ratio is committed, but it is not measured; record with `cargo xtask bench path \
                 --record`"
            );
        }
    }
    Ok(())
}

/// Judges every path of the first series. Those beyond their limits are measured `again`, by name and with all yardsticks,
/// in up to [`FURTHER_SERIES`] more, until none is left that was beyond it in every one.
pub(crate) fn judge(
    committed: &Ratios,
    first: Vec<Figure>,
    mut again: impl FnMut(&[String]) -> Result<Vec<Figure>>,
) -> Result<Vec<Judged>> {
    let judge = |figure| Judged::new(figure, committed);
    let mut judged = first.into_iter().map(judge).collect::<Result<Vec<_>>>()?;
    for _ in 0..FURTHER_SERIES {
        let suspects: Vec<_> =
            judged.iter().filter(|judged| judged.slower).map(|judged| judged.figure.path.clone()).collect();
        if suspects.is_empty() {
            break;
        }
        for figure in again(&suspects)? {
            let anew = Judged::new(figure, committed)?;
            if let Some(place) = judged.iter_mut().find(|judged| judged.figure.path == anew.figure.path) {
                *place = anew;
            }
        }
    }
    Ok(judged)
}

/// The medians of the paths' ratios in several series.
pub(crate) fn medians(series: &[Vec<Figure>]) -> Ratios {
    let mut all: BTreeMap<(&str, &str), Vec<f64>> = BTreeMap::new();
    for figure in series.iter().flatten() {
        all.entry((&figure.yardstick, &figure.path)).or_default().push(figure.ratio());
    }
    let mut medians = Ratios::new();
    for ((yardstick, path), mut ratios) in all {
        ratios.sort_by(f64::total_cmp);
        let middle = (ratios[(ratios.len() - 1) / 2] + ratios[ratios.len() / 2]) / 2.0;
        medians.entry(yardstick.to_owned()).or_default().insert(path.to_owned(), (middle * 1000.0).round() / 1000.0);
    }
    medians
}

#[cfg(test)]
mod tests {
    use super::*;

    fn figure(path: &str, ns: f64) -> Figure {
        Figure { path: path.to_owned(), ns, yardstick: "yard".to_owned(), yardstick_ns: 20.0, tolerance: TOLERANCE }
    }

    fn committed(ratios: &[(&str, f64)]) -> Ratios {
        let paths = ratios.iter().map(|&(path, ratio)| (path.to_owned(), ratio)).collect();
        Ratios::from([("yard".to_owned(), paths)])
    }

    fn not_again(_: &[String]) -> Result<Vec<Figure>> {
        panic!("nothing is to be measured again")
    }

    /// The only path's verdict, if each series finds it at the next of these times.
    fn verdict(ratio: f64, times: &[f64]) -> (Judged, usize) {
        let mut later = times[1..].iter();
        let again = |paths: &[String]| {
            assert_eq!(paths, ["path"]);
            Ok(later.next().map(|&ns| vec![figure("path", ns)]).unwrap())
        };
        let judged = judge(&committed(&[("path", ratio)]), vec![figure("path", times[0])], again).unwrap();
        let [judged] = judged.try_into().unwrap();
        (judged, times.len() - later.len())
    }

    #[test]
    fn what_is_as_fast_as_recorded_passes_at_once() {
        for ns in [36.0, 40.0, 45.9] {
            let (judged, series) = verdict(2.0, &[ns, 99.0]);
            assert!(!judged.slower && !judged.faster && series == 1, "{ns}: {judged:?}");
        }
    }

    #[test]
    fn what_is_slower_in_every_series_fails() {
        let (judged, series) = verdict(2.0, &[46.1, 50.0, 47.0, 46.2]);
        assert!(judged.slower);
        assert_eq!(series, 1 + FURTHER_SERIES);
        assert_eq!(
            judged.complaint(),
            "path: 46.2 ns, 2.31 times yard (20.0 ns); committed is 2.00, the limit 2.30 (46.0 ns)"
        );
    }

    #[test]
    fn one_series_within_the_limit_is_enough() {
        for times in [&[50.0, 40.0, 99.0, 99.0][..], &[50.0, 50.0, 40.0, 99.0], &[50.0, 50.0, 50.0, 45.0]] {
            let (judged, series) = verdict(2.0, times);
            assert!(!judged.slower, "{times:?}");
            assert_eq!(series, 1 + times.iter().take_while(|&&ns| ns > 46.0).count());
        }
    }

    #[test]
    fn only_what_is_too_slow_is_measured_again() {
        let mut asked = Vec::new();
        let first = vec![figure("a", 30.0), figure("b", 20.0), figure("c", 30.0)];
        let again = |paths: &[String]| {
            asked.push(paths.to_vec());
            Ok(paths.iter().map(|path| figure(path, if path == "a" { 20.0 } else { 30.0 })).collect())
        };
        let judged = judge(&committed(&[("a", 1.0), ("b", 1.0), ("c", 1.0)]), first, again).unwrap();
        let slower: Vec<_> = judged.iter().filter(|judged| judged.slower).map(|judged| &*judged.figure.path).collect();
        assert_eq!(slower, ["c"]);
        assert_eq!(asked, [vec!["a".to_owned(), "c".to_owned()], vec!["c".to_owned()], vec!["c".to_owned()]]);
    }

    #[test]
    fn a_faster_yardstick_makes_the_limit_stricter() {
        let slower = |yardstick_ns| Figure { yardstick_ns, ..figure("path", 44.0) }.is_slower(2.0);
        assert!(!slower(20.0));
        assert!(slower(19.0));
    }

    #[test]
    fn who_misses_the_caches_may_take_longer() {
        let slower = |tolerance| Figure { tolerance, ..figure("path", 50.0) }.is_slower(2.0);
        assert!(slower(TOLERANCE) && !slower(TOLERANCE_OF_MISSES));
    }

    #[test]
    fn less_than_2_ns_are_noise() {
        let (judged, _) = verdict(0.2, &[5.9]);
        assert!(!judged.slower && !judged.faster, "4 ns are committed: {judged:?}");
        let (judged, _) = verdict(0.2, &[2.1]);
        assert!(!judged.faster, "{judged:?}");
        let (judged, _) = verdict(0.2, &[6.1; 4]);
        assert!(judged.slower, "{judged:?}");
    }

    #[test]
    fn what_is_faster_is_said_and_passes() {
        let (judged, _) = verdict(2.0, &[33.9]);
        assert!(judged.faster && !judged.slower);
        let (judged, _) = verdict(2.0, &[34.1]);
        assert!(!judged.faster);
    }

    #[test]
    fn paths_that_are_not_committed_or_not_measured_are_to_be_recorded() {
        let names = |paths: &[&str]| paths.iter().map(|&path| ("yard".to_owned(), path.to_owned())).collect::<Vec<_>>();
        let both = committed(&[("a", 1.0), ("b", 1.0)]);
        ensure_complete(&both, &names(&["b", "a"])).unwrap();
        let not_committed = ensure_complete(&both, &names(&["a", "b", "c"])).unwrap_err().to_string();
        assert!(not_committed.starts_with("c, in yard: measured, but no ratio is committed"), "{not_committed}");
        assert!(not_committed.ends_with("record with `cargo xtask bench path --record`"), "{not_committed}");
        let not_measured = ensure_complete(&both, &names(&["a"])).unwrap_err().to_string();
        assert!(not_measured.starts_with("b, in yard: a ratio is committed, but it is not measured"), "{not_measured}");
        assert!(not_measured.ends_with("record with `cargo xtask bench path --record`"), "{not_measured}");
        let other = judge(&both, vec![Figure { yardstick: "foot".to_owned(), ..figure("a", 1.0) }], not_again);
        assert!(other.unwrap_err().to_string().starts_with("a, in foot: measured, but no ratio is committed"));
    }

    #[test]
    fn the_middle_of_several_series_is_recorded() {
        let series = |times: &[f64]| times.iter().map(|&ns| vec![figure("path", ns)]).collect::<Vec<_>>();
        assert_eq!(medians(&series(&[20.0, 90.0, 30.0])), committed(&[("path", 1.5)]));
        assert_eq!(medians(&series(&[20.0, 90.0, 30.0, 24.0])), committed(&[("path", 1.35)]));
        assert_eq!(medians(&series(&[100.0 / 3.0])), committed(&[("path", 1.667)]));
    }
}
