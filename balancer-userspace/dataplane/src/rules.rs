//! Rules for client prefixes in the kernel: a trie of longest prefixes, and counters.
//!
//! Both maps may be those of an earlier controller. A rule that is asked for again keeps its row of counters.

use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};

use anyhow::Context as _;
use aya::{
    Ebpf,
    maps::{
        MapData,
        lpm_trie::{Key, LpmTrie},
    },
};
use balancer_common::map_types::{
    MAX_RULES, NO_BACKEND, RULE_COUNTERS, RULE_DENY, RULE_PIN, RULE_PREFIX_BASE, RULE_SPREAD, RuleKey, RuleRow,
    RuleStats,
};
use balancer_core::io::{RuleAction, RuleSpec, ServiceId};
use ipnet::IpNet;

use super::{
    cpu_rows::CpuRows, kept::Kept, mapped::MappedArray, object::take, rows::address_words, rule_filter::RuleFilter,
};

/// The rules that the kernel has.
pub(super) struct RuleTable {
    trie: LpmTrie<MapData, RuleKey, RuleRow>,
    stats: CpuRows<RuleStats>,
    filter: RuleFilter,
    services: HashMap<ServiceId, ServiceRules>,
    /// Rules of an earlier controller that nobody has asked for yet.
    left: HashMap<(u32, RuleKey), RuleRow>,
    /// Rows of counters that no rule uses: those that each CPU has for itself, and the others.
    free: [VecDeque<u32>; 2],
}

#[derive(Default)]
struct ServiceRules {
    rules: BTreeMap<IpNet, RuleRow>,
    /// Of rules that are gone.
    fallbacks: u64,
}

impl RuleTable {
    pub(super) fn new(ebpf: &mut Ebpf, kept: &Kept) -> anyhow::Result<Self> {
        let trie = ebpf.take_map("RULES").context("the kernel object holds no map RULES")?;
        let trie: LpmTrie<_, RuleKey, RuleRow> = trie.try_into()?;
        let stats = CpuRows::take(ebpf, "RULE_STATS", RULE_COUNTERS, "SHARED_RULES")?;
        let mut filter = RuleFilter::new(MappedArray::new(take(ebpf, "RULE_FILTER")?)?);
        let mut left = HashMap::new();
        for rule in trie.iter() {
            let (key, row) = rule.context("reading the rules of the controller before")?;
            let (bits, key) = parts(key);
            // Of which family they are, their services will say.
            filter.add(ServiceId(key.service), None);
            left.insert((bits, key), row);
        }
        let used: HashSet<u32> = left.values().map(|row| row.counters).collect();
        let free = [0..RULE_COUNTERS, RULE_COUNTERS..MAX_RULES]
            .map(|rows| rows.filter(|counters| !used.contains(counters)).collect());
        let gone = kept.rule_fallbacks();
        let services = gone.map(|(id, fallbacks)| (id, ServiceRules { rules: BTreeMap::new(), fallbacks })).collect();
        Ok(Self { trie, stats, filter, services, left, free })
    }

    /// Makes `rules` those of `service`.
    pub(super) fn set(&mut self, service: ServiceId, rules: &[RuleSpec], kept: &Kept) -> anyhow::Result<()> {
        for rule in rules {
            if let Some(row) = self.left.remove(&parts(key(service, rule.prefix))) {
                self.filter.add(service, Some(rule.prefix));
                self.filter.remove(service, None);
                self.services.entry(service).or_default().rules.insert(rule.prefix, row);
            }
        }
        self.forget_left(|other| other != service, kept)?;
        let wanted: HashSet<IpNet> = rules.iter().map(|rule| rule.prefix).collect();
        let there = self.services.get(&service).map(|service| &service.rules);
        let gone: Vec<IpNet> =
            there.into_iter().flat_map(BTreeMap::keys).copied().filter(|prefix| !wanted.contains(prefix)).collect();
        for prefix in gone {
            self.remove(service, prefix, kept)?;
        }
        for rule in rules {
            let (action, backend) = match rule.action {
                RuleAction::Pin(backend) => (RULE_PIN, backend.map_or(NO_BACKEND, |backend| backend.0)),
                RuleAction::Spread => (RULE_SPREAD, NO_BACKEND),
                RuleAction::Deny => (RULE_DENY, NO_BACKEND),
            };
            let old = self.row(service, rule.prefix);
            if old.is_some_and(|old| (old.action, old.backend) == (action, backend)) {
                continue;
            }
            let counters = match old {
                Some(old) => old.counters,
                None => self.take_counters()?,
            };
            let row = RuleRow { action, backend, counters };
            // The kernel replaces a rule in one piece.
            let inserted = self.trie.insert(&key(service, rule.prefix), row, 0);
            if let Err(error) = inserted {
                if old.is_none() {
                    self.give_back_counters(counters);
                }
                return Err(error).with_context(|| format!("the rule for {}", rule.prefix));
            }
            if old.is_none() {
                self.filter.add(service, Some(rule.prefix));
            }
            self.services.entry(service).or_default().rules.insert(rule.prefix, row);
        }
        Ok(())
    }

