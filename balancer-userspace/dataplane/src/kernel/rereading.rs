//! The work that changes leave in the client table, while maps are written.

use std::{collections::HashMap, mem::offset_of, sync::atomic::Ordering};

use balancer_common::map_types::ServiceRow;
use balancer_core::io::{ServiceId, ServiceSpec};

use super::{CHANGE_PART, KernelDataplane};
use crate::{
    Reread,
    memory::Memory,
    rereading::{Rereading, ServiceChange},
    rows,
    stickiness::Stickiness,
};

impl KernelDataplane {
    /// See [`Dataplane::complete`](crate::Dataplane::complete).
    pub(super) fn begin_rereading(&mut self) {
        let mut former = std::mem::take(&mut self.former);
        let Some(settled) = self.settled.replace(self.directory.clone()) else { return };
        let now: HashMap<ServiceId, &ServiceSpec> = self.directory.iter().map(|spec| (spec.id, spec)).collect();
        let mut services = HashMap::new();
        for spec in &settled {
            let after = self.stickiness.memories.get(&spec.id);
            let forgets = spec.forgets(now.get(&spec.id).copied());
            let ages = after.and_then(Memory::ages);
            let before = former.remove(&spec.id).or_else(|| after.cloned());
            if let Some(before) = before.filter(|_| forgets.is_some() || ages.is_some()) {
                services.insert(spec.id, ServiceChange { before, ages, forgets });
            }
        }
        if !services.is_empty() {
            self.rereading = Some(Rereading::new(services, self.published));
        }
    }

    /// See [`Dataplane::reread`](crate::Dataplane::reread).
    pub(super) fn reread_part(&mut self) -> Reread {
        let Some(rereading) = &mut self.rereading else { return Reread::Ends(Vec::new()) };
        if rereading.grace().is_some_and(|grace| !self.grace_periods.is_over(grace)) {
            return Reread::Waits;
        }
        let Stickiness { clients, memories, .. } = &self.stickiness;
        if !rereading.is_over(clients) {
            rereading.part(clients, memories, CHANGE_PART);
            if !rereading.is_over(clients) {
                return Reread::GoesOn;
            }
            self.settle();
        }
        Reread::Ends(self.rereading.take().map_or_else(Vec::new, Rereading::forgotten))
    }

    /// Completes the work of the last change at once, for an operation that needs exact ages.
    pub(crate) fn reread_all(&mut self) {
        let Some(rereading) = &mut self.rereading else { return };
        let Stickiness { clients, memories, .. } = &self.stickiness;
        if rereading.is_over(clients) {
            return;
        }
        if let Some(grace) = rereading.grace() {
            self.grace_periods.wait(grace);
        }
        rereading.part(clients, memories, usize::MAX);
        self.settle();
    }

    /// Records that all ages are in ticks of their services' clocks.
    fn settle(&mut self) {
        let Some(rereading) = &self.rereading else { return };
        for service in rereading.services() {
            let Some(memory) = self.stickiness.memories.get_mut(&service) else { continue };
            memory.settle(self.elapsed);
            if let (Some(clock), Some(row)) = (memory.clock, self.stickiness.tables.row(service)) {
                let word = self.services.rows.word32(row as usize, offset_of!(ServiceRow, remember));
                word.store(bytemuck::cast([clock.remember, rows::idle(clock)]), Ordering::Release);
            }
        }
    }
}
