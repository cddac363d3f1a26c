//! The state that packets leave in the maps of the kernel program.

use anyhow::{Context as _, bail};
use aya::{maps::MapInfo, programs::ProgramInfo};

use crate::bpf_map;

/// The maps into which the program writes what later packets read, or what tests count.
const LEFT: [&str; 29] = [
    "ASKED",
    "BACKEND_STATS",
    "BUDGET",
    "DIRECT",
    "DROP_STATS",
    "FLOWS",
    "FLOW_HELD",
    "FLOW_LINES",
    "FLOW_RETURNS",
    "FRAGMENTS",
    "HANDSHAKES",
    "IDS",
    "INTERFACE_STATS",
    "KNOWN_CLIENTS",
    "LISTENER_STATS",
    "LOG_BUDGETS",
    "MEMORY_STATS",
    "MIGRATED",
    "NEWCOMERS",
    "NEXT_HOP_CACHE",
    "QUIC_STATS",
    "REPLY_STATS",
    "RULE_STATS",
    "SAMPLE_STATS",
    "SEEN",
    "SHARED_BACKENDS",
    "SHARED_LISTENERS",
    "SHARED_RULES",
    "SHARE_STATS",
];

/// The maps that the controller writes, and maps whose contents do not outlive the packet.
const OTHERS: [&str; 27] = [
    "AYA_LOGS",
    "BACKENDS",
    "CONTROL",
    "DEVICES",
    "FLOW_CONTROL",
    "FLOW_POOLS",
    "FLOW_WAYS",
    "HEADER",
    "INTERFACES",
    "LISTENERS",
    "NEEDED",
    "NEIGHBOURS_WANTED",
    "NOTED",
    "PEERS",
    "QUERY",
    "QUIC",
    "QUIC_SERVERS",
    "RANGES",
    "REDIRECTED",
    "RETURNS",
    "RULES",
    "RULE_FILTER",
    "SAMPLES",
    "SCRATCH",
    "SERVICES",
    "SLOTS",
    "SUSPECTS",
];

/// The map of the signs of backends, in which the program and the controller have fields of their own; the rig writes
/// all backends after it has emptied the map.
const SIGNS: &str = "SIGNS";

/// The kernel keeps this many bytes of a map's name.
const NAME: usize = 15;

/// Empties all maps in which the program keeps something.
///
/// # Errors
/// Fails if the kernel refuses an access, or if a map of the program is in no list of this module.
pub(super) fn forget(program: &ProgramInfo) -> anyhow::Result<()> {
    for id in program.map_ids()?.context("the kernel does not tell the program's maps")? {
        let map = MapInfo::from_id(id)?;
        let name = map.name_as_str().unwrap_or_default();
        let is_it = |known: &str| known.get(..NAME).unwrap_or(known) == name;
        if LEFT.iter().chain([&SIGNS]).any(|known| is_it(known)) {
            bpf_map::clear(&map)?;
        } else if !OTHERS.iter().any(|known| is_it(known)) && !name.starts_with(".rodata") {
            bail!("the map {name}: name it in {}, in the list to which it belongs", file!());
        }
    }
    Ok(())
}
