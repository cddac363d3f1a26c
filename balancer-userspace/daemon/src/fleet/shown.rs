//! The state of a fleet for display.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    time::{Duration, UNIX_EPOCH},
};

use balancer_control::{
    agreed::{Opinion, Way},
    fleet::{FleetEngine, FleetMember, FleetRecords, FleetSnapshot},
    health::Verdict,
    service::Backend,
    state::Moment,
};
use balancer_dataplane::{ImportedClients, KernelDataplane};
use balancer_etcd::{Facts, Traffic};
use balancer_fleet::{
    member::Member,
    store_schema::{Epoch, Member as Card},
};
use balancer_runtime::clocks::wall;
use tokio::time::Instant;

use crate::owner::Owner;

/// The interval at which the task checks the other members even if no event occurs.
const LOOKS_EVERY: Duration = Duration::from_millis(250);

/// Counters and measurements of a fleet, which are only displayed.
#[derive(Debug, Default)]
pub(super) struct Shown {
    records: FleetRecords,
    commit: Option<Duration>,
    looked: Option<Instant>,
    /// The members that apply an outdated epoch, each with that epoch and the time since when the epoch has been
    /// outdated.
    behind: HashMap<String, (Option<Epoch>, Instant)>,
}

impl Shown {
    pub(super) fn told(&mut self, records: usize) {
        self.records.told += records as u64;
    }

    pub(super) fn imported(&mut self, imported: &ImportedClients) {
        self.records.taken_over += imported.taken_over();
        for (reason, count) in imported.dropped() {
            *self.records.dropped.entry(reason.to_owned()).or_default() += count;
        }
        self.records.conflicts += imported.conflicts;
    }

    /// Records that this member now applies the decision made at the moment `at`.
    pub(super) fn applied(&mut self, at: Moment) {
        self.commit = Some(wall().duration_since(UNIX_EPOCH + at.0).unwrap_or_default());
    }

    /// Records periodically which members apply an outdated epoch.
    pub(super) fn look(&mut self, member: &Member) {
        let now = Instant::now();
        if self.looked.is_none_or(|looked| now.duration_since(looked) >= LOOKS_EVERY) {
            self.note(member, &member.cards(), now);
        }
    }

    fn note(&mut self, member: &Member, cards: &BTreeMap<String, Card>, now: Instant) {
        self.looked = Some(now);
        let holding = member.holding();
        let behind = cards.iter().filter(|(_, card)| holding.is_some() && card.epoch != holding);
        let since = |(name, card): (&String, &Card)| {
            let known = self.behind.get(name).filter(|(epoch, _)| *epoch == card.epoch);
            (name.clone(), (card.epoch, known.map_or(now, |(_, since)| *since)))
        };
        self.behind = behind.map(since).collect();
    }

    pub(super) fn snapshot(
        &mut self,
        fleet: &str,
        member: &Member,
        own: FleetMember,
        engine: FleetEngine,
        owner: &Owner<KernelDataplane>,
    ) -> FleetSnapshot {
        let (now, cards) = (Instant::now(), member.cards());
        self.note(member, &cards, now);
        let mut records = self.records.clone();
        for (reason, _) in ImportedClients::default().dropped() {
            records.dropped.entry(reason.to_owned()).or_default();
        }
        let mut members: BTreeMap<String, FleetMember> = [(own.name.clone(), own.clone())].into();
        members.extend(cards.iter().map(|(name, card)| {
            let lag = self.behind.get(name).map_or(Duration::ZERO, |(_, since)| now.duration_since(*since));
            let shown = FleetMember {
                name: name.clone(),
                version: card.version.clone(),
                ready: card.readiness.clone(),
                epoch: card.epoch.map(|epoch| epoch.number),
                lag_seconds: lag.as_secs_f64(),
                votes_differ: differing(card, member, owner),
                clock_ahead_seconds: member.clock_ahead(name),
                file_differs: card.file_differs,
                address: card.address.clone(),
            };
            (name.clone(), shown)
        }));
        FleetSnapshot {
            name: fleet.to_owned(),
            member: own.name,
            epoch: own.epoch,
            leader: member.leader(),
            members: members.into_values().collect(),
            engine,
            records,
            commit_seconds: self.commit.map(|commit| commit.as_secs_f64()),
            troubles: member.troubles(),
        }
    }
}

/// The backends whose state on a member's card differs from the state that this member applies. Backend ids are
/// comparable only within an epoch.
fn differing(card: &Card, member: &Member, owner: &Owner<KernelDataplane>) -> Vec<String> {
    if card.epoch.is_none() || card.epoch != member.epoch() {
        return Vec::new();
    }
    let services = owner.controller().services().iter();
    let backends = services.flat_map(|service| service.backends().iter().map(move |backend| (service, backend)));
    let differing = backends.filter(|(_, backend)| differs(backend, &card.ballot.opinion(backend.id())));
    // A service with both address families appears as two services in this list.
    let names: BTreeSet<String> = differing.map(|(service, backend)| service.name_of(backend).to_string()).collect();
    names.into_iter().collect()
}

fn differs(backend: &Backend, opinion: &Opinion) -> bool {
    match opinion {
        Opinion::Down { .. } | Opinion::NoWay(_) => backend.unreachable_here(opinion).is_some(),
        Opinion::Up => matches!(backend.agreed(), (Way::Closed(_), _) | (_, Verdict::Down { .. })),
        Opinion::Waiting | Opinion::Unknown => false,
    }
}

/// The reason why etcd refuses writes, without the name of the etcd server.
pub(super) fn in_its_words(why: &str) -> String {
    why.trim_start_matches("etcd answers: ").to_owned()
}

/// The state of the engine, as its driver and the protocol report it.
pub(super) fn engine(facts: Facts, traffic: &Traffic, connected: bool) -> FleetEngine {
    let warnings = facts.warnings();
    FleetEngine {
        reachable: connected && facts.reachable,
        endpoint: facts.endpoint,
        version: facts.version,
        leader: (facts.leader != 0).then(|| format!("{:x}", facts.leader)),
        trouble: facts.trouble,
        bytes_sent: traffic.sent(),
        bytes_received: traffic.received(),
        denial: facts.denial.as_deref().map(in_its_words),
        database_bytes: facts.database_bytes,
        database_quota_bytes: facts.database_quota,
        warnings,
    }
}
