//! The report about connections, as a table or as a document.

use balancer_bench::{
    figures::Spread,
    machine,
    report::document::{Document, Series},
};
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
    /// The number of failed connections.
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
    /// The full name of the figure, and the short name in the picture.
    name: &'static str,
    unit: &'static str,
    drawn: bool,
    /// Computes the figure from the contender's figures and the direct connection's figures in the same round.
    of: fn(&Figures, &Figures) -> f64,
}

const COLUMNS: [Column; 5] = [
    Column {
        title: "connections/s",
        name: "connections, as many as go",
        unit: "1/s",
        drawn: true,
        of: |own, _| own.rate,
    },
    Column {
        title: "processor µs",
        name: "processor time of a connection",
        unit: "µs",
        drawn: true,
        of: |own, _| own.processor,
    },
    Column {
        title: "… more than nobody",
        name: "processor time of a connection, more than nobody",
        unit: "µs",
        drawn: false,
        of: |own, nobody| own.processor - nobody.processor,
    },
    Column {
        title: "p50 µs",
        name: "a connection at a steady pace, p50",
        unit: "µs",
        drawn: false,
        of: |own, _| own.p50,
    },
    Column {
        title: "p99 µs",
        name: "a connection at a steady pace, p99",
        unit: "µs",
        drawn: false,
        of: |own, _| own.p99,
    },
];

impl Measured {
    fn samples(&self, column: &Column, nobody: &Self) -> Vec<f64> {
        self.rounds.iter().zip(&nobody.rounds).map(|(own, nobody)| (column.of)(own, nobody)).collect()
    }

    fn failed(&self) -> usize {
        self.rounds.iter().map(|figures| figures.failed).sum()
    }
}

/// Puts the results into a document that other programs can read.
pub(crate) fn document(all: &[Measured], left_out: Vec<String>, rate: u32) -> Document {
    let series = |measured: &Measured, nobody: &Measured| -> Vec<Series> {
        let own = |column: &Column| Series {
            ours: matches!(measured.kind, Kind::Balancer(_)),
            heading: column.drawn.then(|| column.name.to_owned()),
            ..Series::others(measured.kind.title(), column.name, column.unit, measured.samples(column, nobody))
        };
        let failed = measured.rounds.iter().map(|figures| figures.failed as f64).collect();
        let failed = Series::others(measured.kind.title(), "connections that failed", "connections", failed);
        COLUMNS.iter().map(own).chain([failed]).collect()
    };
    Document {
        benchmark: "proxy".to_owned(),
        title: "What a connection costs".to_owned(),
        about: format!(
            "HTTP, a connection for each request, over veth pairs, in turns; all share the processors. As many as go: \
             {WORKERS} at once. Steady pace: {rate} a second. {COUNTED}."
        ),
        series: all.first().map_or_else(Vec::new, |nobody| all.iter().flat_map(|one| series(one, nobody)).collect()),
        left_out,
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
