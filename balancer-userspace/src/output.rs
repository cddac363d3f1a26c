//! Prints tables for human readers, and JSON for programs.

use std::io::{self, Write as _};

use balancer_api::model::{BackendView, DenyView, DiscoverView, HandshakesView, Rates, ServiceView, UnansweredView};
use balancer_config::words::{counted, grouped};
use comfy_table::{CellAlignment, presets::NOTHING};
use serde::Serialize;

/// A table that is printed without borders. Columns of numbers are aligned to the right.
#[derive(Debug)]
pub(super) struct Table(comfy_table::Table);

impl Table {
    /// Creates a table with these column headings. A heading that starts with `>` marks a column of numbers.
    pub(super) fn new(headings: &[&str]) -> Self {
        let mut table = comfy_table::Table::new();
        table.load_style(NOTHING).set_header(headings.iter().map(|heading| heading.trim_start_matches('>')));
        for (column, heading) in table.column_iter_mut().zip(headings) {
            column.set_padding((0, 2));
            if heading.starts_with('>') {
                column.set_cell_alignment(CellAlignment::Right);
            }
        }
        Self(table)
    }

    pub(super) fn row<const COLUMNS: usize>(&mut self, cells: [String; COLUMNS]) {
        self.0.add_row(cells);
    }

    /// Adds a row; for tables whose number of columns is not constant.
    pub(super) fn cells(&mut self, cells: impl IntoIterator<Item = String>) {
        self.0.add_row(cells);
    }

    /// Returns the lines of the table, each with a newline.
    pub(super) fn render(&self) -> String {
        self.0.lines().map(|line| format!("{}\n", line.trim_end())).collect()
    }
}

/// Formats `part` as a percentage of `whole`.
pub(super) fn percent(part: u32, whole: u32) -> String {
    match whole {
        0 => "-".to_owned(),
        whole => format!("{:.1}%", 100.0 * f64::from(part) / f64::from(whole)),
    }
}

/// Writes a text to standard output, and flushes it.
pub(super) fn print(text: &str) -> io::Result<()> {
    let mut out = io::stdout().lock();
    out.write_all(text.as_bytes())?;
    out.flush()
}

/// Writes `value` to standard output as indented JSON.
pub(super) fn print_json(value: &impl Serialize) -> io::Result<()> {
    print(&format!("{}\n", serde_json::to_string_pretty(value)?))
}

/// Describes a service in lines, and its backends in a table.
pub(super) fn service(service: &ServiceView) -> String {
    let mut text = format!(
        "service {}  {}  {}  {} slots, generation {}\n",
        service.name,
        places(service),
        service.forwarding,
        grouped(service.table_size),
        grouped(service.table_generation),
    );
    if let Some(sharing) = &service.sharing {
        text.push_str(&format!("steer {}: {sharing}\n", service.steer));
    }
    if let Some(DenyView { file, prefixes, packets, error, .. }) = &service.deny {
        text.push_str(&format!(
            "  denies {} by {file}, {} dropped\n",
            counted(*prefixes as usize, "prefix"),
            grouped(*packets)
        ));
        text.extend(error.as_ref().map(|error| {
            format!(
                "WARNING: the file is invalid, the previous list stays in \
                                                        force: {error}\n"
            )
        }));
    }
    // A DNS name that serves as the address of one backend needs a line only if there is an error.
    let lists = service.discover.iter().filter(|list| list.address.is_none() || list.error.is_some());
    for DiscoverView { file, dns, dns_a, etcd, address, targets, error, left_out, waiting, habit, .. } in lists {
        let targets = targets.map_or_else(|| "nothing yet".to_owned(), |count| counted(count as usize, "target"));
        let by = [("", file), ("dns ", dns), ("dns_a ", dns_a), ("etcd ", etcd), ("address ", address)];
        let source = by.iter().find_map(|(key, name)| Some(format!("{key}{}", name.as_ref()?))).unwrap_or_default();
        text.push_str(&format!("  discovers {targets} by {source}"));
        text.extend(habit.as_ref().map(|habit| format!(", which {habit}")));
        if !waiting.is_empty() {
            let missing = counted(waiting.len(), "backend");
            text.push_str(&format!("; {missing} may drain, the list lacks {}", waiting.join(", ")));
        }
        text.push('\n');
        text.extend(left_out.iter().map(|fault| format!("WARNING: a target is left out: {fault}\n")));
        text.extend(error.as_ref().map(|error| format!("WARNING: its backends stay as they are: {error}\n")));
    }
    text.extend(service.rates.as_ref().map(|rates| format!("  {}, over the last 10 s\n", rates_words(rates))));
    let counts_active = service.counts_active();
    let mut table = backend_table(if service.watched { "NAME (WATCHED)" } else { "NAME" }, counts_active);
    for backend in &service.backends {
        add_backend(&mut table, backend.name.clone(), backend, service.table_size, counts_active);
    }
    text.push_str(&table.render());
    text.extend(service.silence.as_ref().map(|what| format!("{what}\n")));
    let waiting = |backend: &BackendView| backend.unanswered.filter(UnansweredView::is_trouble);
    for (backend, UnansweredView { begun, seconds }) in
        service.backends.iter().filter_map(|backend| Some((&backend.name, waiting(backend)?)))
    {
        text.push_str(&format!(
            "clients began {begun} handshakes with {backend} in the last {seconds:.0} s and completed none: \
             `balancer doctor {}` looks for the cause\n",
            service.name
        ));
    }
    for warning in &service.warnings {
        text.push_str(&format!("WARNING: {warning}\n"));
    }
    text
}

