//! Reports the results with real frames.

use anyhow::{Context as _, Result};
use balancer_bench::{figures::Spread, machine};
use comfy_table::{Table, presets::ASCII_MARKDOWN};

/// The results with the frames for one program.
pub(super) struct Measured {
    name: String,
    /// The number of frames per second in every round.
    pub(super) rates: Vec<f64>,
}

impl Measured {
    pub(super) fn new(name: &str) -> Self {
        Self { name: name.to_owned(), rates: Vec::new() }
    }

    /// Returns the rate of each round, in percent of the bare program's rate in the same round.
    fn parts(&self, bare: &Self) -> Vec<f64> {
        self.rates.iter().zip(&bare.rates).map(|(own, bare)| own / bare * 100.0).collect()
    }
}

/// Prints the results of all measured programs. The first result must be the result of the bare program.
pub(super) fn print(all: &[Measured]) -> Result<()> {
    let bare = all.first().context("nothing was measured")?;
    let mut table = Table::new();
    table.load_style(ASCII_MARKDOWN).set_header(["frames", "1/s: least / median / p95", "% of bare: the same"]);
    for measured in all {
        table.add_row([&measured.name, &cell(&measured.rates, 0), &cell(&measured.parts(bare), 1)]);
    }
    println!("{}", machine::describe());
    println!("frames from veth to veth on one processor, made and counted there as well; {} rounds", bare.rates.len());
    println!("{table}");
    Ok(())
}

fn cell(samples: &[f64], digits: usize) -> String {
    let Spread { least, median, p95, .. } = Spread::of(samples.iter().copied());
    [least, median, p95].map(|value| format!("{value:.digits$}")).join(" / ")
}
