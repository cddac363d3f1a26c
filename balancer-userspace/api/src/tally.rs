//! Adds up the counters of a fleet's members.

use std::{cmp::Ordering, collections::BTreeMap};

use balancer_control::ratios;
use serde::{Deserialize, Serialize};

use crate::statistics::{BackendShare, PeriodView, StatsView, TopClient};

/// The version of the [`Tally`] format that this crate writes and reads.
const FORMAT: u32 = 1;

/// The counters of one member, in the format that members exchange.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Tally {
    format: u32,
    services: BTreeMap<String, ServiceTally>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct ServiceTally {
    periods: Vec<PeriodView>,
    /// The numbers of known clients and of connections, by backend.
    backends: BTreeMap<String, (u64, u64)>,
    top_clients: Vec<TopClient>,
}

impl Tally {
    /// Makes the tally of a member's services.
    #[must_use]
    pub fn of(views: &[StatsView]) -> Self {
        let service = |view: &StatsView| {
            let backend = |of: &BackendShare| (of.name.clone(), (of.known_clients, of.connections));
            let tally = ServiceTally {
                periods: view.periods.clone(),
                backends: view.backends.iter().map(backend).collect(),
                top_clients: view.top_clients.clone(),
            };
            (view.service.clone(), tally)
        };
        Self { format: FORMAT, services: views.iter().map(service).collect() }
    }
}

/// Adds the other members' tallies to one member's views; if a tally is unusable, records the reason. If members share
/// clients (`shared`), every member knows all known clients, so the largest number replaces the sum.
#[must_use]
pub fn add_up(
    mut views: Vec<StatsView>,
    others: &BTreeMap<String, Result<Tally, String>>,
    shared: bool,
) -> Vec<StatsView> {
    let readable = |tally: &Result<Tally, String>| match tally {
        Ok(tally) if tally.format == FORMAT => Ok(tally.services.clone()),
        Ok(tally) => Err(format!("what it has counted has format {}, not {FORMAT}", tally.format)),
        Err(why) => Err(why.clone()),
    };
    for (member, tally) in others {
        match readable(tally) {
            Ok(mut services) => {
                for view in &mut views {
                    if let Some(more) = services.remove(&view.service) {
                        add(view, more, shared);
                    }
                }
            }
            Err(why) => views.iter_mut().for_each(|view| view.warnings.push(format!("without {member}: {why}"))),
        }
    }
    if !others.is_empty() {
        views.iter_mut().for_each(conclude);
    }
    views
}

fn add(view: &mut StatsView, more: ServiceTally, shared: bool) {
    for period in more.periods {
        match view.periods.iter_mut().find(|of| of.period == period.period) {
            Some(of) => add_period(of, &period),
            None => view.periods.insert(view.periods.len().saturating_sub(1), period),
        }
    }
    for backend in &mut view.backends {
        if let Some(&(known, connections)) = more.backends.get(&backend.name) {
            backend.connections = backend.connections.saturating_add(connections);
            backend.known_clients =
                if shared { backend.known_clients.max(known) } else { backend.known_clients.saturating_add(known) };
        }
    }
    view.top_clients = merged(std::mem::take(&mut view.top_clients), more.top_clients);
}

fn add_period(of: &mut PeriodView, more: &PeriodView) {
    of.seconds = of.seconds.max(more.seconds);
    of.connections = of.connections.saturating_add(more.connections);
    for (counts, more) in [(&mut of.decisions, &more.decisions), (&mut of.moves, &more.moves)] {
        for (word, count) in more {
            let sum = counts.entry(word.clone()).or_default();
            *sum = sum.saturating_add(*count);
        }
    }
}

/// Recomputes the values that are not sums, such as ratios.
fn conclude(view: &mut StatsView) {
    for period in &mut view.periods {
        period.stickiness_ratio = stickiness(&period.decisions);
    }
    view.stickiness_ratio = view.periods.iter().find(|of| of.period == "start").and_then(|of| of.stickiness_ratio);
    let known = view.backends.iter().any(|of| of.known_clients > 0);
    let load = |of: &BackendShare| if known { of.known_clients } else { of.connections };
    let whole: u64 = view.backends.iter().map(load).fold(0, u64::saturating_add);
    for backend in &mut view.backends {
        backend.share = ratios::share(load(backend), whole);
    }
    view.imbalance_ratio = ratios::imbalance(view.backends.iter().map(|of| (of.share, of.expected_share)));
    // The Gini coefficient needs samples, which other members do not send.
    view.client_gini = None;
}

fn stickiness(decisions: &BTreeMap<String, u64>) -> Option<f64> {
    let [kept, moved] = ["kept", "moved"].map(|word| decisions.get(word).copied().unwrap_or(0));
    ratios::stickiness(kept, moved)
}

