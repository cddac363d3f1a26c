//! What is counted.

use std::collections::BTreeMap;

use balancer_common::{
    map_types::BackendStats,
    verdict::{DROP_COUNTERS, Decision, Verdict},
};

/// Everything the kernel program counts.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// By interface: packets by verdict.
    pub verdicts: BTreeMap<u32, [u64; Verdict::COUNT]>,
    /// Packets by reason.
    pub drops: [u64; DROP_COUNTERS],
    /// By backend; one that is not listed has counted nothing.
    pub backends: BTreeMap<u16, BackendStats>,
    /// Newcomers to the client table.
    pub memory: Newcomers,
    /// Echo requests answered.
    pub echo: u64,
    /// Packets too big whose sender was told.
    pub too_big: u64,
}

/// What became of newcomers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Newcomers {
    /// Recorded.
    pub inserted: u64,
    /// Recorded, and another was forgotten.
    pub evicted: u64,
    /// Not recorded: no room.
    pub full: u64,
    /// Not recorded: too many at once.
    pub limited: u64,
}

impl Counters {
    pub(super) fn verdict(&mut self, ingress: u32, verdict: Verdict) {
        self.verdicts.entry(ingress).or_default()[verdict.index()] += 1;
    }

    pub(super) fn backend(&mut self, id: u16) -> &mut BackendStats {
        self.backends.entry(id).or_default()
    }

    pub(super) fn forwarded(&mut self, id: u16, bytes: usize, decision: Option<Decision>) {
        let stats = self.backend(id);
        stats.packets += 1;
        stats.bytes += bytes as u64;
        if let Some(decision) = decision {
            stats.connections += 1;
            stats.decisions[decision.index()] += 1;
        }
    }

    /// Adds what was counted elsewhere.
    pub fn add(&mut self, other: &Self) {
        for (&ingress, verdicts) in &other.verdicts {
            add(self.verdicts.entry(ingress).or_default(), verdicts);
        }
        add(&mut self.drops, &other.drops);
        for (&id, stats) in &other.backends {
            let sum = self.backend(id);
            sum.packets += stats.packets;
            sum.bytes += stats.bytes;
            sum.connections += stats.connections;
            add(&mut sum.decisions, &stats.decisions);
            add(&mut sum.moves, &stats.moves);
        }
        self.memory.inserted += other.memory.inserted;
        self.memory.evicted += other.memory.evicted;
        self.memory.full += other.memory.full;
        self.memory.limited += other.memory.limited;
        self.echo += other.echo;
        self.too_big += other.too_big;
    }

    /// What differs from `other`, a line each.
    #[must_use]
    pub fn differences(&self, other: &Self) -> Vec<String> {
        let mut lines = Vec::new();
        let mut line = |what: &str, here: String, there: String| {
            if here != there {
                lines.push(format!("{what}: {here} and {there}"));
            }
        };
        line("verdicts", format!("{:?}", self.verdicts), format!("{:?}", other.verdicts));
        line("drops", format!("{:?}", self.drops), format!("{:?}", other.drops));
        line("newcomers", format!("{:?}", self.memory), format!("{:?}", other.memory));
        line("replies", format!("{:?}", (self.echo, self.too_big)), format!("{:?}", (other.echo, other.too_big)));
        for id in self.backends.keys().chain(other.backends.keys()) {
            let of = |counters: &Self| format!("{:?}", counters.backends.get(id).copied().unwrap_or_default());
            line(&format!("backend {id}"), of(self), of(other));
        }
        lines
    }
}

fn add(sum: &mut [u64], values: &[u64]) {
    for (sum, value) in sum.iter_mut().zip(values) {
        *sum += value;
    }
}
