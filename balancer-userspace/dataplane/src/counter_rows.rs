//! The layout of counter maps with rows for each CPU.

use std::fs;

use anyhow::Context as _;
use balancer_common::map_types::{LISTENER_COUNTERS, RULE_COUNTERS};

use super::capacity::Capacity;

pub(super) const BACKENDS: &str = "BACKEND_STATS";
pub(super) const LISTENERS: &str = "LISTENER_STATS";
const RULES: &str = "RULE_STATS";

const POSSIBLE: &str = "/sys/devices/system/cpu/possible";
const ONLINE: &str = "/sys/devices/system/cpu/online";

/// The layout of a map with many rows of counters for each CPU. CPUs without a block, and rows beyond the end of a
/// block, count in a map that all CPUs share.
///
/// The map has spare rows after its blocks; the number of spare rows is the exponent of the block size. The size of the
/// map alone therefore determines the numbers of blocks and rows, even after a controller was killed while it replaced
/// maps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct CounterRows {
    /// The highest number of a CPU that has a block, plus one.
    pub(super) blocks: u32,
    /// The number of rows in each block, a power of two.
    pub(super) rows: u32,
}

impl CounterRows {
    /// The number of rows in the whole map.
    pub(super) const fn entries(self) -> u32 {
        self.blocks.saturating_mul(self.rows).saturating_add(self.rows.trailing_zeros())
    }

    /// Derives the layout of a map from its number of rows.
    pub(super) const fn of(entries: u32) -> Self {
        // A block always has more rows than the highest exponent.
        let rows = 1 << (entries % u32::BITS);
        Self { blocks: entries / rows, rows }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct CounterMaps {
    pub(super) backends: CounterRows,
    pub(super) listeners: CounterRows,
    pub(super) rules: CounterRows,
}

impl CounterMaps {
    /// The layouts for this many CPUs that are online.
    pub(super) const fn new(capacity: &Capacity, blocks: u32) -> Self {
        Self {
            backends: CounterRows { blocks, rows: capacity.counted },
            listeners: CounterRows { blocks, rows: LISTENER_COUNTERS },
            rules: CounterRows { blocks, rows: RULE_COUNTERS },
        }
    }

    /// The layouts by the name of the map.
    pub(super) const fn all(self) -> [(&'static str, CounterRows); 3] {
        [(BACKENDS, self.backends), (LISTENERS, self.listeners), (RULES, self.rules)]
    }
}

/// The numbers of CPUs of this machine; each number is the highest CPU number plus one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Cpus {
    /// The CPUs that the machine can have.
    pub(super) possible: u32,
    /// The CPUs that are online now.
    pub(super) online: u32,
}

impl Cpus {
    /// Reads the numbers of CPUs from the kernel.
    ///
    /// # Errors
    /// Fails if the kernel's files cannot be read or have an unexpected form.
    pub(super) fn here() -> anyhow::Result<Self> {
        let possible = read(POSSIBLE)?;
        Ok(Self { possible, online: read(ONLINE)?.min(possible) })
    }
}

fn read(path: &str) -> anyhow::Result<u32> {
    let text = fs::read_to_string(path).with_context(|| format!("reading {path}"))?;
    beyond(&text).with_context(|| format!("{path} says {text:?}, which is no list of CPUs"))
}

/// Returns the last number in a list such as `0-3,8`, plus one.
fn beyond(list: &str) -> Option<u32> {
    list.trim().rsplit([',', '-']).next()?.parse::<u32>().ok()?.checked_add(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn when_the_kernel_lists_cpus_then_the_highest_number_counts() {
        for (text, cpus) in
            [("0\n", Some(1)), ("0-3\n", Some(4)), ("0-3,8-11", Some(12)), ("0,2", Some(3)), ("", None), ("0-x", None)]
        {
            assert_eq!(beyond(text), cpus, "{text:?}");
        }
    }

    #[test]
    fn when_a_map_has_a_size_then_its_cpus_and_rows_follow_from_it() {
        for blocks in (1..600).chain([8192]) {
            for rows in (10..=16).map(|exponent| 1 << exponent) {
                let made = CounterRows { blocks, rows };
                assert_eq!(CounterRows::of(made.entries()), made);
            }
        }
    }
}
