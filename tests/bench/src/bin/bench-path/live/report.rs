//! Reports the results with real frames, as a table or as a document.

use anyhow::{Context as _, Result};
use balancer_bench::{
    figures::Spread,
    machine,
    report::{
        document::{Document, Series},
        number::shown,
    },
};
use comfy_table::{Table, presets::ASCII_MARKDOWN};

use super::FRAMES;

/// The results with the frames for one program.
pub(super) struct Measured {
    name: String,
    ours: bool,
    /// The number of frames per second in every round.
    pub(super) rates: Vec<f64>,
}

impl Measured {
    pub(super) fn new(name: &str, ours: bool) -> Self {
        Self { name: name.to_owned(), ours, rates: Vec::new() }
    }

    /// Returns the rate of each round, in percent of the bare program's rate in the same round.
    fn parts(&self, bare: &Self) -> Vec<f64> {
        self.rates.iter().zip(&bare.rates).map(|(own, bare)| own / bare * 100.0).collect()
    }
}

/// Prints the results of all measured programs. The first result must be the result of the bare program.
pub(super) fn print(all: &[Measured], json: bool) -> Result<()> {
    let bare = all.first().context("nothing was measured")?;
    if json { document(all, bare).print() } else { print_table(all, bare) }
}

fn document(all: &[Measured], bare: &Measured) -> Document {
    let one = |measured: &Measured, what: &str, unit: &str, samples: Vec<f64>| {
        let series = Series { ours: measured.ours, ..Series::others(measured.name.clone(), what, unit, samples) };
        series.under(what)
    };
    let rates = all.iter().map(|measured| one(measured, "frames that come back", "1/s", measured.rates.clone()));
    let others = all.iter().skip(1);
    let parts = others.map(|measured| one(measured, "in comparison with the bare program", "%", measured.parts(bare)));
    Document {
        benchmark: "live".to_owned(),
        title: "Real frames over veth pairs, on one processor".to_owned(),
        about: format!(
            "{FRAMES} frames a round, each of the next of a million clients, are made by a program \
             (`BPF_F_TEST_XDP_LIVE_FRAMES`), cross a veth pair to the balancer's program, to one that only swaps MAC \
             addresses, or to the yardstick that steers by an array, and are sent back (`XDP_TX`) and counted: all of it \
             on one processor, so that the rate includes making and counting. veth figures, not a network card's."
        ),
        series: rates.chain(parts).collect(),
        left_out: Vec::new(),
    }
}

fn print_table(all: &[Measured], bare: &Measured) -> Result<()> {
    let mut table = Table::new();
    table.load_style(ASCII_MARKDOWN).set_header(["frames", "1/s: least / median / p95", "% of bare: the same"]);
    for measured in all {
        table.add_row([&measured.name, &cell(&measured.rates), &cell(&measured.parts(bare))]);
    }
    println!("{}", machine::describe());
    println!("frames from veth to veth on one processor, made and counted there as well; {} rounds", bare.rates.len());
    println!("{table}");
    Ok(())
}

fn cell(samples: &[f64]) -> String {
    let Spread { least, median, p95, .. } = Spread::of(samples.iter().copied());
    [least, median, p95].map(shown).join(" / ")
}
