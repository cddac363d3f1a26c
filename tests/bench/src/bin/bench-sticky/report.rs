//! The report about moved clients, as a table or as a document.

use balancer_bench::report::document::{Document, Series};
use comfy_table::{Table, presets::ASCII_MARKDOWN};

use crate::step::{Moved, SERVERS, Share};

const ONE_NETWORK: &str = "servers that the addresses of one /24 reach";

/// The clients of one contender that moved in each step.
pub(crate) struct Seen {
    pub(crate) title: String,
    /// Whether the contender is the balancer.
    pub(crate) ours: bool,
    pub(crate) version: Option<String>,
    /// The moved clients of all steps, in the order of the steps.
    pub(crate) moved: Vec<Moved>,
    /// The number of different servers that answer the addresses of one /24 network.
    pub(crate) of_one_network: usize,
}

/// Puts the results into a document that other programs can read.
pub(crate) fn document(all: &[Seen], missing: &[String]) -> Document {
    let versions = all.iter().filter_map(|seen| Some(format!("{}: {}", seen.title, seen.version.as_ref()?)));
    let about = format!(
        "Clients that reach another server after a change of the servers than before, of thousands with a connection each, \
         each in a /24 of its own; {SERVERS} equal servers. The same in every run. {}",
        versions.collect::<Vec<_>>().join("; ")
    );
    Document {
        benchmark: "sticky".to_owned(),
        title: "Whom a change of the servers moves".to_owned(),
        about,
        series: all.iter().flat_map(series).collect(),
        left_out: missing.to_vec(),
    }
}

fn series(seen: &Seen) -> Vec<Series> {
    let one = |what: String, share: Share, drawn: bool| Series {
        total: Some(share.of as u64),
        ours: seen.ours,
        heading: drawn.then(|| what.clone()),
        ..Series::others(seen.title.clone(), what, "clients", vec![share.moved as f64])
    };
    let mut series = Vec::new();
    for moved in &seen.moved {
        let [others, own] = moved.step.rows();
        series.push(one(others, moved.others, moved.step.should_move_no_others()));
        if moved.step.has_target() {
            series.push(one(own, moved.own, moved.step.should_move_nobody()));
        }
    }
    series.push(Series {
        ours: seen.ours,
        ..Series::others(seen.title.clone(), ONE_NETWORK, "servers", vec![seen.of_one_network as f64])
    });
    series
}

pub(crate) fn table(all: &[Seen]) -> Table {
    let mut table = Table::new();
    table.load_style(ASCII_MARKDOWN);
    let version = |seen: &Seen| seen.version.as_ref().map_or_else(String::new, |version| format!(" ({version})"));
    let header = all.iter().map(|seen| format!("{}{}", seen.title, version(seen)));
    table.set_header(std::iter::once("clients that move".to_owned()).chain(header));
    for (index, first) in all.first().iter().flat_map(|seen| seen.moved.iter().enumerate()) {
        let cells = |of: fn(&Moved) -> Share| {
            all.iter().map(move |seen| seen.moved.get(index).map(of).map_or_else(String::new, cell))
        };
        let [others, own] = first.step.rows();
        table.add_row(std::iter::once(others).chain(cells(|moved| moved.others)));
        if first.step.has_target() {
            table.add_row(std::iter::once(own).chain(cells(|moved| moved.own)));
        }
    }
    let networks = all.iter().map(|seen| format!("{} of {SERVERS}", seen.of_one_network));
    table.add_row(std::iter::once(ONE_NETWORK.to_owned()).chain(networks));
    table
}

fn cell(share: Share) -> String {
    let percent = share.moved as f64 * 100.0 / share.of.max(1) as f64;
    format!("{} of {} ({percent:.1}%)", share.moved, share.of)
}
