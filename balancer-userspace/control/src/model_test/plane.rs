//! An in-memory data plane with clients, which refuses commands that would break a real data plane.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    net::IpAddr,
    sync::Arc,
    time::Duration,
};

use balancer_common::{
    client::slot,
    client_table::Entry,
    features::Features,
    map_types::{ALL_DOWN, LAST_BACKEND, NO_BACKEND},
    memory::{Steered, Steering, steer},
    verdict::CauseIndex,
};
use balancer_config::config::{CheckKind, Failback};

use crate::{
    applied::Applied,
    features,
    io::{BackendId, BackendSpec, CheckNumber, CheckSpec, Command, RuleAction, RuleSpec, ServiceId, ServiceSpec},
    next_hops::Hop,
};

/// A live table and its base table, if there is one.
pub(super) type Tables = (Arc<[u16]>, Option<Arc<[u16]>>);

/// The data plane, which is empty at first and which the commands fill.
#[derive(Clone, Default)]
pub(super) struct DataPlane {
    pub(super) rows: BTreeMap<BackendId, Arc<BackendSpec>>,
    pub(super) tables: BTreeMap<ServiceId, Tables>,
    pub(super) services: Vec<ServiceSpec>,
    /// The addresses whose next hops are watched, with these next hops.
    pub(super) watched: BTreeMap<IpAddr, Hop>,
    /// The running health checks, by backend.
    pub(super) checked: BTreeMap<BackendId, CheckSpec>,
    pub(super) last_check: CheckNumber,
    /// The number of table swaps that changed a live table.
    pub(super) swaps: HashMap<ServiceId, u64>,
    pub(super) rules: BTreeMap<ServiceId, Arc<[RuleSpec]>>,
    /// The known clients, by the high half of each client's hash.
    pub(super) clients: BTreeMap<(ServiceId, u32), Entry>,
    pub(super) applied: Applied,
    /// The features of the kernel program. The controller has named these features before it sent its commands.
    pub(super) loaded: Features,
    /// Whether the controller may repeat earlier commands.
    pub(super) again: bool,
}

impl DataPlane {
    fn names(&self, id: BackendId) -> bool {
        self.tables.values().any(|(table, _)| table.contains(&id.0))
    }

    fn remembers(&self, id: ServiceId) -> bool {
        self.services.iter().any(|service| service.id == id && !service.remember.is_zero())
    }

