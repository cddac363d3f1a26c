//! The state of the lab: the observations of the clients, and the reports of the members about themselves.

use std::collections::BTreeMap;

use balancer_api::model::{BackendView, StatusView};
use comfy_table::{CellAlignment, Table, presets};
use serde_json::{Value, json};

use super::site::Lab;
use crate::{load::Seen, screen};

/// The state of the lab at one point in time.
pub(super) struct View {
    seen: Seen,
    /// The status of a member that is up to date, with the connections summed over all members; `None` if no member
    /// answers.
    status: Option<StatusView>,
    epoch: Option<u64>,
    leader: Option<String>,
    members: Vec<MemberView>,
    /// The name of each etcd server, and whether the server is healthy.
    engines: Vec<(String, bool)>,
}

struct MemberView {
    name: String,
    /// Whether the balancer receives clients' packets.
    in_use: bool,
    /// The member's report about itself; `None` if the member does not answer.
    said: Option<Said>,
}

/// A member's report about itself.
struct Said {
    /// The state: `ready`, `degraded` or `not_ready`.
    state: String,
    withdrawn: bool,
    epoch: Option<u64>,
    lag_seconds: f64,
    connections: u64,
    known_clients: u64,
}

impl View {
    /// Queries the state of all members and etcd servers.
    pub(super) fn of(lab: &mut Lab, seen: Seen) -> Self {
        lab.reap();
        let in_use = lab.in_use();
        let answers: Vec<(String, Option<StatusView>)> =
            lab.members.iter().map(|member| (member.name.clone(), member.controller.status().ok())).collect();
        let engines = lab.engines.iter().map(|engine| (engine.server.name().to_owned(), engine.is_well())).collect();
        let members =
            answers.iter().map(|(name, status)| MemberView::of(name, status.as_ref(), in_use.contains(name))).collect();
        let statuses: Vec<StatusView> = answers.into_iter().filter_map(|(_, status)| status).collect();
        let status = joined(statuses);
        let fleet = status.as_ref().and_then(|status| status.fleet.as_ref());
        Self {
            seen,
            epoch: fleet.and_then(|fleet| fleet.epoch),
            leader: fleet.and_then(|fleet| fleet.leader.clone()),
            status,
            members,
            engines,
        }
    }

    /// Formats the state as text for the terminal.
    pub(super) fn text(&self) -> String {
        let mut text = self.table();
        if let Some(status) = &self.status {
            text += "\n";
            text += &screen::backends(status, &self.seen);
        }
        text += &screen::summary(&self.seen);
        let word = |well: &bool| if *well { "up" } else { "gone" };
        let engines: Vec<String> = self.engines.iter().map(|(name, well)| format!("{name} {}", word(well))).collect();
        text += &format!(
            " epoch {}, leader {}; {}\n",
            shown(self.epoch),
            self.leader.as_deref().unwrap_or("-"),
            engines.join(", ")
        );
        if let (Some(failure), Some(at)) = (&self.seen.last_failure, self.seen.failed_at) {
            text += &format!(" latest failure, {} s ago: {failure}\n", at.elapsed().as_secs());
        }
        text + "\n"
    }

    /// Formats the state as JSON.
    pub(super) fn json(&self) -> Value {
        let seen = &self.seen;
        let backends: Vec<Value> = self.backends().map(|backend| self.backend_json(backend)).collect();
        let engines: BTreeMap<&str, bool> = self.engines.iter().map(|(name, well)| (name.as_str(), *well)).collect();
        json!({
            "clients": seen.clients(),
            "answered": seen.answered,
            "failed": seen.failed,
            "latest_failure": seen.last_failure,
            "seconds_since_failure": seen.failed_at.map(|at| at.elapsed().as_secs_f64()),
            "moved": seen.moves(),
            "sessions_lost": seen.sessions_lost,
            "epoch": self.epoch,
            "leader": self.leader,
            "members": self.members.iter().map(MemberView::json).collect::<Vec<_>>(),
            "backends": backends,
            "etcd": engines,
        })
    }

    fn backend_json(&self, backend: &BackendView) -> Value {
        let seen = self.seen.backends.get(&backend.name).copied().unwrap_or_default();
        json!({
            "name": backend.name,
            "state": backend.state,
            "connections": backend.connections,
            "clients": seen.clients,
            "moved_in": seen.moved_in,
            "moved_out": seen.moved_out,
        })
    }

    fn backends(&self) -> impl Iterator<Item = &BackendView> {
        self.status.iter().flat_map(|status| &status.services).flat_map(|service| &service.backends)
    }

