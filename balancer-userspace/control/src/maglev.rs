//! Lookup tables: Maglev hashing.
//!
//! Eisenbud et al., "Maglev: A Fast and Reliable Software Network Load Balancer" (NSDI 2016), section 3.4: every
//! backend has its own order of preference for slots, which follows from its name, and in turn each backend claims the
//! best slot that is still free. This implementation differs from the paper in the following points:
//! - The number of slots of a backend is fixed beforehand, by largest remainders of `M·w/Σw` (`apportion`). The turns
//!   of each backend are spread evenly over the whole filling of the table (`turns`), so that heavy and light backends
//!   meet the same fraction of taken slots.
//! - The preferences are pseudo-random draws `mix(offset + j·skip)` of 64 bits, scaled to M; the paper uses the
//!   progression `offset + j·skip mod M`. Two progressions whose skips have a simple ratio follow each other, and an
//!   added backend then swaps whole runs of slots between them. Of 1,000 tables with five equal backends, 6 to 9 tables
//!   moved over 0.6% of the slots needlessly when a backend was added; the worst of these tables moved 2%. With
//!   pseudo-random draws, a table moves 0.3% of its slots needlessly, with little variance.
//! - The last √M free slots, which would need most of the draws, are assigned by rank: each turn takes the slot with
//!   the smallest `mix` of backend and slot (`Preference::best`).
//!
//! A slot's *runner-up* is the first backend whose draw fell on the slot when another backend already had the slot.
//! Without the slot's owner, the runner-up would in most cases have got the slot, so the balancer needs no separate
//! table for each backend that may be removed. With four equal backends, one slot in twenty of a full table has no
//! runner-up yet, so each backend takes all its turns once more, with two draws in each turn.
//!
//! A table depends only on the set of (name, weight), on M and on the key. Ids are only labels in the table, and do not
//! affect the assignment.

use std::{collections::BTreeMap, hash::Hasher as _};

use balancer_common::{
    client::{HashKey, slot},
    map_types::NO_BACKEND,
};
use siphasher::sip::SipHasher24;

/// The number of draws of a backend for each of its slots after all slots are taken. With more draws, the runners-up
/// would hardly come closer to the table without the slot's owner.
const FURTHER: u32 = 2;

/// A backend that gets slots of a table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Member<'a> {
    /// The id that the table contains in the backend's slots.
    pub id: u16,
    /// The name, unique in the table; it determines the backend's permutation.
    pub name: &'a str,
    /// The weight of the backend, to which its number of slots is proportional.
    pub weight: u16,
}

/// A lookup table of M slots.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Table {
    /// The ids of the backends of the M slots.
    pub slots: Vec<u16>,
    /// The ids of the runners-up of the M slots, each different from the slot's own id; `NO_BACKEND`: no draw of
    /// another backend fell on the slot.
    pub runners_up: Vec<u16>,
}

