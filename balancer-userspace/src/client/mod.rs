//! The commands `balancer client …`.

mod backends;
mod haproxy;
mod lines;
mod nginx;
mod transfer;

use std::{net::IpAddr, path::PathBuf};

use anyhow::anyhow;
use balancer_api::{
    client::Client,
    model::ClientQuery,
    statistics::{TopClient, TopQuery},
};
use balancer_config::{names::BackendName, value, words::grouped};
use balancer_control::top::By;
use clap::{Subcommand, ValueEnum};
use ipnet::IpNet;

use super::{
    Failure,
    output::{self, Table},
};

#[derive(Debug, Subcommand)]
pub(super) enum Verb {
    /// Show which backend a client is steered to, and why
    Where {
        /// The client's source address
        #[arg(value_name = "IP")]
        address: IpAddr,
        /// Only this service
        #[arg(long, value_name = "SVC", value_parser = value::name)]
        service: Option<String>,
        /// Print JSON: an object, or a list if several services match
        #[arg(long)]
        json: bool,
    },
    /// Forget the backend of a client, or all clients of a backend; forgotten clients follow the lookup table
    #[command(group = clap::ArgGroup::new("who").required(true))]
    Forget {
        /// The client's source address
        #[arg(value_name = "IP", group = "who")]
        address: Option<IpAddr>,
        /// Only in this service
        #[arg(long, value_name = "SVC", value_parser = value::name, conflicts_with = "backend")]
        service: Option<String>,
        /// All clients of this backend
        #[arg(long, value_name = "SVC/NAME", value_parser = value::backend_name, group = "who")]
        backend: Option<BackendName>,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Record clients at backends, from lines `ADDRESS BACKEND [AGE]`, an access log of nginx, or HAProxy's stick table
    Import {
        /// The service's name
        #[arg(value_name = "SVC", value_parser = value::name)]
        service: String,
        /// The file to read, or HAProxy's socket; - is standard input
        #[arg(value_name = "FILE")]
        file: PathBuf,
        /// nginx: FILE is an access log with $upstream_addr; haproxy: FILE is HAProxy's socket or stick table
        #[arg(long, value_enum, value_name = "PROGRAM")]
        from: Option<transfer::From>,
        /// With --from nginx: the log's format, as in `log_format` [default: guessed from the first lines]
        #[arg(long, value_name = "FORMAT", requires = "from")]
        format: Option<nginx::LogFormat>,
        /// With --from haproxy: the stick table [default: the service's name]
        #[arg(long, value_name = "TABLE", requires = "from")]
        table: Option<String>,
        /// Record also clients that this balancer has served since the last import
        #[arg(long)]
        overwrite: bool,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Write the known clients of a service and their backends, in the format of `client import`
    Export {
        /// The service's name
        #[arg(value_name = "SVC", value_parser = value::name)]
        service: String,
        /// The file to write [default: standard output]
        #[arg(short, value_name = "FILE")]
        output: Option<PathBuf>,
        /// Only clients with addresses in this prefix; may be repeated [default: all IPv4 addresses]
        #[arg(long, value_name = "PREFIX", value_parser = value::prefix)]
        within: Vec<IpNet>,
    },
    /// Show the clients that sent most in about the last minute, estimated from samples
    Top {
        /// Only clients of this backend
        #[arg(long, value_name = "SVC/NAME", value_parser = value::backend_name, conflicts_with = "service")]
        backend: Option<BackendName>,
        /// Only this service
        #[arg(long, value_name = "SVC", value_parser = value::name)]
        service: Option<String>,
        /// The number of clients
        #[arg(short, value_name = "N", default_value_t = 10, value_parser = clap::builder::RangedU64ValueParser::<usize>::new().range(1..=256))]
        number: usize,
        /// The measure of a client's load
        #[arg(long, value_enum, default_value_t = Measure::Bytes)]
        by: Measure,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
}

#[derive(Clone, Copy, Debug, ValueEnum)]
pub(super) enum Measure {
    Bytes,
    Packets,
}

pub(super) async fn run(client: &Client, verb: Verb) -> Result<(), Failure> {
    match verb {
        Verb::Where { address, service, json } => locate(client, address, service, json).await,
        Verb::Forget { address, service, backend, json } => {
            let forgotten = match (address, backend) {
                (_, Some(backend)) => client.forget_all(&backend).await?,
                (Some(address), None) => client.forget(&ClientQuery { address, service }).await?,
                (None, None) => return Err(anyhow!("whom to forget? give an IP address or --backend SVC/NAME").into()),
            };
            if json {
                return Ok(output::print_json(&forgotten)?);
            }
            Ok(output::print(&format!("{}\n", forgotten.message))?)
        }
        Verb::Import { service, file, from, format, table, overwrite, json } => {
            let source = transfer::Source::of(file, from, format, table)?;
            transfer::import(client, &service, &source, overwrite, json).await
        }
        Verb::Export { service, output, within } => transfer::export(client, &service, within, output).await,
        Verb::Top { backend, service, number, by, json } => {
            let by = match by {
                Measure::Bytes => By::Bytes,
                Measure::Packets => By::Packets,
            };
            let (service, backend) = match backend {
                Some(name) => (Some(name.service), Some(name.backend)),
                None => (service, None),
            };
            let clients = client.top(&TopQuery { service, backend, n: Some(number), by }).await?;
            if json { Ok(output::print_json(&clients)?) } else { Ok(output::print(&heaviest(clients))?) }
        }
    }
}

/// Formats a table of heavy clients.
pub(super) fn heaviest(clients: Vec<TopClient>) -> String {
    if clients.is_empty() {
        return "no client's packets were sampled in about the last minute\n".to_owned();
    }
    let mut table = Table::new(&["CLIENT", "SERVICE", "BACKEND", ">SHARE", ">PACKETS/S", ">BYTES/S", "KNOWN"]);
    for client in clients {
        table.row([
            client.client,
            client.service,
            client.backend.unwrap_or_else(|| "- (gone)".to_owned()),
            format!("{:.1}%", 100.0 * client.share),
            grouped(client.packets_per_second.round() as u64),
            grouped(client.bytes_per_second.round() as u64),
            if client.known { "yes" } else { "no" }.to_owned(),
        ]);
    }
    table.render()
}

async fn locate(client: &Client, address: IpAddr, service: Option<String>, json: bool) -> Result<(), Failure> {
    let clients = client.client(&ClientQuery { address, service }).await?;
    match clients.as_slice() {
        [] => {
            return Err(anyhow!(
                "no service takes clients with an address like {address}; see \"balancer service list\""
            )
            .into());
        }
        [client] if json => return Ok(output::print_json(client)?),
        clients if json => return Ok(output::print_json(&clients)?),
        _ => {}
    }
    let mut table = Table::new(&["SERVICE", "CLIENT", ">SLOT", "BACKEND", "WHY", "KNOWN", "LAST SEEN"]);
    for client in clients {
        table.row([
            client.service,
            client.client,
            grouped(client.slot),
            client.backend.unwrap_or_else(|| {
                let spread = client.rule.as_ref().is_some_and(|rule| rule.action == "spread");
                if spread { "- (each connection its own)" } else { "- (dropped)" }.to_owned()
            }),
            match client.rule {
                Some(rule) => format!("{} ({} {})", client.why, rule.prefix, rule.action),
                None => client.why,
            },
            if client.known { "yes" } else { "no" }.to_owned(),
            client
                .last_seen_seconds_ago
                .map_or_else(|| "-".to_owned(), |seconds| format!("{} s ago", grouped(seconds))),
        ]);
    }
    Ok(output::print(&table.render())?)
}
