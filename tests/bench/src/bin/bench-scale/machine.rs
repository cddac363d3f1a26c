//! Measures the memory and the BPF maps of a process.

use std::{collections::BTreeMap, fs, str::FromStr};

use anyhow::{Context as _, Result};

/// Returns the process's resident private memory in bytes, without the maps that the process shares with the kernel.
pub(super) fn resident(pid: u32) -> Result<u64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:")).context("no RssAnon")?;
    let kibibytes: u64 = line.trim().trim_end_matches(" kB").parse().context("RssAnon is no number")?;
    Ok(kibibytes * 1024)
}

/// Returns the kernel's memory for the BPF maps that the process has open, in bytes.
pub(super) fn maps(pid: u32) -> Result<u64> {
    let maps: BTreeMap<u32, u64> =
        descriptors(pid)?.filter_map(|text| Some((number(&text, "map_id")?, number(&text, "memlock")?))).collect();
    Ok(maps.values().sum())
}

/// Returns the ids of the BPF maps that the process has open. The same id may occur more than once.
pub(super) fn map_ids(pid: u32) -> Result<impl Iterator<Item = u32>> {
    Ok(descriptors(pid)?.filter_map(|text| number(&text, "map_id")))
}

/// Returns the kernel's description of each open file descriptor.
fn descriptors(pid: u32) -> Result<impl Iterator<Item = String>> {
    Ok(fs::read_dir(format!("/proc/{pid}/fdinfo"))?.flatten().filter_map(|entry| fs::read_to_string(entry.path()).ok()))
}

fn number<T: FromStr>(text: &str, key: &str) -> Option<T> {
    text.lines().find_map(|line| line.strip_prefix(key))?.trim_start_matches(':').trim().parse().ok()
}
