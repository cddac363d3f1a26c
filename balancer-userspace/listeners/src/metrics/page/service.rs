//! The section of the page about a service.

use std::time::{Duration, SystemTime};

use balancer_api::events::EventView;
use balancer_common::verdict::{CauseIndex, Decision, MoveCause};
use balancer_config::{
    config::forwarding_word,
    states::{Admin, BackendState},
    words::grouped,
};
use balancer_control::{
    history::Counted,
    rates::Rates,
    served::HandshakeCounts,
    snapshot::{BackendSnapshot, ServiceSnapshot},
    top::By,
};
use maud::{Markup, html};

use super::{
    chart::{Stretch, TEN_MINUTES, bars, stretches},
    colours::Colours,
    hour::{hour, load_words},
    slot_map::slot_maps,
};

/// The number of heavy clients that the page shows.
const RANKS: usize = 5;
/// The number of listeners that the page shows.
const SHOWN_LISTENERS: usize = 4;
/// The character that the page shows for an unknown value.
pub(super) const NONE: &str = "–";

pub(super) fn service(service: &ServiceSnapshot, events: &[EventView], now: SystemTime) -> Markup {
    let id = format!("service-{}", service.name);
    let stretches = stretches(service);
    let colours = Colours::of(service);
    html! {
        section aria-labelledby=(id) {
            div.title {
                h2 id=(id) { (service.name) }
                p {
                    (listeners(service)) " · " (forwarding_word(service.forwarding)) " · "
                    @if service.remembers { "clients are remembered" } @else { "no memory: the table alone decides" }
                    @if let Some(sharing) = service.sharing_line() { " · " strong { "steer " (service.share.now) ": " (sharing) } }
                }
            }
            (figures(service, &stretches))
            div.columns {
                (hour(service, &colours, events, now))
                div.maps { (slot_maps(service, &colours)) }
            }
            (colours.legend(service))
            (backends(service, &id))
            (moves(service, &stretches))
            div.columns {
                (decisions(service))
                (heaviest(service))
            }
        }
    }
}

/// The first listeners of the service, each in the form `198.51.100.10:80 tcp`, and the number of further listeners.
pub(super) fn listeners(service: &ServiceSnapshot) -> String {
    let all = &service.listeners;
    let shown = all.iter().take(SHOWN_LISTENERS).map(|of| format!("{} {}", of.listener.place(), of.listener.protocol));
    let more = all.len().saturating_sub(SHOWN_LISTENERS);
    let more = (more > 0).then(|| format!("{more} more"));
    shown.chain(more).collect::<Vec<_>>().join(", ")
}

pub(super) fn known_clients(service: &ServiceSnapshot) -> u64 {
    service.backends.iter().map(|backend| backend.known_clients).sum()
}

/// The fraction of handshakes that clients completed in the last minute.
pub(super) fn served(service: &ServiceSnapshot) -> String {
    percent(service.backends.iter().map(|backend| backend.handshakes).sum::<HandshakeCounts>().share())
}

/// The numbers of returning clients' connections to the known backend, and to another backend.
fn returns(service: &ServiceSnapshot) -> (u64, u64) {
    let count = |decision: Decision| service.total(|stats| stats.decisions[decision.index()]);
    (count(Decision::Kept), count(Decision::Moved))
}

/// The fraction of returning clients' connections that went to the backend at which the client was known.
pub(super) fn stickiness(service: &ServiceSnapshot) -> String {
    let (kept, moved) = returns(service);
    percent((kept + moved > 0).then(|| kept as f64 / (kept + moved) as f64))
}

pub(super) fn imbalance(service: &ServiceSnapshot) -> String {
    service.imbalance().map_or_else(|| NONE.to_owned(), |ratio| format!("{ratio:.2}"))
}

/// The recent rate of new connections per second.
pub(super) fn rate(service: &ServiceSnapshot) -> String {
    service.rates().map_or_else(|| NONE.to_owned(), |rates| format!("{:.1}", rates.connections))
}