    fn table(&self) -> String {
        let mut table = Table::new();
        table.load_style(presets::NOTHING);
        table.set_header(["MEMBER", "STATE", "CLIENTS COME", "EPOCH", "LAG", "CONNECTIONS", "KNOWN CLIENTS"]);
        for column in table.column_iter_mut().skip(3) {
            column.set_cell_alignment(CellAlignment::Right);
        }
        for member in &self.members {
            let use_of = if member.in_use { "yes" } else { "-" }.to_owned();
            let said = member.said.as_ref().map_or_else(
                || ["gone", "-", "-", "-", "-"].map(str::to_owned),
                |said| {
                    [
                        if said.withdrawn { "withdrawn".to_owned() } else { said.state.clone() },
                        shown(said.epoch),
                        format!("{:.1} s", said.lag_seconds),
                        said.connections.to_string(),
                        said.known_clients.to_string(),
                    ]
                },
            );
            let [state, rest @ ..] = said;
            table.add_row([member.name.clone(), state, use_of].into_iter().chain(rest));
        }
        table.trim_fmt() + "\n"
    }
}

impl MemberView {
    fn of(name: &str, status: Option<&StatusView>, in_use: bool) -> Self {
        Self { name: name.to_owned(), in_use, said: status.map(|status| Said::of(name, status)) }
    }

    fn json(&self) -> Value {
        let Self { name, in_use, said } = self;
        match said {
            None => json!({ "name": name, "in_use": in_use, "state": "gone" }),
            Some(said) => json!({
                "name": name,
                "in_use": in_use,
                "state": said.state,
                "withdrawn": said.withdrawn,
                "epoch": said.epoch,
                "lag_seconds": said.lag_seconds,
                "connections": said.connections,
                "known_clients": said.known_clients,
            }),
        }
    }
}

impl Said {
    fn of(name: &str, status: &StatusView) -> Self {
        let backends = || status.services.iter().flat_map(|service| &service.backends);
        let fleet = status.fleet.as_ref();
        let own = fleet.and_then(|fleet| fleet.members.iter().find(|member| member.name == name));
        Self {
            state: status.ready.state.word().to_owned(),
            withdrawn: status.withdrawn,
            epoch: fleet.and_then(|fleet| fleet.epoch),
            lag_seconds: own.map_or(0.0, |member| member.lag_seconds),
            connections: backends().map(|backend| backend.connections).sum(),
            known_clients: backends().map(|backend| backend.known_clients).sum(),
        }
    }
}

/// The status of the member that knows most about the fleet, with the connections summed over all members.
fn joined(statuses: Vec<StatusView>) -> Option<StatusView> {
    let mut connections: BTreeMap<String, u64> = BTreeMap::new();
    for backend in statuses.iter().flat_map(|status| &status.services).flat_map(|service| &service.backends) {
        *connections.entry(backend.name.clone()).or_default() += backend.connections;
    }
    let standing = |status: &StatusView| status.fleet.as_ref().map(|fleet| (fleet.engine.reachable, fleet.epoch));
    let mut best = statuses.into_iter().max_by_key(standing)?;
    for backend in best.services.iter_mut().flat_map(|service| &mut service.backends) {
        backend.connections = connections.get(&backend.name).copied().unwrap_or_default();
    }
    Some(best)
}

fn shown(number: Option<u64>) -> String {
    number.map_or_else(|| "-".to_owned(), |number| number.to_string())
}

#[cfg(test)]
mod tests {
    use balancer_api::model::{FleetSnapshot, Readiness, StatusView};

    use super::{MemberView, View, joined};
    use crate::load::Seen;

    fn status(epoch: u64, reachable: bool) -> StatusView {
        let mut fleet = FleetSnapshot { epoch: Some(epoch), ..FleetSnapshot::example() };
        fleet.engine.reachable = reachable;
        StatusView {
            client_table: balancer_api::model::ClientTableView::default(),
            flow_table: None,
            drops: std::collections::BTreeMap::new(),
            generation: 0,
            changed_at_run_time: Vec::new(),
            ready: Readiness::default(),
            withdrawn: false,
            vips: Vec::new(),
            fleet: Some(fleet),
            interfaces: Vec::new(),
            redirect_errors: std::collections::BTreeMap::new(),
            services: Vec::new(),
        }
    }

    #[test]
    fn when_a_member_has_lost_etcd_then_its_status_is_not_used_for_the_fleet() {
        let best = joined(vec![status(3, true), status(4, true), status(9, false)]);
        assert_eq!(best.unwrap().fleet.unwrap().epoch, Some(4));
        assert_eq!(joined(Vec::new()), None);
    }

    #[test]
    fn when_a_member_does_not_answer_then_it_still_has_a_line() {
        let answers = status(7, true);
        let view = View {
            seen: Seen::default(),
            epoch: Some(7),
            leader: None,
            status: None,
            members: vec![MemberView::of("lb1", None, false), MemberView::of("lb2", Some(&answers), true)],
            engines: vec![("etcd1".to_owned(), true), ("etcd2".to_owned(), false)],
        };
        let text = view.text();
        let line = |start: &str| text.lines().find(|line| line.trim_start().starts_with(start)).unwrap().to_owned();
        assert!(line("lb1").split_whitespace().eq(["lb1", "gone", "-", "-", "-", "-", "-"]), "{text}");
        assert!(line("lb2").contains("not_ready  yes") && line("lb2").contains("2.5 s"), "{text}");
        assert!(line("epoch").ends_with("epoch 7, leader -; etcd1 up, etcd2 gone"), "{text}");
    }
}
