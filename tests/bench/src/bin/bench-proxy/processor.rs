//! Measures the processor time of the benchmark's process, whose threads are the clients and servers; of the process
//! between clients and servers; and of the kernel threads that process packets.

use std::{fs, time::Duration};

use anyhow::Result;
use balancer_bench::processor_time;
use nix::time::{ClockId, clock_gettime};

/// An explanation of the counted processor time, for readers of the results.
pub(crate) const COUNTED: &str = "processor time is that of clients, servers, what is in the middle and ksoftirqd, by the \
    kernel's clocks of processes; softirqs count where they run";

/// Returns the processor time of all threads that serve connections. `middle` is the process between clients and
/// servers, if there is one.
pub(crate) fn used(middle: Option<u32>) -> Result<Duration> {
    let mut used = Duration::from(clock_gettime(ClockId::CLOCK_PROCESS_CPUTIME_ID)?);
    let middle = middle.map_or_else(Vec::new, with_children);
    for pid in middle.into_iter().chain(kernel_threads()?) {
        used += processor_time::of(pid)?;
    }
    Ok(used)
}

/// Returns the ids of a process and of all its descendants.
fn with_children(pid: u32) -> Vec<u32> {
    let path = format!("/proc/{pid}/task/{pid}/children");
    let children = fs::read_to_string(path).unwrap_or_default();
    let children = children.split_whitespace().filter_map(|word| word.parse().ok());
    std::iter::once(pid).chain(children.flat_map(with_children)).collect()
}

/// Returns the kernel threads that handle softirqs under load.
fn kernel_threads() -> Result<Vec<u32>> {
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc")? {
        let entry = entry?;
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
        let name = fs::read_to_string(entry.path().join("comm"));
        if name.is_ok_and(|name| name.starts_with("ksoftirqd/")) {
            found.push(pid);
        }
    }
    Ok(found)
}
