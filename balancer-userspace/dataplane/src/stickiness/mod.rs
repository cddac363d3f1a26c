//! Known clients, and the tables that would send them to other backends: state that the kernel program, table swaps and
//! sweeps change at the same time.
//!
//! For clients of a slot without an exception flag, the live table alone determines the backend. A slot is flagged
//! before one of its clients can be recorded at another backend; [`super::sweep`] says when the sweep clears the flag.

use std::{collections::HashMap, sync::Arc};

use balancer_common::{client::slot, client_table::Entry, map_types::LiveTable};
use balancer_control::io::{BackendId, ServiceId};

use super::{
    Forgotten, Swept,
    clients::{ClientTable, count, goes_elsewhere},
    former_clients::FormerClients,
    grace::{Grace, GracePeriods},
    memory::Memory,
    scanner::Scanner,
    sweep::Sweep,
    tables::{Known, Swapped, Tables},
};

/// The number of a sweep's findings that are processed at a time: less than a tenth of a millisecond of work.
const AT_ONCE: usize = 4096;

#[cfg(test)]
mod races;

/// The client memories of all services, and the lookup tables of these services.
pub(super) struct Stickiness {
    pub(super) tables: Tables,
    pub(super) clients: ClientTable,
    pub(super) sweep: Sweep,
    scanner: Scanner,
    /// The client memory of every service that has a lookup table.
    pub(super) memories: HashMap<ServiceId, Memory>,
    grace_periods: Arc<GracePeriods>,
    /// The grace period before the next pass over the client table: for packets in progress, the program may have read
    /// the earlier state.
    pub(super) next_pass: Option<Grace>,
}

impl Stickiness {
    /// Makes a value that contains no services.
    pub(super) fn new(
        tables: Tables,
        clients: ClientTable,
        scanner: Scanner,
        grace_periods: Arc<GracePeriods>,
    ) -> Self {
        let sweep = Sweep::new(clients.services().len());
        Self { tables, clients, sweep, scanner, memories: HashMap::new(), grace_periods, next_pass: None }
    }

    /// Makes `table` the live table of a service, and calls `publish` if the service is published. `adopted` says
    /// whether an earlier controller may have left clients of the service at any backend. A service that has no memory
    /// yet gets the memory that `begin` returns. The swap may move the tables of other services within the map, and
    /// calls `publish` for these services, too.
    pub(super) fn swap(
        &mut self,
        service: ServiceId,
        (table, home): (Arc<[u16]>, Option<&[u16]>),
        adopted: bool,
        begin: impl FnOnce() -> Memory,
        publish: impl Fn(u32, LiveTable),
    ) -> anyhow::Result<()> {
        let known = Known { remembers: self.remembers(service), adopted };
        let Swapped { grace, moved } = self.tables.swap(service, Arc::clone(&table), home, known, &publish)?;
        self.next_pass = Some(grace);
        for (moved, _) in moved {
            // The program may have flagged a slot of the earlier lines after the controller copied these lines.
            self.memories.get_mut(&moved).into_iter().for_each(|memory| memory.swaps += 1);
        }
        self.memories.entry(service).or_insert_with(begin).swapped(table);
        Ok(())
    }

    fn remembers(&self, service: ServiceId) -> bool {
        self.memories.get(&service).is_some_and(|memory| memory.clock.is_some())
    }

    /// Flags every slot of a service with client memory, because rules have sent clients to backends other than the
    /// table's.
    pub(super) fn flag_all(&mut self, service: ServiceId) {
        if self.remembers(service) {
            self.tables.flag_all(service);
        }
    }

    /// Assumes that the program may still record clients of a service at other backends, as after a swap of the table.
    pub(super) fn distrust(&mut self, service: ServiceId) {
        self.wait_for_packets();
        if let Some(memory) = self.memories.get_mut(&service) {
            memory.swaps += 1;
        }
    }

    /// Discards the tables and memories of services that are not published, because the change that brought these
    /// services has failed.
    pub(super) fn discard_unpublished(&mut self) {
        for service in self.tables.discard_unpublished() {
            self.memories.remove(&service);
        }
    }

