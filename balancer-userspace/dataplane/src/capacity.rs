//! The sizes of the kernel maps.

use std::sync::Arc;

use balancer_common::{
    client_table::{BUCKET_ENTRIES, Bucket},
    kept::{FEWEST_SERVICE_HISTORIES, MOST_SERVICE_HISTORIES},
    map_types::{
        FEWEST_BACKEND_COUNTERS, FEWEST_BACKEND_ROWS, FLOWS_PER_LINE, Forwarding, MAX_FLOW_ROWS, MOST_BACKEND_ROWS,
        SLOTS_PER_LINE,
    },
};
use balancer_config::config::{Config, ServiceConfig};
use balancer_control::{
    controller::Largest,
    room::{Need, Room, lines, returns},
};

use super::placement;

/// The number of services for which the maps have room at least, if the configuration file leaves all services to
/// drop-ins.
const UNKNOWN_SERVICES: usize = 256;
/// The number of slots of these services' lookup tables.
const UNKNOWN_SLOTS: u32 = 1 << 21;

/// The sizes of the maps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Capacity {
    /// The number of slots of all live tables, including replaced tables that the program may still read.
    pub slots: u32,
    /// The number of services, one for each family of a configured service; every service id is below this number.
    pub services: u32,
    /// The number of listeners and VIP addresses.
    pub listeners: u32,
    /// The number of disjoint port ranges.
    pub ranges: u32,
    /// The number of return rows for `nat` backends, one for each of their listeners and addresses.
    pub returns: u32,
    /// The number of rows for backends, a power of two; every backend id is below this number.
    pub backends: u32,
    /// The limit of backends with counters on each CPU: those with ids below this power of two. All CPUs share the
    /// counters of the other backends.
    pub counted: u32,
    pub clients: u32,
    /// The number of connections of `snat` services; 0: there is no such service.
    pub flows: u32,
}

/// The number of client table entries for each client for which the table is sized. With so many entries, a bucket of
/// eight entries practically never overflows.
const ENTRIES_PER_CLIENT: u32 = 4;
/// The largest number of services; a service id has 16 bits.
const MOST_SERVICES: u32 = u16::MAX as u32;
/// The smallest possible client table, for a configuration in which no service remembers clients.
pub(super) const NOBODY: u32 = 1;

/// All CPUs together record at most this number of new clients a second: the table's capacity in clients divided by
/// this divisor. A flood therefore takes half a minute to fill the table; by then, the entries of returning clients are
/// established.
const NEWCOMERS_PART: u32 = 8;
const FEWEST_NEWCOMERS: u32 = 4096;

impl Capacity {
    /// The numbers of new clients to record a second if this many services remember clients: the number for each
    /// service, and the additional number for all services together. One half of the total is divided equally between
    /// services, so that a flood at one service cannot starve another service; the other half goes to the new clients
    /// that come first.
    pub(super) fn newcomers(&self, services: usize) -> (u32, u32) {
        let all = (self.clients / NEWCOMERS_PART).max(FEWEST_NEWCOMERS);
        let services = u32::try_from(services).unwrap_or(u32::MAX).max(1);
        let own = (all / 2 / services).max(1);
        (own, all.saturating_sub(own.saturating_mul(services)))
    }

    /// The number of buckets of the client table.
    #[must_use]
    pub fn buckets(&self) -> u32 {
        let entries = u64::from(self.clients) * u64::from(ENTRIES_PER_CLIENT);
        let buckets = entries.div_ceil(BUCKET_ENTRIES as u64).next_power_of_two();
        u32::try_from(buckets).unwrap_or(1 << 31)
    }

    /// The number of buckets of the flow table, which has one spare row for every two flows, so that a flow practically
    /// never finds its buckets full.
    pub(super) fn flow_lines(&self) -> u32 {
        let rows = u64::from(self.flows) * 3 / 2;
        let lines = u32::try_from(rows.div_ceil(u64::from(FLOWS_PER_LINE))).unwrap_or(u32::MAX);
        lines.clamp(1, MAX_FLOW_ROWS / FLOWS_PER_LINE)
    }

    /// The number of buckets in the index of replies for each bucket of the flow table. With four index entries for
    /// each flow, a bucket hardly ever overflows.
    pub(super) const RETURNS_PER_LINE: u32 = 4;

    /// The number of buckets in the index of replies.
    pub(super) fn flow_returns(&self) -> u32 {
        self.flow_lines().saturating_mul(Self::RETURNS_PER_LINE)
    }

    /// The number of blocks that say which ports open connections hold, a power of two: a backend and an address of its
    /// pool have a block, and those of few connections may share one.
    pub(super) fn held_blocks(&self) -> u32 {
        const FLOWS_PER_BLOCK: u32 = 1024;
        const BLOCKS: std::ops::RangeInclusive<u32> = 16..=1024;
        if self.flows == 0 {
            return 1;
        }
        (self.flows / FLOWS_PER_BLOCK).clamp(*BLOCKS.start(), *BLOCKS.end()).next_power_of_two()
    }