/// Formats rates as `12.5 connections, 1,204 packets, 830,112 bytes a second`.
fn rates_words(rates: &Rates) -> String {
    let Rates { packets, bytes, connections } = rates;
    format!("{connections:.1} connections, {} packets, {} bytes a second", whole(*packets), whole(*bytes))
}

/// Formats a rate as a whole number.
fn whole(rate: f64) -> String {
    grouped(rate.round() as u64)
}

/// Formats the listeners of a service as `tcp 198.51.100.10:80`, separated by commas.
fn places(service: &ServiceView) -> String {
    if service.listeners.len() < 2 {
        return format!("{} {}", service.protocol, service.address);
    }
    let all = service.listeners.iter().map(|of| of.listener.as_str());
    all.map(|listener| match listener.rsplit_once('/') {
        Some((place, protocol)) => format!("{protocol} {place}"),
        None => listener.to_owned(),
    })
    .collect::<Vec<_>>()
    .join(", ")
}

/// Returns the protocols of a service without duplicates.
pub(super) fn protocols(service: &ServiceView) -> String {
    let mut words: Vec<&str> =
        service.listeners.iter().filter_map(|of| of.listener.rsplit_once('/')).map(|(_, protocol)| protocol).collect();
    words.sort_unstable();
    words.dedup();
    words.join(", ")
}

/// Returns the first address of a service, and the number of further addresses.
pub(super) fn addresses(service: &ServiceView) -> String {
    match service.listeners.len() {
        0 | 1 => service.address.clone(),
        several => format!("{} and {} more", service.address, several - 1),
    }
}

/// Creates a table of backends, in which `name` is the heading of the first column.
pub(super) fn backend_table(name: &str, counts_active: bool) -> Table {
    let headings = [
        name,
        "ADDRESS",
        "STATE",
        "ADMIN",
        "HEALTH",
        ">WEIGHT",
        ">SLOTS",
        ">SHARE",
        ">CLIENTS",
        ">SERVED",
        ">CONNECTIONS",
        ">PACKETS",
        ">BYTES",
        ">CONN/S",
        ">PACKETS/S",
        ">BYTES/S",
        "REASON",
    ];
    let mut headings = headings.to_vec();
    if counts_active {
        headings.insert(ACTIVE, ">ACTIVE");
    }
    Table::new(&headings)
}

/// The index of the column with active connections, if the table has this column.
const ACTIVE: usize = 9;

/// Adds a row for a backend of a service whose lookup table has `table_size` slots.
pub(super) fn add_backend(
    table: &mut Table,
    name: String,
    backend: &BackendView,
    table_size: u32,
    counts_active: bool,
) {
    let rate = |words: fn(&Rates) -> String| backend.rates.as_ref().map_or_else(|| "-".to_owned(), words);
    let from = backend.from.as_ref().map(|from| format!(" (from: {from})")).unwrap_or_default();
    let backup = if backend.backup { " (backup)" } else { "" };
    let mut cells = vec![
        name,
        backend.address.clone(),
        state(backend),
        format!("{}{backup}{from}", backend.admin),
        backend.health.clone(),
        weight(backend),
        grouped(backend.slots),
        percent(backend.slots, table_size),
        grouped(backend.known_clients),
        served(backend),
        grouped(backend.connections),
        grouped(backend.packets),
        grouped(backend.bytes),
        rate(|rates| format!("{:.1}", rates.connections)),
        rate(|rates| whole(rates.packets)),
        rate(|rates| whole(rates.bytes)),
        backend.reason.clone(),
    ];
    if counts_active {
        cells.insert(ACTIVE, backend.active.map_or_else(|| "-".to_owned(), grouped));
    }
    table.cells(cells);
}

/// The percentage of handshakes that clients completed in the last minute, rounded down; `-`: there were none.
fn served(backend: &BackendView) -> String {
    let share = |HandshakesView { completed, unanswered }: HandshakesView| {
        completed.saturating_mul(100).checked_div(completed.saturating_add(unanswered))
    };
    backend.handshakes.and_then(share).map_or_else(|| "-".to_owned(), |percent| format!("{percent}%"))
}

/// Formats the weight of a backend as `100`, or as `100 × 75%` if the backend's agent has lowered it.
fn weight(backend: &BackendView) -> String {
    match backend.agent.as_ref().map(|agent| agent.weight_percent) {
        None | Some(100) => backend.weight.to_string(),
        Some(percent) => format!("{} × {percent}%", backend.weight),
    }
}

/// Formats the state of a backend. For a draining backend, the function adds the number of remaining clients and the
/// remaining time.
fn state(backend: &BackendView) -> String {
    match backend.drain_seconds_left {
        Some(left) => {
            let clients = counted(backend.known_clients as usize, "client");
            format!("{}, {clients}, {} left", backend.state, minutes(left))
        }
        None => backend.state.clone(),
    }
}

/// Formats a duration as `3m12s`.
fn minutes(seconds: u64) -> String {
    humantime::format_duration(std::time::Duration::from_secs(seconds)).to_string().replace(' ', "")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn when_a_number_is_large_then_thousands_are_separated() {
        assert_eq!(
            [0u64, 999, 1000, 65_537, 1_234_567, u64::MAX].map(grouped),
            ["0", "999", "1,000", "65,537", "1,234,567", "18,446,744,073,709,551,615"]
        );
    }

    #[test]
    fn when_a_table_is_rendered_then_columns_line_up() {
        let mut table = Table::new(&["NAME", ">SLOTS", "STATE"]);
        table.row(["web1".to_owned(), "5".to_owned(), "up".to_owned()]);
        table.row(["longer-name".to_owned(), "65,537".to_owned(), String::new()]);
        assert_eq!(
            table.render(),
            "NAME          SLOTS  STATE\n\
             web1              5  up\n\
             longer-name  65,537\n"
        );
    }
}
