//! A service's part of the page.

use balancer_common::verdict::{CauseIndex, Decision, MoveCause};
use maud::{Markup, html};

use crate::{
    core::io::Admin,
    shell::snapshot::{BackendSnapshot, ServiceSnapshot, forwarding_word},
    words::grouped,
};

/// What is not known.
const NONE: &str = "–";

pub(super) fn service(service: &ServiceSnapshot) -> Markup {
    let id = format!("service-{}", service.name);
    html! {
        section aria-labelledby=(id) {
            div.title {
                h2 id=(id) { (service.name) }
                p {
                    (service.address) " " (service.protocol) " · " (forwarding_word(service.forwarding)) " · "
                    @if service.remembers { "clients are remembered" } @else { "no memory: the table alone decides" }
                }
            }
            (figures(service))
            (backends(service, &id))
            div.columns {
                (decisions(service))
                (moves(service))
            }
        }
    }
}

fn figures(service: &ServiceSnapshot) -> Markup {
    let count = |decision: Decision| service.total(|stats| stats.decisions[decision.index()]);
    let (kept, moved) = (count(Decision::Kept), count(Decision::Moved));
    let known: u64 = service.backends.iter().map(|backend| backend.known_clients).sum();
    html! {
        dl.figures {
            @if service.remembers {
                div {
                    dt { "Known clients" }
                    dd { (grouped(known)) }
                }
                div {
                    dt { "Stickiness" }
                    dd {
                        (percent((kept + moved > 0).then(|| kept as f64 / (kept + moved) as f64)))
                        small { (grouped(moved)) " of " (grouped(kept + moved)) " returns moved" }
                    }
                }
            }
            div {
                dt { "Imbalance" }
                dd {
                    @match service.imbalance() {
                        Some(ratio) => { (format!("{ratio:.2}")) }
                        None => { (NONE) }
                    }
                    small { "largest share over expected" }
                }
            }
            div {
                dt { "Connections" }
                dd { (grouped(service.total(|stats| stats.connections))) small { "since start" } }
            }
            div {
                dt { "Table generation" }
                dd {
                    (grouped(service.table_generation))
                    small { (grouped(service.slots_moved_needless)) " slots moved needlessly" }
                }
            }
        }
    }
}

fn backends(service: &ServiceSnapshot, id: &str) -> Markup {
    let of = if service.remembers { "known clients" } else { "connections" };
    html! {
        // The roles again, as a narrow screen shows each row as a card.
        table.cards role="table" aria-describedby=(id) {
            caption { "Backends; shares of " (of) }
            thead role="rowgroup" {
                tr role="row" {
                    @for heading in ["Backend", "State", "Reason"] {
                        th role="columnheader" scope="col" { (heading) }
                    }
                    th.share role="columnheader" scope="col" { "Share (expected)" }
                    @for heading in ["Weight", "Known clients", "Connections", "Slots"] {
                        th.number role="columnheader" scope="col" { (heading) }
                    }
                }
            }
            tbody role="rowgroup" {
                @for (backend, shares) in service.backends.iter().zip(service.shares()) { (row(service, backend, shares)) }
            }
        }
    }
}

fn row(service: &ServiceSnapshot, backend: &BackendSnapshot, (share, expected): (Option<f64>, Option<f64>)) -> Markup {
    let number = |label, value: u64| {
        html! { td.number role="cell" data-label=(label) { (grouped(value)) } }
    };
    html! {
        tr role="row" id=(format!("backend-{}/{}", service.name, backend.name)) {
            th role="rowheader" scope="row" {
                (backend.name) " " span.quiet { (backend.address) }
            }
            td role="cell" data-label="State" { (state(backend)) }
            td role="cell" data-label="Reason" { (backend.reason) }
            td.share role="cell" data-label="Share (expected)" {
                span { (percent(share)) " " span.quiet { "(" (percent(expected)) ")" } }
                (bar(share, expected))
            }
            (number("Weight", backend.weight.into()))
            (number("Known clients", backend.known_clients))
            (number("Connections", backend.stats.connections))
            (number("Slots", backend.slots.into()))
        }
    }
}

/// The state as a word, with a sign and a colour that say the same.
fn state(backend: &BackendSnapshot) -> Markup {
    let (class, sign) = match backend.state {
        "up" => ("good", "●"),
        "checking" => ("wait", "○"),
        "drained" => ("wait", "◌"),
        "down" => ("bad", "✕"),
        "maint" => ("bad", "■"),
        _ => ("wait", "◐"),
    };
    let time =
        backend.drain_deadline.map(|left| humantime::format_duration(std::time::Duration::from_secs(left.as_secs())));
    html! {
        span.state.(class) { span aria-hidden="true" { (sign) " " } (backend.state) }
        @if let Some(time) = time { " " span.quiet { "at most " (time) } }
        @if backend.weight == 0 && backend.admin == Admin::Ready { " " span.quiet { "takes no new clients" } }
        @if backend.backup { " " span.quiet { "backup" } }
    }
}

/// A bar as long as `share`, with a mark where it is expected to end; the text beside it says the same.
fn bar(share: Option<f64>, expected: Option<f64>) -> Markup {
    let place = |ratio: f64| format!("{:.2}", 100.0 * ratio);
    html! {
        svg.bar viewBox="0 0 100 8" preserveAspectRatio="none" aria-hidden="true" focusable="false" {
            rect.track y="2" width="100" height="4" {}
            @if let Some(share) = share { rect.fill y="2" width=(place(share)) height="4" {} }
            @if let Some(expected) = expected {
                rect.mark x=(place(expected.min(0.994))) width="0.6" height="8" {}
            }
        }
    }
}

fn decisions(service: &ServiceSnapshot) -> Markup {
    html! {
        table {
            caption { "New connections, by how their backend was chosen" }
            thead { tr { th scope="col" { "Decision" } th.number scope="col" { "since start" } } }
            tbody {
                @for &decision in Decision::ALL {
                    tr {
                        th scope="row" { (decision.label()) }
                        td.number { (grouped(service.total(|stats| stats.decisions[decision.index()]))) }
                    }
                }
            }
        }
    }
}

fn moves(service: &ServiceSnapshot) -> Markup {
    html! {
        table {
            caption { "Known clients moved, by cause" }
            thead { tr { th scope="col" { "Cause" } th.number scope="col" { "since start" } } }
            tbody {
                @for &cause in MoveCause::ALL {
                    tr {
                        th scope="row" { (cause.label()) }
                        td.number { (grouped(service.total(|stats| stats.moves[CauseIndex::from(cause).counter()]))) }
                    }
                }
            }
        }
    }
}

fn percent(ratio: Option<f64>) -> String {
    ratio.map_or_else(|| NONE.to_owned(), |ratio| format!("{:.1} %", 100.0 * ratio))
}
