//! The counters of many backends, without a system call for each and away from the task that owns the controller.

use std::{
    io,
    os::fd::{AsRawFd as _, OwnedFd},
};

use anyhow::Context as _;
use balancer_common::map_types::BackendStats;
use balancer_core::io::BackendId;

/// Bytes read at once, about.
const CHUNK: usize = 1 << 20;
/// Unwanted rows that are read along rather than begun anew after.
const GAP: u16 = 32;

/// Reads counters of backends.
#[derive(Debug)]
pub struct BackendCounters {
    map: OwnedFd,
    cpus: usize,
}

/// `union bpf_attr` of the batch commands (linux/bpf.h).
#[repr(C)]
struct Batch {
    in_batch: u64,
    out_batch: u64,
    keys: u64,
    values: u64,
    count: u32,
    map_fd: u32,
    elem_flags: u64,
    flags: u64,
}

impl BackendCounters {
    pub(super) fn new(map: OwnedFd) -> anyhow::Result<Self> {
        let cpus = aya::util::nr_cpus().map_err(|(what, error)| anyhow::anyhow!("{what}: {error}"))?;
        Ok(Self { map, cpus })
    }

    /// The counters of `backends`, in their order, summed over the CPUs.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn read(&self, backends: &[BackendId]) -> anyhow::Result<Vec<BackendStats>> {
        let mut order: Vec<(u16, usize)> = backends.iter().enumerate().map(|(place, id)| (id.0, place)).collect();
        order.sort_unstable();
        let mut stats = vec![BackendStats::default(); backends.len()];
        let most = (CHUNK / (self.cpus * size_of::<BackendStats>())).max(1);
        let mut values = Vec::new();
        let mut rest = order.as_slice();
        while let Some(&(first, _)) = rest.first() {
            let mut run = 1;
            while let (Some(&(last, _)), Some(&(next, _))) = (rest.get(run - 1), rest.get(run)) {
                if next - last > GAP || usize::from(next - first) >= most {
                    break;
                }
                run += 1;
            }
            let (these, later) = rest.split_at(run);
            let last = these.last().map_or(first, |&(last, _)| last);
            self.rows(first, usize::from(last - first) + 1, &mut values).context("reading the backends' counters")?;
            for &(id, place) in these {
                let row = usize::from(id - first) * self.cpus;
                if let (Some(sum), Some(cpus)) = (stats.get_mut(place), values.get(row..row + self.cpus)) {
                    cpus.iter().for_each(|cpu| add(sum, cpu));
                }
            }
            rest = later;
        }
        Ok(stats)
    }

    /// Fills `values` with `count` rows from `first` on, each one value a CPU.
    fn rows(&self, first: u16, count: usize, values: &mut Vec<BackendStats>) -> io::Result<()> {
        const BPF_MAP_LOOKUP_BATCH: libc::c_long = 24;
        values.clear();
        values.resize(count * self.cpus, BackendStats::default());
        let mut keys = vec![0u32; count];
        // The kernel goes on after this row; row 0 is no backend's.
        let before = u32::from(first.saturating_sub(1));
        let mut after = 0u32;
        let mut batch = Batch {
            in_batch: (&raw const before) as u64,
            out_batch: (&raw mut after) as u64,
            keys: keys.as_mut_ptr() as u64,
            values: values.as_mut_ptr() as u64,
            count: count as u32,
            map_fd: self.map.as_raw_fd() as u32,
            elem_flags: 0,
            flags: 0,
        };
        // SAFETY: all pointers are to memory of the sizes that the kernel writes: `count` keys of four bytes, and for each
        // of the possible CPUs a value, whose size is a multiple of eight.
        let result = unsafe { libc::syscall(libc::SYS_bpf, BPF_MAP_LOOKUP_BATCH, &raw mut batch, size_of::<Batch>()) };
        if result < 0 {
            let error = io::Error::last_os_error();
            // The last row of the map was among them.
            if error.raw_os_error() != Some(libc::ENOENT) {
                return Err(error);
            }
        }
        if batch.count as usize != count || keys.first() != Some(&u32::from(first)) {
            return Err(io::Error::other("the kernel gave other rows than asked for"));
        }
        Ok(())
    }
}

/// Adds up counters.
pub fn add(sum: &mut BackendStats, stats: &BackendStats) {
    sum.packets += stats.packets;
    sum.bytes += stats.bytes;
    sum.connections += stats.connections;
    let counters = stats.decisions.iter().chain(&stats.moves);
    for (sum, value) in sum.decisions.iter_mut().chain(&mut sum.moves).zip(counters) {
        *sum += value;
    }
}
