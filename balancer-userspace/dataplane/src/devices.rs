//! Properties of interfaces that the kernel program must know, and the flags in backends' rows that make the program
//! look up these properties.

use std::{collections::BTreeMap, mem::offset_of, sync::atomic::Ordering};

use anyhow::Context as _;
use aya::{
    Ebpf,
    maps::{HashMap, MapData},
};
use balancer_common::map_types::{
    ANY_DEVICE, ASKS_OF_PARTS, ASKS_OF_REDIRECTED, ASKS_OF_TAGGED, BackendRow, Control, DEVICE_CARRIES_TAGS,
    DEVICE_TAKES_NO_FRAMES, DEVICE_TAKES_NO_PARTS, FORWARDING_ASKS,
};

use super::{backends::Backends, mapped::MappedArray};

/// The `DEVICE_*` flags by interface index (or [`ANY_DEVICE`]), for interfaces that have such flags.
pub type Devices = BTreeMap<u32, u32>;

pub(super) struct DeviceTable {
    map: HashMap<MapData, u32, u32>,
    known: Devices,
}

impl DeviceTable {
    /// Makes a value that contains no properties of any interface yet.
    ///
    /// # Errors
    /// Fails if the object contains no such map, which would be a broken build.
    pub(super) fn new(ebpf: &mut Ebpf) -> anyhow::Result<Self> {
        let map = ebpf.take_map("DEVICES").context("the kernel object holds no map DEVICES")?.try_into()?;
        Ok(Self { map, known: Devices::new() })
    }

    /// Returns `row` with a flag that makes the program check interfaces, if frames to this backend may arrive or leave
    /// by an interface with `DEVICE_*` flags.
    pub(super) fn asking(&self, row: BackendRow) -> BackendRow {
        if row.is_local() {
            return row;
        }
        let tags = self.known.values().any(|flags| flags & DEVICE_CARRIES_TAGS != 0);
        let of = |ifindex| self.known.get(&ifindex).copied().unwrap_or_default();
        let refuses = of(row.ifindex) & DEVICE_TAKES_NO_FRAMES != 0;
        let of_parts = if (of(row.ifindex) | of(ANY_DEVICE)) & DEVICE_TAKES_NO_PARTS != 0 { ASKS_OF_PARTS } else { 0 };
        let (asks, asking) = match (row.ifindex != 0 && tags, row.ifindex != 0 && refuses) {
            (false, false) => (0, 0),
            (true, false) => (FORWARDING_ASKS, ASKS_OF_TAGGED),
            (false, true) => (FORWARDING_ASKS, ASKS_OF_REDIRECTED),
            (true, true) => (FORWARDING_ASKS, 0),
        };
        BackendRow { forwarding: row.mode() | asks, asking: asking | of_parts, ..row }
    }

    /// Replaces the properties in the map and the flags in the rows of `backends`.
    ///
    /// # Errors
    /// Fails if the kernel refuses a write.
    pub(super) fn set(
        &mut self,
        known: &Devices,
        control: &MappedArray<Control>,
        backends: &mut Backends,
    ) -> anyhow::Result<()> {
        for (&ifindex, &flags) in known.iter().filter(|&(ifindex, flags)| self.known.get(ifindex) != Some(flags)) {
            self.map.insert(ifindex, flags, 0).with_context(|| format!("noting what interface {ifindex} takes"))?;
        }
        let of_whole = known.iter().filter(|&(_, flags)| flags & !DEVICE_TAKES_NO_PARTS != 0);
        let some = of_whole.fold(0u64, |some, (ifindex, _)| some | 1 << (ifindex % 64));
        control.word64(0, offset_of!(Control, devices)).store(some, Ordering::Release);
        let before = std::mem::replace(&mut self.known, known.clone());
        backends.rewrite(|row| self.asking(row));
        for ifindex in before.keys().filter(|ifindex| !known.contains_key(ifindex)) {
            // If the entry is already missing, it need not be removed.
            let _gone = self.map.remove(ifindex);
        }
        Ok(())
    }
}
