//! The sizes of the maps in entries and in bytes.

use std::fmt;

use balancer_common::{
    client_table::Bucket,
    direct,
    flows::held::LINES_PER_BLOCK,
    kept::{BackendHistory, NotesRow, ServiceHistory},
    map_types::{
        BackendRows, BackendStats, CACHED_HOPS_OF_CPU, DEFAULT_HOP_ROWS, DirectLine, FLOWS_PER_LINE, FlowLine,
        FlowPool, FlowReturns, FlowRow, FragmentKey, FragmentRow, HeldLine, InterfaceStats, ListenerRow, ListenerStats,
        MAX_ASKED, MAX_DEVICES, MAX_FRAGMENTS, MAX_INTERFACES, MAX_LISTENERS, MAX_PEERS, MAX_RULES, NEWCOMER_ROWS,
        NeighbourAsked, NeighbourWanted, NewcomerBudget, RangeRow, ReturnRow, RuleStats, SLOTS_PER_LINE, ServiceRow,
        ShareStats, Signs, SlotLine,
    },
    quic::{MAX_QUIC_SERVICES, QUIC_ROWS, QuicRow, QuicStats},
    rule_filter, seen, signs,
};
use balancer_config::deny::MAX_DENIED;

use super::{
    capacity::Capacity,
    counter_rows::{CounterMaps, CounterRows, Cpus},
    direct::DIRECT,
    placement,
};

/// The name of the client table's map.
pub(super) const CLIENTS: &str = "KNOWN_CLIENTS";

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct MapSize {
    pub(super) name: &'static str,
    /// The number of entries; `None`: the object file determines this number.
    pub(super) entries: Option<u32>,
    pub(super) bytes: u64,
    of_cpus: OfCpus,
    /// The part of the configuration on which the map's size depends.
    depends_on: Option<&'static str>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum OfCpus {
    All,
    /// The map has one value for each CPU that was online when the balancer started.
    Online(u32),
    /// The map has one value for each possible CPU.
    Possible(u32),
}

/// The size in bytes of a row in the cache of next hops; the type of this row is private to the kernel program.
const RECENT_HOP: u64 = 64;
/// The number of bytes that the kernel adds to each entry of a hash map, for the entry's links and its bucket.
const HASH_ENTRY: u64 = 48 + 16;
/// The number of bytes in a hash map's bucket array for each entry of the map's capacity.
const HASH_BUCKET: u64 = 16;
/// The number of bytes for each CPU in all maps that contain only a few words for each CPU.
const FEW_WORDS: u64 = 1024;
/// The number of bytes of the ring buffers except the log, and of other maps whose size the object file determines.
const OTHERS: u64 = (512 + 64 + 256) << 10;
const PAGE: u64 = 4096;
/// Spare room for replacing the row of a rule: older kernels need this room even if the number of rules stays the same.
const SPARE_RULE: u32 = 1;

