//! The maps for client prefix rules in the kernel: a longest-prefix-match trie, and counters.
//!
//! An earlier controller may have left both maps. In this case, a rule that is requested again keeps its row of
//! counters.

use std::{
    collections::{BTreeMap, HashMap, HashSet, VecDeque},
    net::IpAddr,
};

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
use balancer_config::{deny::DenyList, listeners::Family};
use balancer_control::io::{RuleAction, RuleSpec, ServiceId};
use ipnet::IpNet;

use super::{
    cpu_rows::CpuRows,
    denied::{self, DeniedBy, Listed, Lists, Step},
    kept::Kept,
    mapped::MappedArray,
    object::take,
    rows::address_words,
    rule_filter::RuleFilter,
};

/// The rules that the kernel maps contain.
pub(super) struct RuleTable {
    trie: LpmTrie<MapData, RuleKey, RuleRow>,
    stats: CpuRows<RuleStats>,
    filter: RuleFilter,
    services: HashMap<ServiceId, ServiceRules>,
    /// The rules of an earlier controller that this controller's configuration has not requested yet.
    left: HashMap<(u32, RuleKey), RuleRow>,
    /// The deny lists of services.
    lists: Lists,
    /// The deny lists of an earlier controller that were not requested yet, with their rows of counters.
    left_lists: HashMap<ServiceId, (u32, Vec<(u32, RuleKey)>)>,
    /// The free rows of counters: first the rows with a counter on each CPU, then the rows that all CPUs share.
    free: [VecDeque<u32>; 2],
}

#[derive(Default)]
struct ServiceRules {
    rules: BTreeMap<IpNet, RuleRow>,
    /// The numbers of fallbacks that removed rules have counted.
    fallbacks: u64,
}

impl RuleTable {
    pub(super) fn new(ebpf: &mut Ebpf, kept: &Kept) -> anyhow::Result<Self> {
        let trie = ebpf.take_map("RULES").context("the kernel object holds no map RULES")?;
        let trie: LpmTrie<_, RuleKey, RuleRow> = trie.try_into()?;
        let stats = CpuRows::take(ebpf, "RULE_STATS", RULE_COUNTERS, "SHARED_RULES")?;
        let mut filter = RuleFilter::new(MappedArray::new(take(ebpf, "RULE_FILTER")?)?);
        let mut left = HashMap::new();
        let mut left_lists: HashMap<ServiceId, (u32, Vec<(u32, RuleKey)>)> = HashMap::new();
        for rule in trie.iter() {
            let (key, row) = rule.context("reading the rules of the controller before")?;
            let (bits, key) = parts(key);
            // The keys of these rules do not contain the address family, which follows from the rules' services.
            let service = ServiceId(key.service);
            if denied::is_of_a_list(&row) {
                let (_, keys) = left_lists.entry(service).or_insert_with(|| {
                    // For all rules of a list, a single entry in the filter is enough.
                    filter.add(service, None);
                    (row.counters, Vec::new())
                });
                keys.push((bits, key));
                continue;
            }
            filter.add(service, None);
            left.insert((bits, key), row);
        }
        let of_lists = left_lists.values().map(|(counters, _)| *counters);
        let used: HashSet<u32> = left.values().map(|row| row.counters).chain(of_lists).collect();
        let free = [0..RULE_COUNTERS, RULE_COUNTERS..MAX_RULES]
            .map(|rows| rows.filter(|counters| !used.contains(counters)).collect());
        let gone = kept.rule_fallbacks();
        let services = gone.map(|(id, fallbacks)| (id, ServiceRules { rules: BTreeMap::new(), fallbacks })).collect();
        Ok(Self { trie, stats, filter, services, left, lists: Lists::new(), left_lists, free })
    }

    /// Replaces all rules of `service` by `rules`.
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
            // The kernel replaces a single rule in one step.
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

    /// Removes the rules of those services that are not `listed`.
    pub(super) fn keep(&mut self, listed: impl Fn(ServiceId) -> bool, kept: &Kept) -> anyhow::Result<()> {
        let gone: Vec<ServiceId> = self.services.keys().copied().filter(|&service| !listed(service)).collect();
        for service in gone {
            self.set(service, &[], kept)?;
            self.services.remove(&service);
        }
        let gone: Vec<ServiceId> = self.lists.keys().copied().filter(|&service| !listed(service)).collect();
        gone.into_iter().try_for_each(|service| self.drop_list(service))
    }