    /// The size of the client table in bytes.
    #[must_use]
    pub fn client_table_bytes(&self) -> u64 {
        u64::from(self.buckets()) * size_of::<Bucket>() as u64
    }

    /// The number of rows for data about services that outlives the controller, a power of two.
    pub(super) fn service_histories(&self) -> u32 {
        self.services.clamp(FEWEST_SERVICE_HISTORIES, MOST_SERVICE_HISTORIES).next_power_of_two()
    }

    #[must_use]
    pub fn room(&self) -> Room {
        // Up to this number of keys, a table of keys practically always finds a place for each key.
        let keys = |keys: u32| {
            let rows = placement::rows_for(keys as usize);
            rows - rows / 8
        };
        Room {
            lines: self.slots.div_ceil(SLOTS_PER_LINE),
            services: self.services,
            listeners: keys(self.listeners),
            returns: keys(self.returns),
            backends: self.backends,
            flows: self.flows > 0,
            grows: false,
        }
    }

    /// The room up to which the maps can grow while the program runs.
    #[must_use]
    pub fn most_room(&self) -> Room {
        let keys = placement::MOST_ROWS - placement::MOST_ROWS / 8;
        Room {
            lines: u32::MAX / SLOTS_PER_LINE,
            services: MOST_SERVICES,
            listeners: keys,
            returns: keys,
            grows: true,
            ..self.room()
        }
    }

    /// The capacity with more room in those maps that have too little room for `need`, if there are such maps. A map
    /// grows to at least twice its size, and the map of slots to one and a half times the needed size. No map exceeds
    /// [`most_room`](Self::most_room).
    pub(super) fn grown_for(&self, need: &Need) -> Option<Self> {
        let (room, most) = (self.room(), self.most_room());
        let grown = |now: u32, room: u32, need: u32| if need > room { now.saturating_mul(2).max(need) } else { now };
        let now = u64::from(room.lines);
        let lines = (need.lines + need.lines / 2).min(most.lines.into());
        let larger = Self {
            slots: if need.lines > now {
                u32::try_from(lines).unwrap_or(most.lines) * SLOTS_PER_LINE
            } else {
                self.slots
            },
            services: grown(self.services, room.services, need.services.min(most.services)),
            listeners: grown(self.listeners, room.listeners, need.listeners.min(most.listeners)),
            ranges: grown(self.ranges, self.ranges, need.ranges),
            returns: grown(self.returns, room.returns, need.returns.min(most.returns)),
            ..*self
        };
        (larger.room() != room || larger.ranges != self.ranges).then_some(larger)
    }

    /// The capacity that `config` needs, with room for growth: twice the services, listeners and backends, one and a
    /// half times the slots, and one and three quarters times the return rows.
    #[must_use]
    pub fn for_config(config: &Config) -> Self {
        Self::for_largest(config, &config.services.to_vec().into())
    }

    /// The capacity that `largest`, which is at least as large as `config`, and the clients of `config` need.
    #[must_use]
    pub fn for_largest(config: &Config, largest: &Largest) -> Self {
        let services = &largest.services;
        let whole = |slots: u32| lines(slots) * SLOTS_PER_LINE;
        let tables = services.iter().flat_map(|service| vec![whole(service.slots()); service.families().len()]);
        let listeners: usize = services.iter().map(|service| service.listen.len()).sum();
        let ways: usize = services.iter().map(|service| returns(service, service.backends.len())).sum();
        let total: u32 = tables.fold(0, u32::saturating_add);
        // A table whose size follows the number of backends may grow to the size for twice as many backends.
        let grown = |service: &Arc<ServiceConfig>| whole(service.table_size.slots(2 * service.backends.len()));
        let longest = services.iter().map(grown).max().unwrap_or(0);
        let at_least =
            |count: usize, least: u32| u32::try_from(count).unwrap_or(u32::MAX / 4).saturating_mul(2).max(least);
        // Without services in the file, drop-ins bring the services later.
        let unknown = if config.services.is_empty() { UNKNOWN_SERVICES } else { 0 };
        let count = services.len().max(unknown);
        let listeners = listeners.max(2 * unknown);
        let ways = ways.max(8 * unknown);
        let total = total.max(UNKNOWN_SLOTS * u32::from(unknown > 0));
        Self {
            // The number of slots grows by only one half, because in a configuration with thousands of backends, slots
            // use most of the memory. The longest table counts twice more: once because every table can be replaced at
            // any time, and once because a table may change its size.
            slots: total.saturating_add(total / 2).max(1 << 20).saturating_add(longest.saturating_mul(2)),
            services: at_least(2 * count, 128).max(u32::from(largest.highest_service) + 1),
            listeners: at_least(2 * listeners, 256),
            ranges: at_least(2 * listeners, 256).min(1 << 17),
            // Return rows use most of the memory that slots leave; the subtraction keeps 60,000 backends with one
            // listener each within a power of two.
            returns: at_least(ways - ways / 8, 512),
            backends: backend_rows(largest).max(FEWEST_BACKEND_ROWS),
            counted: backend_rows(largest).max(FEWEST_BACKEND_COUNTERS),
            flows: if config.flow_table_wanted || services.iter().any(|service| service.forwarding == Forwarding::Snat)
            {
                config.flow_table_capacity
            } else {
                0
            },
            // All members of a fleet need client tables of one size, whatever their files are.
            clients: if unknown > 0
                || config.fleet.is_some()
                || services.iter().any(|service| !service.remember.is_zero())
            {
                config.client_table_capacity
            } else {
                NOBODY
            },
        }
    }
}

