//! How many rows of counters there are, for how many CPUs.

use std::fs;

use anyhow::Context as _;
use balancer_common::map_types::{LISTENER_COUNTERS, RULE_COUNTERS};

use super::capacity::Capacity;

pub(super) const BACKENDS: &str = "BACKEND_STATS";
pub(super) const LISTENERS: &str = "LISTENER_STATS";
const RULES: &str = "RULE_STATS";

const POSSIBLE: &str = "/sys/devices/system/cpu/possible";
const ONLINE: &str = "/sys/devices/system/cpu/online";

/// How a map with many rows of counters for each CPU is laid out. CPUs beyond and rows beyond count in a map that all CPUs
/// share.
///
/// A map is as many rows longer than its blocks as the exponent of their rows says: so the size alone tells both, also
/// where a controller was killed while it replaced maps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct CounterRows {
    /// One more than the greatest number of a CPU that has a block.
    pub(super) blocks: u32,
    /// Rows of each block: a power of two.
    pub(super) rows: u32,
}

impl CounterRows {
    /// Rows of the map.
    pub(super) const fn entries(self) -> u32 {
        self.blocks.saturating_mul(self.rows).saturating_add(self.rows.trailing_zeros())
    }

    /// Derives the layout of a map with so many rows. Earlier versions made maps without rows to spare, for all
    /// `possible` CPUs.
    pub(super) const fn of(entries: u32, possible: u32) -> Self {
        // Blocks have more rows than this.
        const EXPONENTS: u32 = 64;
        let exponent = entries % EXPONENTS;
        match (exponent, 1u32.checked_shl(exponent)) {
            (1.., Some(rows)) => Self { blocks: entries / rows, rows },
            _ => Self { blocks: possible, rows: entries / possible },
        }
    }
}

/// How many rows the maps of counters have for each CPU.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct CounterMaps {
    pub(super) backends: CounterRows,
    pub(super) listeners: CounterRows,
    pub(super) rules: CounterRows,
}

impl CounterMaps {
    /// For so many CPUs that are online.
    pub(super) const fn new(capacity: &Capacity, blocks: u32) -> Self {
        Self {
            backends: CounterRows { blocks, rows: capacity.counted },
            listeners: CounterRows { blocks, rows: LISTENER_COUNTERS },
            rules: CounterRows { blocks, rows: RULE_COUNTERS },
        }
    }

    /// By the names of the maps.
    pub(super) const fn all(self) -> [(&'static str, CounterRows); 3] {
        [(BACKENDS, self.backends), (LISTENERS, self.listeners), (RULES, self.rules)]
    }
}

/// CPUs of this machine, each one more than the greatest number of one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Cpus {
    /// That it can have.
    pub(super) possible: u32,
    /// That it has now.
    pub(super) online: u32,
}

impl Cpus {
    /// # Errors
    /// When the kernel does not say, or not as expected.
    pub(super) fn here() -> anyhow::Result<Self> {
        let possible = read(POSSIBLE)?;
        Ok(Self { possible, online: read(ONLINE)?.min(possible) })
    }
}

fn read(path: &str) -> anyhow::Result<u32> {
    let text = fs::read_to_string(path).with_context(|| format!("reading {path}"))?;
    beyond(&text).with_context(|| format!("{path} says {text:?}, which is no list of CPUs"))
}

/// Returns the last number of a list such as `0-3,8`, plus one.
fn beyond(list: &str) -> Option<u32> {
    list.trim().rsplit([',', '-']).next()?.parse::<u32>().ok()?.checked_add(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cpus_are_counted_by_the_greatest() {
        for (text, cpus) in
            [("0\n", Some(1)), ("0-3\n", Some(4)), ("0-3,8-11", Some(12)), ("0,2", Some(3)), ("", None), ("0-x", None)]
        {
            assert_eq!(beyond(text), cpus, "{text:?}");
        }
    }

    #[test]
    fn the_size_of_a_map_says_for_how_many_cpus_it_has_how_many_rows() {
        for blocks in (1..600).chain([8192]) {
            for rows in (10..=16).map(|exponent| 1 << exponent) {
                let made = CounterRows { blocks, rows };
                assert_eq!(CounterRows::of(made.entries(), 8192), made);
            }
        }
        // Made by an earlier version.
        assert_eq!(CounterRows::of(128 * 65_536, 128), CounterRows { blocks: 128, rows: 65_536 });
        assert_eq!(CounterRows::of(3 * 16_384, 3), CounterRows { blocks: 3, rows: 16_384 });
    }
}
