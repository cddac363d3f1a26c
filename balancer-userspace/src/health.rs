//! The commands `balancer health …`.

use std::time::Duration;

use balancer_api::{
    client::Client,
    model::{Force, HealthView},
};
use balancer_config::{names::BackendName, states::Forced, value};
use clap::{Subcommand, ValueEnum};

use super::{
    Failure,
    output::{self, Table},
    print_changed,
};

#[derive(Debug, Subcommand)]
pub(super) enum Verb {
    /// Show the health checks of backends and their results
    Show {
        /// The service's name [default: all services]
        #[arg(value_name = "SVC", value_parser = value::name)]
        service: Option<String>,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Override the health of a backend, whatever its checks find, until `auto`
    Force {
        /// Service and backend, such as web/web1
        #[arg(value_name = "SVC/NAME", value_parser = value::backend_name)]
        name: BackendName,
        /// The health to set; `auto` lets the checks decide again
        #[arg(value_enum)]
        health: Said,
    },
}

#[derive(Clone, Copy, Debug, ValueEnum)]
pub(super) enum Said {
    /// Keep the backend up
    Up,
    /// Treat the backend as if it did not answer
    Down,
    /// Let the checks decide
    Auto,
}

pub(super) async fn run(client: &Client, verb: Verb) -> Result<(), Failure> {
    match verb {
        Verb::Show { service, json } => {
            let views = client.health(service.as_deref()).await?;
            if json {
                return Ok(output::print_json(&views)?);
            }
            Ok(output::print(&render(&views))?)
        }
        Verb::Force { name, health } => {
            let force = match health {
                Said::Up => Force::Up,
                Said::Down => Force::Down,
                Said::Auto => Force::Auto,
            };
            let changed = client.force_health(&name, force).await?;
            print_changed(&changed)
        }
    }
}

fn render(views: &[HealthView]) -> String {
    let headings = ["BACKEND", "TARGET", "VERDICT", ">SINCE", "LAST", ">TOOK", ">PASSES", ">FAILURES", "NEXT", "CHECK"];
    let mut table = Table::new(&headings);
    for view in views {
        let forced = match view.forced {
            None => String::new(),
            Some(Forced::Up) => " (forced up)".to_owned(),
            Some(Forced::Down) => " (forced down)".to_owned(),
        };
        let last = match (&view.last_result, view.last_reason.as_str()) {
            (None, _) => String::new(),
            (Some(result), "") => result.clone(),
            (Some(result), reason) => format!("{result}: {reason}"),
        };
        table.row([
            format!("{}/{}", view.service, view.backend),
            view.target.clone(),
            format!("{}{forced}", view.verdict),
            humantime::format_duration(Duration::from_secs(view.verdict_seconds as u64)).to_string(),
            last,
            view.last_duration_seconds.map(|took| format!("{:.1} ms", took * 1000.0)).unwrap_or_default(),
            view.passes.to_string(),
            view.failures.to_string(),
            view.next_verdict.clone(),
            view.check.clone(),
        ]);
    }
    table.render()
}
