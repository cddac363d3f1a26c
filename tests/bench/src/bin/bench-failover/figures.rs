//! The figures of simulated failures, as rows of the printed table and as a document.

use balancer_bench::{
    figures::Spread,
    report::document::{Document, Series},
};

use crate::{CLIENTS, FALL};

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

    pub(crate) fn series(self, of: &str) -> [Series; 3] {
        let all = [
            ("last packet at the dead backend", self.last),
            ("the same clients' next packet elsewhere", self.elsewhere),
            ("the controller's own part", self.builds),
        ];
        all.map(|(what, samples)| Series::ours(of, what, "ms", samples))
    }
}

pub(crate) fn spread(figures: &[f64]) -> String {
    let Spread { least, median, most, .. } = Spread::of(figures.iter().copied());
    format!("{least:.2} / {median:.2} / {most:.2}")
}

pub(crate) fn document(series: Vec<Series>) -> Document {
    Document {
        benchmark: "failover".to_owned(),
        title: "From the detection of a failure to its effect".to_owned(),
        about: format!(
            "From the refused check that decides, the last of {FALL} in a row, as seen on the wire; {CLIENTS} clients. A sample \
             is a backend that failed (of the controller's own part: a failure of one or several)."
        ),
        series,
        left_out: Vec::new(),
    }
}
