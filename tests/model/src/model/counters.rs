//! The counters of the model.

use std::collections::BTreeMap;

use balancer_common::{
    map_types::{BackendStats, RuleStats},
    quic::QuicStats,
    verdict::{DROP_COUNTERS, Verdict},
};
use ipnet::IpNet;

/// Everything the kernel program counts.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// By interface: packets by verdict.
    pub verdicts: BTreeMap<u32, [u64; Verdict::COUNT]>,
    /// Packets by reason.
    pub drops: [u64; DROP_COUNTERS],
    /// By backend; one that is not listed has counted nothing.
    pub backends: BTreeMap<u16, BackendStats>,
    /// By listener: packets and TCP connections; one that is not listed has counted nothing.
    pub listeners: BTreeMap<u16, (u64, u64)>,
    /// By service: packets of clients that are not steered; one that is not listed has counted nothing.
    pub unsteered: BTreeMap<u16, u64>,
    /// Packets that passed and were counted for a backend. Only the model knows.
    pub watched: u64,
    /// Newcomers to the client table.
    pub memory: Newcomers,
    /// Echo requests answered.
    pub echo: u64,
    /// Packets too big whose sender was told.
    pub too_big: u64,
    /// Packets that nobody takes whose sender was told.
    pub rejected: u64,
    /// By service and prefix, of the rules that there are; one that is not listed has counted nothing.
    pub rules: BTreeMap<(u16, IpNet), RuleStats>,
    /// By service: packets steered as without the rule, those of rules that are gone included.
    pub fallbacks: BTreeMap<u16, u64>,
    /// By service: what connection IDs said; one that is not listed has counted nothing.
    pub quic: BTreeMap<u16, QuicStats>,
    /// By backend: clients that went to another because their connections did.
    pub migrated: BTreeMap<u16, u64>,
    /// Decisions of rules, of packets and of packets about others. Only the model knows.
    pub ruled: [Ruled; 2],
}

/// How often rules said what.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Ruled {
    /// To a backend.
    pub pinned: u64,
    /// The same, in vain.
    pub fallen_back: u64,
    /// By the port.
    pub spread: u64,
    /// Dropped.
    pub denied: u64,
}

/// Newcomers by their outcomes in the client table.
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

    pub(super) fn forwarded(&mut self, id: u16, bytes: usize, opens: bool) {
        let stats = self.backend(id);
        stats.packets += 1;
        stats.bytes += bytes as u64;
        stats.connections += u64::from(opens);
    }

    /// Adds what was counted elsewhere, but for single rules.
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
        for (&id, &(packets, connections)) in &other.listeners {
            let sum = self.listeners.entry(id).or_default();
            *sum = (sum.0 + packets, sum.1 + connections);
        }
        for (&id, &packets) in &other.unsteered {
            *self.unsteered.entry(id).or_default() += packets;
        }
        for (&id, stats) in &other.quic {
            *self.quic.entry(id).or_default() += stats;
        }
        for (&id, &clients) in &other.migrated {
            *self.migrated.entry(id).or_default() += clients;
        }
        self.watched += other.watched;
        self.memory.inserted += other.memory.inserted;
        self.memory.evicted += other.memory.evicted;
        self.memory.full += other.memory.full;
        self.memory.limited += other.memory.limited;
        self.echo += other.echo;
        self.too_big += other.too_big;
        self.rejected += other.rejected;
        for (sum, ruled) in self.ruled.iter_mut().zip(other.ruled) {
            sum.pinned += ruled.pinned;
            sum.fallen_back += ruled.fallen_back;
            sum.spread += ruled.spread;
            sum.denied += ruled.denied;
        }
    }

    /// Returns the differences from `other`, a line each.
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
        for id in self.listeners.keys().chain(other.listeners.keys()) {
            let of = |counters: &Self| format!("{:?}", counters.listeners.get(id).copied().unwrap_or_default());
            line(&format!("listener {id}"), of(self), of(other));
        }
        line("quic", format!("{:?}", self.quic), format!("{:?}", other.quic));
        line("migrated", format!("{:?}", self.migrated), format!("{:?}", other.migrated));
        line("unsteered", format!("{:?}", self.unsteered), format!("{:?}", other.unsteered));
        line("newcomers", format!("{:?}", self.memory), format!("{:?}", other.memory));
        let replies = |counters: &Self| format!("{:?}", (counters.echo, counters.too_big, counters.rejected));
        line("replies", replies(self), replies(other));
        line("rules", format!("{:?}", self.rules), format!("{:?}", other.rules));
        line("fallbacks", format!("{:?}", self.fallbacks), format!("{:?}", other.fallbacks));
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
