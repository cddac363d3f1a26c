//! The whole HTML document of the page.

use std::time::{SystemTime, UNIX_EPOCH};

use balancer_api::events::EventView;
use balancer_common::verdict::{DropReason, Verdict};
use balancer_config::{
    states::BackendState,
    words::{counted, grouped},
};
use balancer_control::{
    readiness::Fitness,
    snapshot::{BackendSnapshot, FlowsSnapshot, MemberSnapshot, MemorySnapshot, Snapshot},
};
use maud::{DOCTYPE, Markup, PreEscaped, html};

use super::{
    fleet::fleet,
    overview::{FEW, overview},
    service::service,
};

const STYLE: &str = include_str!("style.css");
const SCRIPT: &str = include_str!("live.js");

/// The number of events that the page shows.
const SHOWN: usize = 12;

/// The maximum number of backends named in the summary; the summary gives only the number of further backends.
const NAMED: usize = 4;

/// The document that a browser loads first; `nonce` authorizes the document's style and script.
pub(super) fn document(snapshot: &Snapshot, selected: Option<&str>, events: &[EventView], nonce: &str) -> Markup {
    html! {
        (DOCTYPE)
        html lang="en" {
            head {
                meta charset="utf-8";
                meta name="viewport" content="width=device-width, initial-scale=1";
                (title(snapshot))
                link rel="icon" href="data:,";
                style nonce=(nonce) { (PreEscaped(STYLE)) }
            }
            body {
                a.skip href="#main" { "Skip to the numbers" }
                header {
                    h1 { "balancer" }
                    p { "version " (env!("CARGO_PKG_VERSION")) " · " a href="/metrics" { "metrics" } }
                    p #link role="status" { "Reload for newer numbers" }
                    button #pause type="button" aria-pressed="false" hidden { "Pause" }
                }
                (numbers(snapshot, selected, events))
                script nonce=(nonce) { (PreEscaped(SCRIPT)) }
            }
        }
    }
}

/// The answer to the script's requests: the title, and those sections of the page that change.
pub(super) fn fragment(snapshot: &Snapshot, selected: Option<&str>, events: &[EventView]) -> Markup {
    html! { (DOCTYPE) (title(snapshot)) (numbers(snapshot, selected, events)) }
}

fn numbers(snapshot: &Snapshot, selected: Option<&str>, events: &[EventView]) -> Markup {
    let now = UNIX_EPOCH + UNIX_EPOCH.elapsed().unwrap_or_default();
    let shown = humantime::format_rfc3339_seconds(now).to_string();
    html! {
        main #main tabindex="-1" {
            p.summary role="status" { (member(&snapshot.member)) (summary(snapshot)) }
            (services_shown(snapshot, selected, events, now))
            @if let Some(of) = &snapshot.fleet { (fleet(of)) }
            (history(selected, events))
            div.flat {
                (interfaces(snapshot))
                (drops(snapshot))
                (client_table(&snapshot.memory))
                @if let Some(flows) = &snapshot.flows { (flow_table(flows)) }
            }
            p.quiet { "As of " time datetime=(shown) { (shown.replace('T', " ").replace('Z', " UTC")) } }
        }
    }
}

/// Shows the selected service; without a selection, shows all services if they are few, and otherwise an overview.
fn services_shown(snapshot: &Snapshot, selected: Option<&str>, events: &[EventView], now: SystemTime) -> Markup {
    let all = &snapshot.services;
    html! {
        @if let Some(name) = selected {
            p { a href="/" { "All services" } }
            @for one in all.iter().filter(|service| service.name == name) { (service(one, events, now)) }
        } @else {
            @if all.len() > 1 { (overview(snapshot)) }
            @if all.len() <= FEW { @for one in all { (service(one, events, now)) } }
        }
    }
}

/// The backends that are not up, each as `service/name`.
fn troubled(snapshot: &Snapshot) -> impl Iterator<Item = (String, &BackendSnapshot)> {
    snapshot.services.iter().flat_map(|service| {
        let down = service
            .backends
            .iter()
            .filter(|backend| !matches!(backend.state, BackendState::Up | BackendState::Checking));
        down.map(|backend| (format!("{}/{}", service.name, backend.name), backend))
    })
}

fn title(snapshot: &Snapshot) -> Markup {
    html! {
        title {
            @match troubled(snapshot).count() {
                0 => { "balancer" }
                count => { (counted(count, "backend")) " not up – balancer" }
            }
        }
    }
}

/// Shows whether the balancer is withdrawn, degraded or not ready; empty if the balancer is announced and ready.
fn member(member: &MemberSnapshot) -> String {
    let MemberSnapshot { readiness, withdrawn, vips: _, unsaved: _ } = member;
    let mut text = String::new();
    if *withdrawn {
        text += "Withdrawn: its VIPs are removed. ";
    }
    let state = match readiness.state {
        Fitness::Ready => return text,
        Fitness::Degraded => "Degraded",
        Fitness::NotReady => "Not ready",
    };
    text + &format!("{state}: {}. ", readiness.reasons.join("; "))
}

