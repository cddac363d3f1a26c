//! The reports about the measured paths, as tables or as a document.

use std::ops::RangeInclusive;

use anyhow::{Context as _, Result};
use balancer_bench::{
    machine,
    report::document::{Document, Series as Measured},
};
use comfy_table::{CellAlignment, Table, presets::ASCII_MARKDOWN};

use crate::{
    against::Looked,
    bench::{Row, Series},
    gate::Compared,
    paths::{Path, REFERENCE},
    scene::Place,
    yardsticks::LRU_HASH,
};

/// Prints the results of all paths.
pub(crate) fn print(series: &Series, json: bool) -> Result<()> {
    if json { document(series).print() } else { print_table(series) }
}

fn document(series: &Series) -> Document {
    let yardsticks = series.yardsticks.iter().map(|row| (row, false));
    let paths = series.paths.iter().map(|row| (row, true));
    let one = |(row, ours): (&Row, bool)| Measured {
        ours,
        heading: heading(&row.path),
        ..Measured::others(
            row.path.name.clone(),
            if ours { "path" } else { "yardstick" },
            "ns per packet",
            row.rounds.clone(),
        )
    };
    Document {
        benchmark: "path".to_owned(),
        title: "What a packet costs in the kernel program".to_owned(),
        about: "`BPF_PROG_TEST_RUN` of 100,000 packets on one processor, net of an empty program in the same round. \
                Yardsticks are small programs that do what most load balancers do."
            .to_owned(),
        series: yardsticks.chain(paths).map(one).collect(),
        left_out: Vec::new(),
    }
}

/// Returns the heading of the path in the picture, which has one row for each steering method.
fn heading(path: &Path) -> Option<String> {
    let name = &path.name;
    if path.varies() {
        return (path.scene != Place::ManyServices).then(|| "each packet another of a million clients'".to_owned());
    }
    let twin = ["IPv6", "not ours"].iter().any(|part| name.contains(part));
    (!twin).then(|| "one client".to_owned())
}

fn print_table(series: &Series) -> Result<()> {
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
