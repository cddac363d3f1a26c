//! Tests with foreign writes to the fleet's keys: garbage, extreme values, and values that other versions might write.

use flate2::{Compression, read::DeflateDecoder, write::DeflateEncoder};
use proptest::prelude::*;
use serde_json::Value;
use std::io::{Read as _, Write as _};

use super::{setup::Setup, world::World};
use crate::keys;

/// A foreign write to the store, derived from numbers.
#[derive(Clone, Debug)]
struct Act {
    /// The index of the damaged key among the existing keys.
    key: usize,
    /// The kind of damage to the value of the key.
    kind: u8,
    /// The position of the damage in the value.
    at: usize,
    bytes: Vec<u8>,
}

fn act() -> impl Strategy<Value = Act> {
    (any::<usize>(), 0..9_u8, any::<usize>(), prop::collection::vec(any::<u8>(), 0..64))
        .prop_map(|(key, kind, at, bytes)| Act { key, kind, at, bytes })
}

/// Returns a value that is extremely large, small, deep or strange.
fn strange(at: usize) -> Value {
    let deep = (0..100).fold(Value::Null, |inner, _| Value::Array(vec![inner]));
    let all = [
        Value::Null,
        Value::from(-1),
        Value::from(0),
        Value::from(65_535),
        Value::from(u64::MAX),
        Value::from(i64::MIN),
        Value::from(1e308),
        Value::from(""),
        Value::from("a".repeat(70_000)),
        Value::from("\u{0}/../\u{202e}"),
        Value::from("0.0.0.0:0"),
        Value::Array(Vec::new()),
        serde_json::json!({ "secs": u64::MAX, "nanos": 999_999_999 }),
        serde_json::json!({ "what_a_later_version_says": [1, 2, 3] }),
        deep,
    ];
    all[at % all.len()].clone()
}

/// Lists the paths to all elements of a value, from the outside in.
fn places(value: &Value, path: &str, into: &mut Vec<String>) {
    into.push(path.to_owned());
    match value {
        Value::Object(fields) => {
            for (name, inner) in fields {
                places(inner, &format!("{path}/{}", name.replace('~', "~0").replace('/', "~1")), into);
            }
        }
        Value::Array(items) => {
            for (index, inner) in items.iter().enumerate().take(8) {
                places(inner, &format!("{path}/{index}"), into);
            }
        }
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
    }
}

fn vandalize(value: &mut Value, act: &Act) {
    let mut all = Vec::new();
    places(value, "", &mut all);
    let place = all[act.at % all.len()].clone();
    let other = value.pointer(&all[(act.at / 7) % all.len()]).cloned().unwrap_or_default();
    let Some(here) = value.pointer_mut(&place) else { return };
    match (act.kind, here) {
        (2, Value::Array(items)) => {
            let again = items.clone();
            items.extend(again);
        }
        (3, Value::Object(fields)) => drop(fields.insert("new_in_a_later_version".to_owned(), other)),
        (4, Value::Object(fields)) => {
            let name = fields.keys().nth(act.key % fields.len().max(1)).cloned();
            name.map(|name| fields.remove(&name));
        }
        (5, here) => *here = other,
        (6 | 7, Value::Object(fields)) if fields.contains_key("secs") => {
            fields.insert("secs".to_owned(), Value::from(u64::MAX >> (act.key % 64)));
        }
        (6, Value::Number(number)) => *number = (u64::MAX >> (act.key % 64)).into(),
        (_, here) => *here = strange(act.at / all.len()),
    }
}

fn inflate(bytes: &[u8]) -> Option<Vec<u8>> {
    let mut json = Vec::new();
    DeflateDecoder::new(bytes).read_to_end(&mut json).ok()?;
    Some(json)
}

fn deflate(json: &[u8]) -> Vec<u8> {
    let mut encoder = DeflateEncoder::new(Vec::new(), Compression::fast());
    encoder.write_all(json).unwrap();
    encoder.finish().unwrap()
}

fn changed(key: &str, value: &[u8], act: &Act) -> Vec<u8> {
    let is_document = key.starts_with(keys::DOCUMENTS);
    let json = if is_document { inflate(value) } else { Some(value.to_vec()) };
    let parsed = json.and_then(|json| serde_json::from_slice::<Value>(&json).ok());
    match (act.kind, parsed) {
        (0, _) => act.bytes.clone(),
        (1, _) | (_, None) => {
            let mut bytes = value.to_vec();
            bytes.truncate(act.at % (value.len() + 1));
            bytes.extend(&act.bytes);
            bytes
        }
        (_, Some(mut json)) => {
            vandalize(&mut json, act);
            let bytes = serde_json::to_vec(&json).unwrap();
            if is_document { deflate(&bytes) } else { bytes }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, max_shrink_iters: 300, ..ProptestConfig::default() })]

    #[test]
    fn when_others_write_into_the_store_then_no_member_stops(seed in 0..50_u64, acts in prop::collection::vec(act(), 1..6)) {
        let setup = Setup { members: 3, failback: false, two_services: true, spread: true };
        let mut world = World::new(seed, &setup, None);
        world.settle();
        for act in acts {
            let mut all: Vec<String> = world.store.keys().map(str::to_owned).collect();
            // All members use the values of these keys.
            let state = all.iter().filter(|key| **key == keys::EPOCH || key.starts_with(keys::DOCUMENTS));
            all.extend(state.cloned().cycle().take(all.len()).collect::<Vec<_>>());
            let key = &all[act.key % all.len()];
            let value = world.store.get(key).unwrap_or_default().to_vec();
            // The name in this key belongs to no member.
            let foreign = act.kind == 8;
            let name = if foreign { format!("{key}/{}", act.at) } else { key.clone() };
            let value = changed(key, &value, &act);
            world.vandalize(name, value);
            world.pass(700);
            // A new process reads all damaged keys at the same time.
            world.kill(act.at % 3, act.at % 2 == 0);
            world.start(act.at % 3);
            world.pass(2500);
            for node in world.nodes.iter().flatten() {
                prop_assert!(node.plane.services().count() <= 2);
            }
        }
    }
}
