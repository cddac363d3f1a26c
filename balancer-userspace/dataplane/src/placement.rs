//! Builds a complete open-addressed table, in which every key is in one of the rows that a lookup reads.

use anyhow::bail;
use balancer_common::{
    map_types::ServiceKey,
    service_table::{PROBES, TableView, factor},
};

/// The number of hash factors that the function tries.
const FACTORS: u32 = 64;
/// Up to this number of keys, the table has sixteen rows for each key; with more keys, it has fewer rows for each key
/// to save memory.
const MANY: usize = 4096;
/// The maximum number of keys that the function displaces to place one key.
const PUSHES: u32 = 1000;
/// The largest number of rows in each half of a map is the power of two with this exponent.
const MOST_BITS: u32 = 23;
/// The largest number of rows in each half of a map.
pub(super) const MOST_ROWS: u32 = 1 << MOST_BITS;
/// The value that marks a free row.
const FREE: u32 = u32::MAX;

/// The number of rows for this many keys if the map has room, a power of two. A small table has so many rows that the
/// first probe finds nearly every key; a large table needs hardly more memory than its keys. In a table with two pairs
/// of rows for each key, at most 0.897 keys a row fit (Dietzfelbinger and Weidling, 2007). The result never falls as
/// the number of keys increases.
fn most_rows(keys: usize) -> usize {
    let rows = if keys <= MANY { 16 * keys.max(4) } else { (keys + keys / 7).max(16 * MANY) };
    rows.next_power_of_two()
}

/// The rows of all keys in a table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Placement {
    /// The parameters by which the kernel program finds the keys in the table.
    pub(super) view: TableView,
    /// The map row of each key, in the given order of the keys.
    pub(super) rows: Vec<u32>,
}

/// The number of rows that a table of up to `keys` keys may use, a power of two.
#[must_use]
pub(super) fn rows_for(keys: usize) -> u32 {
    u32::try_from(most_rows(keys)).unwrap_or(MOST_ROWS).min(MOST_ROWS)
}

/// Places `keys` (all of which are different) in the `room` rows from row `base` on. `base` must be a multiple of the
/// largest power of two in `room`.
///
/// # Errors
/// Fails if the keys do not fit into these rows with any hash factor.
pub(super) fn place(keys: &[ServiceKey], base: u32, room: u32) -> anyhow::Result<Placement> {
    let Some(most) = room.checked_ilog2().filter(|&most| most > 0) else { bail!(no_room(keys, room)) };
    let most = most.min(MOST_BITS);
    // A large table uses all existing rows, because a lookup in a sparse table is faster.
    let bits = if keys.len() <= MANY { most_rows(keys.len()).trailing_zeros().min(most) } else { most };
    if keys.len() > 1 << bits {
        bail!(no_room(keys, room));
    }
    for tried in 0..FACTORS {
        let view = TableView { base, bits: bits as u8, factor: factor(tried) };
        if let Some(rows) = try_place(keys, view) {
            return Ok(Placement { view, rows });
        }
    }
    bail!(no_room(keys, room))
}

fn no_room(keys: &[ServiceKey], room: u32) -> String {
    format!("no room for {} keys in {room} rows", keys.len())
}

fn try_place(keys: &[ServiceKey], view: TableView) -> Option<Vec<u32>> {
    let mut rows = Rows::new(keys, view);
    for key in 0..keys.len() as u32 {
        rows.insert(key)?;
    }
    Some(rows.of_keys())
}

/// A table that the function is filling.
struct Rows {
    base: u32,
    /// The rows that may contain each key, counted from `base`.
    probes: Vec<[u32; PROBES]>,
    /// The key in each row, or [`FREE`].
    keys: Vec<u32>,
}

impl Rows {
    fn new(keys: &[ServiceKey], view: TableView) -> Self {
        let of = |key| view.rows(key).map(|row| row - view.base);
        Self { base: view.base, probes: keys.iter().map(of).collect(), keys: vec![FREE; 1 << view.bits] }
    }

    /// Puts `key` into the first free row among the rows of this key. If no row of the key is free, the function
    /// displaces another key from one of these rows; the displaced key then needs another row. `None`: the function
    /// would have to displace too many keys.
    ///
    /// An occupied row stays occupied, so no key is behind a free row among its own rows.
    fn insert(&mut self, mut key: u32) -> Option<()> {
        for push in 0..PUSHES {
            let probes = self.probes[key as usize];
            if let Some(&row) = probes.iter().find(|&&row| self.keys[row as usize] == FREE) {
                self.keys[row as usize] = key;
                return Some(());
            }
            // The choice of the displaced key varies, so that two keys do not displace each other forever.
            let row = probes[(factor(push ^ key) >> 16) as usize % probes.len()];
            key = std::mem::replace(&mut self.keys[row as usize], key);
        }
        None
    }

