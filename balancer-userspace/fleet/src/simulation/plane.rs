//! The data path of a simulated member, with real client table entries and the real rule for known clients.

use std::{cell::Cell, collections::HashMap, sync::Arc};

use balancer_common::{
    client::{hash_v4, slot},
    client_table::{self, BUCKET_ENTRIES, Entries, Entry, find},
    map_types::{ALL_DOWN, NO_BACKEND},
    memory::{Answer, BackendFacts, consult},
    query::Query,
};
use balancer_config::config::Failback;
use balancer_control::io::{BackendSpec, Command, ServiceId, ServiceSpec};

use super::store::Time;
use crate::{
    clients::{Facts, Heard, Imported, Sharing, Table},
    records::Record,
};

/// The number of buckets in every client table.
pub(crate) const BUCKETS: usize = 256;

/// The client table entries, which outlive the process of the controller.
pub(crate) struct Words(Vec<Cell<u64>>);

impl Words {
    pub(crate) fn new() -> Self {
        Self((0..BUCKETS * BUCKET_ENTRIES).map(|_| Cell::new(0)).collect())
    }
}

impl Table for Words {
    fn entries(&self) -> usize {
        self.0.len()
    }

    fn load(&self, index: usize) -> Entry {
        Entry(self.0.get(index).map_or(0, Cell::get))
    }

    fn exchange(&self, index: usize, old: Entry, new: Entry) -> bool {
        self.0.get(index).is_some_and(|cell| {
            let is = cell.get() == old.0;
            if is {
                cell.set(new.0);
            }
            is
        })
    }
}

/// A live lookup table, and a base table if the base table differs from the live one.
type Tables = (Arc<[u16]>, Option<Arc<[u16]>>);

/// All data that decides about a packet.
pub(crate) struct Plane {
    pub(crate) words: Words,
    pub(crate) rows: HashMap<u16, Arc<BackendSpec>>,
    tables: HashMap<ServiceId, Tables>,
    services: Vec<ServiceSpec>,
    /// Whether the member uses the lookup tables of another version.
    turned: bool,
}

struct Bucket<'a>(&'a [Cell<u64>], bool);

impl Entries for Bucket<'_> {
    fn load(&self, index: usize) -> Entry {
        Entry(self.0[index].get())
    }

    fn store(&self, index: usize, entry: Entry) {
        if self.1 {
            self.0[index].set(entry.0);
        }
    }
}

impl Plane {
    pub(crate) fn new() -> Self {
        Self { words: Words::new(), rows: HashMap::new(), tables: HashMap::new(), services: Vec::new(), turned: false }
    }

    pub(crate) fn carry_out(&mut self, command: Command) {
        match command {
            Command::WriteBackend(row) => {
                self.rows.insert(row.id.0, row);
            }
            Command::RetireBackend(id) => {
                self.rows.remove(&id.0);
                for cell in &self.words.0 {
                    if cell.get() != 0 && Entry(cell.get()).backend() == id.0 {
                        cell.set(0);
                    }
                }
            }
            Command::SwapTable { service, table, home } => {
                for &id in table.iter().filter(|&&id| id != NO_BACKEND && id != ALL_DOWN) {
                    assert!(self.rows.contains_key(&id), "the table names backend {id}, which has no row");
                }
                let version =
                    |table: Arc<[u16]>| if self.turned { table.iter().rev().copied().collect() } else { table };
                self.tables.insert(service, (version(table), home.map(version)));
            }
            Command::PublishServices(services) => self.services = services,
            Command::SetRules { .. }
            | Command::WatchNextHop(_)
            | Command::UnwatchNextHop(_)
            | Command::StartChecks(_)
            | Command::StopChecks(_)
            | Command::Report(_) => {}
        }
    }

    /// Switches to the lookup tables of another version: each backend has the same number of slots, but other slots.
    pub(crate) const fn turn(&mut self) {
        self.turned = true;
    }

    pub(crate) const fn is_another_version(&self) -> bool {
        self.turned
    }

    pub(crate) fn services(&self) -> impl Iterator<Item = ServiceId> {
        self.services.iter().map(|service| service.id)
    }