/// Merges two lists of clients without duplicates, the heaviest first.
fn merged(clients: Vec<TopClient>, more: Vec<TopClient>) -> Vec<TopClient> {
    let whole = whole(&clients) + whole(&more);
    let mut sums: BTreeMap<String, TopClient> = BTreeMap::new();
    for client in clients.into_iter().chain(more) {
        match sums.get_mut(&client.client) {
            Some(sum) => {
                sum.packets_per_second += client.packets_per_second;
                sum.bytes_per_second += client.bytes_per_second;
                sum.known |= client.known;
            }
            None => drop(sums.insert(client.client.clone(), client)),
        }
    }
    let mut sums: Vec<TopClient> = sums.into_values().collect();
    for client in &mut sums {
        client.share = if whole > 0.0 { client.bytes_per_second / whole } else { 0.0 };
    }
    sums.sort_by(|a, b| b.bytes_per_second.partial_cmp(&a.bytes_per_second).unwrap_or(Ordering::Equal));
    sums
}

/// The bytes per second of all clients, which is the total for the clients' shares.
fn whole(clients: &[TopClient]) -> f64 {
    clients.first().filter(|of| of.share > 0.0).map_or(0.0, |of| of.bytes_per_second / of.share)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::statistics::TableView;

    fn client(address: &str, bytes_per_second: f64, share: f64) -> TopClient {
        TopClient {
            client: address.to_owned(),
            service: "web".to_owned(),
            backend: Some("web1".to_owned()),
            share,
            packets_per_second: bytes_per_second / 100.0,
            bytes_per_second,
            known: true,
        }
    }

    fn view(kept: u64, moved: u64, known: [u64; 2], top_clients: Vec<TopClient>) -> StatsView {
        let counts = |pairs: &[(&str, u64)]| pairs.iter().map(|(word, count)| ((*word).to_owned(), *count)).collect();
        let period = |period: &str, seconds, kept, moved| PeriodView {
            period: period.to_owned(),
            seconds,
            stickiness_ratio: None,
            connections: kept + moved,
            decisions: counts(&[("kept", kept), ("moved", moved)]),
            moves: counts(&[("down", moved)]),
        };
        let backend = |name: &str, known_clients| BackendShare {
            name: name.to_owned(),
            state: "up".to_owned(),
            share: None,
            expected_share: Some(0.5),
            known_clients,
            connections: 10,
        };
        StatsView {
            service: "web".to_owned(),
            steer: 100,
            watched: false,
            stickiness_ratio: None,
            imbalance_ratio: None,
            client_gini: Some(0.5),
            periods: vec![period("minute", Some(60), kept / 10, 0), period("start", None, kept, moved)],
            backends: vec![backend("web1", known[0]), backend("web2", known[1])],
            top_clients,
            table: TableView { size: 101, generation: 1, last_change: None },
            warnings: Vec::new(),
        }
    }

    fn told(name: &str, view: &StatsView) -> (String, Result<Tally, String>) {
        let json = serde_json::to_vec(&Tally::of(std::slice::from_ref(view))).unwrap();
        (name.to_owned(), Ok(serde_json::from_slice(&json).unwrap()))
    }

    #[test]
    fn when_members_report_then_counters_add_up_and_shared_clients_do_not() {
        let own = view(900, 0, [30, 10], vec![client("192.0.2.1/32", 600.0, 0.6), client("192.0.2.2/32", 100.0, 0.1)]);
        let other = view(90, 10, [20, 12], vec![client("192.0.2.2/32", 900.0, 0.9)]);
        let others: BTreeMap<_, _> = [told("lb2", &other), ("lb3".to_owned(), Err("nothing".to_owned()))].into();
        let sum = add_up(vec![own.clone()], &others, true).remove(0);
        assert_eq!(sum.stickiness_ratio, Some(0.99));
        assert_eq!((sum.periods[1].connections, sum.periods[1].moves["down"]), (1000, 10));
        assert_eq!((sum.periods[0].seconds, sum.periods[0].decisions["kept"]), (Some(60), 99));
        let known: Vec<u64> = sum.backends.iter().map(|of| of.known_clients).collect();
        assert_eq!((known, sum.backends[0].connections), (vec![30, 12], 20));
        assert_eq!(sum.backends[0].share, Some(30.0 / 42.0));
        assert_eq!(sum.imbalance_ratio, Some(30.0 / 42.0 / 0.5));
        let top: Vec<(&str, f64)> = sum.top_clients.iter().map(|of| (of.client.as_str(), of.share)).collect();
        assert_eq!(top, [("192.0.2.2/32", 0.5), ("192.0.2.1/32", 0.3)]);
        assert_eq!(sum.warnings, ["without lb3: nothing"]);
        assert_eq!(sum.client_gini, None);
        let sum = add_up(vec![own], &others, false).remove(0);
        assert_eq!(sum.backends[0].known_clients, 50);
    }

    #[test]
    fn when_there_are_no_other_members_then_nothing_changes() {
        let own = view(900, 0, [30, 10], Vec::new());
        assert_eq!(add_up(vec![own.clone()], &BTreeMap::new(), true), [own]);
    }

    #[test]
    fn when_a_report_has_another_format_then_that_is_said() {
        let own = view(1, 0, [1, 1], Vec::new());
        let foreign = Tally { format: 2, ..Tally::of(&[]) };
        let others = [("lb2".to_owned(), Ok(foreign))].into();
        let sum = add_up(vec![own], &others, true).remove(0);
        assert_eq!(sum.warnings, ["without lb2: what it has counted has format 2, not 1"]);
    }
}