    /// Sets a deny list in addition to the service's rules. Writing the list takes several [steps](Self::step). If an
    /// earlier controller has left a list for the service, this list is updated.
    pub(super) fn set_list(&mut self, DeniedBy { service, family, list }: &DeniedBy) -> anyhow::Result<()> {
        if !self.lists.contains_key(service) {
            let listed = match self.left_lists.remove(service) {
                Some((counters, keys)) => {
                    let mut listed = Listed::new(counters);
                    for prefix in keys.iter().filter_map(|(bits, key)| prefix(*bits, key, *family)) {
                        self.filter.add(*service, Some(prefix));
                        listed.adopt(prefix);
                    }
                    self.filter.remove(*service, None);
                    listed
                }
                None => Listed::new(self.take_counters()?),
            };
            self.lists.insert(*service, listed);
        }
        if let Some(listed) = self.lists.get_mut(service) {
            listed.become_list(list, *family);
        }
        Ok(())
    }

    /// Does up to `steps` steps of the remaining work for writing lists. Returns whether all lists are completely
    /// written.
    pub(super) fn step(&mut self, steps: usize) -> anyhow::Result<bool> {
        for _ in 0..steps {
            let next =
                self.lists.iter().find_map(|(service, listed)| Some((*service, listed.next()?, listed.counters)));
            let Some((service, step, counters)) = next else { return Ok(true) };
            match step {
                Step::Add(prefix) => {
                    // A rule with the same prefix takes precedence over the list.
                    if self.row(service, prefix).is_none() {
                        self.trie
                            .insert(&key(service, prefix), denied::row(counters), 0)
                            .with_context(|| format!("denying {prefix}"))?;
                    }
                    self.filter.add(service, Some(prefix));
                }
                Step::Remove(prefix) => {
                    if self.row(service, prefix).is_none() {
                        self.trie
                            .remove(&key(service, prefix))
                            .with_context(|| format!("denying {prefix} no longer"))?;
                    }
                    self.filter.remove(service, Some(prefix));
                }
            }
            if let Some(listed) = self.lists.get_mut(&service) {
                listed.done();
            }
        }
        Ok(false)
    }

    /// Removes the deny list of a service from the trie in one call.
    pub(super) fn drop_list(&mut self, service: ServiceId) -> anyhow::Result<()> {
        let Some(listed) = self.lists.get_mut(&service) else { return self.forget_left_list(service) };
        listed.become_list(&DenyList::default(), Family::V4);
        let counters = listed.counters;
        while self.lists.get(&service).is_some_and(|listed| listed.next().is_some()) {
            self.step(1)?;
        }
        self.lists.remove(&service);
        self.give_back_counters(counters);
        Ok(())
    }

    /// Removes from the trie the deny lists that an earlier controller has left, except the lists of services that are
    /// `spared`.
    pub(super) fn forget_left_lists(&mut self, spared: impl Fn(ServiceId) -> bool) -> anyhow::Result<()> {
        let strangers: Vec<ServiceId> = self.left_lists.keys().copied().filter(|&service| !spared(service)).collect();
        strangers.into_iter().try_for_each(|service| self.forget_left_list(service))
    }

    fn forget_left_list(&mut self, service: ServiceId) -> anyhow::Result<()> {
        let Some((counters, keys)) = self.left_lists.remove(&service) else { return Ok(()) };
        let taken: HashSet<(u32, RuleKey)> = self
            .services
            .get(&service)
            .into_iter()
            .flat_map(|of| of.rules.keys())
            .map(|&prefix| parts(key(service, prefix)))
            .collect();
        for (bits, key) in keys.into_iter().filter(|key| !taken.contains(key)) {
            self.trie.remove(&Key::new(bits, key)).context("taking a denied prefix out of the trie")?;
        }
        self.filter.remove(service, None);
        self.give_back_counters(counters);
        Ok(())
    }

    /// The number of prefixes of the service's deny list that are in the trie, and the number of packets that these
    /// prefixes have denied.
    pub(super) fn denied(&self, service: ServiceId) -> (usize, u64) {
        self.lists.get(&service).map_or((0, 0), |listed| (listed.len(), self.sum(listed.counters).packets))
    }

