//! Building an open-addressed array whole: every key within its probes.

use std::collections::HashMap;

use anyhow::bail;
use balancer_common::{
    map_types::ServiceKey,
    service_table::{PROBES, TableView},
};

/// Home rows for each key where there is room: few enough to stay in the cache, enough that four probes do.
const ROWS_PER_KEY: usize = 16;
const SEEDS: u32 = 64;

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
    let home = (keys.max(4) * ROWS_PER_KEY).next_power_of_two();
    // One doubling more, for a table that no seed fits.
    u32::try_from(home * 2).unwrap_or(u32::MAX / 2) + PROBES
}

/// Places `keys` (all different) in the rows from `base` on, of which there are `room`.
///
/// # Errors
/// When they do not fit.
pub(super) fn place(keys: &[ServiceKey], base: u32, room: u32) -> anyhow::Result<Placement> {
    let wanted = (keys.len().max(4) * ROWS_PER_KEY).next_power_of_two().trailing_zeros();
    let Some(most) = room.saturating_sub(PROBES).checked_ilog2() else { bail!(no_room(keys, room)) };
    for bits in wanted.min(most)..=most.min(24) {
        for seed in 0..SEEDS {
            let view = TableView { base, bits: bits as u8, seed };
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

fn try_place(keys: &[ServiceKey], view: TableView) -> Option<Vec<u32>> {
    let mut taken = HashMap::with_capacity(keys.len());
    for (index, key) in keys.iter().enumerate() {
        let home = view.home_row(key);
        let row = (home..home + PROBES).find(|row| !taken.contains_key(row))?;
        taken.insert(row, index);
    }
    let mut rows = vec![0; keys.len()];
    for (row, index) in taken {
        rows[index] = row;
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
    fn sixteen_thousand_keys_fit() {
        let keys: Vec<_> = (0..16_384).map(|host| key(0x0a00_0000 + host, 8080)).collect();
        assert!(place(&keys, 0, rows_for(keys.len())).is_ok());
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
