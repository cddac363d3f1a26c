//! Counters that the kernel program updates on each CPU; a read adds up the values of all CPUs.

use std::{
    collections::{BTreeSet, HashMap, HashSet},
    mem::offset_of,
    sync::Arc,
};

use anyhow::{Context as _, anyhow};
use aya::{
    Ebpf, Pod,
    maps::{MapData, PerCpuArray, PerCpuValues},
};
use balancer_common::{
    map_types::{
        BackendStats, DropStats, InterfaceStats, LISTENER_COUNTERS, ListenerStats, MAX_INTERFACES, MemoryStats,
        ReplyStats, SampleStats, ShareStats, interface_row,
    },
    verdict::Verdict,
};
use balancer_control::io::{BackendId, ListenerId, ServiceId};

use super::{
    attach::Attachment,
    backend_counters::BackendCounters,
    cpu_rows::CpuRows,
    mapped::MappedArray,
    mirrored::{Grows, Mirrored},
    object::take,
};

/// All counters except those of rules, which are in [`super::rules`].
pub(super) struct Counters {
    interfaces: PerCpuArray<MapData, InterfaceStats>,
    backends: Arc<BackendCounters>,
    listeners: CpuRows<ListenerStats>,
    drops: PerCpuArray<MapData, DropStats>,
    memory: PerCpuArray<MapData, MemoryStats>,
    samples: PerCpuArray<MapData, SampleStats>,
    replies: PerCpuArray<MapData, ReplyStats>,
    shares: Mirrored<ShareStats>,
    /// The services to which the counters of each id belong.
    sharing: HashSet<ServiceId>,
    /// The backends to which the counters of each id belong, so that no counts of an earlier backend with the same id
    /// remain.
    counted: HashSet<BackendId>,
    /// The listeners to which the counters of each id belong.
    listening: HashSet<ListenerId>,
    interface_multiplier: u32,
    /// The lists [`Attachment::counted`], by the index of the interface.
    parts: HashMap<u32, BTreeSet<u32>>,
}

impl Counters {
    /// Opens the counter maps, with rows for this many backends on each CPU; `interface_multiplier` is the multiplier
    /// for [`interface_row`].
    pub(super) fn new(ebpf: &mut Ebpf, backends: u32, interface_multiplier: u32) -> anyhow::Result<Self> {
        Ok(Self {
            interfaces: per_cpu(ebpf, "INTERFACE_STATS")?,
            backends: Arc::new(BackendCounters::new(CpuRows::take(
                ebpf,
                "BACKEND_STATS",
                backends,
                "SHARED_BACKENDS",
            )?)),
            listeners: CpuRows::take(ebpf, "LISTENER_STATS", LISTENER_COUNTERS, "SHARED_LISTENERS")?,
            drops: per_cpu(ebpf, "DROP_STATS")?,
            memory: per_cpu(ebpf, "MEMORY_STATS")?,
            samples: per_cpu(ebpf, "SAMPLE_STATS")?,
            replies: per_cpu(ebpf, "REPLY_STATS")?,
            shares: Mirrored::new(MappedArray::new(take(ebpf, "SHARE_STATS")?)?),
            sharing: HashSet::new(),
            counted: HashSet::new(),
            listening: HashSet::new(),
            interface_multiplier,
            parts: HashMap::new(),
        })
    }

    pub(super) const fn interface_multiplier(&self) -> u32 {
        self.interface_multiplier
    }

    /// Clears the counters of interfaces, because the interfaces now have other rows.
    pub(super) fn forget_interfaces(&mut self) -> anyhow::Result<()> {
        for row in 0..MAX_INTERFACES {
            let zero = PerCpuValues::try_from(vec![InterfaceStats::default(); cpu_count()?])?;
            self.interfaces.set(row, zero, 0).context("clearing the interfaces' counters")?;
        }
        Ok(())
    }

    /// Continues the counters of a backend that had the same id under an earlier controller.
    pub(super) fn adopt(&mut self, id: BackendId) {
        self.counted.insert(id);
    }

    /// Starts the counters of a backend; they start from zero if another backend had the same id. Returns whether
    /// another backend had the same id.
    pub(super) fn begin(&mut self, id: BackendId) -> bool {
        let begins = self.counted.insert(id);
        if begins {
            self.backends.clear(id);
        }
        begins
    }

