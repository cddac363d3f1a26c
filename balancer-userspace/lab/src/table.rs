//! Formats results as text tables.

use comfy_table::{CellAlignment, Table, presets};

use super::cell::Cell;

/// The headings of the columns that follow row and event.
const COLUMNS: [&str; 9] = [
    "survived",
    "own",
    "NAT",
    "failed requests",
    "p50 ms",
    "p99 ms",
    "moved: seen/counted",
    "B/request: servers",
    "store",
];

/// Formats a table with one line for each result.
#[must_use]
pub(crate) fn text(cells: &[Cell]) -> String {
    let mut table = Table::new();
    table.load_style(presets::NOTHING);
    table.set_header(["sessions", "event"].into_iter().chain(COLUMNS));
    for cell in cells {
        table.add_row([cell.row.title(), cell.event.title().to_owned()].into_iter().chain(figures(cell)));
    }
    for index in 2..2 + COLUMNS.len() {
        if let Some(column) = table.column_mut(index) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    table.to_string().lines().map(str::trim_end).collect::<Vec<_>>().join("\n")
}

/// Formats a line for one result, which the lab prints while it runs.
#[must_use]
pub(crate) fn line(cell: &Cell) -> String {
    let [survived, own, nat, failed, p50, p99, moved, servers, store] = figures(cell);
    let notes = if cell.notes.is_empty() { String::new() } else { format!("; {}", cell.notes.join("; ")) };
    format!(
        "{survived} survived ({own} of their own, {nat} behind NAT), {failed} failed, p50 {p50} ms, p99 {p99} ms, moved {moved}, \
         {servers} B/request between servers, {store} B/request to the store{notes}"
    )
}

fn figures(cell: &Cell) -> [String; 9] {
    let counted = cell.moved_counted.map_or_else(|| "–".to_owned(), |counted| counted.to_string());
    [
        percent(cell.sessions().percent()),
        percent(cell.own.percent()),
        percent(cell.nat.percent()),
        format!("{} of {}", cell.failed, cell.requests),
        format!("{:.1}", cell.latency_ms.p50),
        format!("{:.1}", cell.latency_ms.p99),
        format!("{}/{counted}", cell.moved_seen),
        format!("{:.0}", cell.per_request(cell.inner.servers)),
        format!("{:.0}", cell.per_request(cell.inner.store)),
    ]
}

/// Formats a percentage briefly; 0% and 100% appear only for exact values.
#[must_use]
pub(crate) fn percent(value: f64) -> String {
    let whole = value.fract().abs() < f64::EPSILON;
    if whole { format!("{value:.0}%") } else { format!("{:.1}%", value.clamp(0.1, 99.9)) }
}

#[cfg(test)]
mod tests {
    use super::percent;

    #[test]
    fn when_nearly_all_survive_then_it_is_not_shown_as_all() {
        assert_eq!(percent(100.0), "100%");
        assert_eq!(percent(99.98), "99.9%");
        assert_eq!(percent(0.02), "0.1%");
        assert_eq!(percent(0.0), "0%");
        assert_eq!(percent(74.75), "74.8%");
    }
}