fn figures(service: &ServiceSnapshot, stretches: &[Stretch]) -> Markup {
    let (kept, moved) = returns(service);
    html! {
        dl.figures {
            @if service.remembers {
                div {
                    dt { "Known clients" }
                    dd { (grouped(known_clients(service))) }
                }
                div {
                    dt { "Stickiness" }
                    dd {
                        (stickiness(service))
                        small { (grouped(moved)) " of " (grouped(kept + moved)) " returns moved" }
                    }
                }
            }
            div {
                dt { "Imbalance" }
                dd {
                    (imbalance(service))
                    small { "largest share over expected" }
                }
            }
            div {
                dt { "Connections per second" }
                dd {
                    (rate(service))
                    small { (grouped(service.total(|stats| stats.connections))) " since start" }
                    @if let Some(rates) = service.rates() { small { (traffic(&rates)) " a second" } }
                }
            }
            div {
                dt { "Table generation" }
                dd {
                    (grouped(service.table_generation))
                    small { (grouped(service.slots_moved_needless)) " slots moved needlessly" }
                }
            }
        }
        @if let Some(last) = &service.last_change {
            p {
                span.quiet { "Last change " (whole_seconds(last.at.elapsed())) " ago: " }
                (last.message)
                span.quiet {
                    " – " (grouped(last.slots_moved)) " slots moved, " (grouped(last.needless_slots_moved)) " needlessly"
                }
            }
        }
        @if let Some(silence) = &service.statistics.silence {
            p.wait { (silence) }
        }
        @if let Some(outage) = &service.outage {
            p.bad { (outage.line) }
        }
        @if !service.statistics.warnings.is_empty() {
            p.wait { "Some clients are heavy for their backend; balancer stats " (service.name) " names them." }
        }
        @if !stretches.is_empty() {
            figure {
                figcaption {
                    "Connections per second over the last ten minutes: at most "
                    (format!("{:.1}", stretches.iter().map(per_second).fold(0.0, f64::max)))
                }
                (bars(&TEN_MINUTES, stretches, per_second))
            }
        }
    }
}

fn per_second(stretch: &Stretch) -> f64 {
    stretch.counted.decisions.iter().sum::<u64>() as f64 / stretch.length.as_secs_f64()
}

fn whole_seconds(duration: Duration) -> humantime::FormattedDuration {
    humantime::format_duration(Duration::from_secs(duration.as_secs()))
}

