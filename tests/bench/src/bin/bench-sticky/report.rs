//! The report about moved clients.

use comfy_table::{Table, presets::ASCII_MARKDOWN};

use crate::step::{Moved, SERVERS, Share};

const ONE_NETWORK: &str = "servers that the addresses of one /24 reach";

/// The clients of one contender that moved in each step.
pub(crate) struct Seen {
    pub(crate) title: String,
    pub(crate) version: Option<String>,
    /// The moved clients of all steps, in the order of the steps.
    pub(crate) moved: Vec<Moved>,
    /// The number of different servers that answer the addresses of one /24 network.
    pub(crate) of_one_network: usize,
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