    /// Drops the rules of services that are not `listed`.
    pub(super) fn keep(&mut self, listed: impl Fn(ServiceId) -> bool, kept: &Kept) -> anyhow::Result<()> {
        let gone: Vec<ServiceId> = self.services.keys().copied().filter(|&service| !listed(service)).collect();
        for service in gone {
            self.set(service, &[], kept)?;
            self.services.remove(&service);
        }
        Ok(())
    }

    /// Drops the rules of an earlier controller that nobody has asked for, but those of services that are `spared`.
    pub(super) fn forget_left(&mut self, spared: impl Fn(ServiceId) -> bool, kept: &Kept) -> anyhow::Result<()> {
        let strangers = self.left.keys().filter(|(_, key)| !spared(ServiceId(key.service))).copied();
        for (bits, key) in strangers.collect::<Vec<_>>() {
            let Some(row) = self.left.remove(&(bits, key)) else { continue };
            self.give_up(ServiceId(key.service), Key::new(bits, key), row, kept)?;
            self.filter.remove(ServiceId(key.service), None);
        }
        Ok(())
    }

    /// The prefixes whose clients are pinned.
    pub(super) fn pinned(&self, service: ServiceId) -> impl Iterator<Item = IpNet> {
        let rules = self.services.get(&service).into_iter().flat_map(|of| &of.rules);
        rules.filter(|(_, row)| row.action == RULE_PIN).map(|(&prefix, _)| prefix)
    }

    /// Whether a rule of an earlier controller that nobody has asked for yet pins clients.
    pub(super) fn pinned_before(&self) -> bool {
        self.left.values().any(|row| row.action == RULE_PIN)
    }

    /// The counters of one rule.
    pub(super) fn stats(&self, service: ServiceId, prefix: IpNet) -> RuleStats {
        self.row(service, prefix).map(|row| self.sum(row.counters)).unwrap_or_default()
    }

    /// See `Dataplane::rule_fallbacks`.
    pub(super) fn fallbacks(&self, service: ServiceId) -> u64 {
        let Some(of) = self.services.get(&service) else { return 0 };
        of.rules.values().fold(of.fallbacks, |sum, row| sum + self.sum(row.counters).fallbacks)
    }

    fn row(&self, service: ServiceId, prefix: IpNet) -> Option<RuleRow> {
        self.services.get(&service)?.rules.get(&prefix).copied()
    }

    fn remove(&mut self, service: ServiceId, prefix: IpNet, kept: &Kept) -> anyhow::Result<()> {
        let Some(row) = self.row(service, prefix) else { return Ok(()) };
        self.give_up(service, key(service, prefix), row, kept)
            .with_context(|| format!("removing the rule for {prefix}"))?;
        self.filter.remove(service, Some(prefix));
        if let Some(of) = self.services.get_mut(&service) {
            of.rules.remove(&prefix);
        }
        Ok(())
    }

    /// Takes a rule out of the trie; its fallbacks are its service's from then on.
    fn give_up(&mut self, service: ServiceId, key: Key<RuleKey>, row: RuleRow, kept: &Kept) -> anyhow::Result<()> {
        let before = self.services.entry(service).or_default().fallbacks;
        // First, so that a controller that is killed in between takes no counter backwards.
        kept.keep_rule_fallbacks(service, before + self.sum(row.counters).fallbacks);
        self.trie.remove(&key).context("taking a rule out of the trie")?;
        let fallbacks = before + self.sum(row.counters).fallbacks;
        kept.keep_rule_fallbacks(service, fallbacks);
        self.services.entry(service).or_default().fallbacks = fallbacks;
        self.give_back_counters(row.counters);
        Ok(())
    }

    /// A row of counters, the longest unused first: a packet on its way may still count there.
    fn take_counters(&mut self) -> anyhow::Result<u32> {
        let counters = self.free.iter_mut().find_map(VecDeque::pop_front);
        let counters = counters.with_context(|| format!("more than {MAX_RULES} rules"))?;
        self.stats.clear(counters);
        Ok(counters)
    }

    fn give_back_counters(&mut self, counters: u32) {
        let [own, shared] = &mut self.free;
        if counters < RULE_COUNTERS { own } else { shared }.push_back(counters);
    }

    fn sum(&self, counters: u32) -> RuleStats {
        self.stats.read(counters).fold(RuleStats::default(), |sum, cpu| RuleStats {
            packets: sum.packets + cpu.packets,
            fallbacks: sum.fallbacks + cpu.fallbacks,
        })
    }
}

fn key(service: ServiceId, prefix: IpNet) -> Key<RuleKey> {
    let data = RuleKey { service: service.0, reserved: 0, address: address_words(prefix.network()) };
    Key::new(RULE_PREFIX_BASE + u32::from(prefix.prefix_len()), data)
}

const fn parts(key: Key<RuleKey>) -> (u32, RuleKey) {
    (key.prefix_len(), key.data())
}
