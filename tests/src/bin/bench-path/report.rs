//! What is printed.

use std::fs;

use anyhow::{Context as _, Result};
use comfy_table::{CellAlignment, Table, presets::ASCII_MARKDOWN};
use serde_json::json;

use crate::{Row, paths::REFERENCE};

/// Prints the measured paths.
pub(crate) fn print(rows: &[Row], json: bool) -> Result<()> {
    let reference = rows.iter().find(|row| row.path.name == REFERENCE).context("the reference was not measured")?.net;
    let machine = machine();
    if json {
        let paths: Vec<_> = rows
            .iter()
            .map(|row| json!({ "path": row.path.name, "ns": row.net, "ratio": row.net / reference, "target": row.path.target }))
            .collect();
        println!("{:#}", json!({ "machine": machine, "paths": paths }));
        return Ok(());
    }
    let mut table = Table::new();
    table.load_style(ASCII_MARKDOWN).set_header(["path", "net ns", "ratio", "target, ns"]);
    for row in rows {
        let (net, ratio) = (format!("{:.1}", row.net), format!("{:.2}", row.net / reference));
        table.add_row([&row.path.name, &net, &ratio, row.path.target]);
    }
    for column in [1, 2] {
        if let Some(column) = table.column_mut(column) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    println!("{machine}");
    println!("ns per packet, net of an empty program; Katran's figures were measured on another machine");
    println!("{table}");
    Ok(())
}

/// The processor and the kernel.
fn machine() -> String {
    let info = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = info.lines().find_map(|line| line.strip_prefix("model name")).and_then(|line| line.split_once(": "));
    let cpus = info.lines().filter(|line| line.starts_with("processor")).count();
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    format!("{cpus} × {}, Linux {}", model.map_or("unknown processor", |(_, name)| name), release.trim())
}
