//! The commands `balancer service …`.

use balancer_api::{client::Client, model::PlanRequest};
use balancer_config::{listeners::Listener, value, words::grouped};
use clap::{Args, Subcommand};

use super::{
    Failure, first_step,
    output::{self, Table},
    print_changed,
};

#[derive(Debug, Subcommand)]
pub(super) enum Verb {
    /// List the services
    List {
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    #[command(flatten)]
    Change(ServiceChange),
    /// Show a service and its backends
    Show {
        /// The service's name
        #[arg(value_name = "SVC", value_parser = value::name)]
        service: String,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
}

/// Changes to a service, which the command makes or only plans.
#[derive(Debug, Subcommand)]
pub(super) enum ServiceChange {
    /// Add or remove a listener
    #[command(subcommand)]
    Listen(Listen),
    /// Set the share of steered clients; the host serves the others
    Steer {
        /// The service's name
        #[arg(value_name = "SVC", value_parser = value::name)]
        service: String,
        /// The share in percent, from 0 (watch) to 100 (all)
        #[arg(value_name = "N", value_parser = clap::value_parser!(u8).range(0..=100))]
        steer: u8,
        /// Steer more clients even if the balancer knows that they would not be served
        #[arg(long)]
        force: bool,
    },
}

#[derive(Debug, Subcommand)]
pub(super) enum Listen {
    /// Listen on one more address, port or range of ports; no client moves
    Add(Which),
    /// Stop listening on an address and port; no client moves
    Remove(Which),
}

#[derive(Debug, Args)]
pub(super) struct Which {
    /// The service's name
    #[arg(value_name = "SVC", value_parser = value::name)]
    service: String,
    /// The listener, such as 198.51.100.10:443, 198.51.100.10:443/udp, [2001:db8::10]:443,
    /// 198.51.100.10:10000-10100/udp
    #[arg(value_name = "ADDRESS")]
    listener: Listener,
}

impl ServiceChange {
    pub(super) fn plan(self) -> PlanRequest {
        match self {
            Self::Steer { service, steer, force } => PlanRequest::Steer { service, steer, force },
            Self::Listen(Listen::Add(Which { service, listener })) => {
                PlanRequest::AddListener { service, listener: listener.to_string() }
            }
            Self::Listen(Listen::Remove(Which { service, listener })) => {
                PlanRequest::RemoveListener { service, listener: listener.to_string() }
            }
        }
    }
}

pub(super) async fn run(client: &Client, verb: Verb) -> Result<(), Failure> {
    match verb {
        Verb::List { json } => list(client, json).await,
        Verb::Change(ServiceChange::Listen(change)) => {
            let changed = match change {
                Listen::Add(Which { service, listener }) => client.add_listener(&service, listener).await?,
                Listen::Remove(Which { service, listener }) => client.remove_listener(&service, listener).await?,
            };
            print_changed(&changed)
        }
        Verb::Change(ServiceChange::Steer { service, steer, force }) => {
            first_step::check(client, &service, steer, force).await?;
            let changed = client.set_steer(&service, steer, force).await?;
            print_changed(&changed)
        }
        Verb::Show { service, json } => {
            let service = client.service(&service).await?;
            if json {
                output::print_json(&service)?;
            } else {
                output::print(&output::service(&service))?;
            }
            Ok(())
        }
    }
}

async fn list(client: &Client, json: bool) -> Result<(), Failure> {
    let services = client.services().await?;
    if json {
        return Ok(output::print_json(&services)?);
    }
    let mut table =
        Table::new(&["NAME", "PROTOCOL", "ADDRESS", "FORWARDING", ">SLOTS", ">GENERATION", ">BACKENDS", ">IN USE"]);
    for service in services {
        let in_use = service.backends.iter().filter(|backend| backend.slots > 0).count();
        table.row([
            service.name.clone(),
            output::protocols(&service),
            output::addresses(&service),
            service.forwarding,
            grouped(service.table_size),
            grouped(service.table_generation),
            grouped(service.backends.len() as u64),
            grouped(in_use as u64),
        ]);
    }
    Ok(output::print(&table.render())?)
}