    /// Delays the next pass until the program has finished every packet that is in progress now.
    pub(super) fn wait_for_packets(&mut self) {
        self.next_pass = Some(self.grace_periods.begin());
    }

    /// Continues the sweep in parts of `words` entries: starts the scan of the next part, or processes the findings of
    /// the last scan. If `keep` is true for a service, the sweep does not clear the flags of this service. `migrated`
    /// counts the clients of a service that the program has recorded at another backend because of a QUIC connection;
    /// the program updates this counter before it sets a flag.
    pub(super) fn sweep(
        &mut self,
        words: usize,
        keep: impl Fn(ServiceId) -> bool,
        migrated: impl Fn(ServiceId) -> u64,
    ) -> Swept {
        let count = |memories: &mut HashMap<ServiceId, Memory>| {
            memories.iter_mut().for_each(|(&service, memory)| memory.migrated = migrated(service));
        };
        let Self { tables, clients, sweep, scanner, memories, .. } = self;
        if sweep.rests() {
            if sweep.begins_pass() {
                if self.next_pass.is_some_and(|grace| !self.grace_periods.is_over(grace)) {
                    return Swept::Rests;
                }
                self.next_pass = None;
                count(memories);
            }
            scanner.begin(sweep.part(words, clients, memories));
            return Swept::GoesOn;
        }
        if sweep.looks() {
            match scanner.found() {
                Some(scanned) => sweep.found(scanned),
                None => return Swept::GoesOn,
            }
        }
        for (service, slot) in sweep.act(AT_ONCE, clients, memories) {
            tables.flag(service, slot);
        }
        if !sweep.rests() {
            return Swept::GoesOn;
        }
        count(memories);
        let Some(pass) = sweep.end(clients, memories, |service| tables.has_exceptions(service)) else {
            return Swept::Rests;
        };
        for (service, slots) in pass.settled {
            if keep(service) {
                continue;
            }
            tables.take_back_exceptions(service, &slots);
            let before = memories.get(&service).map(|memory| memory.migrated);
            if before != Some(migrated(service)) {
                // The program may have set a flag just before the controller cleared this flag.
                slots.iter().for_each(|&slot| tables.flag(service, slot));
            }
        }
        self.wait_for_packets();
        Swept::Ends(pass.known)
    }

    /// Takes over the clients that the earlier program recorded after the controller had copied its table. The new
    /// program has already replaced the earlier program.
    pub(super) fn catch_up(&mut self, former: FormerClients) -> anyhow::Result<()> {
        let Self { tables, clients, sweep, memories, .. } = self;
        let memory = |entry: Entry| {
            let service = clients.service_of(entry.backend())?;
            memories.get(&service).filter(|memory| memory.remembers(entry)).map(|memory| (service, memory))
        };
        for entry in former.catch_up(clients.words(), |entry| memory(entry).is_some()) {
            if let Some((service, memory)) = memory(entry).filter(|(_, memory)| goes_elsewhere(entry, memory)) {
                let place = slot(entry.0, memory.table.len() as u32);
                tables.flag(service, place);
                sweep.found_elsewhere(service, place);
            }
        }
        former.replace()
    }

    pub(super) fn forget(&mut self, service: ServiceId, hash: u64) -> Forgotten {
        let Some(memory) = self.memories.get(&service) else { return Forgotten::default() };
        let forgotten = self.clients.forget(hash).map(|entry| {
            self.sweep.forgot(self.clients.bucket(hash), entry, memory.swaps);
            count(entry, memory)
        });
        self.wait_for_packets();
        forgotten.unwrap_or_default()
    }

    /// Forgets the clients at a backend in `words` entries from `from` on, and returns the start of the next part.
    pub(super) fn forget_all(&mut self, backend: BackendId, from: usize, words: usize) -> (Forgotten, Option<usize>) {
        let memory = self.clients.service_of(backend.0).and_then(|service| self.memories.get(&service));
        let Some(memory) = memory else { return (Forgotten::default(), None) };
        let part = self.clients.forget_all(backend, from, words, memory);
        if part.1.is_none() {
            self.sweep.forgot_all(backend, memory.swaps);
            self.wait_for_packets();
        }
        part
    }
}
