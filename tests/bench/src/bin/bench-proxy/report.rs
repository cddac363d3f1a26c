//! The report about connections.

use balancer_bench::{figures::Spread, machine};
use comfy_table::{CellAlignment, Table, presets::ASCII_MARKDOWN};

use crate::{contender::Kind, load::WORKERS, processor::COUNTED};

/// The figures of a contender in one round.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Figures {
    /// The number of connections per second at full speed.
    pub(crate) rate: f64,
    /// The processor time per connection, in µs.
    pub(crate) processor: f64,
    /// The median latency of connections at a steady pace, in µs.
    pub(crate) p50: f64,
    /// The 99th percentile of the latencies of connections at a steady pace, in µs.
    pub(crate) p99: f64,
    pub(crate) failed: usize,
}

/// A contender, and its figures from all rounds.
pub(crate) struct Measured {
    pub(crate) kind: Kind,
    pub(crate) rounds: Vec<Figures>,
}

/// A figure that the report contains for each contender.
struct Column {
    title: &'static str,
    /// Computes the figure from the contender's figures and the direct connection's figures in the same round.
    of: fn(&Figures, &Figures) -> f64,
}

const COLUMNS: [Column; 5] = [
    Column { title: "connections/s", of: |own, _| own.rate },
    Column { title: "processor µs", of: |own, _| own.processor },
    Column { title: "… more than nobody", of: |own, nobody| own.processor - nobody.processor },
    Column { title: "p50 µs", of: |own, _| own.p50 },
    Column { title: "p99 µs", of: |own, _| own.p99 },
];

impl Measured {
    fn samples(&self, column: &Column, nobody: &Self) -> Vec<f64> {
        self.rounds.iter().zip(&nobody.rounds).map(|(own, nobody)| (column.of)(own, nobody)).collect()
    }

    fn failed(&self) -> usize {
        self.rounds.iter().map(|figures| figures.failed).sum()
    }
}

pub(crate) fn print(all: &[Measured], rate: u32) {
    let Some(nobody) = all.first() else { return };
    let mut table = Table::new();
    let titles = COLUMNS.iter().map(|column| column.title);
    let header = ["between clients and servers"].into_iter().chain(titles).chain(["failed"]);
    table.load_style(ASCII_MARKDOWN).set_header(header);
    for measured in all {
        let cells = COLUMNS.iter().map(|column| {
            let Spread { least, median, p95, .. } = Spread::of(measured.samples(column, nobody));
            format!("{least:.0} / {median:.0} / {p95:.0}")
        });
        table.add_row(
            [measured.kind.title().to_owned()].into_iter().chain(cells).chain([measured.failed().to_string()]),
        );
    }
    for index in 1..=COLUMNS.len() + 1 {
        if let Some(column) = table.column_mut(index) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    println!("{}", machine::describe());
    println!("least / median / 95th percentile of {} rounds; all share the processors", nobody.rounds.len());
    println!("connections/s and processor time of a connection: {WORKERS} at once; p50 and p99: {rate} a second");
    println!("{COUNTED}");
    println!("{table}");
}
