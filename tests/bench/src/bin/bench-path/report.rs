//! The reports about the measured paths.

use std::ops::RangeInclusive;

use anyhow::{Context as _, Result};
use balancer_bench::machine;
use comfy_table::{CellAlignment, Table, presets::ASCII_MARKDOWN};

use crate::{against::Looked, bench::Series, both::Both, gate::Compared, paths::REFERENCE, yardsticks::LRU_HASH};

pub(crate) fn print(series: &Series) -> Result<()> {
    let reference = reference(series)?;
    let mut table = table(&["path", "net ns", "ratio", &format!("in {LRU_HASH}"), "wanted, ns"], 1..=3);
    for row in &series.yardsticks {
        table.add_row([
            &format!("yardstick: {}", row.path.name),
            &tenths(row.net),
            &ratio(row.net / reference),
            "",
            "",
        ]);
    }
    let yardstick = series.yardsticks.iter().find(|row| row.path.name == LRU_HASH);
    let yardstick = yardstick.with_context(|| format!("{LRU_HASH} was not measured"))?.net;
    for row in &series.paths {
        let in_yardsticks = ratio(row.net / yardstick);
        table.add_row([&row.path.name, &tenths(row.net), &ratio(row.net / reference), &in_yardsticks, row.path.wanted]);
    }
    println!("{}", machine::describe());
    println!("ns per packet, net of an empty program; wanted on a machine that is not this one");
    println!("{table}");
    Ok(())
}

/// Prints the costs of each path on one CPU, and on one of two CPUs at the same time.
pub(crate) fn print_both(all: &[Both]) -> Result<()> {
    let mut table = table(&["path", "one CPU, ns", "each of two, ns", "ratio"], 1..=3);
    for Both { path, alone, together } in all {
        table.add_row([path, &tenths(*alone), &tenths(*together), &ratio(together / alone)]);
    }
    println!("{}", machine::describe());
    println!("ns per packet, net of an empty program in the same situation; medians");
    println!("{table}");
    Ok(())
}

/// Prints the costs of each path before and after the change.
pub(crate) fn print_compared(looked: &[Looked]) {
    let mut table = table(&["path", "before", "after", "ratio", "in turns", "spread"], 1..=5);
    for Looked { path, outcome } in looked {
        let Ok(compared) = outcome else { continue };
        let &Compared { before, after, middle, spread: (low, high) } = compared;
        let spread = format!("{low:.2}–{high:.2}");
        table.add_row([path, &tenths(before), &tenths(after), &ratio(compared.ratio()), &ratio(middle), &spread]);
    }
    println!("{table}");
}

fn reference(series: &Series) -> Result<f64> {
    let reference = series.paths.iter().find(|row| row.path.name == REFERENCE);
    Ok(reference.context("the reference was not measured")?.net)
}

fn table(header: &[&str], numbers: RangeInclusive<usize>) -> Table {
    let mut table = Table::new();
    table.load_style(ASCII_MARKDOWN).set_header(header.to_vec());
    for column in table.column_iter_mut() {
        if column.index == 1 || numbers.contains(&column.index) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    table
}

fn tenths(ns: f64) -> String {
    format!("{ns:.1}")
}

fn ratio(ratio: f64) -> String {
    format!("{ratio:.2}")
}
