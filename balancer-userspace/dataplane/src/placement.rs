//! Building an open-addressed array whole: every key within its probes.

use anyhow::bail;
use balancer_common::{
    map_types::ServiceKey,
    service_table::{PROBES, TableView, factor},
};

/// Factors of the hash that are tried.
const FACTORS: u32 = 64;
/// Up to so many keys have sixteen rows each; beyond, rows are memory that counts.
const MANY: usize = 4096;
/// How many keys may be pushed from their rows to place one.
const PUSHES: u32 = 1000;
/// The exponent of the largest number of rows in each half of a map, which is a power of two.
const MOST_BITS: u32 = 23;
/// No key.
const FREE: u32 = u32::MAX;

/// Rows for so many keys where there is room, a power of two: for few, so many that nearly every key is found with the first
/// probe; for many, so few that there is hardly more memory than keys need. Two pairs of rows hold 0.897 keys a row at the most
/// (Dietzfelbinger and Weidling, 2007). More keys never have fewer.
fn most_rows(keys: usize) -> usize {
    let rows = if keys <= MANY { 16 * keys.max(4) } else { (keys + keys / 7).max(16 * MANY) };
    rows.next_power_of_two()
}

/// Where every key lies.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Placement {
    /// The parameters with which the kernel program finds them.
    pub(super) view: TableView,
    /// Row of the map for each key, in the order given.
    pub(super) rows: Vec<u32>,
}

/// Rows that a table of up to `keys` keys may take, a power of two.
#[must_use]
pub(super) fn rows_for(keys: usize) -> u32 {
    u32::try_from(most_rows(keys)).unwrap_or(1 << MOST_BITS).min(1 << MOST_BITS)
}

/// Places `keys` (all different) in the rows from `base` on, of which there are `room`. `base` must be a multiple of the
/// greatest power of two in `room`.
///
/// # Errors
/// When they do not fit.
pub(super) fn place(keys: &[ServiceKey], base: u32, room: u32) -> anyhow::Result<Placement> {
    let Some(most) = room.checked_ilog2().filter(|&most| most > 0) else { bail!(no_room(keys, room)) };
    let most = most.min(MOST_BITS);
    // Of many, the fewer to a row, the sooner they are found: all that there is.
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
    format!("no room for {} keys in {room} rows; a restart makes room", keys.len())
}

fn try_place(keys: &[ServiceKey], view: TableView) -> Option<Vec<u32>> {
    let mut rows = Rows::new(keys, view);
    for key in 0..keys.len() as u32 {
        rows.insert(key)?;
    }
    Some(rows.of_keys())
}

/// Rows that are being filled.
struct Rows {
    base: u32,
    /// For each key the rows that its probes look at, counted from `base`.
    probes: Vec<[u32; PROBES]>,
    /// Which key a row has, or [`FREE`].
    keys: Vec<u32>,
}

impl Rows {
    fn new(keys: &[ServiceKey], view: TableView) -> Self {
        let of = |key| view.rows(key).map(|row| row - view.base);
        Self { base: view.base, probes: keys.iter().map(of).collect(), keys: vec![FREE; 1 << view.bits] }
    }

    /// Gives `key` the first of its rows that is free. If none is, it pushes another key from one of them, which then looks
    /// for a row as well. `None`: that goes on for too long.
    ///
    /// A row that has a key always has one from then on, so that no key is ever beyond a free row of its own.
    fn insert(&mut self, mut key: u32) -> Option<()> {
        for push in 0..PUSHES {
            let probes = self.probes[key as usize];
            if let Some(&row) = probes.iter().find(|&&row| self.keys[row as usize] == FREE) {
                self.keys[row as usize] = key;
                return Some(());
            }
            // Any of them, so that two keys do not push each other for ever.
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
        fn every_key_lies_within_its_probes_alone(
            keys in prop::collection::hash_set((any::<u32>(), any::<u16>()), 0..600),
            tight in any::<bool>(),
            second in any::<bool>(),
        ) {
            let keys: Vec<_> = keys.into_iter().map(|(host, port)| key(host, port)).collect();
            // At least one key in sixteen rows, at most seven in eight.
            let tightest = (keys.len() + keys.len() / 7).next_power_of_two().max(2) as u32;
            let room = if tight && keys.len() >= 64 { tightest } else { rows_for(keys.len()) };
            let base = if second { room } else { 0 };
            let placement = place(&keys, base, room).unwrap();
            let used: HashSet<u32> = placement.rows.iter().copied().collect();
            prop_assert_eq!(used.len(), keys.len());
            for (key, row) in keys.iter().zip(&placement.rows) {
                // Rows that are looked at before are another's, as looking ends at a free one.
                let before: Vec<u32> = placement.view.rows(key).into_iter().take_while(|probe| probe != row).collect();
                prop_assert!(before.len() < PROBES && before.iter().all(|row| used.contains(row)));
                prop_assert!((base..base + room).contains(row));
            }
        }
    }

    #[test]
    fn many_keys_fit() {
        for (keys, mebibytes) in [(4096, 4), (16_384, 4), (57_344, 4), (65_536, 8), (131_072, 16), (229_376, 16)] {
            let keys: Vec<_> = (0..keys).map(|host| key(0x0a00_0000 + host, 8080)).collect();
            let room = rows_for(keys.len());
            // Of rows of 64 bytes, as those of the way back are.
            assert_eq!(room / (16 << 10), mebibytes);
            assert!(place(&keys, 0, room).is_ok(), "{}", keys.len());
            assert!(rows_for(keys.len() + 1) >= room, "more than {} keys have less room", keys.len());
        }
    }

    #[test]
    fn keys_of_a_pattern_fit() {
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
    fn a_map_sized_for_fewer_takes_them_denser() {
        let keys: Vec<_> = (0..804).map(|host| key(0xc633_6400 + host / 2, 80 + (host % 2) as u16 * 363)).collect();
        let placement = place(&keys, 0, rows_for(256)).unwrap();
        let rows: HashSet<_> = placement.rows.iter().collect();
        assert_eq!(rows.len(), keys.len());
        assert!(placement.rows.iter().all(|&row| row < rows_for(256)));
    }

    #[test]
    fn too_little_room_is_refused() {
        let keys: Vec<_> = (0..100).map(|host| key(host, 80)).collect();
        assert!(place(&keys, 0, 127).is_err());
    }
}
