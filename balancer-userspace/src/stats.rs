//! The command `balancer stats`.

use std::{
    io::{self, IsTerminal as _},
    time::Duration,
};

use balancer_api::{
    client::{Client, ClientError},
    model::FleetSnapshot,
    statistics::{PeriodView, StatsView},
};
use balancer_config::{value, words::grouped};

use super::{
    Failure, client, fleet,
    live::{self, REDRAW},
    output::{self, Table},
};

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Show only this service
    #[arg(value_name = "SVC", value_parser = value::name)]
    service: Option<String>,
    /// Show again every second until interrupted
    #[arg(long, conflicts_with_all = ["json", "fleet"])]
    watch: bool,
    /// Show all members of the fleet together, with their counts of the last ten seconds
    #[arg(long)]
    fleet: bool,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

pub(super) async fn run(client: &Client, args: &Args) -> Result<(), Failure> {
    if args.watch && io::stdout().is_terminal() {
        return live::show(async || text(client, args).await).await;
    }
    loop {
        if args.json {
            output::print_json(&services(client, args).await?)?;
        } else {
            output::print(&text(client, args).await?)?;
        }
        if !args.watch {
            return Ok(());
        }
        tokio::time::sleep(REDRAW).await;
    }
}

async fn services(client: &Client, args: &Args) -> Result<Vec<StatsView>, ClientError> {
    let service = args.service.as_deref();
    if args.fleet { client.fleet_stats(service).await } else { client.stats(service).await }
}

async fn text(client: &Client, args: &Args) -> Result<String, Failure> {
    let services = services(client, args).await?;
    let mut texts: Vec<String> = fleet::found(client).await?.iter().map(|fleet| headline(fleet, args.fleet)).collect();
    texts.extend(services.into_iter().map(|stats| render(stats, args.fleet)));
    Ok(texts.join("\n"))
}

/// Returns a headline that names the members whose counts the figures include.
fn headline(fleet: &FleetSnapshot, all: bool) -> String {
    let whose = if all { "all members together" } else { "this member alone; of all: --fleet" };
    format!("{}\nfigures of {whose}\n", fleet::line(fleet))
}

fn ratio(ratio: Option<f64>) -> String {
    ratio.map_or_else(|| "-".to_owned(), |ratio| format!("{:.2}%", 100.0 * ratio))
}

fn share(share: Option<f64>) -> String {
    share.map_or_else(|| "-".to_owned(), |share| format!("{:.1}%", 100.0 * share))
}

/// Formats the Gini coefficient of a service, of which `has_samples` says whether packets were sampled.
fn gini(gini: Option<f64>, has_samples: bool) -> String {
    match gini {
        Some(gini) => format!("{gini:.2}"),
        None if has_samples => "unknown (too few samples)".to_owned(),
        None => "-".to_owned(),
    }
}

fn render(stats: StatsView, of_fleet: bool) -> String {
    let number = |value: Option<f64>| value.map_or_else(|| "-".to_owned(), |value| format!("{value:.2}"));
    let watched = |heading: &str| {
        if stats.watched { format!("{heading} (WATCHED)") } else { heading.to_owned() }
    };
    let mut text = format!(
        "service {}{}  stickiness {}  imbalance {}  Gini of clients {}\n",
        stats.service,
        steered(&stats),
        ratio(stats.stickiness_ratio),
        number(stats.imbalance_ratio),
        // Members of a fleet do not exchange the samples that the coefficient needs.
        gini(stats.client_gini, !of_fleet && !stats.top_clients.is_empty()),
    );
    let mut table =
        Table::new(&[&watched("PERIOD"), ">STICKINESS", ">CONNECTIONS", ">KEPT", ">NEW", ">MOVED", "MOVES BY CAUSE"]);
    for period in &stats.periods {
        let count = |decision: &str| grouped(period.decisions.get(decision).copied().unwrap_or(0));
        table.row([
            name(period),
            ratio(period.stickiness_ratio),
            grouped(period.connections),
            count("kept"),
            count("new"),
            count("moved"),
            causes(period),
        ]);
    }
    text.push_str(&table.render());
    let mut table =
        Table::new(&[&watched("BACKEND"), "STATE", ">SHARE", ">EXPECTED", ">KNOWN CLIENTS", ">CONNECTIONS"]);
    for backend in stats.backends {
        table.row([
            backend.name,
            backend.state,
            share(backend.share),
            share(backend.expected_share),
            grouped(backend.known_clients),
            grouped(backend.connections),
        ]);
    }
    text.push_str(&table.render());
    text.push_str(&format!("table generation {}, {} slots", stats.table.generation, grouped(stats.table.size)));
    if let Some(change) = &stats.table.last_change {
        text.push_str(&format!(
            "; {} slots moved, {} needless, {} s ago: {}",
            grouped(change.slots_moved),
            grouped(change.needless_slots_moved),
            grouped(change.seconds_ago),
            change.message,
        ));
    }
    text.push('\n');
    if !stats.top_clients.is_empty() {
        text.push_str(&client::heaviest(stats.top_clients));
    }
    for warning in &stats.warnings {
        text.push_str(&format!("WARNING: {warning}\n"));
    }
    text
}

/// Describes which clients the figures of a service include, if the balancer does not steer all clients.
fn steered(stats: &StatsView) -> String {
    match stats.steer {
        100 => String::new(),
        _ if stats.watched => "  watched (steer 0: what would be)".to_owned(),
        steer => format!("  of the {steer}% of clients that are steered"),
    }
}

fn name(period: &PeriodView) -> String {
    let whole = if period.period == "hour" { 3600 } else { 60 };
    match period.seconds {
        None => "since start".to_owned(),
        // The whole period is named if samples cover at least 80% of it.
        Some(seconds) if seconds * 10 >= whole * 8 => format!("last {}", period.period),
        Some(seconds) => {
            format!("last {} ({})", period.period, humantime::format_duration(Duration::from_secs(seconds)))
        }
    }
}

/// Formats the causes of moves as `3 down, 1 drain`.
fn causes(period: &PeriodView) -> String {
    let causes: Vec<String> = period
        .moves
        .iter()
        .filter(|&(_, &count)| count > 0)
        .map(|(cause, &count)| format!("{} {cause}", grouped(count)))
        .collect();
    if causes.is_empty() { "-".to_owned() } else { causes.join(", ") }
}

#[cfg(test)]
mod tests {
    use super::gini;

    #[test]
    fn when_there_are_too_few_samples_then_no_coefficient_is_shown() {
        assert_eq!(gini(Some(0.25), true), "0.25");
        assert_eq!(gini(None, true), "unknown (too few samples)");
        assert_eq!(gini(None, false), "-");
    }
}
