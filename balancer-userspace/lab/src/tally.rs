//! Computes figures from the requests of clients.

use std::collections::{BTreeMap, BTreeSet};

use super::{
    cell::{Latency, Sessions},
    client::Verdict,
};

/// A request that has finished, with its result.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Seen {
    pub(crate) client: u16,
    pub(crate) address: u16,
    /// The start of the request, in seconds since a fixed point in time.
    pub(crate) begin: f64,
    /// The duration of the request in seconds.
    pub(crate) took: f64,
    /// The result of the request.
    pub(crate) verdict: Verdict,
    /// The server that answered the request.
    pub(crate) server: Option<String>,
}

/// The effects of an event, as clients observed them.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Tally {
    /// The sessions of clients that have their own address each.
    pub(crate) own: Sessions,
    /// The sessions of clients that share one address.
    pub(crate) nat: Sessions,
    /// The sessions of clients that were not at the affected backend.
    pub(crate) elsewhere: Sessions,
    /// The number of requests during the observation.
    pub(crate) requests: u64,
    pub(crate) failed: u64,
    /// The latency of answered requests.
    pub(crate) latency: Latency,
    /// The number of times that an address, or a client, moved from one server to another.
    pub(crate) moved: u64,
}

/// The unit in which the lab counts moves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Unit {
    /// The lab counts moves of addresses, because all clients of an address move together.
    Address,
    /// The lab counts moves of clients, because each client moves independently.
    Client,
}

/// Computes the effects of an event. `before` contains the server of each client's session before the event, and
/// `concerned` is the backend that the event affects.
#[must_use]
pub(crate) fn tally(
    seen: &[Seen],
    before: &BTreeMap<u16, (u16, String)>,
    concerned: Option<&str>,
    unit: Unit,
) -> Tally {
    let mut tally = Tally {
        own: Sessions::default(),
        nat: Sessions::default(),
        elsewhere: Sessions::default(),
        requests: seen.len() as u64,
        failed: seen.iter().filter(|seen| seen.verdict == Verdict::Failed).count() as u64,
        latency: latency(seen),
        moved: moves(seen, before, unit),
    };
    let shared = shared(before);
    let mut fates: BTreeMap<u16, Fate> = BTreeMap::new();
    for one in seen {
        fates.entry(one.client).or_default().add(one.verdict);
    }
    for (client, (address, server)) in before {
        let fate = fates.remove(client).unwrap_or_default();
        let population = if shared.contains(address) { &mut tally.nat } else { &mut tally.own };
        fate.count(population);
        if concerned != Some(server.as_str()) {
            fate.count(&mut tally.elsewhere);
        }
    }
    tally
}

/// The effects of an event on a session.
#[derive(Clone, Copy, Debug, Default)]
struct Fate {
    lost: bool,
    stale: bool,
    unreachable: bool,
}

impl Fate {
    const fn add(&mut self, verdict: Verdict) {
        self.lost |= matches!(verdict, Verdict::Lost | Verdict::Begun);
        self.stale |= matches!(verdict, Verdict::Stale);
        self.unreachable = matches!(verdict, Verdict::Failed);
    }

    const fn count(self, sessions: &mut Sessions) {
        let lost = self.lost || self.unreachable;
        sessions.total += 1;
        sessions.lost += lost as u64;
        sessions.stale += self.stale as u64;
        sessions.survived += !(lost || self.stale) as u64;
    }
}

/// Returns the addresses that more than one client has.
fn shared(before: &BTreeMap<u16, (u16, String)>) -> BTreeSet<u16> {
    let (mut once, mut more) = (BTreeSet::new(), BTreeSet::new());
    for (address, _) in before.values() {
        if !once.insert(*address) {
            more.insert(*address);
        }
    }
    more
}

/// Counts moves in the order in which connections began, because the balancer chooses the backend at the start of a
/// connection.
fn moves(seen: &[Seen], before: &BTreeMap<u16, (u16, String)>, unit: Unit) -> u64 {
    let of = |client, address| if unit == Unit::Address { address } else { client };
    let mut at: BTreeMap<u16, &str> =
        before.iter().map(|(&client, (address, server))| (of(client, *address), server.as_str())).collect();
    let mut order: Vec<&Seen> = seen.iter().filter(|seen| seen.server.is_some()).collect();
    order.sort_by(|a, b| a.begin.total_cmp(&b.begin));
    let mut moves = 0;
    for one in order {
        let Some(server) = one.server.as_deref() else { continue };
        if at.insert(of(one.client, one.address), server).is_some_and(|last| last != server) {
            moves += 1;
        }
    }
    moves
}

