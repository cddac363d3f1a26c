//! A second implementation of lookup tables, written from their description in [`crate::maglev`], slot by slot and
//! without optimization.

use std::hash::Hasher as _;

use balancer_common::client::HashKey;
use siphasher::sip::SipHasher24;

use crate::maglev::Member;

/// A backend that claims its slots.
struct Filler {
    id: u16,
    offset: u64,
    skip: u64,
    /// The number of the backend's draws so far.
    draws: u64,
}

/// A lookup table, and the runner-up of each of its slots.
pub(super) struct Plain {
    pub(super) slots: Vec<u16>,
    next: Vec<Option<u16>>,
}

/// The lookup table of `members`, each of which has its own name.
pub(super) fn table(members: &[Member<'_>], slots: u32, key: HashKey) -> Option<Plain> {
    let mut members: Vec<_> = members.iter().filter(|member| member.weight != 0).collect();
    members.sort_by_key(|member| member.name);
    let counts = counts(&members.iter().map(|member| u64::from(member.weight)).collect::<Vec<_>>(), u64::from(slots))?;
    let mut fillers: Vec<Filler> = (members.iter())
        .map(|member| {
            let [offset, skip] = [0, 1].map(|purpose| seed(key, purpose, member.name));
            Filler { id: member.id, offset, skip: skip | 1, draws: 0 }
        })
        .collect();
    let mut table: Vec<Option<u16>> = vec![None; slots as usize];
    let mut next = table.clone();
    let turns = turns(&counts);
    for &turn in &turns {
        let few = table.iter().filter(|slot| slot.is_none()).count() <= slots.isqrt() as usize;
        let filler = &mut fillers[turn];
        let slot = if few { filler.ranked(&table) } else { filler.drawn(&table, &mut next) };
        table[slot] = Some(filler.id);
    }
    for &turn in &turns {
        for _ in 0..2 {
            let slot = fillers[turn].draw(slots);
            fillers[turn].lose(slot, &table, &mut next);
        }
    }
    Some(Plain { slots: table.into_iter().collect::<Option<_>>()?, next })
}

/// Returns the slots of `base` if only the members in `left` may have slots, according to the description in
/// [`crate::succession`].
pub(super) fn left(base: &Plain, left: &[Member<'_>], key: HashKey) -> Vec<u16> {
    let Plain { slots: base, next } = base;
    let alone = table(left, base.len() as u32, key).unwrap().slots;
    let [offset, skip] = [2, 3].map(|purpose| seed(key, purpose, ""));
    let draws = |slot: usize| {
        let draw = move |n: u64| mixed(offset.wrapping_add((skip | 1).wrapping_mul(slot as u64 * 32 + n)));
        (0..32).map(move |n| base[(((draw(n) >> 32) * base.len() as u64) >> 32) as usize])
    };
    let is_left = |id: &u16| left.iter().any(|member| member.id == *id);
    let successor = |slot: usize| next[slot].into_iter().chain(draws(slot)).find(is_left).unwrap_or(alone[slot]);
    base.iter().enumerate().map(|(slot, id)| if is_left(id) { *id } else { successor(slot) }).collect()
}

/// Returns `slots·w/Σw` for each weight: rounded down, and one more for each of the largest remainders (among equal
/// remainders, for the first).
fn counts(weights: &[u64], slots: u64) -> Option<Vec<u64>> {
    let total: u64 = weights.iter().sum();
    let mut counts: Vec<u64> =
        weights.iter().map(|weight| (slots * weight).checked_div(total)).collect::<Option<_>>()?;
    for _ in counts.iter().sum::<u64>()..slots {
        // The difference between the count and the exact share, in parts of `total`.
        let lack = |index: usize| (slots * weights[index]).saturating_sub(counts[index] * total);
        let most = (0..weights.len()).map(lack).max()?;
        let first = (0..weights.len()).find(|&index| lack(index) == most)?;
        counts[first] += 1;
    }
    Some(counts)
}

/// Returns the order of turns as a list of backend indices.
fn turns(counts: &[u64]) -> Vec<usize> {
    let price = counts.iter().copied().max().unwrap_or(0);
    let mut credits = vec![0; counts.len()];
    let mut turns = Vec::new();
    for round in 1u64.. {
        if turns.len() as u64 == counts.iter().sum::<u64>() {
            break;
        }
        // A backend with at most a 2^c-th of the largest share takes part in each 2^c-th round, in the order of shares,
        // the largest first.
        for class in (0..64).take_while(|class| round.is_multiple_of(1 << class)) {
            for (index, &count) in counts.iter().enumerate().filter(|of| *of.1 > 0 && (price / of.1).ilog2() == class) {
                credits[index] += count << class;
                let had = turns.iter().filter(|&&turn| turn == index).count() as u64;
                if credits[index] >= price && had < count {
                    credits[index] -= price;
                    turns.push(index);
                }
            }
        }
    }
    turns
}

impl Filler {
    fn draw(&mut self, slots: u32) -> usize {
        let draw = mixed(self.offset.wrapping_add(self.draws.wrapping_mul(self.skip)));
        self.draws += 1;
        (((draw >> 32) * u64::from(slots)) >> 32) as usize
    }

    /// Makes this backend the runner-up (in `next`) of a taken slot, unless the slot already has a runner-up.
    fn lose(&self, slot: usize, table: &[Option<u16>], next: &mut [Option<u16>]) {
        if table[slot] != Some(self.id) && next[slot].is_none() {
            next[slot] = Some(self.id);
        }
    }

    /// The first free slot among the backend's draws.
    fn drawn(&mut self, table: &[Option<u16>], next: &mut [Option<u16>]) -> usize {
        loop {
            let slot = self.draw(table.len() as u32);
            if table[slot].is_none() {
                return slot;
            }
            self.lose(slot, table, next);
        }
    }

    /// The free slot that ranks best for the backend.
    fn ranked(&self, table: &[Option<u16>]) -> usize {
        let free = (0..table.len()).filter(|&slot| table[slot].is_none());
        let rank = |&slot: &usize| mixed(!self.offset.wrapping_add(self.skip.wrapping_mul(slot as u64)));
        free.min_by_key(rank).unwrap()
    }
}

fn seed(key: HashKey, purpose: u8, name: &str) -> u64 {
    let mut hasher = SipHasher24::new_with_keys(key.k0, key.k1);
    hasher.write(&[purpose]);
    hasher.write(name.as_bytes());
    hasher.finish()
}

fn mixed(counter: u64) -> u64 {
    let product = u128::from(counter) * u128::from(counter ^ 0x8bb8_4b93_962e_acc9);
    (product % (1 << 64)) as u64 ^ (product / (1 << 64)) as u64
}
