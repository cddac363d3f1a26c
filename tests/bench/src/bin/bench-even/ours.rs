//! Simulates the balancer with its real lookup tables and decisions, and with a client memory of three hours.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use balancer_common::client::{HashKey, hash_v4, slot};
use balancer_config::{
    bounded::{Bound, BoundedLoad, Load},
    config::WhenAllDown,
};
use balancer_control::{
    bounded::{Member, Watch},
    maglev,
    table::{Builder, Candidate, STEPS},
};

use super::{
    Rule, SERVERS,
    clients::{ADDRESSES, Population},
};

const KEY: HashKey = HashKey { k0: 8, k1: 9 };
const SLOTS: u32 = 65_537;
const REMEMBER: usize = 180;

pub(crate) struct Balancer {
    rule: Option<BoundedLoad>,
    watch: Watch,
    began: Instant,
    names: Vec<String>,
    bounds: BTreeMap<String, Bound>,
    /// The number of connections of each server since the start.
    counters: [f64; SERVERS],
    table: Vec<u16>,
    /// The server and the minute of the last connection of each known address.
    known: Vec<Option<(usize, usize)>>,
    /// Whether the client of each address has moved.
    moved: Vec<bool>,
    /// The minutes in which the lookup table changed.
    changes: Vec<usize>,
}

impl Balancer {
    pub(crate) fn new(factor: Option<f64>) -> Self {
        let mut this = Self {
            rule: factor.map(|factor| BoundedLoad { factor, by: Load::Connections }),
            watch: Watch::new(Load::Connections),
            began: balancer_config::fixture::now(),
            names: (0..SERVERS).map(|number| format!("web{number}")).collect(),
            bounds: BTreeMap::new(),
            counters: [0.0; SERVERS],
            table: Vec::new(),
            known: vec![None; ADDRESSES],
            moved: vec![false; ADDRESSES],
            changes: Vec::new(),
        };
        this.build();
        this
    }

    fn build(&mut self) {
        let candidates: Vec<Candidate<'_>> = (self.names.iter().zip(0..))
            .map(|(name, id)| Candidate {
                member: maglev::Member { id, name, weight: 100 },
                backup: false,
                maint: false,
                takes_new: true,
                step: None,
                bound: self.bounds.get(name).map(|bound| bound.keeps / (100 / STEPS)),
            })
            .collect();
        self.table = Builder::default().live(&candidates, WhenAllDown::Open, (SLOTS, KEY), &[]).slots.to_vec();
    }

    fn decide(&mut self, minute: usize) {
        let Some(rule) = self.rule else { return };
        let now = self.began + Duration::from_secs(60 * minute as u64);
        let mut members = BTreeMap::new();
        for (name, &connections) in self.names.iter().zip(&self.counters) {
            self.watch.note(name, now, connections);
            let bound = self.bounds.get(name).copied();
            members.insert(name.clone(), Member { steered: true, weight: 100.0, starts: false, bound });
        }
        if let Some(bounds) = self.watch.look(&rule, &members, now) {
            self.bounds = bounds;
            self.build();
            self.changes.push(minute);
        }
    }
}

impl Rule for Balancer {
    fn minute(&mut self, minute: usize, population: &Population) -> [f64; SERVERS] {
        let mut loads = [0.0; SERVERS];
        for (address, &users) in population.users.iter().enumerate().filter(|&(address, _)| population.here[address]) {
            let known = self.known[address].filter(|&(_, seen)| minute - seen <= REMEMBER).map(|(server, _)| server);
            let hash = hash_v4(KEY, (0x0a00_0000 + address as u32).to_be());
            let server = known.unwrap_or_else(|| usize::from(self.table[slot(hash, SLOTS) as usize]));
            self.moved[address] |= known.is_some_and(|known| known != server);
            self.known[address] = Some((server, minute));
            loads[server] += users;
        }
        self.counters.iter_mut().zip(loads).for_each(|(counter, load)| *counter += load);
        self.decide(minute);
        loads
    }

    fn count(&mut self) {
        self.moved.fill(false);
        self.changes.clear();
    }

    fn counted(&self) -> (usize, usize) {
        let within = |from: usize| self.changes.iter().filter(|&&at| at >= from && at < from + 60).count();
        let most = self.changes.iter().map(|&from| within(from)).max().unwrap_or(0);
        (self.moved.iter().filter(|&&moved| moved).count(), most)
    }
}
