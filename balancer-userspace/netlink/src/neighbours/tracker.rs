//! Tracks the watched next hops, the last report about each next hop, and the times at which to query neighbours. All
//! functions of this module are pure: the time is an argument.
//!
//! ```text
//!                    usable entry                       entry lost, not failed
//!   unresolved ───────────────────────▶ known ◀──────────────────────────────────▶ known, asking
//!       │  ▲ asks now, then every RETRY   │ FAILED, interface down, no route          │
//!       ▼  │                              ▼                                           ▼ after PATIENCE, or FAILED
//!   no neighbour (after PATIENCE) ◀──── no next hop, with the reason ◀────────────────┘
//! ```

use std::{
    collections::{BTreeMap, BTreeSet, HashSet},
    net::IpAddr,
    ops::Bound,
    time::Duration,
};

use balancer_control::io::{Event, NextHop};
use ipnet::IpNet;
use netlink_packet_route::neighbour::NeighbourState;
use tokio::time::Instant;

use super::{
    NearAddress,
    resolve::{Neighbour, NeighbourKey, NoRoute, Resolution, Route, Tables, resolve},
};
use crate::interfaces::Link;

/// The interval at which the task queries a neighbour that does not answer.
pub(super) const RETRY: Duration = Duration::from_secs(1);
/// The time for which the first queries to a neighbour may stay unanswered.
pub(super) const PATIENCE: Duration = Duration::from_millis(2500);
/// The maximum number of routes that a resync looks up without a notification; each lookup takes about 10 µs.
const AGAIN: usize = 4096;
/// The time for which the tracker waits for further changes after a change.
const DEBOUNCE: Duration = Duration::from_millis(50);

/// A change reported by the kernel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Update {
    Link(Link),
    LinkGone(u32),
    Neighbour(NeighbourKey, Neighbour),
    NeighbourGone(NeighbourKey),
    /// Routes to this prefix have changed; `None` if any route may have changed.
    Routes(Option<IpNet>),
    /// A router has refused a packet to this address.
    PathError(IpAddr),
}

#[derive(Debug, Default)]
struct Watch {
    /// The route to the address; `None` before the first lookup.
    route: Option<Result<Route, NoRoute>>,
    /// The interface of the last route that existed.
    egress: Option<u32>,
    /// The current next hop, or the reason why there is no next hop.
    current: Option<Result<NextHop, String>>,
    through: Option<NeighbourKey>,
    /// The result that the tracker reported last.
    told: Option<Result<NextHop, String>>,
    asking: Option<Box<Asking>>,
}

#[derive(Clone, Copy, Debug)]
struct Asking {
    neighbour: NeighbourKey,
    since: Instant,
    /// The time of the last query to the neighbour; `None` if the task has not queried the neighbour yet.
    last: Option<Instant>,
}

/// The watched addresses, and the tables from which their next hops are resolved.
#[derive(Debug, Default)]
pub(super) struct Tracker {
    tables: Tables,
    /// Each watch is in a box, because the tree reserves space for more entries than it contains.
    watches: BTreeMap<IpAddr, Box<Watch>>,
    /// The addresses that need a route lookup.
    stale_routes: BTreeSet<IpAddr>,
    /// The last address whose route a resync looked up without a notification.
    again: Option<IpAddr>,
    /// The addresses whose next hop may have changed since the last report.
    news: BTreeSet<IpAddr>,
    /// The neighbours on which next hops depend, and the gateways.
    relevant: HashSet<NeighbourKey>,
    /// This machine's gateways, and the time of the last query to each gateway. Replies to clients may need each
    /// gateway at any time.
    gateways: BTreeMap<NeighbourKey, Option<Instant>>,
    /// Whether links may have changed.
    links_changed: bool,
    /// The time at which the task must evaluate the changes so far.
    due: Option<Instant>,
    /// The time at which the task must query a neighbour again, or report that it does not answer.
    retry: Option<Instant>,
}

impl Tracker {
    /// Starts to watch `address`: reports the current result, even if the tracker has already reported it.
    pub(super) fn watch(&mut self, address: IpAddr, now: Instant) {
        self.watches.insert(address, Box::default());
        self.stale_routes.insert(address);
        self.due = Some(now);
    }

    pub(super) fn unwatch(&mut self, address: IpAddr) {
        self.watches.remove(&address);
        self.stale_routes.remove(&address);
        self.news.remove(&address);
    }