/// The sizes of all maps; the maps in `counters` have rows for each CPU.
pub(super) fn sizes(capacity: &Capacity, counters: &CounterMaps, cpus: Cpus, interfaces: usize) -> Vec<MapSize> {
    let (buckets, blocks) = (capacity.buckets(), counters.backends.blocks);
    let redirects = redirect_errors(interfaces);
    let halves = |keys: u32| 2 * placement::rows_for(keys as usize);
    let clients = Some("[client_table] capacity");
    let flows = Some("[flow_table] capacity");
    let backends = Some("the number of backends");
    let listeners = Some("the number of listeners");
    vec![
        array::<Bucket>(CLIENTS, buckets).depends_on(clients),
        array::<u64>("SEEN", seen::words(buckets)).depends_on(clients),
        array::<SlotLine>("SLOTS", capacity.slots.div_ceil(SLOTS_PER_LINE))
            .depends_on(Some("table_size of the services")),
        array::<ListenerRow>("LISTENERS", halves(capacity.listeners)).depends_on(listeners),
        array::<RangeRow>("RANGES", 2 * capacity.ranges).depends_on(listeners),
        array::<ServiceRow>("SERVICES", 2 * capacity.services).depends_on(Some("the number of services")),
        array::<FlowLine>("FLOW_LINES", capacity.flow_lines()).depends_on(flows),
        array::<FlowRow>("FLOWS", capacity.flow_lines() * FLOWS_PER_LINE).depends_on(flows),
        array::<FlowReturns>("FLOW_RETURNS", capacity.flow_returns()).depends_on(flows),
        array::<HeldLine>("FLOW_HELD", capacity.held_blocks() * LINES_PER_BLOCK).depends_on(flows),
        array::<u64>("FLOW_WAYS", if capacity.flows == 0 { 1 } else { capacity.backends }).depends_on(backends),
        array::<FlowPool>("FLOW_POOLS", if capacity.flows == 0 { 1 } else { capacity.services }),
        array::<ShareStats>("SHARE_STATS", 2 * capacity.services).depends_on(Some("the number of services")),
        array::<ReturnRow>("RETURNS", halves(capacity.returns)).depends_on(backends),
        array::<BackendRows>("BACKENDS", capacity.backends).depends_on(backends),
        array::<Signs>("SIGNS", capacity.backends).depends_on(backends),
        array::<BackendHistory>("BACKEND_HISTORY", capacity.backends).depends_on(backends),
        array::<ServiceHistory>("SERVICE_HISTORY", capacity.service_histories()),
        blocks_of::<BackendStats>("BACKEND_STATS", counters.backends),
        blocks_of::<ListenerStats>("LISTENER_STATS", counters.listeners),
        blocks_of::<RuleStats>("RULE_STATS", counters.rules),
        array::<BackendStats>("SHARED_BACKENDS", capacity.backends).depends_on(backends),
        array::<ListenerStats>("SHARED_LISTENERS", MAX_LISTENERS),
        array::<RuleStats>("SHARED_RULES", MAX_RULES),
        // The kernel allocates this memory as rules are added.
        MapSize { bytes: 0, ..of("RULES", Some(MAX_RULES + MAX_DENIED as u32 + SPARE_RULE), 0) },
        MapSize {
            of_cpus: OfCpus::Online(blocks),
            ..of("NEXT_HOP_CACHE", Some(DEFAULT_HOP_ROWS + blocks * CACHED_HOPS_OF_CPU), RECENT_HOP)
        },
        hash::<NeighbourWanted, NeighbourAsked>("ASKED", MAX_ASKED),
        hash::<FragmentKey, FragmentRow>("FRAGMENTS", MAX_FRAGMENTS),
        array::<DirectLine>(DIRECT, direct::LINES + 1).by_object(),
        hash::<u32, u32>("DEVICES", MAX_DEVICES),
        hash::<u64, u32>("PEERS", MAX_PEERS),
        array::<u64>("MIGRATED", capacity.backends).depends_on(backends),
        array::<QuicRow>("QUIC", QUIC_ROWS).by_object(),
        // The map has one entry for each backend; the kernel allocates the memory as entries are added.
        of("QUIC_SERVERS", Some(capacity.backends), HASH_BUCKET).depends_on(backends),
        per_cpu("QUIC_STATS", None, MAX_QUIC_SERVICES as u32 + 1, size_of::<QuicStats>() as u64, cpus),
        per_cpu("REDIRECT_ERRORS", Some(redirects), redirects, size_of::<u64>() as u64, cpus),
        per_cpu("INTERFACE_STATS", None, MAX_INTERFACES, size_of::<InterfaceStats>() as u64, cpus),
        per_cpu("DROP_STATS", None, 1, FEW_WORDS, cpus),
        array::<NotesRow>("NOTES", 1).by_object(),
        array::<u64>("HANDSHAKES", signs::HANDSHAKES).by_object(),
        array::<u64>("RULE_FILTER", rule_filter::WORDS).by_object(),
        array::<NewcomerBudget>("NEWCOMERS", NEWCOMER_ROWS + 1).by_object(),
        MapSize { bytes: OTHERS, ..of("SAMPLES", None, 0) },
    ]
}

/// The number of interfaces for which failed redirects are counted.
fn redirect_errors(interfaces: usize) -> u32 {
    u32::try_from(4 * interfaces).unwrap_or(MAX_DEVICES).next_power_of_two().clamp(256, MAX_DEVICES)
}

fn of(name: &'static str, entries: Option<u32>, bytes_each: u64) -> MapSize {
    let bytes = (u64::from(entries.unwrap_or(0)) * bytes_each).next_multiple_of(PAGE);
    MapSize { name, entries, bytes, of_cpus: OfCpus::All, depends_on: None }
}

/// The size of a memory-mapped array, which occupies whole pages.
fn array<T>(name: &'static str, entries: u32) -> MapSize {
    of(name, Some(entries), size_of::<T>() as u64)
}

fn blocks_of<T>(name: &'static str, rows: CounterRows) -> MapSize {
    MapSize { of_cpus: OfCpus::Online(rows.blocks), ..array::<T>(name, rows.entries()) }
}

fn hash<Key, Value>(name: &'static str, entries: u32) -> MapSize {
    let each = HASH_ENTRY + size_of::<Key>().next_multiple_of(8) as u64 + size_of::<Value>().next_multiple_of(8) as u64;
    of(name, Some(entries), each).by_object()
}