    fn of_keys(&self) -> Vec<u32> {
        let mut rows = vec![0; self.probes.len()];
        for (row, &key) in (self.base..).zip(&self.keys).filter(|&(_, &key)| key != FREE) {
            rows[key as usize] = row;
        }
        rows
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::HashSet;

    fn key(host: u32, port: u16) -> ServiceKey {
        ServiceKey { address: [host.to_be(), 0, 0, 0], port: port.to_be(), protocol: 6, family: 4 }
    }

    proptest! {
        #[test]
        fn when_keys_are_placed_then_each_lies_in_one_of_its_own_rows(
            keys in prop::collection::hash_set((any::<u32>(), any::<u16>()), 0..600),
            tight in any::<bool>(),
            second in any::<bool>(),
        ) {
            let keys: Vec<_> = keys.into_iter().map(|(host, port)| key(host, port)).collect();
            // The rows contain at least one key in sixteen rows, and at most seven keys in eight rows.
            let tightest = (keys.len() + keys.len() / 7).next_power_of_two().max(2) as u32;
            let room = if tight && keys.len() >= 64 { tightest } else { rows_for(keys.len()) };
            let base = if second { room } else { 0 };
            let placement = place(&keys, base, room).unwrap();
            let used: HashSet<u32> = placement.rows.iter().copied().collect();
            prop_assert_eq!(used.len(), keys.len());
            for (key, row) in keys.iter().zip(&placement.rows) {
                // The rows that a lookup reads before the key's row must be occupied, because a lookup stops at a free
                // row.
                let before: Vec<u32> = placement.view.rows(key).into_iter().take_while(|probe| probe != row).collect();
                prop_assert!(before.len() < PROBES && before.iter().all(|row| used.contains(row)));
                prop_assert!((base..base + room).contains(row));
            }
        }
    }

    #[test]
    fn when_keys_are_many_then_they_fit() {
        for (keys, mebibytes) in [(4096, 4), (16_384, 4), (57_344, 4), (65_536, 8), (131_072, 16), (229_376, 16)] {
            let keys: Vec<_> = (0..keys).map(|host| key(0x0a00_0000 + host, 8080)).collect();
            let room = rows_for(keys.len());
            // In this test, rows have 64 bytes, as in the return table.
            assert_eq!(room / (16 << 10), mebibytes);
            assert!(place(&keys, 0, room).is_ok(), "{}", keys.len());
            assert!(rows_for(keys.len() + 1) >= room, "more than {} keys have less room", keys.len());
        }
    }

    #[test]
    fn when_keys_follow_a_pattern_then_they_fit() {
        let v6 = |subnet: u32, host: u32, port: u16| ServiceKey {
            address: [0x2001_0db8_u32.to_be(), subnet.to_be(), 0, host.to_be()],
            port: port.to_be(),
            protocol: 17,
            family: 6,
        };
        let patterns: [Vec<ServiceKey>; 5] = [
            (0..16_384).map(|host| v6(0, host, 443)).collect(),
            (0..16_384).map(|subnet| v6(subnet, 1, 443)).collect(),
            (0..16_384).map(|number| v6(number / 128, number % 128, 443)).collect(),
            (0..16_384).map(|number| key(0xcb00_7100 + number / 64, 8000 + (number % 64) as u16)).collect(),
            (0..16_384).map(|number| key(0x0a00_0001 + (number << 8), 443)).collect(),
        ];
        for keys in patterns {
            let placement = place(&keys, 0, rows_for(keys.len())).unwrap();
            let near =
                keys.iter().zip(&placement.rows).filter(|(key, row)| placement.view.rows(key)[0] == **row).count();
            assert!(near * 2 > keys.len(), "{near} of {} with the first probe, such as {:?}", keys.len(), keys[1]);
        }
    }

    #[test]
    fn when_a_map_was_sized_for_fewer_keys_then_they_are_packed_denser() {
        let keys: Vec<_> = (0..804).map(|host| key(0xc633_6400 + host / 2, 80 + (host % 2) as u16 * 363)).collect();
        let placement = place(&keys, 0, rows_for(256)).unwrap();
        let rows: HashSet<_> = placement.rows.iter().collect();
        assert_eq!(rows.len(), keys.len());
        assert!(placement.rows.iter().all(|&row| row < rows_for(256)));
    }

    #[test]
    fn when_the_room_is_too_small_then_placing_fails() {
        let keys: Vec<_> = (0..100).map(|host| key(host, 80)).collect();
        assert!(place(&keys, 0, 127).is_err());
    }
}
