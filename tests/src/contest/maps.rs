//! The loaded program's maps, by name, for states that the controller would take hours to come to.

use std::{
    os::fd::{AsFd as _, AsRawFd as _},
    ptr::NonNull,
};

use anyhow::Context as _;
use aya::{
    maps::{Array, HashMap, Map, MapData, MapInfo, PerCpuArray},
    programs::Xdp,
};
use balancer_common::{
    client_table::BUCKET_ENTRIES,
    map_types::{Control, FragmentKey, FragmentRow, MemoryStats, ReplyStats, ServiceRow, SlotLine},
};

use crate::model::BUCKETS;

/// The maps that are written directly.
pub(super) struct Maps {
    pub(super) control: Array<MapData, Control>,
    pub(super) services: Array<MapData, ServiceRow>,
    pub(super) slots: Array<MapData, SlotLine>,
    pub(super) fragments: HashMap<MapData, [u8; size_of::<FragmentKey>()], [u8; size_of::<FragmentRow>()]>,
    pub(super) memory_stats: PerCpuArray<MapData, MemoryStats>,
    pub(super) reply_stats: PerCpuArray<MapData, ReplyStats>,
    pub(super) outer_ids: PerCpuArray<MapData, u64>,
    pub(super) clients: Clients,
}

impl Maps {
    pub(super) fn of(program: &Xdp) -> anyhow::Result<Self> {
        let ids = program.info()?.map_ids()?.context("the kernel does not tell the program's maps")?;
        let map = |name: &str| -> anyhow::Result<MapData> {
            for &id in &ids {
                if MapInfo::from_id(id)?.name_as_str() == Some(name) {
                    return Ok(MapData::from_id(id)?);
                }
            }
            anyhow::bail!("the program has no map {name}")
        };
        Ok(Self {
            control: Map::Array(map("CONTROL")?).try_into()?,
            services: Map::Array(map("SERVICES")?).try_into()?,
            slots: Map::Array(map("SLOTS")?).try_into()?,
            fragments: Map::LruHashMap(map("FRAGMENTS")?).try_into()?,
            memory_stats: Map::PerCpuArray(map("MEMORY_STATS")?).try_into()?,
            reply_stats: Map::PerCpuArray(map("REPLY_STATS")?).try_into()?,
            outer_ids: Map::PerCpuArray(map("IDS")?).try_into()?,
            clients: Clients::new(map("CLIENTS")?)?,
        })
    }
}

/// The client table in memory, so that it can be compared after each packet.
pub(super) struct Clients {
    memory: NonNull<[u64; BUCKET_ENTRIES]>,
    _map: MapData,
}

const BYTES: usize = BUCKETS * BUCKET_ENTRIES * 8;

impl Clients {
    fn new(map: MapData) -> anyhow::Result<Self> {
        let buckets = map.info()?.max_entries() as usize;
        anyhow::ensure!(buckets == BUCKETS, "{buckets} buckets instead of {BUCKETS}");
        // SAFETY: a fresh mapping at an address of the kernel's choice.
        let memory = unsafe {
            let protection = libc::PROT_READ | libc::PROT_WRITE;
            libc::mmap(std::ptr::null_mut(), BYTES, protection, libc::MAP_SHARED, map.fd().as_fd().as_raw_fd(), 0)
        };
        anyhow::ensure!(memory != libc::MAP_FAILED, "mapping: {}", std::io::Error::last_os_error());
        Ok(Self { memory: NonNull::new(memory.cast()).context("mapped at 0")?, _map: map })
    }

    pub(super) fn load(&self) -> Vec<[u64; BUCKET_ENTRIES]> {
        // SAFETY: within the mapping; the kernel program writes only while this thread runs it.
        (0..BUCKETS).map(|index| unsafe { self.memory.add(index).read_volatile() }).collect()
    }

    pub(super) fn store(&mut self, buckets: &[[u64; BUCKET_ENTRIES]]) {
        for (index, bucket) in buckets.iter().take(BUCKETS).enumerate() {
            // SAFETY: as above.
            unsafe { self.memory.add(index).write_volatile(*bucket) };
        }
    }
}

impl Drop for Clients {
    fn drop(&mut self) {
        // SAFETY: mapped by `new` with this size, and nothing borrows from it.
        let _unmapped = unsafe { libc::munmap(self.memory.as_ptr().cast(), BYTES) };
    }
}