/// A sentence about the most important problem, or that all is well. The text changes only when the state changes,
/// because screen readers read each change aloud.
fn summary(snapshot: &Snapshot) -> String {
    let all: usize = snapshot.services.iter().map(|service| service.backends.len()).sum();
    let troubled: Vec<String> = troubled(snapshot)
        .map(|(name, backend)| match backend.reason.as_str() {
            "" => format!("{name} {}", backend.state.word()),
            reason => format!("{name} {} ({reason})", backend.state.word()),
        })
        .collect();
    if troubled.is_empty() {
        return match all {
            0 => "No backends.".to_owned(),
            all => format!("{} in {}, none in trouble.", counted(all, "backend"), services(snapshot)),
        };
    }
    let more = match troubled.len().saturating_sub(NAMED) {
        0 => String::new(),
        more => format!(", and {more} more"),
    };
    let named: Vec<&str> = troubled.iter().take(NAMED).map(String::as_str).collect();
    format!("{} of {}: {}{more}.", troubled.len(), counted(all, "backend"), named.join(", "))
}

fn services(snapshot: &Snapshot) -> String {
    counted(snapshot.services.len(), "service")
}

/// The latest events about backends; if a service is selected, only events about that service. The page omits events
/// about other subjects, because such events may name clients.
fn history(selected: Option<&str>, events: &[EventView]) -> Markup {
    let shown = |event: &&EventView| {
        event.backend.is_some() && selected.is_none_or(|name| event.service.as_deref() == Some(name))
    };
    let told = events.iter().rev().filter(shown).take(SHOWN);
    let told: Vec<(String, &EventView)> =
        told.map(|event| (event.time.chars().take(19).collect::<String>().replace('T', " "), event)).collect();
    html! {
        @if !told.is_empty() {
            section aria-labelledby="events" {
                h2 #events { "Last events" }
                table.events {
                    caption { "Of backends, the newest first; all of them: balancer events" }
                    thead { tr { th scope="col" { "Time (UTC)" } th scope="col" { "What happened" } } }
                    tbody {
                        @for (time, event) in told {
                            tr {
                                td { time datetime=(event.time) { (time) } }
                                td {
                                    (event.message)
                                    @if let Some(uid) = event.uid { " " span.quiet { "asked for by uid " (uid) } }
                                }
                            }
                        }
                    }
                }
            }
        }
    }
}

fn interfaces(snapshot: &Snapshot) -> Markup {
    html! {
        section aria-labelledby="interfaces" {
            h2 #interfaces { "Interfaces" }
            @for interface in &snapshot.interfaces {
                (counts(
                    &format!("{}, XDP in {} mode", interface.name, interface.xdp_mode),
                    ["Packets", "since start"],
                    Verdict::ALL
                        .iter()
                        .map(|&verdict| (verdict_words(verdict), interface.stats.verdicts[verdict.index()])),
                ))
            }
        }
    }
}

/// A table of counters with two columns under the headings `heads`.
fn counts<'a>(caption: &str, heads: [&str; 2], rows: impl IntoIterator<Item = (&'a str, u64)>) -> Markup {
    html! {
        table {
            caption { (caption) }
            thead { tr { th scope="col" { (heads[0]) } th.number scope="col" { (heads[1]) } } }
            tbody {
                @for (what, count) in rows {
                    tr { th scope="row" { (what) } td.number { (grouped(count)) } }
                }
            }
        }
    }
}

const fn verdict_words(verdict: Verdict) -> &'static str {
    match verdict {
        Verdict::Tx => "sent back out (tx)",
        Verdict::Redirect => "sent out elsewhere (redirect)",
        Verdict::Pass => "not for a service (pass)",
        Verdict::Drop => "dropped (drop)",
        Verdict::Aborted => "failed (aborted)",
        Verdict::Handed => "sent by the kernel (handed)",
        Verdict::Local => "to this machine (local)",
    }
}

fn drops(snapshot: &Snapshot) -> Markup {
    let dropped: Vec<(&str, u64)> = DropReason::ALL
        .iter()
        .map(|&reason| (reason.label(), snapshot.drops.reasons[reason.index()]))
        .filter(|&(_, count)| count > 0)
        .collect();
    html! {
        section aria-labelledby="drops" {
            h2 #drops { "Drops" }
            @if dropped.is_empty() {
                p { "No packet was dropped." }
            } @else {
                (counts("Packets dropped since start", ["Reason", "Packets"], dropped))
            }
        }
    }
}

fn client_table(memory: &MemorySnapshot) -> Markup {
    let rows = [
        ("known clients", memory.entries),
        ("room for", memory.capacity),
        ("recorded since start", memory.stats.inserted),
        ("forgotten to make room", memory.stats.evicted),
        ("not recorded: no room", memory.stats.full),
        ("not recorded: too many at once", memory.stats.limited),
    ];
    html! {
        section aria-labelledby="clients" {
            h2 #clients { "Client table" }
            (counts("Of all services", ["Clients", "Number"], rows))
        }
    }
}

fn flow_table(flows: &FlowsSnapshot) -> Markup {
    let rows = [("open, or with a resting port", flows.entries), ("room for", flows.capacity)];
    html! {
        section aria-labelledby="connections" {
            h2 #connections { "Connections" }
            (counts("Of all snat services", ["Connections", "Number"], rows))
        }
    }
}
