//! The live table on the terminal.

use std::{
    io::{self, IsTerminal as _, Write as _},
    time::Duration,
};

use anyhow::Result;
use balancer_api::model::StatusView;
use comfy_table::{CellAlignment, Table, presets};

use crate::load::{Seen, SeenBackend};

/// Standard output, to which the demo writes its table. On a terminal, each table replaces the previous one.
pub(crate) struct Screen {
    terminal: bool,
    /// The number of lines of the table that is on the screen.
    drawn: usize,
}

impl Screen {
    pub(crate) fn new() -> Self {
        Self { terminal: io::stdout().is_terminal(), drawn: 0 }
    }

    /// The time between two tables.
    pub(crate) const fn interval(&self) -> Duration {
        Duration::from_secs(if self.terminal { 1 } else { 3 })
    }

    /// Replaces the table on the screen by `text`.
    pub(crate) fn show(&mut self, text: &str) -> Result<()> {
        let mut out = io::stdout().lock();
        if self.terminal {
            if self.drawn > 0 {
                // The escape sequence moves the cursor to the first line of the previous table, and clears the screen
                // from there.
                write!(out, "\x1b[{}F\x1b[J", self.drawn)?;
            }
            // Long lines are cut instead of wrapped, so that the number of lines is known.
            write!(out, "\x1b[?7l{text}\x1b[?7h")?;
        } else {
            out.write_all(text.as_bytes())?;
        }
        out.flush()?;
        self.drawn = text.lines().count();
        Ok(())
    }
}

/// Prints a line to standard output.
pub(crate) fn line(text: &str) -> Result<()> {
    let mut out = io::stdout().lock();
    writeln!(out, "{text}")?;
    Ok(out.flush()?)
}

/// Formats the table of backends, and a line about the clients.
pub(crate) fn render(status: &StatusView, seen: &Seen) -> String {
    let mut text = backends(status, seen) + &summary(seen);
    if let Some(failure) = &seen.last_failure {
        text += &format!(" latest failure: {failure}\n");
    }
    text + "\n"
}

/// Formats the table of backends.
pub(crate) fn backends(status: &StatusView, seen: &Seen) -> String {
    let mut table = Table::new();
    table.load_style(presets::NOTHING);
    table.set_header([
        "BACKEND",
        "ADDRESS",
        "STATE",
        "SLOTS",
        "CLIENTS",
        "SHARE",
        "CONNECTIONS",
        "SESSIONS",
        "MOVED IN",
        "MOVED OUT",
        "REASON",
    ]);
    for column in table.column_iter_mut().skip(3).take(7) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    let clients = seen.clients();
    for service in &status.services {
        for backend in &service.backends {
            let SeenBackend { clients: here, sessions, moved_in, moved_out } =
                seen.backends.get(&backend.name).copied().unwrap_or_default();
            table.add_row([
                format!("{}/{}", service.name, backend.name),
                backend.address.clone(),
                backend.state.clone(),
                backend.slots.to_string(),
                here.to_string(),
                share(here, clients),
                backend.connections.to_string(),
                sessions.to_string(),
                moved_in.to_string(),
                moved_out.to_string(),
                backend.reason.clone(),
            ]);
        }
    }
    table.trim_fmt() + "\n"
}

/// Formats a line about all clients.
pub(crate) fn summary(seen: &Seen) -> String {
    format!(
        " {} clients, {} requests answered, {} failed; {} moves, {} sessions begun again\n",
        seen.clients(),
        seen.answered,
        seen.failed,
        seen.moves(),
        seen.sessions_lost
    )
}

fn share(part: u64, whole: u64) -> String {
    match (part * 1000).checked_div(whole) {
        Some(permille) => format!("{}.{} %", permille / 10, permille % 10),
        None => "-".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use balancer_api::model::{BackendView, ServiceView, StatusView};

    use super::{Seen, SeenBackend, render};

    #[test]
    fn when_a_table_is_rendered_then_every_backend_has_a_line_with_its_share() {
        let backend = |name: &str, state: &str| BackendView {
            agent: None,
            bound: None,
            max_clients: None,
            max_connections: None,
            full: false,
            families: Vec::new(),
            name: name.to_owned(),
            address: "10.0.0.11:8080".to_owned(),
            weight: 100,
            backup: false,
            from: None,
            admin: "ready".to_owned(),
            health: "up".to_owned(),
            state: state.to_owned(),
            drain_seconds_left: None,
            reason: String::new(),
            slots: 32_768,
            active: None,
            known_clients: 0,
            connections: 5,
            packets: 0,
            bytes: 0,
            rates: None,
            unanswered: None,
            handshakes: None,
            unattached: None,
        };
        let status = StatusView {
            generation: 0,
            changed_at_run_time: Vec::new(),
            ready: balancer_api::model::Readiness::default(),
            withdrawn: false,
            vips: Vec::new(),
            fleet: None,
            client_table: balancer_api::model::ClientTableView::default(),
            flow_table: None,
            drops: std::collections::BTreeMap::new(),
            interfaces: Vec::new(),
            redirect_errors: BTreeMap::new(),
            services: vec![ServiceView {
                drop_in: None,
                rates: None,
                silence: None,
                expected: None,
                listeners: Vec::new(),
                name: "web".to_owned(),
                address: "10.2.0.10:80".to_owned(),
                protocol: "tcp".to_owned(),
                forwarding: "nat".to_owned(),
                table_size: 65_537,
                table_generation: 1,
                steer: 100,
                watched: false,
                unsteered_packets: 0,
                host_connection_packets: 0,
                sharing: None,
                quic: None,
                outage_seconds: None,
                warnings: Vec::new(),
                deny: None,
                discover: Vec::new(),
                backends: vec![backend("web1", "up"), backend("web2", "down")],
            }],
        };
        let mut seen = Seen::default();
        assert!(render(&status, &seen).contains('-'), "no share without clients");
        seen.backends.insert("web1".to_owned(), SeenBackend { clients: 2, ..SeenBackend::default() });
        seen.backends.insert("web9".to_owned(), SeenBackend { clients: 1, ..SeenBackend::default() });
        let text = render(&status, &seen);
        let line = |name: &str| text.lines().find(|line| line.contains(name)).unwrap().to_owned();
        assert!(line("web/web1").contains("66.6 %"), "{text}");
        assert!(line("web/web2").contains("down") && line("web/web2").contains(" 0.0 %"), "{text}");
    }
}
