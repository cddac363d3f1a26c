//! Known clients and the tables that would send them elsewhere: the state that packets, swaps and sweeps race for.
//!
//! A slot without an exception is steered from the live table alone. The flag is set before a client of the slot can be
//! elsewhere, and taken back as [`super::sweep`] says.

use std::{collections::HashMap, sync::Arc};

use balancer_common::map_types::LiveTable;
use balancer_core::io::{BackendId, ServiceId};

use super::{
    Forgotten, Swept,
    clients::{ClientTable, count},
    grace::{Grace, GracePeriods},
    memory::Memory,
    sweep::{Scanner, Sweep},
    tables::{Known, Tables},
};

/// How much of what a sweep has found is acted on at a time: less than a tenth of a millisecond's work.
const AT_ONCE: usize = 4096;

#[cfg(test)]
mod races;

/// The memory of all services, and their tables.
pub(super) struct Stickiness {
    pub(super) tables: Tables,
    pub(super) clients: ClientTable,
    pub(super) sweep: Sweep,
    scanner: Scanner,
    /// The memory of every service that has a table.
    pub(super) memories: HashMap<ServiceId, Memory>,
    grace_periods: Arc<GracePeriods>,
    /// Before it is over no pass over the client table may begin: packets on their way may have seen what was before.
    next_pass: Option<Grace>,
}

impl Stickiness {
    /// No service's yet.
    pub(super) fn new(
        tables: Tables,
        clients: ClientTable,
        scanner: Scanner,
        grace_periods: Arc<GracePeriods>,
    ) -> Self {
        let sweep = Sweep::new(clients.services().len());
        Self { tables, clients, sweep, scanner, memories: HashMap::new(), grace_periods, next_pass: None }
    }

    /// Makes `table` a service's live table, by `publish` if the service is published. `adopted`: an earlier controller
    /// may have left clients anywhere. A service without memory yet gets what `begin` makes.
    pub(super) fn swap(
        &mut self,
        service: ServiceId,
        (table, home): (Arc<[u16]>, Option<&[u16]>),
        adopted: bool,
        begin: impl FnOnce() -> Memory,
        publish: impl FnOnce(u32, LiveTable),
    ) -> anyhow::Result<()> {
        let known = Known { remembers: self.remembers(service), adopted };
        self.next_pass = Some(self.tables.swap(service, Arc::clone(&table), home, known, publish)?);
        self.memories.entry(service).or_insert_with(begin).swapped(table);
        Ok(())
    }

    fn remembers(&self, service: ServiceId) -> bool {
        self.memories.get(&service).is_some_and(|memory| memory.clock.is_some())
    }

    /// Flags every slot of a service with memory: rules have sent clients where the table does not.
    pub(super) fn flag_all(&mut self, service: ServiceId) {
        if self.remembers(service) {
            self.tables.flag_all(service);
        }
    }

    /// Clients of a service may come to be elsewhere than they were: as if the table were swapped.
    pub(super) fn distrust(&mut self, service: ServiceId) {
        self.wait_for_packets();
        if let Some(memory) = self.memories.get_mut(&service) {
            memory.swaps += 1;
        }
    }

    /// No pass begins before every packet that is on its way now has left.
    pub(super) fn wait_for_packets(&mut self) {
        self.next_pass = Some(self.grace_periods.begin());
    }

    /// Goes on with the sweep, in parts of `words` entries: has a look taken at the next one, or acts on what it has found. Of
    /// services that `keep` their flags none is taken back.
    pub(super) fn sweep(&mut self, words: usize, keep: impl Fn(ServiceId) -> bool) -> Swept {
        let Self { tables, clients, sweep, scanner, memories, .. } = self;
        if sweep.rests() {
            if sweep.begins_pass() {
                if self.next_pass.is_some_and(|grace| !self.grace_periods.is_over(grace)) {
                    return Swept::Rests;
                }
                self.next_pass = None;
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
        let Some(pass) = sweep.end(clients, memories, |service| tables.has_exceptions(service)) else {
            return Swept::Rests;
        };
        for (service, slots) in pass.settled {
            if !keep(service) {
                tables.take_back_exceptions(service, &slots);
            }
        }
        self.wait_for_packets();
        Swept::Ends(pass.known)
    }

    /// Forgets the client of a hash.
    pub(super) fn forget(&mut self, service: ServiceId, hash: u64) -> Forgotten {
        let Some(memory) = self.memories.get(&service) else { return Forgotten::default() };
        let forgotten = self.clients.forget(hash).map(|entry| {
            self.sweep.forgot(self.clients.bucket(hash), entry, memory.swaps);
            count(entry, memory)
        });
        self.wait_for_packets();
        forgotten.unwrap_or_default()
    }

    /// Forgets the clients of a backend in `words` entries from `from` on, and says where the next part begins.
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