/// The number of rows for twice as many backends. No backend has the id 0.
fn backend_rows(largest: &Largest) -> u32 {
    let twice = u32::try_from(largest.ids).unwrap_or(u32::MAX / 4).saturating_mul(2);
    let most = twice.max(largest.highest_id.into()).min(MOST_BACKEND_ROWS - 1);
    (most + 1).next_power_of_two()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn when_backends_are_counted_then_there_is_room_for_as_many_again() {
        for (ids, highest_id, rows) in [
            (0, 0, 1),
            (3, 0, 8),
            (2047, 3000, 4096),
            (2048, 3000, 8192),
            (8191, 16_383, 16_384),
            (8192, 8192, 32_768),
            (3, 16_384, 32_768),
            (3, 40_000, 65_536),
            (16_383, 16_383, 32_768),
            (16_384, 16_384, 65_536),
            (65_534, 65_534, 65_536),
            (usize::MAX, u16::MAX, 65_536),
        ] {
            assert_eq!(
                backend_rows(&Largest { ids, highest_id, ..Largest::default() }),
                rows,
                "{ids} ids, {highest_id}"
            );
        }
    }

    #[test]
    fn when_there_are_many_services_then_each_has_a_history() {
        for (services, rows) in [(128, 4096), (4096, 4096), (4097, 8192), (u32::MAX / 4, 65_536)] {
            let capacity = Capacity {
                slots: 0,
                services,
                listeners: 0,
                ranges: 0,
                returns: 0,
                backends: 0,
                counted: 0,
                clients: 1,
                flows: 0,
            };
            assert_eq!(capacity.service_histories(), rows, "{services}");
        }
    }

    #[test]
    fn when_a_need_exceeds_the_room_then_the_maps_hold_it_and_every_half_becomes_at_least_twice_as_long() {
        let mut capacity = Capacity {
            slots: 1 << 20,
            services: 128,
            listeners: 256,
            ranges: 256,
            returns: 512,
            backends: 16_384,
            counted: 4096,
            clients: 1,
            flows: 0,
        };
        let none = Need::default();
        assert_eq!(capacity.grown_for(&none), None);
        for rows in (1..65_536).step_by(97) {
            let need = Need {
                lines: 20 * u64::from(rows),
                services: rows,
                listeners: 5 * rows,
                ranges: rows,
                returns: 9 * rows,
            };
            let Some(grown) = capacity.grown_for(&need) else { continue };
            assert_eq!((grown.grown_for(&need), need.beyond(&grown.room())), (None, None), "{grown:?} for {need:?}");
            let halves = |of: &Capacity| {
                [
                    of.services,
                    of.ranges,
                    placement::rows_for(of.listeners as usize),
                    placement::rows_for(of.returns as usize),
                ]
            };
            for (before, after) in halves(&capacity).into_iter().zip(halves(&grown)) {
                assert!(after == before || after >= 2 * before, "{capacity:?}, {grown:?}");
            }
            assert!(grown.slots >= capacity.slots);
            capacity = grown;
        }
        let endless = Need { lines: u64::MAX / 2, ..none };
        assert_eq!(capacity.grown_for(&endless).map(|grown| grown.room().lines), Some(capacity.most_room().lines));
    }

    #[test]
    fn when_newcomers_of_all_services_come_then_an_eighth_of_the_capacity_is_recorded_a_second() {
        let capacity = |clients| Capacity {
            slots: 0,
            services: 0,
            listeners: 0,
            ranges: 0,
            returns: 0,
            backends: 0,
            counted: 0,
            clients,
            flows: 0,
        };
        for (clients, services, shares) in [
            (262_144, 1, (16_384, 16_384)),
            (262_144, 3, (5461, 16_385)),
            (1000, 2, (1024, 2048)),
            (1, 0, (2048, 2048)),
            (1000, 10_000, (1, 0)),
        ] {
            assert_eq!(capacity(clients).newcomers(services), shares, "{clients} clients, {services} services");
        }
    }
}
