//! All services, a row each.

use balancer_common::verdict::Decision;
use balancer_core::snapshot::{ServiceSnapshot, Snapshot};
use balancer_model::{
    states::BackendState,
    words::{counted, grouped},
};
use maud::{Markup, html};

use super::{
    chart::stretches,
    service::{NONE, listeners, per_second, percent},
};

/// So many services are shown one below the other; of more there is an overview, with a page for each.
pub(super) const FEW: usize = 3;

pub(super) fn overview(snapshot: &Snapshot) -> Markup {
    html! {
        section aria-labelledby="services" {
            h2 #services { "Services" }
            // The roles again, as a narrow screen shows each row as a card.
            table.cards role="table" aria-describedby="services" {
                caption { (counted(snapshot.services.len(), "service")) "; each has a page of its own" }
                thead role="rowgroup" {
                    tr role="row" {
                        @for heading in ["Service", "Backends"] {
                            th role="columnheader" scope="col" { (heading) }
                        }
                        @for heading in ["Known clients", "Stickiness", "Imbalance", "Connections per second"] {
                            th.number role="columnheader" scope="col" { (heading) }
                        }
                    }
                }
                tbody role="rowgroup" { @for service in &snapshot.services { (row(service)) } }
            }
        }
    }
}

fn row(service: &ServiceSnapshot) -> Markup {
    let number = |label, value: String| html! { td.number role="cell" data-label=(label) { (value) } };
    let count = |decision: Decision| service.total(|stats| stats.decisions[decision.index()]);
    let (kept, moved) = (count(Decision::Kept), count(Decision::Moved));
    let known: u64 = service.backends.iter().map(|backend| backend.known_clients).sum();
    let returns = (service.remembers && kept + moved > 0).then(|| kept as f64 / (kept + moved) as f64);
    let rate = stretches(service).last().map_or_else(|| NONE.to_owned(), |last| format!("{:.1}", per_second(last)));
    html! {
        tr role="row" id=(format!("row-{}", service.name)) {
            th role="rowheader" scope="row" {
                // Names are letters, digits, and what means nothing in an address.
                a href=(format!("/?service={}", service.name)) { (service.name) } " " span.quiet { (listeners(service)) }
            }
            td role="cell" data-label="Backends" { (backends(service)) }
            (number("Known clients", if service.remembers { grouped(known) } else { NONE.to_owned() }))
            (number("Stickiness", percent(returns)))
            (number("Imbalance", service.imbalance().map_or_else(|| NONE.to_owned(), |ratio| format!("{ratio:.2}"))))
            (number("Connections per second", rate))
        }
    }
}

/// How many are up, with a sign and a colour that say the same.
fn backends(service: &ServiceSnapshot) -> Markup {
    let all = service.backends.len();
    let up = service.backends.iter().filter(|backend| backend.state == BackendState::Up).count();
    let (class, sign) = match up {
        up if up == all && all > 0 => ("good", "●"),
        0 => ("bad", "✕"),
        _ => ("wait", "◐"),
    };
    html! {
        span.state.(class) { span aria-hidden="true" { (sign) " " } (up) " of " (all) " up" }
    }
}
