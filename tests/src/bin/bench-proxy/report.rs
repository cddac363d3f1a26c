//! What is printed.

use balancer_tests::machine;
use comfy_table::{CellAlignment, Table, presets::ASCII_MARKDOWN};
use serde_json::{Value, json};

use crate::{figures::Spread, load::WORKERS, processor::COUNTED};

/// What one round says of a contender.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Figures {
    /// Connections per second, as many as it takes.
    pub(crate) rate: f64,
    /// Processor time of a connection, in µs.
    pub(crate) processor: f64,
    /// Of connections at a steady pace, in µs.
    pub(crate) p50: f64,
    /// The same.
    pub(crate) p99: f64,
    /// Connections that failed.
    pub(crate) failed: usize,
}

/// A contender and its rounds.
pub(crate) struct Measured {
    pub(crate) title: &'static str,
    pub(crate) rounds: Vec<Figures>,
}

/// What is measured of a contender.
struct Column {
    title: &'static str,
    /// In JSON.
    name: &'static str,
    /// Of each round; the second contender is the one without anybody in the middle.
    of: fn(&Figures, &Figures) -> f64,
}

const COLUMNS: [Column; 5] = [
    Column { title: "connections/s", name: "connections_per_second", of: |own, _| own.rate },
    Column { title: "processor µs", name: "processor_us", of: |own, _| own.processor },
    Column {
        title: "… more than nobody",
        name: "processor_us_more",
        of: |own, nobody| own.processor - nobody.processor,
    },
    Column { title: "p50 µs", name: "p50_us", of: |own, _| own.p50 },
    Column { title: "p99 µs", name: "p99_us", of: |own, _| own.p99 },
];

impl Measured {
    fn spread(&self, column: &Column, nobody: &Self) -> Spread {
        Spread::of(self.rounds.iter().zip(&nobody.rounds).map(|(own, nobody)| (column.of)(own, nobody)))
    }

    fn failed(&self) -> usize {
        self.rounds.iter().map(|figures| figures.failed).sum()
    }
}

pub(crate) fn json(all: &[Measured], missing: &[&str], rate: u32) -> Value {
    let Some(nobody) = all.first() else { return Value::Null };
    let one = |measured: &Measured| {
        let mut object =
            json!({ "name": measured.title, "rounds": measured.rounds.len(), "failed": measured.failed() });
        for column in &COLUMNS {
            let Spread { least, median, p95 } = measured.spread(column, nobody);
            object[column.name] = json!({ "min": least, "median": median, "p95": p95 });
        }
        object
    };
    json!({
        "machine": machine::describe(),
        "counted": COUNTED,
        "at_once": WORKERS,
        "paced_rate": rate,
        "contenders": all.iter().map(one).collect::<Vec<_>>(),
        "missing": missing,
    })
}

pub(crate) fn print(all: &[Measured], rate: u32) {
    let Some(nobody) = all.first() else { return };
    let mut table = Table::new();
    let titles = COLUMNS.iter().map(|column| column.title);
    let header = ["between clients and servers"].into_iter().chain(titles).chain(["failed"]);
    table.load_style(ASCII_MARKDOWN).set_header(header);
    for measured in all {
        let cells = COLUMNS.iter().map(|column| {
            let Spread { least, median, p95 } = measured.spread(column, nobody);
            format!("{least:.0} / {median:.0} / {p95:.0}")
        });
        table.add_row([measured.title.to_owned()].into_iter().chain(cells).chain([measured.failed().to_string()]));
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
