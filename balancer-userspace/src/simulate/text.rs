//! Formats the report for human readers.

use std::time::Duration;

use balancer_config::words::{counted, grouped};
use balancer_simulate::report::{Moves, Report, Rule, RuleMoves, Share, Shares};

use crate::output::Table;

pub(super) fn text(report: &Report) -> String {
    [
        log(report),
        heaviest(report),
        service(report),
        shares(report, "clients", |share| share.client_share, |shares| shares.largest_clients),
        shares(report, "requests", |share| share.request_share, |shares| shares.largest_requests),
        changes(report),
        gaps(report),
        suggestions(report),
    ]
    .concat()
}

fn log(report: &Report) -> String {
    let (log, clients) = (&report.log, &report.clients);
    let mut text = format!("{}, {}", counted(log.lines as usize, "line"), counted(log.requests as usize, "request"));
    if log.unreadable > 0 {
        text += &format!("; {} could not be read", counted(log.unreadable as usize, "line"));
    }
    text += &match (&log.first, &log.last, log.seconds) {
        (Some(first), Some(last), Some(seconds)) => format!("\nfrom {first} to {last} UTC, {}\n", span(seconds)),
        _ => "\nwithout times: nothing is said of gaps and remember, and all clients count as active\n".to_owned(),
    };
    text += &format!(
        "{} of clients, {} IPv4 and {} IPv6\n{} of them {} a /24 (IPv6: /64) with another, in {}\n",
        counted_with((clients.ipv4 + clients.ipv6) as usize, "address", "addresses"),
        grouped(clients.ipv4),
        grouped(clients.ipv6),
        grouped(clients.sharing_a_network),
        if clients.sharing_a_network == 1 { "shares" } else { "share" },
        counted(clients.shared_networks as usize, "network"),
    );
    if let Some(several) = clients.several_agents {
        text += &match several {
            0 => "no address has several user agents\n".to_owned(),
            several => format!(
                "at least {} {} several user agents: several people behind NAT, or several programs\n",
                counted_with(several as usize, "address", "addresses"),
                if several == 1 { "has" } else { "have" },
            ),
        };
    }
    if clients.forwarded_requests * 2 > log.requests {
        text += &format!(
            "WARNING: {} came through another proxy, which told the clients' addresses (X-Forwarded-For): packets carry \
             that proxy's addresses, so this balancer would see the proxy as a few clients; use the log of the program to \
             which clients connect\n",
            counted(clients.forwarded_requests as usize, "request"),
        );
    }
    text
}

fn heaviest(report: &Report) -> String {
    let mut table = Table::new(&["HEAVIEST NETWORKS", ">ADDRESSES", ">REQUESTS", ">SHARE"]);
    for prefix in &report.heaviest {
        table.row([prefix.prefix.clone(), grouped(prefix.addresses), grouped(prefix.requests), percent(prefix.share)]);
    }
    format!("\n{}", table.render())
}

fn service(report: &Report) -> String {
    let service = &report.service;
    let key = if service.has_key {
        ""
    } else {
        "\nwithout a hash_key: a controller draws one, and this balancer's shares become others of the same kind"
    };
    let remember = match service.remember_seconds {
        0 => "\"0s\"".to_owned(),
        seconds => format!("\"{}\"", span(seconds).replace(' ', "")),
    };
    format!(
        "\nservice {}: {}, client_prefix v4 = {} and v6 = {}, remember = {remember}{key}\n",
        service.name,
        counted(service.servers.len(), "backend"),
        service.client_prefix.v4,
        service.client_prefix.v6,
    )
}

