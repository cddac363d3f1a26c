//! Counters of many backends, which tasks other than the owner of the controller can read.

use balancer_common::map_types::BackendStats;
use balancer_control::io::BackendId;

use super::cpu_rows::CpuRows;

#[derive(Debug)]
pub struct BackendCounters(CpuRows<BackendStats>);

impl BackendCounters {
    pub(super) const fn new(rows: CpuRows<BackendStats>) -> Self {
        Self(rows)
    }

    /// Returns the counters of a backend, added up over all CPUs.
    #[must_use]
    pub fn read(&self, id: BackendId) -> BackendStats {
        self.0.read(u32::from(id.0)).fold(BackendStats::default(), |mut sum, cpu| {
            sum += &cpu;
            sum
        })
    }

    pub(super) fn clear(&self, id: BackendId) {
        self.0.clear(u32::from(id.0));
    }
}