    pub(super) fn apply(&mut self, command: Command) {
        self.applied.note(&command);
        let again = self.again;
        match command {
            Command::WriteBackend(spec) => {
                assert!((1..=LAST_BACKEND).contains(&spec.id.0));
                let needed = features::of_row(&spec);
                assert!(self.loaded.has(needed), "a row needs {}", features::words(needed));
                let before = self.rows.get(&spec.id);
                assert!(again || before != Some(&spec), "a row is written for nothing");
                let moves =
                    before.is_some_and(|before| before.address != spec.address && before.service == spec.service);
                let published = self.services.iter().flat_map(|service| service.backends.iter());
                let way_back = published.into_iter().find(|backend| backend.0 == spec.id).map(|backend| backend.1);
                assert!(
                    again || !moves || way_back.is_none_or(|way_back| way_back == spec.address),
                    "packets go to {} before replies find back from there",
                    spec.address
                );
                // A removed backend that returns has its earlier next hop.
                let is_published =
                    self.services.iter().any(|of| of.backends.iter().any(|backend| backend.0 == spec.id));
                let before = before.filter(|before| !is_published && before.address == spec.address);
                if let Some(hop) = before.and_then(|before| before.next_hop)
                    && let Some(known) = self.watched.get_mut(&spec.address.ip())
                    && *known == Hop::Pending
                {
                    assert_eq!(spec.next_hop, Some(hop), "known clients of one that comes back are dropped");
                    *known = Hop::Resolved(hop);
                }
                self.rows.insert(spec.id, spec);
            }
            Command::RetireBackend(id) => {
                let pins = |rules: &Arc<[RuleSpec]>| rules.iter().any(|rule| rule.action == RuleAction::Pin(Some(id)));
                assert!(!self.rules.values().any(pins), "a rule pins to {id:?}, which is retired");
                assert!(!self.names(id), "a table names {id:?}, which is retired");
                assert!(!self.services.iter().any(|service| service.backends.iter().any(|backend| backend.0 == id)));
                assert!(!self.checked.contains_key(&id), "{id:?} is checked after its end");
                let mut known = self.clients.iter().filter(|(_, entry)| entry.backend() == id.0);
                assert!(known.all(|((of, _), _)| !self.remembers(*of)), "{id:?} has known clients and is retired");
                self.rows.remove(&id).expect("a retired backend had a row");
            }
            Command::SwapTable { service, table, home } => {
                let named: BTreeSet<u16> = table.iter().copied().collect();
                for id in named {
                    let known = self.rows.contains_key(&BackendId(id));
                    assert!(known || id == NO_BACKEND || id == ALL_DOWN, "a table names {id} without a row");
                    let published = self.services.iter().find(|spec| spec.id == service);
                    let way_back = published.is_none_or(|spec| spec.backends.iter().any(|backend| backend.0.0 == id));
                    assert!(way_back || !known, "clients are sent to {id} before their replies find back");
                }
                let tables = (table, home);
                let before = self.tables.insert(service, tables.clone());
                assert!(again || before.as_ref() != Some(&tables), "a table is swapped for nothing");
                *self.swaps.entry(service).or_default() += u64::from(before.is_none_or(|before| before.0 != tables.0));
            }
            Command::PublishServices(services) => {
                for service in &services {
                    let needed = features::of_published(service);
                    assert!(self.loaded.has(needed), "a service needs {}", features::words(needed));
                    assert!(self.tables.contains_key(&service.id), "a service is published without a table");
                    let mut backends = service.backends.iter();
                    assert!(backends.all(|(id, _)| self.rows.contains_key(id)), "a backend is published without a row");
                    let ruled = self.rules.get(&service.id).is_some_and(|rules| !rules.is_empty());
                    assert!(service.rules || !ruled, "a service with rules is published as one without");
                }
                let there = |id: &ServiceId| services.iter().any(|service| service.id == *id);
                self.tables.retain(|id, _| there(id));
                self.swaps.retain(|id, _| there(id));
                self.rules.retain(|id, _| there(id));
                let forgets = |before: &&ServiceSpec| {
                    let now = services.iter().find(|spec| spec.id == before.id);
                    before.forgets(now).is_some_and(|forgets| forgets.includes(Duration::ZERO))
                };
                let forgetful: BTreeSet<ServiceId> = self.services.iter().filter(forgets).map(|spec| spec.id).collect();
                self.clients.retain(|(service, _), _| !forgetful.contains(service));
                self.services = services;
            }
            Command::SetRules { service, rules } => {
                let published = self.services.iter().find(|spec| spec.id == service);
                let without = again && rules.is_empty();
                assert!(
                    without || published.is_some_and(|spec| spec.rules),
                    "rules of a service that is not published with any"
                );
                for rule in &*rules {
                    if let RuleAction::Pin(Some(id)) = rule.action {
                        assert!(self.rows.contains_key(&id), "a rule pins to {id:?}, which has no row");
                    }
                }
                assert!(again || self.rules.get(&service) != Some(&rules), "rules are set for nothing");
                self.rules.insert(service, rules);
            }
            Command::WatchNextHop(address) => {
                assert!(self.watched.insert(address, Hop::default()).is_none(), "{address} is watched twice");
            }
            Command::UnwatchNextHop(address) => {
                assert!(self.watched.remove(&address).is_some(), "{address} was not watched");
            }
            Command::StartChecks(spec) => {
                let spec = *spec;
                assert_ne!(spec.check.kind, CheckKind::None);
                assert!(self.rows.contains_key(&spec.backend));
                assert!(again || spec.number > self.last_check, "a check is taken for another");
                self.last_check = self.last_check.max(spec.number);
                let as_before = self.checked.insert(spec.backend, spec.clone());
                let as_before = as_before.map(|before| CheckSpec { number: spec.number, ..before });
                assert!(again || as_before != Some(spec), "a check is started for nothing");
            }
            Command::StopChecks(id) => assert!(self.checked.remove(&id).is_some(), "{id:?} was not checked"),
            Command::Report(report) => assert!(!report.message.is_empty() && !report.message.contains('\n')),
        }
    }

    /// The backend that a client's next connection would reach.
    pub(super) fn steer(&self, spec: &ServiceSpec, tag: u32) -> Steered {
        let (table, home) = &self.tables[&spec.id];
        let place = slot(u64::from(tag) << 32, table.len() as u32) as usize;
        let live = Some(table[place]).filter(|&live| live != ALL_DOWN && live != NO_BACKEND);
        let entry = self.clients.get(&(spec.id, tag)).copied();
        let row = entry.and_then(|entry| self.rows.get(&BackendId(entry.backend())));
        let row = row.filter(|row| row.service == spec.id);
        steer(&Steering {
            live,
            pinned: false,
            live_is_home: live.is_some() && home.as_ref().map(|home| home[place]) == live,
            entry: entry.filter(|_| row.is_some()),
            keeps_known: row.is_some_and(|row| row.keeps_known),
            cause: CauseIndex(row.map_or(0, |row| row.cause as u8)),
            opens: true,
            failback: spec.failback == Failback::Return,
            now: 0,
        })
    }

    /// Makes a connection of a client, and returns the client's backend.
    pub(super) fn connect(&mut self, spec: &ServiceSpec, tag: u32) -> Option<u16> {
        let steered = self.steer(spec, tag);
        let known = self
            .clients
            .get(&(spec.id, tag))
            .is_some_and(|entry| self.rows.get(&BackendId(entry.backend())).is_some_and(|row| row.service == spec.id));
        let newcomer = steered.backend.filter(|_| !known).map(|backend| Entry::new(tag, backend, 0));
        if let Some(entry) = steered.entry.or(newcomer) {
            self.clients.insert((spec.id, tag), entry);
        }
        steered.backend
    }

    /// Returns the numbers of known clients for each backend.
    pub(super) fn sweep(&self) -> Vec<(BackendId, u64)> {
        let mut known: BTreeMap<BackendId, u64> = BTreeMap::new();
        for entry in self.clients.values() {
            *known.entry(BackendId(entry.backend())).or_default() += 1;
        }
        known.into_iter().collect()
    }
}
