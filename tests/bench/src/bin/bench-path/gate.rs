//! Decides whether a change has made the kernel program slower; the decision uses alternating runs of the program
//! before the change and of the program after the change.

/// The comparison fails if a path is slower by more than this fraction.
pub(crate) const TOLERANCE: f64 = 0.07;
/// A difference of less than this number of ns never makes the comparison fail.
const NOISE: f64 = 1.0;

/// The times of one run, in ns per packet.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Took {
    /// The time with the kernel program.
    pub(crate) full: f64,
    /// The time with the empty program.
    pub(crate) empty: f64,
}

/// The runs of a path with two programs, which the benchmark runs alternately.
#[derive(Clone, Debug, Default)]
pub(crate) struct Turns {
    before: Vec<Took>,
    after: Vec<Took>,
}

impl Turns {
    /// Records one run of each of the two programs.
    pub(crate) fn push(&mut self, before: Took, after: Took) {
        self.before.push(before);
        self.after.push(after);
    }

    /// Compares the two programs over all recorded runs; returns `None` if there are no runs.
    pub(crate) fn compare(&self) -> Option<Compared> {
        // The benchmark compares both programs with the same empty program.
        let empty = median(self.before.iter().chain(&self.after).map(|took| took.empty).collect())?;
        let net = |side: &[Took]| side.iter().map(|took| took.full - empty).collect::<Vec<_>>();
        let least = |net: &[f64]| net.iter().copied().reduce(f64::min);
        let (before, after) = (net(&self.before), net(&self.after));
        let mut ratios: Vec<f64> = before.iter().zip(&after).map(|(before, after)| after / before).collect();
        ratios.sort_by(f64::total_cmp);
        let quarter = ratios.len() / 4;
        let spread = (*ratios.get(quarter)?, *ratios.get(ratios.len() - 1 - quarter)?);
        Some(Compared { before: least(&before)?, after: least(&after)?, middle: median(ratios)?, spread })
    }
}

/// The costs of a path with both programs.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Compared {
    /// The time per packet of the fastest run before the change in ns, without the time of the empty program.
    pub(crate) before: f64,
    /// The time per packet of the fastest run after the change in ns, without the time of the empty program.
    pub(crate) after: f64,
    /// The median of the rounds' ratios; a ratio compares the time after the change with the time before the change.
    pub(crate) middle: f64,
    /// The quartiles of the rounds' ratios; a ratio compares the time after the change with the time before the change.
    pub(crate) spread: (f64, f64),
}

impl Compared {
    /// The ratio of the fastest run after the change to the fastest run before the change.
    pub(crate) fn ratio(&self) -> f64 {
        self.after / self.before
    }

    /// Returns whether the change has made the path slower by more than [`TOLERANCE`]. The fastest runs and the median
    /// of the rounds must be slower. Other processes delay the fastest runs least, and a single lucky run does not
    /// change the median. On a busy machine, the times of the rounds vary widely, so three of four rounds must also be
    /// slower by half of the tolerance.
    pub(crate) fn is_slower(&self) -> bool {
        let (low, _) = self.spread;
        self.ratio().min(self.middle) > 1.0 + TOLERANCE
            && low > 1.0 + TOLERANCE / 2.0
            && self.after - self.before > NOISE
    }
}

/// Returns the median of `numbers`.
pub(crate) fn median(mut numbers: Vec<f64>) -> Option<f64> {
    numbers.sort_by(f64::total_cmp);
    let last = numbers.len().checked_sub(1)?;
    Some((numbers[last / 2] + numbers[numbers.len() / 2]) / 2.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn turns(nets: &[(f64, f64)]) -> Turns {
        let mut turns = Turns::default();
        let took = |net| Took { full: 30.0 + net, empty: 30.0 };
        nets.iter().for_each(|&(before, after)| turns.push(took(before), took(after)));
        turns
    }

    #[test]
    fn when_every_turn_is_slower_by_a_tenth_then_it_is_slower() {
        let compared = turns(&[(20.0, 22.0), (30.0, 33.0), (40.0, 44.0)]).compare().unwrap();
        assert!((compared.middle - 1.1).abs() < 1e-9 && compared.is_slower(), "{compared:?}");
        assert_eq!((compared.before, compared.after), (20.0, 22.0));
    }

    #[test]
    fn when_the_machine_is_slow_for_a_while_then_nothing_is_said_of_the_program() {
        let compared =
            turns(&[(20.0, 20.2), (60.0, 59.0), (20.0, 20.0), (20.1, 90.0), (20.0, 20.1)]).compare().unwrap();
        assert!(!compared.is_slower(), "{compared:?}");
        assert_eq!(compared.before, 20.0);
    }

    #[test]
    fn when_only_one_turn_was_fast_then_most_turns_decide() {
        let compared =
            turns(&[(15.0, 20.0), (20.0, 20.0), (20.0, 20.1), (20.0, 20.0), (20.0, 20.0)]).compare().unwrap();
        assert!(compared.ratio() > 1.3 && !compared.is_slower(), "{compared:?}");
    }

    #[test]
    fn when_turns_disagree_then_it_is_not_slower() {
        let compared =
            turns(&[(20.0, 30.0), (40.0, 26.0), (20.0, 28.0), (30.0, 30.0), (20.0, 24.0)]).compare().unwrap();
        assert!(compared.ratio() > 1.1 && compared.middle > 1.1 && !compared.is_slower(), "{compared:?}");
    }

    #[test]
    fn when_it_is_slower_by_less_than_is_tolerated_then_it_is_not_slower() {
        assert!(!turns(&[(20.0, 21.3); 5]).compare().unwrap().is_slower());
        assert!(turns(&[(20.0, 21.5); 5]).compare().unwrap().is_slower());
    }

    #[test]
    fn when_the_difference_is_less_than_a_nanosecond_then_it_is_not_slower() {
        assert!(!turns(&[(5.0, 5.9); 5]).compare().unwrap().is_slower());
        assert!(turns(&[(5.0, 6.1); 5]).compare().unwrap().is_slower());
    }

    #[test]
    fn when_one_empty_run_is_slow_then_it_does_not_count() {
        let mut turns = turns(&[(20.0, 20.0); 4]);
        turns.push(Took { full: 50.0, empty: 45.0 }, Took { full: 50.0, empty: 30.0 });
        assert_eq!(turns.compare().unwrap().spread, (1.0, 1.0));
    }

    #[test]
    fn when_nothing_was_measured_then_nothing_is_said() {
        assert_eq!(Turns::default().compare(), None);
    }
}
