//! What is printed.

use balancer_tests::machine;
use comfy_table::{Table, presets::ASCII_MARKDOWN};
use serde_json::{Value, json};

use crate::step::{Moved, SERVERS, Share, Step};

/// What became of a contender's clients.
pub(crate) struct Seen {
    pub(crate) title: String,
    pub(crate) version: Option<String>,
    /// In the order of all steps.
    pub(crate) moved: Vec<Moved>,
    /// Servers that answer the addresses of one /24.
    pub(crate) of_one_network: usize,
}

pub(crate) fn json(all: &[Seen], missing: &[String]) -> Value {
    let share = |share: Share| json!({ "moved": share.moved, "of": share.of });
    let step = |moved: &Moved| {
        json!({
            "step": moved.step.name(),
            "others": share(moved.others),
            "own": moved.step.has_target().then(|| share(moved.own)),
        })
    };
    let contender = |seen: &Seen| {
        json!({
            "name": seen.title,
            "version": seen.version,
            "steps": seen.moved.iter().map(step).collect::<Vec<_>>(),
            "servers_of_one_network": seen.of_one_network,
        })
    };
    json!({
        "machine": machine::describe(),
        "servers": SERVERS,
        "contenders": all.iter().map(contender).collect::<Vec<_>>(),
        "missing": missing,
    })
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
        let (title, who) = (first.step.title(), if first.step.has_target() { ": of the other servers" } else { "" });
        table.add_row(std::iter::once(format!("{title}{who}")).chain(cells(|moved| moved.others)));
        if first.step.has_target() {
            let own = if first.step == Step::Return { "… that were its own before" } else { "… its own" };
            table.add_row(std::iter::once(own.to_owned()).chain(cells(|moved| moved.own)));
        }
    }
    let networks = all.iter().map(|seen| format!("{} of {SERVERS}", seen.of_one_network));
    table.add_row(std::iter::once("servers that the addresses of one /24 reach".to_owned()).chain(networks));
    table
}

fn cell(share: Share) -> String {
    let percent = share.moved as f64 * 100.0 / share.of.max(1) as f64;
    format!("{} of {} ({percent:.1}%)", share.moved, share.of)
}
