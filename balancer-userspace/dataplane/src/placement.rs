//! Building an open-addressed array whole: every key within its probes.

use anyhow::bail;
use balancer_common::{
    map_types::ServiceKey,
    service_table::{PROBES, TableView, factor},
};

/// Factors of the hash that are tried with as many rows as there may be; and with fewer: what these do not fit, hardly any
/// would.
const FACTORS: u32 = 64;
const FEW_FACTORS: u32 = 8;
/// Up to so many keys have sixteen home rows each; beyond, rows are memory that counts.
const MANY: usize = 4096;

/// Home rows for so many keys where there is room, a power of two: enough that nearly every key is found with the first
/// probe, few enough to stay in the cache; and of many keys not more than four probes need. More keys never have fewer.
fn home_rows(keys: usize) -> usize {
    let rows = if keys <= MANY { 16 * keys.max(4) } else { (4 * keys).max(16 * MANY) };
    rows.next_power_of_two()
}

/// Where every key lies.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Placement {
    /// What the kernel program needs to find them.
    pub(super) view: TableView,
    /// Row of the map for each key, in the order given.
    pub(super) rows: Vec<u32>,
}

/// Rows that a table of up to `keys` keys may take.
#[must_use]
pub(super) fn rows_for(keys: usize) -> u32 {
    // One doubling more, for a table that no seed fits.
    u32::try_from(home_rows(keys) * 2).unwrap_or(u32::MAX / 2) + PROBES
}

/// Places `keys` (all different) in the rows from `base` on, of which there are `room`.
///
/// # Errors
/// When they do not fit.
pub(super) fn place(keys: &[ServiceKey], base: u32, room: u32) -> anyhow::Result<Placement> {
    let wanted = home_rows(keys.len()).trailing_zeros();
    let Some(most) = room.saturating_sub(PROBES).checked_ilog2() else { bail!(no_room(keys, room)) };
    let most = most.min(24);
    for bits in wanted.min(most)..=most {
        for tried in 0..if bits < most { FEW_FACTORS } else { FACTORS } {
            let view = TableView { base, bits: bits as u8, factor: factor(tried) };
            if let Some(rows) = try_place(keys, view) {
                return Ok(Placement { view, rows });
            }
        }
    }
    bail!(no_room(keys, room))
}

fn no_room(keys: &[ServiceKey], room: u32) -> String {
    format!("no room for {} keys in {room} rows; a restart makes room", keys.len())
}

/// Linear probing in the order of the home rows, so that no key is further from its own than it must be ("Robin Hood
/// hashing", P. Celis, 1986).
fn try_place(keys: &[ServiceKey], view: TableView) -> Option<Vec<u32>> {
    let mut homes: Vec<(u32, usize)> = keys.iter().map(|key| view.home_row(key)).zip(0..).collect();
    homes.sort_unstable();
    let mut rows = vec![0; keys.len()];
    let mut free = 0;
    for (home, index) in homes {
        let row = home.max(free);
        if row >= home + PROBES {
            return None;
        }
        rows[index] = row;
        free = row + 1;
    }
    Some(rows)
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
            base in 0u32..10_000,
        ) {
            let keys: Vec<_> = keys.into_iter().map(|(host, port)| key(host, port)).collect();
            let room = rows_for(keys.len());
            let placement = place(&keys, base, room).unwrap();
            let mut seen = HashSet::new();
            for (key, row) in keys.iter().zip(&placement.rows) {
                let home = placement.view.home_row(key);
                prop_assert!((home..home + PROBES).contains(row));
                prop_assert!((base..base + room).contains(row));
                prop_assert!(seen.insert(*row));
            }
        }
    }

    #[test]
    fn many_keys_fit() {
        for (keys, mebibytes) in [(4096, 8), (16_384, 8), (65_536, 32), (131_072, 64)] {
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
                keys.iter().zip(&placement.rows).filter(|(key, row)| placement.view.home_row(key) == **row).count();
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
        assert!(place(&keys, 0, 64).is_err());
    }
}