    /// Continues the counters of a listener that had the same id under an earlier controller.
    pub(super) fn adopt_listener(&mut self, id: ListenerId) {
        self.listening.insert(id);
    }

    /// Counts packets for exactly these listeners; the counters of new listeners start from zero.
    pub(super) fn listen(&mut self, ids: HashSet<ListenerId>) {
        for id in ids.difference(&self.listening) {
            self.listeners.clear(u32::from(id.0));
        }
        self.listening = ids;
    }

    pub(super) fn listener(&self, id: ListenerId) -> ListenerStats {
        self.listeners.read(u32::from(id.0)).fold(ListenerStats::default(), |sum, cpu| ListenerStats {
            packets: sum.packets + cpu.packets,
            connections: sum.connections + cpu.connections,
        })
    }

    /// Counts packets for exactly these services; the counters of new services start from zero.
    pub(super) fn share(&mut self, ids: HashSet<ServiceId>) {
        for id in ids.difference(&self.sharing).filter(|id| usize::from(id.0) < self.shares.len()) {
            for offset in [offset_of!(ShareStats, unsteered), offset_of!(ShareStats, host_connections)] {
                self.shares.store64(usize::from(id.0), offset, 0);
            }
        }
        self.sharing = ids;
    }

    /// The counters of a service's packets that passed to the host.
    pub(super) fn shared(&self, id: ServiceId) -> ShareStats {
        let place = usize::from(id.0);
        if place >= self.shares.len() {
            return ShareStats::default();
        }
        self.shares.load(place)
    }

    /// Counts the packets of services in a larger map as well from now on.
    pub(super) fn begin_growth(&mut self, shares: MappedArray<ShareStats>) {
        self.shares.begin_counting(shares);
    }

    /// Releases the counters of a backend's id.
    pub(super) fn end(&mut self, id: BackendId) {
        self.counted.remove(&id);
    }

    pub(super) fn backend(&self, id: BackendId) -> BackendStats {
        self.backends.read(id)
    }

    pub(super) fn many_backends(&self) -> Arc<BackendCounters> {
        Arc::clone(&self.backends)
    }

    /// Records the interfaces to which the program is attached.
    pub(super) fn count_by_parts(&mut self, attached: &[Attachment]) {
        self.parts = attached.iter().map(|attached| (attached.ifindex, attached.counted.clone())).collect();
    }

    /// The counters of an interface, including the counters of its members.
    pub(super) fn interface(&self, ifindex: u32) -> anyhow::Result<InterfaceStats> {
        let parts = self.parts.get(&ifindex).into_iter().flatten().copied();
        let rows: BTreeSet<u32> =
            parts.chain([ifindex]).map(|ifindex| interface_row(ifindex, self.interface_multiplier)).collect();
        let mut sum = InterfaceStats::default();
        for row in rows {
            let cpus = self.interfaces.get(&row, 0).context("reading an interface's counters")?;
            cpus.iter().for_each(|cpu| add(&mut sum.verdicts, &cpu.verdicts));
        }
        // The program counts a packet to a backend that is this machine twice: as passed and as local.
        let local = sum.verdicts[Verdict::Local.index()];
        let passed = &mut sum.verdicts[Verdict::Pass.index()];
        *passed = passed.saturating_sub(local);
        Ok(sum)
    }

    pub(super) fn memory(&self) -> anyhow::Result<MemoryStats> {
        let cpus = self.memory.get(&0, 0).context("reading the counters of the client table")?;
        Ok(cpus.iter().fold(MemoryStats::default(), |mut sum, cpu| {
            sum.inserted += cpu.inserted;
            sum.evicted += cpu.evicted;
            sum.full += cpu.full;
            sum.limited += cpu.limited;
            sum
        }))
    }

    pub(super) fn samples(&self) -> anyhow::Result<SampleStats> {
        let cpus = self.samples.get(&0, 0).context("reading the counters of samples")?;
        Ok(cpus.iter().fold(SampleStats::default(), |sum, cpu| SampleStats {
            sent: sum.sent + cpu.sent,
            lost: sum.lost + cpu.lost,
        }))
    }

