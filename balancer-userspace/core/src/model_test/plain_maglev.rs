//! Lookup tables, written a second time from their description in [`crate::maglev`]: slot by slot, and nothing for speed.

use std::hash::Hasher as _;

use balancer_common::client::HashKey;
use siphasher::sip::SipHasher24;

use crate::maglev::Member;

/// A backend that fills its share of the slots.
struct Filler {
    id: u16,
    offset: u64,
    skip: u64,
    /// How many draws it has made.
    draws: u64,
    /// How many slots it is to have, and has not.
    count: u64,
    left: u64,
    credit: u64,
}

/// A lookup table, and who comes next at each of its slots.
pub(super) struct Plain {
    pub(super) slots: Vec<u16>,
    next: Vec<Option<u16>>,
}

/// The lookup table of `members`, which are told apart by their names.
pub(super) fn table(members: &[Member<'_>], slots: u32, key: HashKey) -> Option<Plain> {
    let mut members: Vec<_> = members.iter().filter(|member| member.weight != 0).collect();
    members.sort_by_key(|member| member.name);
    let counts = counts(&members.iter().map(|member| u64::from(member.weight)).collect::<Vec<_>>(), u64::from(slots))?;
    let mut fillers: Vec<Filler> = (members.iter().zip(counts))
        .map(|(member, count)| {
            let [offset, skip] = [0, 1].map(|purpose| seed(key, purpose, member.name));
            Filler { id: member.id, offset, skip: skip | 1, draws: 0, count, left: count, credit: 0 }
        })
        .collect();
    let price = fillers.iter().map(|filler| filler.count).max()?;
    let mut table: Vec<Option<u16>> = vec![None; slots as usize];
    let mut next = table.clone();
    for round in 1u64.. {
        let free = |table: &[Option<u16>]| table.iter().filter(|slot| slot.is_none()).count();
        if free(&table) == 0 {
            break;
        }
        // Who has a 2^c-th of the largest share, or less, is asked in each 2^c-th round, the largest shares first.
        for class in (0..64).take_while(|class| round.is_multiple_of(1 << class)) {
            for filler in fillers.iter_mut().filter(|of| of.count > 0 && (price / of.count).ilog2() == class) {
                filler.credit += filler.count << class;
                if filler.credit < price || filler.left == 0 {
                    continue;
                }
                filler.credit -= price;
                filler.left -= 1;
                let few = free(&table) <= slots.isqrt() as usize;
                let slot = if few { filler.ranked(&table) } else { filler.drawn(&table, &mut next) };
                table[slot] = Some(filler.id);
            }
        }
    }
    Some(Plain { slots: table.into_iter().collect::<Option<_>>()?, next })
}

/// What becomes of the table `base` when only those in `left` may have slots, from the description in [`crate::succession`].
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

/// `slots·w/Σw` each: rounded down, and one more for the largest remainders, the first of equal ones first.
fn counts(weights: &[u64], slots: u64) -> Option<Vec<u64>> {
    let total: u64 = weights.iter().sum();
    let mut counts: Vec<u64> =
        weights.iter().map(|weight| (slots * weight).checked_div(total)).collect::<Option<_>>()?;
    for _ in counts.iter().sum::<u64>()..slots {
        // What an index lacks of its exact share, in parts of `total`.
        let lack = |index: usize| (slots * weights[index]).saturating_sub(counts[index] * total);
        let most = (0..weights.len()).map(lack).max()?;
        let first = (0..weights.len()).find(|&index| lack(index) == most)?;
        counts[first] += 1;
    }
    Some(counts)
}

impl Filler {
    /// The first slot of its draws that nobody has; of those that others have it is `next` where nobody was before.
    fn drawn(&mut self, table: &[Option<u16>], next: &mut [Option<u16>]) -> usize {
        loop {
            let draw = mixed(self.offset.wrapping_add(self.draws.wrapping_mul(self.skip)));
            self.draws += 1;
            let slot = (((draw >> 32) * table.len() as u64) >> 32) as usize;
            if table[slot].is_none() {
                return slot;
            }
            if table[slot] != Some(self.id) && next[slot].is_none() {
                next[slot] = Some(self.id);
            }
        }
    }

    /// The slot of those that nobody has which it likes best.
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
