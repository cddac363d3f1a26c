//! The remaining work in the client table after changes, as part of the kernel's data path.

use std::{collections::HashMap, mem::offset_of};

use balancer_common::map_types::ServiceRow;
use balancer_control::io::{ServiceId, ServiceSpec};

use super::{CHANGE_PART, KernelDataplane};
use crate::{
    Rescanned,
    memory::Memory,
    rescan::{Rescan, ServiceChange},
    rows,
    stickiness::Stickiness,
};

impl KernelDataplane {
    /// The trait method is [`Dataplane::complete`](crate::Dataplane::complete).
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
            self.rescan = Some(Rescan::new(services, self.published));
        }
    }

    /// The trait method is [`Dataplane::rescan`](crate::Dataplane::rescan).
    pub(super) fn rescan_part(&mut self) -> Rescanned {
        let Some(rescan) = &mut self.rescan else { return Rescanned::Ends(Vec::new()) };
        if rescan.grace().is_some_and(|grace| !self.grace_periods.is_over(grace)) {
            return Rescanned::Waits;
        }
        let Stickiness { clients, memories, .. } = &self.stickiness;
        if !rescan.is_over(clients) {
            rescan.part(clients, memories, CHANGE_PART);
            if !rescan.is_over(clients) {
                return Rescanned::GoesOn;
            }
            self.settle();
        }
        Rescanned::Ends(self.rescan.take().map_or_else(Vec::new, Rescan::forgotten))
    }

    /// Completes the remaining work of the last change immediately, for an operation that needs exact ages.
    pub(crate) fn rescan_all(&mut self) {
        let Some(rescan) = &mut self.rescan else { return };
        let Stickiness { clients, memories, .. } = &self.stickiness;
        if rescan.is_over(clients) {
            return;
        }
        if let Some(grace) = rescan.grace() {
            self.grace_periods.wait(grace);
        }
        rescan.part(clients, memories, usize::MAX);
        self.settle();
    }

    /// Records that all ages in entries are now in ticks of their services' clocks.
    fn settle(&mut self) {
        let Some(rescan) = &self.rescan else { return };
        for service in rescan.services() {
            let Some(memory) = self.stickiness.memories.get_mut(&service) else { continue };
            memory.settle(self.elapsed);
            if let (Some(clock), Some(row)) = (memory.clock, self.stickiness.tables.row(service)) {
                let word = bytemuck::cast([clock.remember, rows::idle(clock)]);
                self.services.rows.store32(row as usize, offset_of!(ServiceRow, remember), word);
            }
        }
    }
}
