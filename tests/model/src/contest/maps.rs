//! Accesses the maps of the loaded program by name, to create states that the controller would reach only after hours.

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
    map_types::{
        Budget, Control, FragmentKey, FragmentRow, MemoryStats, NEWCOMER_ROWS, NeighbourAsked, NeighbourWanted,
        NewcomerBudget, ServiceRow, SlotLine,
    },
};

use crate::model::{BUCKETS, SEEN_WORDS};

/// The maps that tests write directly.
pub(super) struct Maps {
    pub(super) control: Array<MapData, Control>,
    pub(super) services: Array<MapData, ServiceRow>,
    pub(super) slots: Array<MapData, SlotLine>,
    pub(super) fragments: HashMap<MapData, [u8; size_of::<FragmentKey>()], [u8; size_of::<FragmentRow>()]>,
    pub(super) newcomers: Array<MapData, NewcomerBudget>,
    pub(super) memory_stats: PerCpuArray<MapData, MemoryStats>,
    pub(super) budgets: PerCpuArray<MapData, Budget>,
    pub(super) outer_ids: PerCpuArray<MapData, u64>,
    asked: HashMap<MapData, [u8; size_of::<NeighbourWanted>()], [u8; size_of::<NeighbourAsked>()]>,
    pub(super) clients: Mapped<[u64; BUCKET_ENTRIES], BUCKETS>,
    pub(super) seen: Mapped<u64, SEEN_WORDS>,
}

/// Returns the map `name` of the program.
pub(crate) fn map_of(program: &Xdp, name: &str) -> anyhow::Result<MapData> {
    for id in program.info()?.map_ids()?.context("the kernel does not tell the program's maps")? {
        if MapInfo::from_id(id)?.name_as_str() == Some(name) {
            return Ok(MapData::from_id(id)?);
        }
    }
    anyhow::bail!("the program has no map {name}")
}

/// Lets the kernel program record new clients again, as at the beginning of a period; this period lasts until the next
/// call. The ids of the services must be below 64.
pub(crate) fn hold_newcomers(budgets: &mut Array<MapData, NewcomerBudget>) -> anyhow::Result<()> {
    for row in (0..64).chain([NEWCOMER_ROWS]) {
        budgets.set(row, NewcomerBudget { period: u64::MAX, used: 0 }, 0)?;
    }
    Ok(())
}

impl Maps {
    pub(super) fn of(program: &Xdp) -> anyhow::Result<Self> {
        let map = |name: &str| map_of(program, name);
        Ok(Self {
            control: Map::Array(map("CONTROL")?).try_into()?,
            services: Map::Array(map("SERVICES")?).try_into()?,
            slots: Map::Array(map("SLOTS")?).try_into()?,
            fragments: Map::LruHashMap(map("FRAGMENTS")?).try_into()?,
            newcomers: Map::Array(map("NEWCOMERS")?).try_into()?,
            memory_stats: Map::PerCpuArray(map("MEMORY_STATS")?).try_into()?,
            budgets: Map::PerCpuArray(map("BUDGET")?).try_into()?,
            outer_ids: Map::PerCpuArray(map("IDS")?).try_into()?,
            asked: Map::LruHashMap(map("ASKED")?).try_into()?,
            clients: Mapped::new(map("KNOWN_CLIENTS")?)?,
            seen: Mapped::new(map("SEEN")?)?,
        })
    }

    /// Makes the program forget which neighbours it has asked the kernel to resolve.
    pub(super) fn forget_asked(&mut self) -> anyhow::Result<()> {
        let asked: Vec<_> = self.asked.keys().collect::<Result<_, _>>()?;
        for neighbour in asked {
            self.asked.remove(&neighbour)?;
        }
        Ok(())
    }
}

/// An array map of `N` values that is mapped into memory, so that tests can compare the array after each packet.
pub(super) struct Mapped<T, const N: usize> {
    memory: NonNull<T>,
    _map: MapData,
}

impl<T: Copy, const N: usize> Mapped<T, N> {
    const BYTES: usize = N * size_of::<T>();

    fn new(map: MapData) -> anyhow::Result<Self> {
        let entries = map.info()?.max_entries() as usize;
        anyhow::ensure!(entries == N, "{entries} entries instead of {N}");
        // SAFETY: the call creates a new mapping at an address that the kernel chooses.
        let memory = unsafe {
            let protection = libc::PROT_READ | libc::PROT_WRITE;
            libc::mmap(std::ptr::null_mut(), Self::BYTES, protection, libc::MAP_SHARED, map.fd().as_fd().as_raw_fd(), 0)
        };
        anyhow::ensure!(memory != libc::MAP_FAILED, "mapping: {}", std::io::Error::last_os_error());
        Ok(Self { memory: NonNull::new(memory.cast()).context("mapped at 0")?, _map: map })
    }

    pub(super) fn load(&self) -> [T; N] {
        // SAFETY: the index is within the mapping, and the kernel program writes only while this thread runs the kernel
        // program.
        std::array::from_fn(|index| unsafe { self.memory.add(index).read_volatile() })
    }

    pub(super) fn store(&mut self, values: &[T]) {
        for (index, &value) in values.iter().take(N).enumerate() {
            // SAFETY: the index is within the mapping, and the kernel program writes only while this thread runs the
            // kernel program.
            unsafe { self.memory.add(index).write_volatile(value) };
        }
    }
}

impl<T, const N: usize> Drop for Mapped<T, N> {
    fn drop(&mut self) {
        // SAFETY: `new` created the mapping with this size, and no value borrows from the mapping.
        let _unmapped = unsafe { libc::munmap(self.memory.as_ptr().cast(), N * size_of::<T>()) };
    }
}
