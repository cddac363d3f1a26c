//! Counts packets and decisions in the model.

use std::collections::BTreeMap;

use balancer_common::{
    map_types::{BackendStats, RuleStats},
    quic::QuicStats,
    verdict::{DROP_COUNTERS, Verdict},
};
use ipnet::IpNet;

/// All counters of the kernel program.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// The number of packets of each interface, by verdict.
    pub verdicts: BTreeMap<u32, [u64; Verdict::COUNT]>,
    /// The dropped packets by reason.
    pub drops: [u64; DROP_COUNTERS],
    /// The counters of each backend; backends without counts are absent from the map.
    pub backends: BTreeMap<u16, BackendStats>,
    /// The packets and TCP connections of each listener; listeners without counts are absent from the map.
    pub listeners: BTreeMap<u16, (u64, u64)>,
    /// The packets of each service whose clients are not steered; services without such packets are absent from the
    /// map.
    pub unsteered: BTreeMap<u16, u64>,
    /// Packets that the program passed to the host but counted for a backend; only the model has this counter.
    pub watched: u64,
    /// New clients, counted by the outcome of the attempt to record the client in the client table.
    pub memory: Newcomers,
    /// The number of echo requests that the program answered.
    pub echo: u64,
    /// Packets that were too big and whose sender the program informed.
    pub too_big: u64,
    /// Packets that no backend takes and whose sender the program informed.
    pub rejected: u64,
    /// The rule counters of each service and prefix; rules without counts are absent from the map.
    pub rules: BTreeMap<(u16, IpNet), RuleStats>,
    /// For each service, the packets of clients whose rule names an unavailable backend. Packets of removed rules
    /// remain in this counter.
    pub fallbacks: BTreeMap<u16, u64>,
    /// The counters of connection IDs of each service; services without counts are absent from the map.
    pub quic: BTreeMap<u16, QuicStats>,
    /// The number of clients that left each backend because a connection ID named another backend.
    pub migrated: BTreeMap<u16, u64>,
    /// The decisions of rules, first about packets, then about packets quoted in ICMP errors; only the model has these
    /// counters.
    pub ruled: [Ruled; 2],
}

/// The decisions of rules.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Ruled {
    /// Clients that the program sent to the pinned backend.
    pub pinned: u64,
    /// Pinned clients whose backend takes no clients.
    pub fallen_back: u64,
    /// Clients whose connections the program spread by port.
    pub spread: u64,
    /// Packets that a rule dropped.
    pub denied: u64,
}

/// New clients, by the outcome of recording the client in the client table.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Newcomers {
    /// Clients recorded in a free entry.
    pub inserted: u64,
    /// Clients recorded in the entry of another client.
    pub evicted: u64,
    /// Clients that were not recorded because their bucket of the client table was full.
    pub full: u64,
    /// Clients that were not recorded because of the rate limit.
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

    /// Adds the counters of `other`, except the counters of individual rules.
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

    /// Returns one line for each difference between `self` and `other`.
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
