//! The commands `balancer flow …`.

use std::{net::IpAddr, time::Duration};

use balancer_api::{client::Client, model::FlowView};
use balancer_config::{value, words::grouped};
use clap::Subcommand;

use super::{
    Failure,
    output::{self, Table},
};

#[derive(Debug, Subcommand)]
pub(super) enum Verb {
    /// List the connections of one service with forwarding = "snat", or of all such services
    List {
        /// The service's name
        #[arg(value_name = "SVC", value_parser = value::name)]
        service: Option<String>,
        /// List only connections of this client
        #[arg(long, value_name = "ADDR")]
        client: Option<IpAddr>,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
}

pub(super) async fn run(api: &Client, verb: Verb) -> Result<(), Failure> {
    let Verb::List { service, client, json } = verb;
    let flows = api.flows(service.as_deref(), client).await?;
    if json { Ok(output::print_json(&flows)?) } else { Ok(output::print(&table(flows))?) }
}

fn table(flows: Vec<FlowView>) -> String {
    let mut table = Table::new(&[
        "SERVICE",
        "PROTOCOL",
        "CLIENT",
        "VIP",
        "SEEN AS",
        "BACKEND",
        "STATE",
        ">AGE",
        ">IDLE",
        ">TO BACKEND",
        ">TO CLIENT",
    ]);
    for flow in flows {
        table.row([
            flow.service,
            flow.protocol,
            flow.client,
            flow.vip,
            flow.seen_as,
            flow.backend,
            flow.state,
            time(flow.age_seconds),
            time(flow.idle_seconds),
            grouped(flow.bytes_to_backend),
            grouped(flow.bytes_to_client),
        ]);
    }
    table.render()
}

fn time(seconds: u64) -> String {
    humantime::format_duration(Duration::from_secs(seconds)).to_string().replace(' ', "")
}
