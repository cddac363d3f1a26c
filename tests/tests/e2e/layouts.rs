//! Tests of upgrades from a version of the balancer whose kept maps have another layout.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod release;

use std::{fs, net::IpAddr};

use aya::maps::{Array, Map, MapData};
use balancer_common::{
    client::HashKey,
    client_table::{BUCKET_ENTRIES, Entry},
    map_types::{Forwarding, LAYOUT_VERSION},
};
use balancer_control::keys;
use balancer_testkit::{topology::Family, users::Users};

use super::restart::{pins, rewrite_notes};

/// The hash key in the configuration of every site.
const KEY: HashKey = HashKey::from_bytes([0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15]);

/// Converts the kept client table to layout 13, in which the low bits of a client's hash select the bucket.
fn as_in_layout_13(users: &Users) {
    let pins = pins(&users.site);
    fs::rename(pins.join("KNOWN_CLIENTS"), pins.join("CLIENTS")).unwrap();
    let map = Map::Array(MapData::from_pin(pins.join("CLIENTS")).unwrap());
    let mut table: Array<MapData, [u64; BUCKET_ENTRIES]> = map.try_into().unwrap();
    let entries: Vec<u64> = table.iter().flat_map(Result::unwrap).filter(|&entry| entry != 0).collect();
    for bucket in 0..table.len() {
        table.set(bucket, [0; BUCKET_ENTRIES], 0).unwrap();
    }
    let key = keys::client_key(KEY, "web").begun();
    for &client in users.sessions.keys() {
        let IpAddr::V4(address) = users.site.topology().client_address(Family::V4, client) else { unreachable!() };
        let hash = key.v4(u32::from_ne_bytes(address.octets()));
        let entry = entries.iter().find(|&&entry| Entry(entry).tag() == (hash >> 32) as u32).unwrap();
        let bucket = hash as u32 & (table.len() - 1);
        let mut there = table.get(&bucket, 0).unwrap();
        *there.iter_mut().find(|entry| **entry == 0).unwrap() = *entry;
        table.set(bucket, there, 0).unwrap();
    }
    rewrite_notes(&users.site, &format!("\"layout_version\":{LAYOUT_VERSION}"), "\"layout_version\":13");
}

#[test]
fn when_a_version_of_layout_13_is_upgraded_then_nobody_moves_even_if_the_capacity_changes() {
    let mut users = Users::new(Forwarding::Nat, |settings| settings.on_exit = "keep");
    users.visit(1..=200);
    // After the addition of a backend, only the client memory keeps many clients at their backends.
    users.add_web5();
    users.nobody_moves("when web5 was added");
    for capacity in [262_144, 4_000_000] {
        users.site.controller().process().stop().unwrap();
        as_in_layout_13(&users);
        users.site.restart(|settings| settings.lines = format!("[client_table]\ncapacity = {capacity}")).unwrap();
        users.nobody_moves("when the version was upgraded");
        let log = fs::read_to_string(users.site.files().join("balancer.log")).unwrap();
        assert!(log.contains("200 clients are carried over"), "{log}");
        assert!(!pins(&users.site).join("CLIENTS").exists(), "the former table stays");
    }
    users.assert_moves(&[]);
}