fn per_cpu(name: &'static str, entries: Option<u32>, rows: u32, bytes_each: u64, cpus: Cpus) -> MapSize {
    let bytes = u64::from(rows) * u64::from(cpus.possible) * bytes_each;
    MapSize { name, entries, bytes, of_cpus: OfCpus::Possible(cpus.possible), depends_on: None }
}

impl MapSize {
    const fn depends_on(self, depends_on: Option<&'static str>) -> Self {
        Self { depends_on, ..self }
    }

    fn by_object(self) -> Self {
        Self { entries: None, ..self }
    }
}

impl fmt::Display for MapSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", Mebibytes(self.bytes))?;
        match self.of_cpus {
            OfCpus::All => {}
            OfCpus::Online(cpus) => {
                write!(f, ", {} for each of {cpus} CPUs online", Mebibytes(self.bytes / u64::from(cpus)))?
            }
            OfCpus::Possible(cpus) => {
                write!(f, ", {} for each of {cpus} possible CPUs", Mebibytes(self.bytes / u64::from(cpus)))?;
            }
        }
        match self.depends_on {
            Some(depends_on) => write!(f, "; it depends on {depends_on}"),
            None => Ok(()),
        }
    }
}

struct Mebibytes(u64);

impl fmt::Display for Mebibytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self(bytes) = *self;
        if bytes < 1 << 20 {
            write!(f, "{:.0} KiB", bytes as f64 / 1024.0)
        } else {
            write!(f, "{:.1} MiB", bytes as f64 / f64::from(1 << 20))
        }
    }
}

/// The total size of the maps in bytes.
pub(super) fn total(sizes: &[MapSize]) -> u64 {
    sizes.iter().map(|map| map.bytes).sum()
}

/// Returns the end of a sentence about the map `name`: the size of this map, the size of all maps, and the names of the
/// largest other maps. If `sizes` is empty, the text is empty.
pub(super) fn told(sizes: &[MapSize], name: &str) -> String {
    if sizes.is_empty() {
        return String::new();
    }
    let own = sizes.iter().find(|map| map.name == name).map(|map| format!("; it takes {map}")).unwrap_or_default();
    let mut largest: Vec<&MapSize> = sizes.iter().filter(|map| map.name != name).collect();
    largest.sort_by_key(|map| std::cmp::Reverse(map.bytes));
    let largest: Vec<String> = largest.iter().take(3).map(|map| format!("{} ({map})", map.name)).collect();
    format!("{own}; all maps together take {}, the largest others are {}", Mebibytes(total(sizes)), largest.join(", "))
}

#[cfg(test)]
mod tests {
    use balancer_common::map_types::FEWEST_BACKEND_COUNTERS;

    use super::*;

    fn made(cpus: Cpus) -> Vec<MapSize> {
        let capacity = Capacity {
            slots: 1 << 20,
            services: 128,
            listeners: 256,
            ranges: 256,
            returns: 512,
            backends: 16_384,
            counted: FEWEST_BACKEND_COUNTERS,
            clients: 262_144,
            flows: 0,
        };
        sizes(&capacity, &CounterMaps::new(&capacity, cpus.online), cpus, 4)
    }

    #[test]
    fn when_few_of_many_possible_cpus_are_online_then_the_maps_take_little_more() {
        let kibibytes = |possible, online| total(&made(Cpus { possible, online })) >> 10;
        let figures = [(2, 2), (128, 2), (256, 2), (128, 128), (256, 256)].map(|(possible, online)| {
            let kibibytes = kibibytes(possible, online);
            println!("{possible} possible CPUs, {online} online: {kibibytes} KiB");
            kibibytes
        });
        let [least, many_possible, most_possible, many, most] = figures;
        assert!(least < 26 << 10 && many_possible < 28 << 10 && most_possible < 29 << 10, "{figures:?}");
        // Each CPU online needs 720 KiB: half a mebibyte for backends, 128 KiB for next hops, 64 and 16 KiB for rules
        // and listeners.
        let of_each = 512 + 128 + 64 + 16 + 1;
        assert!(many - many_possible <= 126 * of_each && most - most_possible <= 254 * of_each, "{figures:?}");
    }

    #[test]
    fn when_a_map_is_told_of_then_its_size_and_the_settings_of_large_ones_are_named() {
        let sizes = made(Cpus { possible: 256, online: 64 });
        let said = told(&sizes, "BACKEND_STATS");
        let expected = "; it takes 32.0 MiB, 512 KiB for each of 64 CPUs online; all maps together take ";
        assert!(said.starts_with(expected), "{said}");
        assert!(said.contains("CLIENTS (8.0 MiB; it depends on [client_table] capacity)"), "{said}");
        assert!(told(&sizes, "AYA_LOGS").starts_with("; all maps together take "));
    }
}