/// The lookup table of `members`, with `table_size` slots. `None`: no member has a weight greater than 0.
///
/// The order of `members` has no effect on the table. Each member gets its exact share `M·w/Σw` of the slots, rounded
/// up or down.
#[must_use]
pub fn table(members: &[Member<'_>], table_size: u32, key: HashKey) -> Option<Table> {
    let mut members: Vec<&Member<'_>> = members.iter().filter(|member| member.weight > 0).collect();
    if members.is_empty() {
        return None;
    }
    members.sort_unstable_by_key(|member| member.name);
    let weights: Vec<u16> = members.iter().map(|member| member.weight).collect();
    let mut preferences: Vec<Preference> =
        members.iter().map(|member| Preference::new(member.name, table_size, key)).collect();

    let mut filling = Filling::new(table_size);
    let mut free = table_size;
    let few = table_size.isqrt();
    let mut rest = Vec::new();
    let counts = apportion(&weights, table_size);
    turns(&counts, |index| {
        let (Some(preference), Some(member)) = (preferences.get_mut(index), members.get(index)) else { return };
        let slot = if free > few {
            preference.draw(member.id, &mut filling)
        } else {
            if rest.is_empty() {
                rest = filling.taken.others(table_size);
            }
            preference.best(&mut rest)
        };
        filling.take(slot, member.id);
        free -= 1;
    });
    turns(&counts, |index| {
        if let (Some(preference), Some(member)) = (preferences.get_mut(index), members.get(index)) {
            preference.lose(member.id, &mut filling);
        }
    });
    Some(filling.table())
}

/// A table that is being filled with backends.
struct Filling {
    /// The backend of each slot, and the runner-up of each slot.
    entries: Vec<(u16, u16)>,
    taken: Bitmap,
}

impl Filling {
    fn new(table_size: u32) -> Self {
        Self { entries: vec![(NO_BACKEND, NO_BACKEND); table_size as usize], taken: Bitmap::new(table_size) }
    }

    fn take(&mut self, slot: u32, id: u16) {
        self.taken.insert(slot);
        if let Some((taker, _)) = self.entries.get_mut(slot as usize) {
            *taker = id;
        }
    }

    /// Records a draw of the backend `id` that fell on a taken slot. The function writes in every case, because a
    /// processor could not predict a branch.
    #[inline(always)]
    fn lose(&mut self, slot: u32, id: u16) {
        if let Some((taker, runner_up)) = self.entries.get_mut(slot as usize) {
            let is_first = (*runner_up == NO_BACKEND) & (*taker != id);
            *runner_up |= id * u16::from(is_first);
        }
    }

    fn table(self) -> Table {
        let (slots, runners_up) = self.entries.into_iter().unzip();
        Table { slots, runners_up }
    }
}

/// The number of slots for each of the `weights`: `slots·w/Σw` rounded down, and one more slot for the largest
/// remainders until all slots are used. Among equal remainders, the first one gets the slot. Every count is within 1 of
/// the exact share. Σw must not be 0.
fn apportion(weights: &[u16], slots: u32) -> Vec<u32> {
    let total: u64 = weights.iter().copied().map(u64::from).sum();
    let exact = |weight: u16| u64::from(slots) * u64::from(weight);
    let mut counts: Vec<u32> = weights.iter().map(|&weight| (exact(weight) / total) as u32).collect();
    let over = slots - counts.iter().sum::<u32>();
    let mut order: Vec<(u64, usize)> =
        weights.iter().enumerate().map(|(index, &weight)| (total - exact(weight) % total, index)).collect();
    order.sort_unstable();
    for &(_, index) in order.iter().take(over as usize) {
        if let Some(count) = counts.get_mut(index) {
            *count += 1;
        }
    }
    counts
}

/// Calls `take` with each index as often as its count says, and spreads the calls with each index evenly from first to
/// last.
///
/// In every round, an index earns credit in proportion to its count, and gets a turn when its credit reaches the
/// largest count; an index with the largest count gets one turn in each round. The function visits an index whose count
/// is `2^c` times smaller than the largest only in every `2^c`-th round (and adds `2^c` times as much credit), so the
/// work is proportional to the sum of the counts.
fn turns(counts: &[u32], mut take: impl FnMut(usize)) {
    struct Pace {
        index: usize,
        credit: u64,
        earns: u64,
        left: u32,
    }
    let price = counts.iter().copied().max().unwrap_or(0);
    let mut classes: BTreeMap<u32, Vec<Pace>> = BTreeMap::new();
    for (index, &left) in counts.iter().enumerate().filter(|&(_, &count)| count > 0) {
        let class = (price / left).ilog2();
        classes.entry(class).or_default().push(Pace { index, credit: 0, earns: u64::from(left) << class, left });
    }
    let mut left: u64 = counts.iter().copied().map(u64::from).sum();
    let mut round = 0u64;
    while left > 0 {
        round += 1;
        for (_, paces) in classes.iter_mut().take_while(|&(&class, _)| round.is_multiple_of(1 << class)) {
            for pace in paces {
                pace.credit += pace.earns;
                if pace.credit >= u64::from(price) && pace.left > 0 {
                    pace.credit -= u64::from(price);
                    pace.left -= 1;
                    left -= 1;
                    take(pace.index);
                }
            }
        }
    }
}

/// A backend's order of preference for slots.
struct Preference {
    offset: u64,
    skip: u64,
    /// The argument of the pseudo-random draw that gave `next`.
    position: u64,
    /// The next slot to try; it is drawn in advance, so that no turn waits for its first draw.
    next: u32,
}

impl Preference {
    fn new(name: &str, table_size: u32, key: HashKey) -> Self {
        let [offset, skip] = [0, 1].map(|purpose| hash(key, purpose, name));
        Self { offset, skip: skip | 1, position: offset, next: slot(mix(offset), table_size) }
    }

    /// Returns the next draw of the backend `id` that falls on a free slot.
    #[inline]
    fn draw(&mut self, id: u16, filling: &mut Filling) -> u32 {
        let table_size = filling.entries.len() as u32;
        let mut free = self.next;
        let mut position = self.position;
        while filling.taken.contains(free) {
            filling.lose(free, id);
            position = position.wrapping_add(self.skip);
            free = slot(mix(position), table_size);
        }
        self.position = position.wrapping_add(self.skip);
        self.next = slot(mix(self.position), table_size);
        free
    }

    /// Draws for the backend `id` in a full table. If the compiler inlined this function, filling the table would take
    /// 50% longer.
    #[inline(never)]
    fn lose(&mut self, id: u16, filling: &mut Filling) {
        let table_size = filling.entries.len() as u32;
        for _ in 0..FURTHER {
            filling.lose(slot(mix(self.position), table_size), id);
            self.position = self.position.wrapping_add(self.skip);
        }
    }

    /// Removes and returns the best slot in `rest`, which must not be empty.
    fn best(&self, rest: &mut Vec<u32>) -> u32 {
        let rank = |&slot: &u32| mix(!self.offset.wrapping_add(self.skip.wrapping_mul(u64::from(slot))));
        match rest.iter().enumerate().min_by_key(|(_, slot)| rank(slot)) {
            Some((index, _)) => rest.swap_remove(index),
            None => 0,
        }
    }
}

/// The SipHash-2-4 hash of a purpose and a name.
pub(crate) fn hash(key: HashKey, purpose: u8, name: &str) -> u64 {
    let mut hasher = SipHasher24::new_with_keys(key.k0, key.k1);
    hasher.write(&[purpose]);
    hasher.write(name.as_bytes());
    hasher.finish()
}

/// Folds a 128-bit product into 64 pseudo-random bits, as wyrand does with its counter (Wang Yi, "wyhash").
#[inline(always)]
pub(crate) const fn mix(counter: u64) -> u64 {
    let product = counter as u128 * (counter ^ 0x8bb8_4b93_962e_acc9) as u128;
    (product >> 64) as u64 ^ product as u64
}

/// A set of slots that is small enough for the first-level cache of a processor.
struct Bitmap(Vec<u64>);

impl Bitmap {
    fn new(slots: u32) -> Self {
        Self(vec![0; slots.div_ceil(64) as usize])
    }

    #[inline(always)]
    fn contains(&self, slot: u32) -> bool {
        self.0.get((slot / 64) as usize).is_some_and(|word| word >> (slot % 64) & 1 != 0)
    }

    /// The slots below `slots` that are not in the set.
    fn others(&self, slots: u32) -> Vec<u32> {
        let words = (0..).step_by(64).zip(&self.0).filter(|&(_, word)| *word != u64::MAX);
        words.flat_map(|(first, _)| first..first + 64).filter(|&slot| slot < slots && !self.contains(slot)).collect()
    }

    #[inline(always)]
    fn insert(&mut self, slot: u32) {
        if let Some(word) = self.0.get_mut((slot / 64) as usize) {
            *word |= 1 << (slot % 64);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeSet, HashMap};

    use balancer_common::client::hash_v4;
    use proptest::{collection::btree_map, prelude::*, sample::Index};

    use super::*;

    const M: u32 = 65_537;

    type Weights = Vec<(String, u16)>;

    fn members(weights: &[(String, u16)]) -> Vec<Member<'_>> {
        (1..).zip(weights).map(|(id, (name, weight))| Member { id, name, weight: *weight }).collect()
    }

    fn equal(names: &[&str]) -> Weights {
        names.iter().map(|&name| (name.to_owned(), 100)).collect()
    }

    fn counts(table: &[u16]) -> HashMap<u16, u32> {
        let mut counts = HashMap::new();
        for &id in table {
            *counts.entry(id).or_default() += 1;
        }
        counts
    }

    fn key() -> impl Strategy<Value = HashKey> {
        any::<[u8; 16]>().prop_map(HashKey::from_bytes)
    }

    fn weights(weight: impl Strategy<Value = u16>, count: std::ops::Range<usize>) -> impl Strategy<Value = Weights> {
        btree_map("[a-z0-9._-]{1,12}", weight, count).prop_map(|weights| weights.into_iter().collect::<Vec<_>>())
    }

    /// Builds the same tables directly by the definition: without a bitmap, without draws in advance, and with every
    /// preference list read from its start.
    fn by_definition(members: &[Member<'_>], table_size: u32, key: HashKey) -> Table {
        let mut members = members.to_vec();
        members.sort_by_key(|member| member.name);
        let weights: Vec<u16> = members.iter().map(|member| member.weight).collect();
        let mut free: BTreeSet<u32> = (0..table_size).collect();
        let none = vec![NO_BACKEND; table_size as usize];
        let mut table = Table { slots: none.clone(), runners_up: none };
        let preferences = members.iter().map(|member| Preference::new(member.name, table_size, key));
        let preferences: Vec<(u64, u64)> = preferences.map(|of| (of.offset, of.skip)).collect();
        let at = |index: usize, j: u64| preferences[index].0.wrapping_add(preferences[index].1.wrapping_mul(j));
        let drawn = |index: usize, j: u64| slot(mix(at(index, j)), table_size);
        let lose = |table: &mut Table, slot: u32, id: u16| {
            let slot = slot as usize;
            if table.slots[slot] != id && table.runners_up[slot] == NO_BACKEND {
                table.runners_up[slot] = id;
            }
        };
        let mut draws = vec![0; members.len()];
        let counts = apportion(&weights, table_size);
        turns(&counts, |index| {
            let chosen = if free.len() as u32 > table_size.isqrt() {
                let j = (0..).find(|&j| free.contains(&drawn(index, j))).unwrap();
                (0..j).for_each(|j| lose(&mut table, drawn(index, j), members[index].id));
                draws[index] = j + 1;
                drawn(index, j)
            } else {
                *free.iter().min_by_key(|&&slot| mix(!at(index, u64::from(slot)))).unwrap()
            };
            free.remove(&chosen);
            table.slots[chosen as usize] = members[index].id;
        });
        turns(&counts, |index| {
            let further = draws[index]..draws[index] + u64::from(FURTHER);
            further.clone().for_each(|j| lose(&mut table, drawn(index, j), members[index].id));
            draws[index] = further.end;
        });
        table
    }

    #[test]
    fn when_weights_are_known_then_counts_are_known() {
        let cases: [(&[u16], &[u32]); 7] = [
            (&[1, 2], &[21_846, 43_691]),
            (&[10_000, 10_000], &[32_769, 32_768]),
            (&[100; 4], &[16_385, 16_384, 16_384, 16_384]),
            (&[65_535, 1], &[65_536, 1]),
            (&[65_535, 65_535, 65_535], &[21_846, 21_846, 21_845]),
            (&[65_535, 65_535, 1], &[32_768, 32_768, 1]),
            (&[7], &[65_537]),
        ];
        for (weights, expected) in cases {
            let named: Weights =
                weights.iter().enumerate().map(|(index, &weight)| (format!("web{index}"), weight)).collect();
            let counts = counts(&table(&members(&named), M, HashKey { k0: 3, k1: 4 }).unwrap().slots);
            let counts: Vec<u32> = (1..).zip(weights).map(|(id, _)| counts[&id]).collect();
            assert_eq!(counts, expected, "{weights:?}");
        }
    }

    #[test]
    fn when_backends_outnumber_slots_then_some_get_none() {
        let names: Weights = (0..12).map(|n| (format!("web{n}"), 1)).collect();
        let table = table(&members(&names), 7, HashKey { k0: 3, k1: 4 }).unwrap();
        assert_eq!(counts(&table.slots).len(), 7);
    }

    #[test]
    fn when_no_backend_has_weight_then_there_is_no_table() {
        assert_eq!(table(&[], M, HashKey { k0: 3, k1: 4 }), None);
        assert_eq!(table(&[Member { id: 1, name: "web1", weight: 0 }], M, HashKey { k0: 3, k1: 4 }), None);
    }

    #[test]
    fn when_the_algorithm_changes_then_this_test_notices() {
        // With any other table, an upgraded balancer would steer clients differently from the rest of its fleet.
        let weights = [("web1".to_owned(), 1), ("web2".to_owned(), 2), ("web3".to_owned(), 1)];
        let table = table(&members(&weights), 13, HashKey { k0: 3, k1: 4 }).unwrap();
        assert_eq!(table.slots, [3, 3, 3, 2, 2, 1, 2, 2, 2, 1, 2, 1, 2]);
        assert_eq!(table.runners_up, [2, 1, 0, 0, 3, 2, 0, 3, 1, 0, 0, 0, 3]);
    }

    #[test]
    fn when_a_backend_is_removed_then_its_runners_up_mostly_get_its_slots() {
        for count in [3u16, 10, 60] {
            let names: Weights = (0..count).map(|n| (format!("web{n}"), 100)).collect();
            let all = members(&names);
            let with = table(&all, M, HashKey { k0: 3, k1: 4 }).unwrap();
            let without = table(&all[1..], M, HashKey { k0: 3, k1: 4 }).unwrap();
            let its: Vec<usize> = (0..M as usize).filter(|&slot| with.slots[slot] == 1).collect();
            let right = its.iter().filter(|&&slot| with.runners_up[slot] == without.slots[slot]).count();
            assert!(right * 100 >= its.len() * 93, "{right} of {} for {count} backends", its.len());
        }
    }

    #[test]
    fn when_twenty_thousand_clients_are_assigned_then_shares_are_even() {
        let weights = equal(&["web1", "web2", "web3", "web4"]);
        let key = HashKey { k0: 3, k1: 4 };
        let table = table(&members(&weights), M, key).unwrap();
        let clients: Vec<u16> =
            (0..20_000u32).map(|n| table.slots[slot(hash_v4(key, (0x0a00_0000 + n).to_be()), M) as usize]).collect();
        for (id, count) in counts(&clients) {
            assert!(count.abs_diff(5_000) <= 250, "backend {id} has {count} of 20,000 clients");
        }
    }

    #[test]
    fn when_turns_are_taken_then_they_are_spread_evenly() {
        let mut order = Vec::new();
        turns(&[2, 8, 1, 4], |index| order.push(index));
        for (index, count) in [2, 8, 1, 4].into_iter().enumerate() {
            let at: Vec<usize> = (0..order.len()).filter(|&turn| order[turn] == index).collect();
            assert_eq!(at.len(), count);
            let widest = at.windows(2).map(|pair| pair[1] - pair[0]).max().unwrap_or(0);
            assert!(widest <= 2 * order.len() / count, "index {index} has turns {at:?}");
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]

        #[test]
        fn when_a_table_is_built_then_it_matches_the_definition(weights in weights(1u16.., 1..20), key in key(), size in 1u32..400) {
            let members = members(&weights);
            prop_assert_eq!(table(&members, size, key).unwrap(), by_definition(&members, size, key));
        }

        #[test]
        fn when_slots_are_apportioned_then_counts_are_exact_shares_rounded(weights in weights(any::<u16>(), 1..60), key in key()) {
            let total: u64 = weights.iter().map(|&(_, weight)| u64::from(weight)).sum();
            prop_assume!(total > 0);
            let members = members(&weights);
            let counts = counts(&table(&members, M, key).unwrap().slots);
            prop_assert_eq!(counts.values().sum::<u32>(), M);
            for member in members {
                let count = u64::from(counts.get(&member.id).copied().unwrap_or(0));
                let share = u64::from(M) * u64::from(member.weight);
                prop_assert!(count.abs_diff(share / total) <= 1 && (count * total).abs_diff(share) < total);
            }
        }

        #[test]
        fn when_the_order_of_backends_changes_then_the_table_stays(weights in weights(1u16.., 2..20), key in key(), turn in any::<Index>()) {
            let mut shuffled = members(&weights);
            let before = table(&shuffled, 4_093, key);
            shuffled.reverse();
            let turn = turn.index(shuffled.len());
            shuffled.rotate_left(turn);
            prop_assert_eq!(table(&shuffled, 4_093, key), before);
        }

        #[test]
        fn when_a_fifth_backend_is_added_then_it_takes_a_fifth_and_hardly_any_other_slot_moves(
            names in prop::collection::btree_set("[a-z0-9]{1,12}", 5), added in any::<Index>(), key in key()
        ) {
            let names: Vec<&str> = names.iter().map(String::as_str).collect();
            let weights = equal(&names);
            let five = members(&weights);
            let added = five[added.index(5)];
            let four: Vec<Member<'_>> = five.iter().copied().filter(|member| member.id != added.id).collect();
            let [before, after] = [&four, &five].map(|members| table(members, M, key).unwrap().slots);
            let moved = before.iter().zip(&after).filter(|(old, new)| old != new).count() as f64 / f64::from(M);
            let needless = before.iter().zip(&after).filter(|&(old, &new)| *old != new && new != added.id).count();
            prop_assert!((0.17..=0.23).contains(&moved), "{} of the slots moved", moved);
            prop_assert!(needless as f64 <= 0.006 * f64::from(M), "{} slots moved needlessly", needless);
        }
    }
}