    pub(crate) fn table(&self, service: ServiceId) -> Option<&[u16]> {
        self.tables.get(&service).map(|(table, _)| &**table)
    }

    fn service(&self, id: u16) -> Option<&ServiceSpec> {
        self.services.iter().find(|service| service.id.0 == id)
    }

    pub(crate) fn facts(&self, id: u16, now: Time) -> Option<Facts> {
        let row = self.rows.get(&id)?;
        let clock = self.service(row.service.0)?.clock()?;
        let tick = (now / 1000 / u64::from(clock.tick_seconds)) as u16 & 0x3fff;
        Some(Facts { service: row.service.0, tick, remember: clock.remember, keeps: row.keeps_known })
    }

    /// The hash of a client under the key of a service.
    pub(crate) fn hash(&self, service: ServiceId, client: u32) -> Option<u64> {
        Some(hash_v4(self.service(service.0)?.hash_key, client.to_be()))
    }

    /// The backend that gets a connection of a client; with `looks`, the call changes nothing.
    pub(crate) fn packet(&self, service: ServiceId, client: u32, now: Time, looks: bool) -> Option<Answer> {
        let spec = self.service(service.0)?;
        let clock = spec.clock()?;
        let hash = self.hash(service, client)?;
        let (table, home) = self.tables.get(&service)?;
        let at = slot(hash, table.len() as u32) as usize;
        let live = Some(table[at]).filter(|&id| id != NO_BACKEND && id != ALL_DOWN);
        let bucket = client_table::bucket(hash, BUCKETS as u32 - 1) as usize;
        let bucket = Bucket(&self.words.0[bucket * BUCKET_ENTRIES..(bucket + 1) * BUCKET_ENTRIES], !looks);
        let query = Query {
            hash,
            service: service.0,
            live,
            live_is_home: home.as_ref().is_some_and(|home| Some(home[at]) == live),
            pinned: false,
            migrates: false,
            opens: true,
            datagram: false,
            failback: spec.failback == Failback::Return,
            peeks: looks,
            marks: false,
            now: (now / 1000 / u64::from(clock.tick_seconds)) as u16 & 0x3fff,
            remember: clock.remember,
            idle: 1,
        };
        let facts = |id| {
            let row = self.rows.get(&id)?;
            Some(BackendFacts { service: row.service.0, keeps_known: row.keeps_known, cause: row.cause.into() })
        };
        Some(consult(&bucket, &query, facts, || true))
    }

    pub(crate) fn collect(&self, sharing: &mut Sharing, epoch: u32, now: Time) -> Vec<Record> {
        let facts = |id| self.facts(id, now);
        // All new clients are sent, because their number is below any limit.
        sharing.collect(&self.words, &facts, epoch, |_| true)
    }

    pub(crate) fn dump(&self, sharing: &Sharing, epoch: u32, now: Time) -> Vec<Record> {
        sharing.dump(&self.words, &|id| self.facts(id, now), epoch)
    }

    pub(crate) fn import(&self, sharing: &mut Sharing, record: &Record, heard: Heard<'_>, now: Time) -> Imported {
        sharing.import(&self.words, record, heard, &|id| self.facts(id, now), |_, _, _| {})
    }

    /// The entry of a client, and whether the backend in the entry keeps the client.
    pub(crate) fn entry(&self, hash: u64) -> (Option<(u16, bool)>, Option<bool>) {
        let bucket = client_table::bucket(hash, BUCKETS as u32 - 1) as usize;
        let bucket = Bucket(&self.words.0[bucket * BUCKET_ENTRIES..(bucket + 1) * BUCKET_ENTRIES], false);
        let entry = find(&bucket, (hash >> 32) as u32).map(|(_, entry)| entry);
        (
            entry.map(|entry| (entry.backend(), entry.away())),
            entry.and_then(|entry| Some(self.rows.get(&entry.backend())?.keeps_known)),
        )
    }

    /// The number of known clients of each backend.
    pub(crate) fn known(&self) -> HashMap<u16, u64> {
        let mut known = HashMap::new();
        for cell in self.words.0.iter().filter(|cell| cell.get() != 0) {
            *known.entry(Entry(cell.get()).backend()).or_default() += 1;
        }
        known
    }
}