    /// Removes the rules of an earlier controller that were not requested, except the rules of services that are
    /// `spared`.
    pub(super) fn forget_left(&mut self, spared: impl Fn(ServiceId) -> bool, kept: &Kept) -> anyhow::Result<()> {
        let strangers = self.left.keys().filter(|(_, key)| !spared(ServiceId(key.service))).copied();
        for (bits, key) in strangers.collect::<Vec<_>>() {
            let Some(row) = self.left.remove(&(bits, key)) else { continue };
            self.give_up(ServiceId(key.service), Key::new(bits, key), (row, None), kept)?;
            self.filter.remove(ServiceId(key.service), None);
        }
        Ok(())
    }

    /// The prefixes whose clients a rule pins.
    pub(super) fn pinned(&self, service: ServiceId) -> impl Iterator<Item = IpNet> {
        let rules = self.services.get(&service).into_iter().flat_map(|of| &of.rules);
        rules.filter(|(_, row)| row.action == RULE_PIN).map(|(&prefix, _)| prefix)
    }

    /// Whether an earlier controller has left a rule that pins clients and that was not requested yet.
    pub(super) fn pinned_before(&self) -> bool {
        self.left.values().any(|row| row.action == RULE_PIN)
    }

    /// The counters of a rule.
    pub(super) fn stats(&self, service: ServiceId, prefix: IpNet) -> RuleStats {
        self.row(service, prefix).map(|row| self.sum(row.counters)).unwrap_or_default()
    }

    /// The trait method is `Dataplane::rule_fallbacks`.
    pub(super) fn fallbacks(&self, service: ServiceId) -> u64 {
        let Some(of) = self.services.get(&service) else { return 0 };
        of.rules.values().fold(of.fallbacks, |sum, row| sum + self.sum(row.counters).fallbacks)
    }

    fn row(&self, service: ServiceId, prefix: IpNet) -> Option<RuleRow> {
        self.services.get(&service)?.rules.get(&prefix).copied()
    }

    fn remove(&mut self, service: ServiceId, prefix: IpNet, kept: &Kept) -> anyhow::Result<()> {
        let Some(row) = self.row(service, prefix) else { return Ok(()) };
        let listed = self.lists.get(&service).filter(|listed| listed.has(prefix));
        let instead = listed.map(|listed| denied::row(listed.counters));
        self.give_up(service, key(service, prefix), (row, instead), kept)
            .with_context(|| format!("removing the rule for {prefix}"))?;
        self.filter.remove(service, Some(prefix));
        if let Some(of) = self.services.get_mut(&service) {
            of.rules.remove(&prefix);
        }
        Ok(())
    }

    /// Removes a rule from the trie, or writes the row of a deny list in its place. The fallbacks that the rule has
    /// counted then count for the rule's service.
    fn give_up(
        &mut self,
        service: ServiceId,
        key: Key<RuleKey>,
        (row, instead): (RuleRow, Option<RuleRow>),
        kept: &Kept,
    ) -> anyhow::Result<()> {
        let before = self.services.entry(service).or_default().fallbacks;
        // The controller stores the fallbacks first, so that no counter falls if the controller is killed between the
        // two steps.
        kept.keep_rule_fallbacks(service, before + self.sum(row.counters).fallbacks);
        let taken = match instead {
            Some(row) => self.trie.insert(&key, row, 0),
            None => self.trie.remove(&key),
        };
        taken.context("taking a rule out of the trie")?;
        let fallbacks = before + self.sum(row.counters).fallbacks;
        kept.keep_rule_fallbacks(service, fallbacks);
        self.services.entry(service).or_default().fallbacks = fallbacks;
        self.give_back_counters(row.counters);
        Ok(())
    }

    /// Takes a free row of counters, preferably the row that has been unused for the longest time, because the program
    /// may still count a packet in progress in a row that was just freed.
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

/// The prefix in a key, for a service whose clients are of this family.
fn prefix(bits: u32, key: &RuleKey, family: Family) -> Option<IpNet> {
    let length = u8::try_from(bits.checked_sub(RULE_PREFIX_BASE)?).ok()?;
    let bytes: [u8; 16] = bytemuck::cast(key.address);
    let address = match family {
        Family::V4 => <[u8; 4]>::try_from(&bytes[..4]).ok().map(IpAddr::from)?,
        Family::V6 => IpAddr::from(bytes),
    };
    IpNet::new(address, length).ok()
}

const fn parts(key: Key<RuleKey>) -> (u32, RuleKey) {
    (key.prefix_len(), key.data())
}
