//! Who is known where, and the tables that would send them elsewhere: what packets, swaps and sweeps race for.
//!
//! A slot without an exception is steered from the live table alone. The flag is set before a client of the slot can be
//! elsewhere, and taken back as [`super::clients`] says.

use std::{collections::HashMap, sync::Arc};

use balancer_common::map_types::LiveTable;
use balancer_core::io::{BackendId, ServiceId};

use super::{
    Forgotten,
    clients::{ClientTable, Part},
    grace::{Grace, GracePeriods},
    memory::Memory,
    tables::{Known, Tables},
};

#[cfg(test)]
mod races;

/// The memory of all services, and their tables.
pub(super) struct Stickiness {
    pub(super) tables: Tables,
    pub(super) clients: ClientTable,
    /// What is remembered by whom, of every service that has a table.
    pub(super) memories: HashMap<ServiceId, Memory>,
    grace_periods: Arc<GracePeriods>,
    /// Before it is over no pass over the client table may begin: packets on their way may have seen what was before.
    next_pass: Option<Grace>,
}

impl Stickiness {
    /// No service's yet.
    pub(super) fn new(tables: Tables, clients: ClientTable, grace_periods: Arc<GracePeriods>) -> Self {
        Self { tables, clients, memories: HashMap::new(), grace_periods, next_pass: None }
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

    /// Flags every slot of a service with memory: rules send clients where the table does not, and are not there, or not
    /// active, for ever.
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

    /// Looks at up to `words` entries of the client table, and flags what it finds. Of services in which a rule `pins`
    /// clients no flag is taken back. With the last part of a pass: known clients by backend.
    pub(super) fn sweep(&mut self, words: usize, pins: impl Fn(ServiceId) -> bool) -> Option<Vec<(BackendId, u64)>> {
        if self.clients.at_start_of_pass()
            && let Some(grace) = self.next_pass
        {
            if !self.grace_periods.is_over(grace) {
                return None;
            }
            self.next_pass = None;
        }
        let Part { elsewhere, pass } =
            self.clients.sweep(words, &self.memories, |service| self.tables.has_exceptions(service));
        for (service, slot) in elsewhere {
            self.tables.flag(service, slot);
        }
        let pass = pass?;
        self.wait_for_packets();
        for (service, slots) in pass.settled {
            if !pins(service) {
                self.tables.take_back_exceptions(service, &slots);
            }
        }
        Some(pass.known)
    }

    /// Forgets the client of a hash.
    pub(super) fn forget(&mut self, service: ServiceId, hash: u64) -> Forgotten {
        let Some(memory) = self.memories.get(&service) else { return Forgotten::default() };
        let forgotten = self.clients.forget(hash, memory);
        self.wait_for_packets();
        forgotten
    }

    /// Forgets the clients of a backend in `words` entries from `from` on, and says where the next part begins.
    pub(super) fn forget_all(&mut self, backend: BackendId, from: usize, words: usize) -> (Forgotten, Option<usize>) {
        let part = self.clients.forget_all(backend, from, words, &self.memories);
        if part.1.is_none() {
            self.wait_for_packets();
        }
        part
    }
}
