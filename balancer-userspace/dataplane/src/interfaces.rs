//! The rows of the interfaces to which the kernel program is attached. These rows determine which frames are for this
//! machine, and by which interfaces replies of `nat` backends may arrive.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    mem::offset_of,
    sync::atomic::Ordering,
    time::Duration,
};

use aya::maps::MapData;
use balancer_common::map_types::{InterfaceRow, LOCAL_MACS, ReturnRow, interface_row, mac_word};
use balancer_control::io::BackendId;

use super::{flows::FlowMaps, mapped::MappedArray, mirrored::Mirrored};
use crate::Layers;

/// After the next hop of a backend has moved to another interface, replies may still arrive by the old interface for
/// this time, because the backend's own routes may change later.
const OVERLAP: Duration = Duration::from_secs(60);

pub(super) struct Interfaces {
    rows: MappedArray<InterfaceRow>,
    multiplier: u32,
    layers: Layers,
    /// The interfaces to which the program is attached or will be attached.
    steered: BTreeSet<u32>,
    /// The interfaces that have more MACs than a row can hold and that the log already mentions.
    crowded: HashSet<u32>,
}

impl Interfaces {
    /// Makes the rows for the interfaces in `steered`. The controller does not know the MACs of these interfaces yet,
    /// so the program accepts every frame.
    pub(super) fn new(map: MapData, multiplier: u32, steered: &[u32]) -> anyhow::Result<Self> {
        Ok(Self {
            rows: MappedArray::new(map)?,
            multiplier,
            layers: Layers::default(),
            steered: steered.iter().copied().collect(),
            crowded: HashSet::new(),
        })
    }

    pub(super) fn add(&mut self, ifindex: u32) {
        if self.steered.insert(ifindex) {
            self.write(ifindex);
        }
    }

    pub(super) fn remove(&mut self, gone: impl Fn(u32) -> bool) {
        let gone: Vec<u32> = self.steered.iter().copied().filter(|&ifindex| gone(ifindex)).collect();
        for ifindex in gone {
            self.steered.remove(&ifindex);
            self.rows
                .word32(row(ifindex, self.multiplier), offset_of!(InterfaceRow, ifindex))
                .store(0, Ordering::Release);
        }
    }

    pub(super) fn set_layers(&mut self, layers: Layers) {
        self.layers = layers;
        for ifindex in self.steered.clone() {
            self.write(ifindex);
        }
    }

    /// Writes a row word by word. If a frame arrives during the write, the program uses the old row or the new row, or
    /// accepts the frame.
    fn write(&mut self, ifindex: u32) {
        let row = row(ifindex, self.multiplier);
        let named = self.rows.word32(row, offset_of!(InterfaceRow, ifindex));
        let known = self.layers.local_macs(ifindex).filter(|(_, others)| {
            let fit = others.len() < LOCAL_MACS;
            if !fit && self.crowded.insert(ifindex) {
                tracing::warn!(
                    "interface {ifindex} has {} MAC addresses with the devices upon it: frames for other hosts are not told \
                     apart",
                    others.len() + 1
                );
            }
            fit
        });
        let Some((own, others)) = known else {
            named.store(0, Ordering::Release);
            return;
        };
        let local_macs = std::iter::once(own).chain(others).chain(std::iter::repeat(own)).map(mac_word);
        let same = named.load(Ordering::Acquire) == ifindex;
        if !same {
            named.store(0, Ordering::Release);
        }
        for (index, mac) in local_macs.take(LOCAL_MACS).enumerate() {
            let offset = offset_of!(InterfaceRow, local_macs) + index * size_of::<u64>();
            self.rows.word64(row, offset).store(mac, Ordering::Release);
        }
        named.store(ifindex, Ordering::Release);
    }

    /// The bit of a row that no attached interface has; this bit stands for packets that arrive by no attached
    /// interface. The result is 0 if there is no such row.
    fn no_way_in(&self) -> u64 {
        let taken = self.steered.iter().fold(0, |taken: u64, &ifindex| taken | 1 << row(ifindex, self.multiplier));
        1u64.checked_shl(taken.trailing_ones()).unwrap_or(0)
    }

    /// Whether packets from hosts beyond `egress` certainly arrive by no attached interface.
    fn misses(&self, egress: u32) -> bool {
        self.layers.misses(egress, self.steered.iter().copied())
    }

    /// The interfaces by which packets from hosts beyond `egress` arrive, one bit for each row. The result is 0 if
    /// these packets arrive by no attached interface.
    fn ways_in(&self, egress: u32) -> u64 {
        let related = self.steered.iter().filter(|&&ifindex| self.layers.related(ifindex, egress));
        related.fold(0, |ways, &ifindex| ways | 1 << row(ifindex, self.multiplier))
    }
}

fn row(ifindex: u32, multiplier: u32) -> usize {
    interface_row(ifindex, multiplier) as usize
}

/// The value that replaces an interface index if the backend is this machine.
pub(super) const THIS_MACHINE: u32 = 0;

