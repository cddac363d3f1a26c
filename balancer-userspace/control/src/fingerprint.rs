//! A fingerprint of the rules by which the balancer assigns clients to backends.
//!
//! Two balancers of a fleet assign unknown clients to the same backends only if both compute the same lookup tables
//! from the same configuration. The fingerprint is therefore computed from lookup tables; a version number would depend
//! on a developer who might forget to raise it.

use balancer_common::{
    client::{HashKey, hash_v4, hash_v6, slot},
    map_types::ALL_DOWN,
};
use balancer_config::config::WhenAllDown;

use crate::{
    maglev::{Member, mix},
    table::{Builder, Candidate},
};

const KEY: HashKey = HashKey { k0: 0x0123_4567_89ab_cdef, k1: 0xfedc_ba98_7654_3210 };
const TABLE_SIZE: u32 = 251;
const NAMES: [&str; 7] = ["a", "b", "c", "d", "e", "f", "g"];

/// The fingerprint of this program's lookup tables. Balancers with different fingerprints steer clients differently;
/// balancers with equal fingerprints steer clients in the same way, except with a probability of one in 2^32.
#[must_use]
pub fn of_steering() -> u32 {
    let tables = scenes().into_iter().flat_map(|(away, slow)| table(away, slow));
    let clients = (0..64u32).flat_map(|client| {
        let hashes = [hash_v4(KEY, client.to_be()), hash_v6(KEY, [u64::from(client), !u64::from(client)])];
        hashes.map(|hash| slot(hash, TABLE_SIZE) as u16)
    });
    let number = tables.chain(clients).fold(0, |number, id| mix(number ^ u64::from(id)));
    (number ^ number >> 32) as u32
}

/// Sets of absent backends as bits, each with a backend in a slow start or without one: no backend, one, several and
/// most backends, and all primary backends.
fn scenes() -> [(u8, Option<usize>); 6] {
    [(0, None), (0b1, None), (0b1, Some(3)), (0b10_1010, None), (0b1_1111, None), (0b11_1111, None)]
}

fn table(away: u8, slow: Option<usize>) -> Vec<u16> {
    let candidates: Vec<Candidate<'_>> = NAMES
        .iter()
        .zip(1..)
        .enumerate()
        .map(|(index, (name, id))| Candidate {
            member: Member { id, name, weight: if index % 2 == 0 { 100 } else { 40 } },
            backup: index == NAMES.len() - 1,
            maint: false,
            takes_new: away >> index & 1 == 0,
            step: (slow == Some(index)).then_some(3),
            bound: None,
        })
        .collect();
    let live = Builder::default().live(&candidates, WhenAllDown::Drop, (TABLE_SIZE, KEY), &[]);
    debug_assert!(live.slots.iter().all(|&id| id != ALL_DOWN));
    live.slots.to_vec()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn when_steering_changes_then_operators_are_told() {
        assert_eq!(
            of_steering(),
            1_408_341_387,
            "members of a fleet with and without this change steer new clients differently: say so in the changelog"
        );
    }

    #[test]
    fn when_scenes_differ_then_their_tables_differ() {
        let tables: Vec<_> = scenes().into_iter().map(|(away, slow)| table(away, slow)).collect();
        for (index, table) in tables.iter().enumerate() {
            assert!(!tables[..index].contains(table), "scene {index}");
        }
    }
}
