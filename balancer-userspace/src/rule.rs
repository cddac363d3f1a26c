//! The commands `balancer rule …`.

use std::time::Duration;

use balancer_api::{
    client::Client,
    model::{RuleView, RuleWord, SetRule},
};
use balancer_config::{value, words::grouped};
use clap::{Args, Subcommand};
use ipnet::IpNet;

use super::{
    Failure,
    output::{self, Table},
    print_changed,
};

#[derive(Debug, Subcommand)]
pub(super) enum Verb {
    /// Add or replace the rule for a client prefix; the longest prefix that contains a client's address decides
    Add {
        #[command(flatten)]
        rule: RuleKey,
        #[command(subcommand)]
        action: RuleVerb,
    },
    /// Remove the rule for a client prefix
    Remove(RuleKey),
    /// List the rules of a service, or of all
    List {
        /// The service's name
        #[arg(value_name = "SVC", value_parser = value::name)]
        service: Option<String>,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
}

#[derive(Debug, Args)]
pub(super) struct RuleKey {
    /// The service's name
    #[arg(value_name = "SVC", value_parser = value::name)]
    service: String,
    /// Client addresses, such as 192.0.2.0/24; without a length, one address
    #[arg(value_name = "CIDR", value_parser = value::prefix)]
    prefix: IpNet,
}

#[derive(Debug, Subcommand)]
pub(super) enum RuleVerb {
    /// Send these clients to one backend while it takes clients, whatever its weight
    Pin {
        /// The backend's name in the service
        #[arg(value_name = "NAME", value_parser = value::name)]
        backend: String,
        #[command(flatten)]
        end: RuleEnd,
    },
    /// Spread the connections of these clients: the hash includes the source port
    Spread(RuleEnd),
    /// Drop the packets of these clients
    Deny(RuleEnd),
}

#[derive(Debug, Args)]
pub(super) struct RuleEnd {
    /// Time after which the rule expires, such as 5m [default: never]
    #[arg(long, value_name = "D", value_parser = value::duration)]
    ttl: Option<Duration>,
}

pub(super) async fn run(client: &Client, verb: Verb) -> Result<(), Failure> {
    match verb {
        Verb::Add { rule: RuleKey { service, prefix }, action } => {
            let (action, backend, end) = match action {
                RuleVerb::Pin { backend, end } => (RuleWord::Pin, Some(backend), end),
                RuleVerb::Spread(end) => (RuleWord::Spread, None, end),
                RuleVerb::Deny(end) => (RuleWord::Deny, None, end),
            };
            let ttl = end.ttl.map(|ttl| humantime::format_duration(ttl).to_string());
            print_changed(&client.set_rule(&service, prefix, &SetRule { action, backend, ttl }).await?)
        }
        Verb::Remove(RuleKey { service, prefix }) => print_changed(&client.remove_rule(&service, prefix).await?),
        Verb::List { service, json } => {
            let rules = client.rules(service.as_deref()).await?;
            if json { Ok(output::print_json(&rules)?) } else { Ok(output::print(&table(rules))?) }
        }
    }
}

fn table(rules: Vec<RuleView>) -> String {
    let mut table = Table::new(&["SERVICE", "PREFIX", "ACTION", ">PACKETS", ">FALLBACKS", "ENDS", "FROM", "STATE"]);
    for rule in rules {
        table.row([
            rule.service,
            rule.prefix,
            rule.action.to_string(),
            grouped(rule.packets),
            grouped(rule.fallbacks),
            rule.expires_in_seconds.map_or_else(
                || "-".to_owned(),
                |seconds| format!("in {}", humantime::format_duration(Duration::from_secs(seconds))),
            ),
            if rule.in_file { "file" } else { "run time" }.to_owned(),
            if rule.active { "active".to_owned() } else { format!("not active: {}", rule.reason) },
        ]);
    }
    table.render()
}