    pub(super) fn apply(&mut self, update: Update, now: Instant) {
        match update {
            Update::Link(link) => {
                let ifindex = link.ifindex;
                let before = self.tables.links.insert(ifindex, link);
                let after = self.tables.links.get(&ifindex);
                if before.as_ref() == after {
                    return;
                }
                self.links_changed = true;
                let state = |link: Option<&Link>| link.map(|link| (link.up, link.running));
                if state(before.as_ref()) != state(after) {
                    self.stale_routes.extend(self.watches.keys());
                }
            }
            Update::LinkGone(ifindex) => {
                self.tables.links.remove(&ifindex);
                self.links_changed = true;
                self.tables.neighbours.retain(|key, _| key.ifindex != ifindex);
                self.stale_routes.extend(self.watches.keys());
            }
            Update::Neighbour(key, neighbour) => {
                let before = self.tables.neighbours.insert(key, neighbour);
                if before == Some(neighbour) || !self.relevant.contains(&key) {
                    return;
                }
            }
            Update::NeighbourGone(key) => {
                if self.tables.neighbours.remove(&key).is_none() || !self.relevant.contains(&key) {
                    return;
                }
            }
            Update::PathError(address) => {
                if !self.watches.contains_key(&address) || !self.stale_routes.insert(address) {
                    return;
                }
            }
            Update::Routes(None) => self.stale_routes.extend(self.watches.keys()),
            Update::Routes(Some(prefix)) => {
                let before = self.stale_routes.len();
                self.stale_routes.extend(self.watches.keys().filter(|address| prefix.contains(*address)));
                if self.stale_routes.len() == before {
                    return;
                }
            }
        }
        self.due.get_or_insert(now + DEBOUNCE);
    }

    /// Replaces the tables with new copies of the kernel's tables. If changes were `missed`, or if links differ from
    /// those in notifications, the task looks up all routes again. If neither is the case, the task looks up only some
    /// routes, and each resync continues with the next routes: the kernel does not report every change that affects a
    /// route.
    pub(super) fn resync(
        &mut self,
        links: Vec<Link>,
        neighbours: Vec<(NeighbourKey, Neighbour)>,
        missed: bool,
        now: Instant,
    ) {
        let links = links.into_iter().map(|link| (link.ifindex, link)).collect();
        if missed || self.tables.links != links {
            self.stale_routes.extend(self.watches.keys());
        } else {
            self.look_up_again();
        }
        self.links_changed = true;
        self.tables.links = links;
        self.tables.neighbours = neighbours.into_iter().collect();
        self.due = Some(now);
    }

    fn look_up_again(&mut self) {
        let from = self.again.map_or(Bound::Unbounded, Bound::Excluded);
        let rest = self.watches.range((from, Bound::Unbounded));
        let next: Vec<IpAddr> = rest.map(|(&address, _)| address).take(AGAIN).collect();
        self.again = next.last().copied().filter(|_| next.len() == AGAIN);
        self.stale_routes.extend(next);
    }

    /// Replaces the set of this machine's gateways.
    pub(super) fn set_gateways(&mut self, gateways: BTreeSet<NeighbourKey>) {
        let asked = std::mem::take(&mut self.gateways);
        self.gateways = gateways.into_iter().map(|key| (key, asked.get(&key).copied().flatten())).collect();
    }

    /// Returns up to `most` addresses on the links of the given interfaces.
    pub(super) fn near(&self, ifindexes: &BTreeSet<u32>, most: usize) -> Vec<NearAddress> {
        let all = self.tables.neighbours.iter().filter(|(key, _)| ifindexes.contains(&key.ifindex));
        let usable = all.filter(|(_, neighbour)| neighbour.usable_mac().is_some());
        usable.map(|(key, _)| NearAddress { ifindex: key.ifindex, address: key.address }).take(most).collect()
    }

    /// The network devices of this machine.
    pub(super) fn links(&self) -> impl Iterator<Item = &Link> + Clone {
        self.tables.links.values()
    }

    /// Whether links may have changed since the last call.
    pub(super) fn take_links_changed(&mut self) -> bool {
        std::mem::take(&mut self.links_changed)
    }

    /// The addresses whose routes the task must look up before [`Tracker::evaluate`].
    pub(super) fn stale_routes(&self) -> Vec<IpAddr> {
        self.stale_routes.iter().copied().collect()
    }

    pub(super) fn set_route(&mut self, address: IpAddr, route: Result<Route, NoRoute>) {
        self.stale_routes.remove(&address);
        if let Some(watch) = self.watches.get_mut(&address) {
            if let Ok(route) = &route {
                watch.egress = Some(route.ifindex);
            }
            watch.route = Some(route);
        }
    }

    /// Whether there is work for [`Tracker::evaluate`].
    pub(super) fn is_due(&self, now: Instant) -> bool {
        self.deadline().is_some_and(|deadline| deadline <= now)
    }

    /// The time at which there will be work for [`Tracker::evaluate`].
    pub(super) fn deadline(&self) -> Option<Instant> {
        [self.due, self.retry].into_iter().flatten().min()
    }