/// Formats a table with a row for each server and a column for each rule.
fn shares(report: &Report, what: &str, part: fn(&Share) -> f64, largest: fn(&Shares) -> f64) -> String {
    let headings = format!("SHARE OF {}", what.to_uppercase());
    let mut headings = vec![headings, ">EXPECTED".to_owned()];
    headings.extend(report.rules.iter().map(|shares| format!(">{}", short(&shares.rule))));
    let headings: Vec<&str> = headings.iter().map(String::as_str).collect();
    let mut table = Table::new(&headings);
    for (place, server) in report.service.servers.iter().enumerate() {
        let of = |shares: &Shares| shares.servers.get(place).map_or_else(String::new, |share| percent(part(share)));
        let expected = report.rules.first().and_then(|shares| shares.servers.get(place)).map(|share| share.expected);
        let first = [server.clone(), expected.map_or_else(String::new, percent)];
        table.cells(first.into_iter().chain(report.rules.iter().map(of)));
    }
    let first = ["largest/expected".to_owned(), String::new()];
    table.cells(first.into_iter().chain(report.rules.iter().map(|shares| format!("{:.2}", largest(shares)))));
    let mut text = format!("\n{}", table.render());
    let spread = report.rules.iter().filter(|shares| shares.spread > 0 && matches!(shares.rule, Rule::Balancer { .. }));
    for shares in spread.filter(|_| what == "requests") {
        text += &format!(
            "{}: the connections of {} with {} go to all servers\n",
            short(&shares.rule),
            counted_with(shares.spread as usize, "address", "addresses"),
            counted(shares.spread_requests as usize, "request"),
        );
    }
    text
}

fn changes(report: &Report) -> String {
    if report.changes.is_empty() {
        return String::new();
    }
    let active = &report.active;
    let mut text = match (&active.moment, active.within_seconds) {
        (Some(moment), Some(seconds)) => format!(
            "\n{} active at the log's end ({moment} UTC), seen in the {} before\n",
            counted(active.clients as usize, "client"),
            span(seconds)
        ),
        _ => format!("\n{}, all taken to be active\n", counted(active.clients as usize, "client")),
    };
    let mut headings = vec!["ACTIVE CLIENTS THAT MOVE".to_owned()];
    headings.extend(report.rules.iter().map(|shares| format!(">{}", short(&shares.rule))));
    let headings: Vec<&str> = headings.iter().map(String::as_str).collect();
    let mut table = Table::new(&headings);
    let mut row = |change: &Moves, name: String, number: fn(&RuleMoves) -> u64| {
        table.cells(std::iter::once(name).chain(change.rules.iter().map(|moves| of_all(number(moves), moves.of))));
    };
    for change in &report.changes {
        row(change, change.change.clone(), |moves| moves.moved);
        if change.rules.iter().any(|moves| moves.draining > 0) {
            row(change, "  once the drain ends".to_owned(), |moves| moves.draining);
        }
        if change.rules.iter().any(|moves| moves.by_table > moves.moved + moves.draining) {
            row(change, "  with remember = \"0s\"".to_owned(), |moves| moves.by_table);
        }
    }
    text += &table.render();
    text
}

fn gaps(report: &Report) -> String {
    let Some(gaps) = &report.gaps else { return String::new() };
    let limits = [("50%", gaps.p50), ("90%", gaps.p90), ("99%", gaps.p99), ("99.5%", gaps.p995), ("99.9%", gaps.p999)];
    let limits = limits.map(|(part, seconds)| format!("{part} {}", span(seconds)));
    format!(
        "\n{} between two requests of a client; shorter than: {}\n{} of them longer than remember\n",
        counted(gaps.count as usize, "gap"),
        limits.join(", "),
        grouped(gaps.forgotten),
    )
}

fn suggestions(report: &Report) -> String {
    let line = |suggestion: &balancer_simulate::report::Suggestion| {
        format!("  {}\n    # {}\n", suggestion.line, suggestion.why)
    };
    let all: String = report.suggestions.iter().map(line).collect();
    format!("\nsuggested:\n{all}")
}

/// Returns a short name of a rule, for a heading.
fn short(rule: &Rule) -> String {
    match rule {
        Rule::NginxIpHash => "ip_hash".to_owned(),
        Rule::HaproxySource => "source".to_owned(),
        Rule::Balancer { client_prefix, spread } => {
            format!("/{}{}", client_prefix.v4, if *spread { "+spread" } else { "" })
        }
    }
}

fn percent(part: f64) -> String {
    format!("{:.1}%", 100.0 * part)
}

fn of_all(part: u64, all: u64) -> String {
    match all {
        0 => grouped(part),
        all => format!("{} ({:.1}%)", grouped(part), 100.0 * part as f64 / all as f64),
    }
}

fn counted_with(number: usize, one: &str, several: &str) -> String {
    format!("{} {}", grouped(number as u64), if number == 1 { one } else { several })
}

fn span(seconds: u64) -> String {
    humantime::format_duration(Duration::from_secs(seconds)).to_string()
}