    pub(super) fn replies(&self) -> anyhow::Result<ReplyStats> {
        let cpus = self.replies.get(&0, 0).context("reading the counters of answered packets")?;
        Ok(cpus.iter().fold(ReplyStats::default(), |sum, cpu| ReplyStats {
            echo: sum.echo + cpu.echo,
            too_big: sum.too_big + cpu.too_big,
            fragments_not_remembered: sum.fragments_not_remembered + cpu.fragments_not_remembered,
            rejected: sum.rejected + cpu.rejected,
        }))
    }

    pub(super) fn drops(&self) -> anyhow::Result<DropStats> {
        let cpus = self.drops.get(&0, 0).context("reading the counters of dropped packets")?;
        Ok(cpus.iter().fold(DropStats::default(), |mut sum, cpu| {
            add(&mut sum.reasons, &cpu.reasons);
            sum
        }))
    }
}

impl Grows for Counters {
    fn end(&mut self) {
        self.shares.add_up();
        self.shares.end();
    }

    fn give_up(&mut self) {
        self.shares.give_up();
    }
}

fn add<const N: usize>(sum: &mut [u64; N], values: &[u64; N]) {
    for (sum, value) in sum.iter_mut().zip(values) {
        *sum += value;
    }
}

pub(super) fn per_cpu<T: Pod>(ebpf: &mut Ebpf, name: &str) -> anyhow::Result<PerCpuArray<MapData, T>> {
    let map = ebpf.take_map(name).with_context(|| format!("the kernel object holds no map {name}"))?;
    Ok(map.try_into()?)
}

pub(super) fn cpu_count() -> anyhow::Result<usize> {
    aya::util::nr_cpus().map_err(|(what, error)| anyhow!("counting the CPUs ({what}): {error}"))
}

/// Chooses a multiplier for [`interface_row`] that gives each interface a row of its own. If the previous multiplier
/// still does so, the function keeps this multiplier. If possible, a new multiplier also gives rows to the interfaces
/// in `others`, which may be attached later.
pub(super) fn interface_multiplier(ifindexes: &[u32], others: &[u32], before: Option<u32>) -> anyhow::Result<u32> {
    // The candidates are odd multiples of the golden ratio, that is, Knuth's multiplicative hashing with different
    // constants.
    let candidates = || (0..10_000u32).map(|attempt| 0x9e37_79b9u32.wrapping_mul(2 * attempt + 1));
    let all: HashSet<u32> = ifindexes.iter().chain(others).copied().collect();
    let all: Vec<u32> = all.into_iter().collect();
    let tells_apart = |ifindexes: &[u32], multiplier: u32| {
        let mut rows = HashSet::new();
        ifindexes.iter().all(|&ifindex| rows.insert(interface_row(ifindex, multiplier)))
    };
    let required = |multiplier: &u32| tells_apart(ifindexes, *multiplier);
    before
        .into_iter()
        .find(required)
        .or_else(|| candidates().find(|&multiplier| tells_apart(&all, multiplier)))
        .or_else(|| candidates().find(required))
        .with_context(|| format!("more than {} interfaces, or too many to tell apart", MAX_INTERFACES / 4))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn when_interfaces_may_be_attached_later_then_they_have_rows_of_their_own() {
        let others: Vec<u32> = (1..=20).map(|number| number * number).collect();
        let multiplier = interface_multiplier(&[2, 3], &others, None).unwrap();
        let rows: HashSet<u32> =
            others.iter().chain(&[2, 3]).map(|&ifindex| interface_row(ifindex, multiplier)).collect();
        assert_eq!(rows.len(), 22);
        // The machine has more interfaces than the map has rows, so only the required interfaces get rows of their own.
        let many: Vec<u32> = (1..=1000).collect();
        let multiplier = interface_multiplier(&[7, 700], &many, None).unwrap();
        assert_ne!(interface_row(7, multiplier), interface_row(700, multiplier));
        // With the same multiplier, the counters stay valid.
        assert_eq!(interface_multiplier(&[2, 3], &others, Some(0x9e37_79b9)).unwrap(), 0x9e37_79b9);
    }
}
