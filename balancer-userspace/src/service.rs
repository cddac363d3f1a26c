//! `balancer service …`.

use balancer_api::client::Client;
use balancer_model::{value, words::grouped};
use clap::Subcommand;

use super::{
    Failure,
    output::{self, Table},
};

#[derive(Debug, Subcommand)]
pub(super) enum Verb {
    /// List the services
    List {
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
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

pub(super) async fn run(client: &Client, verb: Verb) -> Result<(), Failure> {
    match verb {
        Verb::List { json } => list(client, json).await,
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
            service.name,
            service.protocol,
            service.address,
            service.forwarding,
            grouped(service.table_size),
            grouped(service.table_generation),
            grouped(service.backends.len() as u64),
            grouped(in_use as u64),
        ]);
    }
    Ok(output::print(&table.render())?)
}