fn backends(service: &ServiceSnapshot, id: &str) -> Markup {
    html! {
        // The HTML states the roles of rows and cells, because a narrow screen shows each row as a card.
        table.cards role="table" aria-describedby=(id) {
            caption { "Backends; shares of " (load_words(service.load_kind())) }
            thead role="rowgroup" {
                tr role="row" {
                    @for heading in ["Backend", "State", "Reason"] {
                        th role="columnheader" scope="col" { (heading) }
                    }
                    th.share role="columnheader" scope="col" { "Share (expected)" }
                    @for heading in ["Weight", "Known clients", "Served", "Connections", "A second", "Slots"] {
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
            td role="cell" data-label="Reason" { (backend.shown_reason()) }
            td.share role="cell" data-label="Share (expected)" {
                span { (percent(share)) " " span.quiet { "(" (percent(expected)) ")" } }
                (bar(share, expected))
            }
            td.number role="cell" data-label="Weight" {
                (grouped(backend.weight))
                @if let Some(said) = backend.agent.as_ref().map(|agent| &agent.said).filter(|said| said.percent < 100) {
                    " × " (said.percent) "%"
                }
            }
            (number("Known clients", backend.known_clients))
            td.number role="cell" data-label="Served" { (percent(backend.handshakes.share())) }
            (number("Connections", backend.stats.connections))
            td.number role="cell" data-label="A second" { (a_second(service, backend)) }
            td.number role="cell" data-label="Slots" {
                (grouped(backend.slots))
                @let given = backend.bound.map_or(0, |bound| bound.given(backend.slots));
                @if given > 0 { " " span.quiet { "(" (grouped(given)) " given away)" } (band(backend.slots, given)) }
            }
        }
    }
}

/// The new connections to the backend per second, and below them the backend's traffic per second.
fn a_second(service: &ServiceSnapshot, backend: &BackendSnapshot) -> Markup {
    html! {
        @if let Some(rates) = service.rates_of(backend) {
            (format!("{:.1}", rates.connections)) " " span.quiet { (traffic(&rates)) }
        } @else { (NONE) }
    }
}

/// Formats the rates as text such as `1,204 packets, 830,112 bytes`.
fn traffic(rates: &Rates) -> String {
    let whole = |rate: f64| grouped(rate.round() as u64);
    format!("{} packets, {} bytes", whole(rates.packets), whole(rates.bytes))
}

/// The state of the backend as a word, with a symbol and a colour for this state.
fn state(backend: &BackendSnapshot) -> Markup {
    let (class, sign) = match backend.state {
        BackendState::Up => ("good", "●"),
        BackendState::Checking => ("wait", "○"),
        BackendState::Drained => ("wait", "◌"),
        BackendState::Down => ("bad", "✕"),
        BackendState::Maint => ("bad", "■"),
        BackendState::Draining | BackendState::DrainingHealth => ("wait", "◐"),
    };
    let time = backend.drain_deadline.map(whole_seconds);
    html! {
        span.state.(class) { span aria-hidden="true" { (sign) " " } (backend.state.word()) }
        @if let Some(time) = time { " " span.quiet { "at most " (time) } }
        @if backend.effective_weight() == 0 && backend.admin == Admin::Ready { " " span.quiet { "takes no new clients" } }
        @if backend.backup { " " span.quiet { "backup" } }
    }
}

/// The number of a backend's slots, followed by the number of slots that the backend gives to other backends.
fn band(slots: u32, given: u32) -> Markup {
    let kept = 100.0 * f64::from(slots) / f64::from(slots.saturating_add(given).max(1));
    html! {
        svg.bar viewBox="0 0 100 8" preserveAspectRatio="none" aria-hidden="true" focusable="false" {
            rect.track y="2" width="100" height="4" {}
            rect.fill y="2" width=(format!("{kept:.2}")) height="4" {}
        }
    }
}

/// A bar of length `share`, with a mark at the expected length; a text beside the bar gives the same information.
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

/// The counts of the last minute, of the last hour, and since the start; `None` if the counts are unknown.
fn periods(service: &ServiceSnapshot) -> [Option<Counted>; 3] {
    let (statistics, now) = (&service.statistics, service.counted());
    let since = |moment: &Option<(Duration, Counted)>| moment.as_ref().map(|(_, then)| now.since(then));
    [since(&statistics.minute), since(&statistics.hour), Some(now)]
}

fn period_headings() -> Markup {
    html! {
        @for period in ["last minute", "last hour", "since start"] { th.number scope="col" { (period) } }
    }
}

fn period_cells(periods: &[Option<Counted>; 3], count: impl Fn(&Counted) -> u64) -> Markup {
    html! {
        @for period in periods {
            td.number { (period.as_ref().map_or_else(|| NONE.to_owned(), |counted| grouped(count(counted)))) }
        }
    }
}

fn decisions(service: &ServiceSnapshot) -> Markup {
    let periods = periods(service);
    html! {
        table {
            caption { "New connections, by how their backend was chosen" }
            thead { tr { th scope="col" { "Decision" } (period_headings()) } }
            tbody {
                @for &decision in Decision::ALL {
                    tr {
                        th scope="row" { (decision.label()) }
                        (period_cells(&periods, |counted| counted.decisions[decision.index()]))
                    }
                }
            }
        }
    }
}

fn moves(service: &ServiceSnapshot, stretches: &[Stretch]) -> Markup {
    let periods = periods(service);
    html! {
        table {
            caption { "Known clients moved, by cause" }
            thead {
                tr { th scope="col" { "Cause" } (period_headings()) th.spark scope="col" { "last ten minutes" } }
            }
            tbody {
                @for &cause in MoveCause::ALL {
                    @let of = |counted: &Counted| counted.moves[CauseIndex::from(cause).counter()];
                    tr {
                        th scope="row" { (cause.label()) }
                        (period_cells(&periods, of))
                        td.spark {
                            @if stretches.iter().any(|stretch| of(&stretch.counted) > 0) {
                                (bars(&TEN_MINUTES, stretches, |stretch| of(&stretch.counted) as f64))
                            } @else { span.quiet { "none" } }
                        }
                    }
                }
            }
        }
    }
}

/// A table of the heaviest clients, without their addresses.
fn heaviest(service: &ServiceSnapshot) -> Markup {
    let top = &service.statistics.top;
    let name =
        |id| service.backends.iter().find(|backend| backend.ids.contains(&id)).map_or(NONE, |backend| &backend.name);
    let rows: Vec<_> = top.heaviest(By::Bytes).into_iter().take(RANKS).collect();
    html! {
        @if !rows.is_empty() {
            table {
                caption { "Heaviest clients of about the last minute, by sampling; balancer client top names them" }
                thead {
                    tr {
                        th scope="col" { "Rank" }
                        th scope="col" { "Backend" }
                        th.number scope="col" { "of bytes" }
                        th.number scope="col" { "of packets" }
                    }
                }
                tbody {
                    @for (index, heavy) in rows.iter().enumerate() {
                        tr {
                            th scope="row" { (index + 1) }
                            td { (name(heavy.backend)) }
                            td.number { (percent(Some(top.share(&heavy.seen, By::Bytes)))) }
                            td.number { (percent(Some(top.share(&heavy.seen, By::Packets)))) }
                        }
                    }
                }
            }
        }
    }
}

fn percent(ratio: Option<f64>) -> String {
    ratio.map_or_else(|| NONE.to_owned(), |ratio| format!("{:.1} %", 100.0 * ratio))
}
