//! An overview of all services, with one row for each service.

use balancer_config::{
    states::BackendState,
    words::{counted, grouped},
};
use balancer_control::snapshot::{ServiceSnapshot, Snapshot};
use maud::{Markup, html};

use super::service::{NONE, imbalance, known_clients, listeners, rate, served, stickiness};

/// The page shows all services if there are at most this many; otherwise, it shows an overview that links to a page for
/// each service.
pub(super) const FEW: usize = 3;

pub(super) fn overview(snapshot: &Snapshot) -> Markup {
    html! {
        section aria-labelledby="services" {
            h2 #services { "Services" }
            // The HTML states the roles of rows and cells, because a narrow screen shows each row as a card.
            table.cards role="table" aria-describedby="services" {
                caption { (counted(snapshot.services.len(), "service")) "; each has a page of its own" }
                thead role="rowgroup" {
                    tr role="row" {
                        @for heading in ["Service", "Backends"] {
                            th role="columnheader" scope="col" { (heading) }
                        }
                        @for heading in ["Known clients", "Stickiness", "Served", "Imbalance", "Connections per second"] {
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
    let of_memory = |value: String| if service.remembers { value } else { NONE.to_owned() };
    html! {
        tr role="row" id=(format!("row-{}", service.name)) {
            th role="rowheader" scope="row" {
                // Service names need no escaping, because they consist of letters, digits and characters without a
                // meaning in URLs.
                a href=(format!("/?service={}", service.name)) { (service.name) } " " span.quiet { (listeners(service)) }
                @if service.is_watched() { " watched" } @else if service.share.now < 100 { " steer " (service.share.now) "%" }
            }
            td role="cell" data-label="Backends" { (backends(service)) }
            (number("Known clients", of_memory(grouped(known_clients(service)))))
            (number("Stickiness", of_memory(stickiness(service))))
            (number("Served", served(service)))
            (number("Imbalance", imbalance(service)))
            (number("Connections per second", rate(service)))
        }
    }
}

/// The number of backends that are up, with a symbol and a colour for this state.
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