fn latency(seen: &[Seen]) -> Latency {
    let mut took: Vec<f64> = seen.iter().filter(|seen| seen.verdict != Verdict::Failed).map(|seen| seen.took).collect();
    took.sort_by(f64::total_cmp);
    let at = |share: f64| {
        // The rank of the smallest value such that at least this share of all values is not larger.
        let rank = (share * took.len() as f64).ceil() as usize;
        took.get(rank.saturating_sub(1)).copied().unwrap_or(0.0) * 1e3
    };
    Latency { p50: at(0.5), p99: at(0.99) }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::{Seen, Unit, tally};
    use crate::{cell::Sessions, client::Verdict};

    fn seen(client: u16, address: u16, begin: f64, verdict: Verdict, server: &str) -> Seen {
        let server = (!server.is_empty()).then(|| server.to_owned());
        Seen { client, address, begin, took: 0.001, verdict, server }
    }

    fn before(clients: &[(u16, u16, &str)]) -> BTreeMap<u16, (u16, String)> {
        clients.iter().map(|&(client, address, server)| (client, (address, server.to_owned()))).collect()
    }

    #[test]
    fn when_an_event_is_over_then_sessions_have_survived_are_lost_or_stale() {
        let before =
            before(&[(1, 1, "web1"), (2, 2, "web2"), (3, 3, "web1"), (4, 9, "web1"), (5, 9, "web1"), (6, 6, "web2")]);
        let all = [
            seen(1, 1, 0.0, Verdict::Continued, "web1"),
            seen(2, 2, 0.1, Verdict::Failed, ""),
            seen(2, 2, 1.1, Verdict::Lost, "web1"),
            seen(2, 2, 2.1, Verdict::Begun, "web1"),
            seen(3, 3, 0.2, Verdict::Stale, "web1"),
            seen(4, 9, 0.3, Verdict::Continued, "web1"),
            seen(5, 9, 0.4, Verdict::Failed, ""),
            seen(5, 9, 1.4, Verdict::Continued, "web1"),
            seen(6, 6, 0.5, Verdict::Failed, ""),
        ];
        let tally = tally(&all, &before, Some("web2"), Unit::Address);
        assert_eq!(tally.own, Sessions { total: 4, survived: 1, lost: 2, stale: 1 });
        assert_eq!(tally.nat, Sessions { total: 2, survived: 2, lost: 0, stale: 0 });
        assert_eq!(tally.elsewhere, Sessions { total: 4, survived: 3, lost: 0, stale: 1 });
        assert_eq!((tally.requests, tally.failed, tally.moved), (9, 3, 1));
    }

    #[test]
    fn when_answers_of_one_address_cross_then_it_still_moves_once() {
        let before = before(&[(1, 9, "web1"), (2, 9, "web1")]);
        let all = [
            // The answer to this request arrived last, but its connection began first.
            seen(2, 9, 1.0, Verdict::Lost, "web2"),
            seen(1, 9, 0.9, Verdict::Continued, "web1"),
            seen(1, 9, 1.9, Verdict::Lost, "web2"),
        ];
        assert_eq!(tally(&all, &before, None, Unit::Address).moved, 1);
        assert_eq!(tally(&all, &before, None, Unit::Client).moved, 2);
    }

    #[test]
    fn when_requests_failed_then_percentiles_count_only_answered_ones() {
        let mut all: Vec<Seen> =
            (1..=200).map(|n| Seen { took: f64::from(n) / 1e3, ..seen(1, 1, 0.0, Verdict::Continued, "a") }).collect();
        all.push(Seen { took: 9.0, ..seen(1, 1, 0.0, Verdict::Failed, "") });
        let latency = tally(&all, &BTreeMap::new(), None, Unit::Client).latency;
        assert_eq!((latency.p50, latency.p99), (100.0, 198.0));
        assert_eq!(tally(&[], &BTreeMap::new(), None, Unit::Client).latency.p99, 0.0);
    }
}