    /// Postpones all work until the time `at`.
    pub(super) fn postpone(&mut self, at: Instant) {
        self.due = Some(at);
        self.retry = None;
    }

    /// Evaluates all changes so far. The function returns the neighbours that the task should query now.
    pub(super) fn evaluate(&mut self, now: Instant) -> Vec<NeighbourKey> {
        self.due = None;
        self.retry = None;
        self.relevant.clear();
        self.relevant.extend(self.gateways.keys());
        let mut ask = self.unanswered_gateways(now);
        for (&address, watch) in &mut self.watches {
            let Some(route) = &watch.route else { continue };
            match resolve(address, route, watch.egress, &self.tables) {
                Resolution::Known { next_hop, neighbour } => {
                    self.relevant.insert(neighbour);
                    watch.asking = None;
                    watch.through = Some(neighbour);
                    watch.current = Some(Ok(next_hop));
                }
                Resolution::Local(next_hop) => {
                    watch.asking = None;
                    watch.current = Some(Ok(next_hop));
                }
                Resolution::Impossible(reason) => {
                    watch.asking = None;
                    watch.current = Some(Err(reason));
                }
                Resolution::Unanswered { neighbour, failed, reason } => {
                    self.relevant.insert(neighbour);
                    let asking = watch.asking.take().filter(|asking| asking.neighbour == neighbour);
                    let asking = asking.map_or(Asking { neighbour, since: now, last: None }, |asking| *asking);
                    let last = match asking.last {
                        Some(last) if now < last + RETRY => last,
                        _ => {
                            ask.insert(neighbour);
                            now
                        }
                    };
                    watch.asking = Some(Box::new(Asking { last: Some(last), ..asking }));
                    let rests_on_it = watch.through == Some(neighbour) && matches!(watch.current, Some(Ok(_)));
                    let given_up = asking.since + PATIENCE;
                    if now >= given_up || (failed && rests_on_it) {
                        watch.current = Some(Err(reason));
                    }
                    let wake = if now < given_up { given_up.min(last + RETRY) } else { last + RETRY };
                    // Because of this delay, one evaluation serves neighbours that were queried at different times.
                    let wake = wake.max(now + DEBOUNCE);
                    self.retry = Some(self.retry.map_or(wake, |retry| retry.min(wake)));
                }
            }
            if watch.current.is_some() && watch.current != watch.told {
                self.news.insert(address);
            }
        }
        ask.into_iter().collect()
    }

    /// The gateways whose MAC address is unknown and that the task has not queried recently. The task queries a silent
    /// gateway again when the kernel gives up its own queries, and with every resync.
    fn unanswered_gateways(&mut self, now: Instant) -> HashSet<NeighbourKey> {
        let unknown: Vec<NeighbourKey> = self.gateways.keys().copied().filter(|&key| self.is_unknown(key)).collect();
        let mut ask = HashSet::new();
        for key in unknown {
            if let Some(asked) = self.gateways.get_mut(&key)
                && asked.is_none_or(|asked| now >= asked + RETRY)
            {
                *asked = Some(now);
                ask.insert(key);
            }
        }
        ask
    }

    /// The watched neighbours whose entries are usable but no longer confirmed.
    pub(super) fn unconfirmed(&self) -> Vec<NeighbourKey> {
        let stale = |key: &&NeighbourKey| {
            self.tables.neighbours.get(key).is_some_and(|entry| entry.state == NeighbourState::Stale)
        };
        self.relevant.iter().filter(stale).copied().collect()
    }

    /// The egress interfaces of watched addresses.
    pub(super) fn egresses(&self) -> BTreeSet<u32> {
        self.watches.values().filter_map(|watch| watch.egress).collect()
    }

    /// Whether the task should query this neighbour for a client: the interface exists and is up, and the kernel does
    /// not know the neighbour's MAC address.
    pub(super) fn is_unknown(&self, key: NeighbourKey) -> bool {
        let up = self.tables.links.get(&key.ifindex).is_some_and(|link| link.up && link.mac.is_some());
        let known = self.tables.neighbours.get(&key).is_some_and(|entry| entry.usable_mac().is_some());
        up && !known
    }

    pub(super) fn has_news(&self) -> bool {
        !self.news.is_empty()
    }

    /// The next change to report, which contains the current state and no intermediate states.
    pub(super) fn next_news(&mut self) -> Option<Event> {
        while let Some(address) = self.news.pop_first() {
            let Some(watch) = self.watches.get_mut(&address) else { continue };
            if let Some(next_hop) = watch.current.clone()
                && watch.told.as_ref() != Some(&next_hop)
            {
                watch.told = Some(next_hop.clone());
                return Some(Event::NextHop { address, next_hop });
            }
        }
        None
    }
}

#[cfg(test)]
#[path = "tracker_test.rs"]
mod tracker_test;
