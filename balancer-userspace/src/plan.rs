//! The commands `balancer plan …`.

use balancer_api::{
    client::Client,
    model::{ComingView, PlanRequest, PlanView},
};
use balancer_config::words::{counted, grouped};
use clap::Subcommand;

use super::{
    Failure, backend, first_step,
    output::{self, Table},
    service,
};

#[derive(Debug, Subcommand)]
pub(super) enum Verb {
    /// Show the clients and slots that a change of a backend would move
    Backend {
        /// Print JSON
        #[arg(long, global = true)]
        json: bool,
        #[command(subcommand)]
        change: backend::BackendChange,
    },
    /// Show the clients and slots that a change of a service would move
    Service {
        /// Print JSON
        #[arg(long, global = true)]
        json: bool,
        #[command(subcommand)]
        change: service::ServiceChange,
    },
}

pub(super) async fn run(client: &Client, verb: Verb) -> Result<(), Failure> {
    let (request, json) = match verb {
        Verb::Backend { json, change } => (change.plan(), json),
        Verb::Service { json, change } => (change.plan(), json),
    };
    if let PlanRequest::Steer { service, steer, force } = &request {
        first_step::check(client, service, *steer, *force).await?;
    }
    let plan = client.plan(&request).await?;
    if json {
        return Ok(output::print_json(&plan)?);
    }
    Ok(output::print(&text(&plan))?)
}

/// How the backends of the clients to come are known, such as `: 190 from an import, 15 only guessed`.
fn coming(plan: &PlanView) -> String {
    let Some(ComingView { served, imported, guessed }) = plan.coming else { return String::new() };
    let parts = [(served, "served before"), (imported, "from an import"), (guessed, "only guessed")];
    let parts = parts.into_iter().filter(|(count, _)| *count > 0);
    let parts: Vec<String> = parts.map(|(count, what)| format!("{} {what}", grouped(count))).collect();
    format!(": {}", parts.join(", "))
}

/// Formats the plan for one service.
pub(super) fn text(plan: &PlanView) -> String {
    let clients = |number: u64| counted(number as usize, "known client");
    let mut text = if plan.removed {
        format!("service {}: would be removed\n", plan.service)
    } else {
        format!(
            "service {}: {} of {} slots would move, {} needless; {} would move\n",
            plan.service,
            grouped(plan.slots_moved),
            grouped(plan.table_size),
            grouped(plan.needless_slots_moved),
            clients(plan.known_clients_moved),
        )
    };
    let before = plan.table_size_before;
    // Earlier versions of the balancer do not report the size of the lookup table before the change.
    if before > 0 && before != plan.table_size && !plan.removed {
        let how = if before < plan.table_size { "grow" } else { "shrink" };
        text += &format!("the table would {how} from {} to {} slots\n", grouped(before), grouped(plan.table_size));
    }
    if plan.steer != plan.steer_before && !plan.removed {
        text += &format!("{}% of the clients would be steered, not {}%", plan.steer, plan.steer_before);
        text += &match (plan.known_clients_taken_over, plan.known_clients_sent_back) {
            (0, 0) => "\n".to_owned(),
            (taken, 0) => format!("; {} would be taken over{}\n", clients(taken), coming(plan)),
            (_, back) => format!("; {} would go back to the host\n", clients(back)),
        };
    }
    for (listeners, what) in
        [(&plan.listeners_added, "would listen"), (&plan.listeners_removed, "would no longer listen")]
    {
        if !listeners.is_empty() {
            text += &format!("{what} on {}\n", listeners.join(", "));
        }
    }
    if let Some(why) = &plan.forgotten_because {
        text += &format!("{} would be forgotten: {why}\n", clients(plan.known_clients_forgotten));
    }
    if plan.known_clients_draining > 0 {
        text += &format!("{} would stay until the drain ends\n", clients(plan.known_clients_draining));
    }
    if !plan.moves.is_empty() {
        let mut table = Table::new(&["FROM", "TO", ">SLOTS", ">CLIENTS"]);
        let name = |name: &Option<String>| name.clone().unwrap_or_else(|| "- (dropped)".to_owned());
        for moved in &plan.moves {
            table.row([name(&moved.from), name(&moved.to), grouped(moved.slots), grouped(moved.clients)]);
        }
        text += &table.render();
    }
    text
}