/// The interfaces by which replies of `nat` and `snat` backends arrive.
#[derive(Debug, Default)]
pub(super) struct WaysIn {
    /// The egress interfaces of those next hops that are known.
    now: HashMap<BackendId, u32>,
    /// The number of backends behind each of these interfaces.
    behind: BTreeMap<u32, usize>,
    /// The former egress interfaces, and for each the time until which replies may arrive by it.
    before: HashMap<BackendId, (u32, Duration)>,
    /// The rows of backends in the active half of the return table, in ascending order of ids.
    rows: Vec<(BackendId, u32)>,
}

impl WaysIn {
    /// Records that a backend's next hop is now on interface `now`; `None`: the interface is unknown. Returns whether
    /// the interface has changed.
    pub(super) fn moved(&mut self, backend: BackendId, now: Option<u32>, at: Duration) -> bool {
        let before = match now {
            Some(now) => self.now.insert(backend, now),
            None => self.now.remove(&backend),
        };
        if before == now {
            return false;
        }
        self.count(before, now);
        self.before.extend(before.map(|before| (backend, (before, at + OVERLAP))));
        true
    }

    pub(super) fn forget(&mut self, backend: BackendId) {
        let before = self.now.remove(&backend);
        self.count(before, None);
        self.before.remove(&backend);
    }

    fn count(&mut self, before: Option<u32>, now: Option<u32>) {
        if let Some(now) = now {
            *self.behind.entry(now).or_default() += 1;
        }
        if let Some(count) = before.and_then(|before| self.behind.get_mut(&before)) {
            *count -= 1;
        }
        self.behind.retain(|_, count| *count > 0);
    }

    /// Records the positions of backends' rows in the return table.
    pub(super) fn published(&mut self, rows: impl Iterator<Item = (BackendId, u32)>) {
        self.rows = rows.collect();
        self.rows.sort_unstable();
    }

    /// Drops former interfaces whose time is over, and returns the backends concerned.
    pub(super) fn expire(&mut self, at: Duration) -> Vec<BackendId> {
        self.before.extract_if(|_, (_, until)| at >= *until).map(|(backend, _)| backend).collect()
    }

    /// The word of [`ReturnRow::interfaces`] for a backend, which is also the word for the backend's flows. If the next
    /// hop of a backend is unknown, the program still accepts replies from this backend.
    pub(super) fn word(&self, backend: BackendId, interfaces: &Interfaces) -> u64 {
        let Some(&now) = self.now.get(&backend) else { return 0 };
        if now == THIS_MACHINE {
            return interfaces.no_way_in();
        }
        let ways = interfaces.ways_in(now);
        let before = self.before.get(&backend).map_or(0, |&(before, _)| interfaces.ways_in(before));
        if ways == 0 { 0 } else { ways | before }
    }

    /// Writes the words of these backends: in the backends' rows, if they have rows, and for the backends' flows.
    pub(super) fn write(
        &self,
        backends: impl IntoIterator<Item = BackendId>,
        interfaces: &Interfaces,
        returns: &Mirrored<ReturnRow>,
        flows: &FlowMaps,
    ) {
        for backend in backends {
            let ways = self.word(backend, interfaces);
            for &(_, row) in self.rows_of(backend) {
                returns.store64(row as usize, offset_of!(ReturnRow, interfaces), ways);
            }
            flows.set_ways_in(backend, ways);
        }
    }

    /// The interface of a backend's next hop, if the interface is known.
    pub(super) fn egress(&self, backend: BackendId) -> Option<u32> {
        self.now.get(&backend).copied().filter(|&egress| egress != THIS_MACHINE)
    }

    /// The interfaces of next hops from beyond which packets certainly arrive by no attached interface.
    pub(super) fn missed(&self, interfaces: &Interfaces) -> BTreeSet<u32> {
        let egresses = self.behind.keys().copied().filter(|&egress| egress != THIS_MACHINE);
        egresses.filter(|&egress| interfaces.misses(egress)).collect()
    }

    /// All backends whose next hop is known, and all that have a row in the return table.
    pub(super) fn all(&self) -> BTreeSet<BackendId> {
        self.rows.iter().map(|(backend, _)| *backend).chain(self.now.keys().copied()).collect()
    }

    fn rows_of(&self, backend: BackendId) -> &[(BackendId, u32)] {
        let first = self.rows.partition_point(|&(of, _)| of < backend);
        let rows = self.rows.get(first..).unwrap_or_default();
        rows.split_at(rows.partition_point(|&(of, _)| of == backend)).0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn when_next_hops_move_then_the_interfaces_with_backends_behind_them_are_known() {
        let mut ways = WaysIn::default();
        let behind = |ways: &WaysIn| ways.behind.iter().map(|(&ifindex, &count)| (ifindex, count)).collect::<Vec<_>>();
        for (id, now) in [(1, Some(2)), (2, Some(2)), (3, Some(3)), (4, Some(THIS_MACHINE)), (1, Some(2)), (2, Some(3))]
        {
            ways.moved(BackendId(id), now, Duration::ZERO);
        }
        assert_eq!(behind(&ways), [(THIS_MACHINE, 1), (2, 1), (3, 2)]);
        ways.moved(BackendId(1), None, Duration::ZERO);
        ways.forget(BackendId(3));
        ways.forget(BackendId(3));
        assert_eq!(behind(&ways), [(THIS_MACHINE, 1), (3, 1)]);
        assert_eq!((ways.egress(BackendId(2)), ways.egress(BackendId(4))), (Some(3), None));
    }
}
