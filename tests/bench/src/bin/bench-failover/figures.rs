//! The figures of simulated failures, as rows of the printed table.

use balancer_bench::figures::Spread;

/// The durations of failures, in ms.
#[derive(Default)]
pub(crate) struct Figures {
    pub(crate) last: Vec<f64>,
    pub(crate) elsewhere: Vec<f64>,
    pub(crate) builds: Vec<f64>,
    /// The total number of new tables after failures.
    pub(crate) tables: f64,
}

impl Figures {
    pub(crate) fn print(&self, what: &str, rounds: u16, at_once: u16) {
        println!(
            "{what:<38} {:>8} {:>20} {:>20} {:>20} {:>7.1}",
            rounds * at_once,
            spread(&self.last),
            spread(&self.elsewhere),
            spread(&self.builds),
            self.tables / f64::from(rounds),
        );
    }
}

pub(crate) fn spread(figures: &[f64]) -> String {
    let Spread { least, median, most, .. } = Spread::of(figures.iter().copied());
    format!("{least:.2} / {median:.2} / {most:.2}")
}
