//! The writer of the default next hops, which the kernel program uses instead of asking the kernel.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use anyhow::Context as _;
use aya::Ebpf;
use balancer_common::map_types::{
    DefaultHopRow, EXCLUDED_HERE, EXCLUDED_OF_ROW, EXCLUDED_ROWS, ExcludedPrefix, ExcludedRow, FAMILY_V4, FAMILY_V6,
    default_hop_header, default_hop_row,
};
use balancer_config::listeners::Family;
use balancer_control::default_hop::DefaultHop;
use bytemuck::Zeroable as _;
use nix::time::{ClockId, clock_gettime};

use super::{mapped::MappedArray, object::take};

type Row = [u64; 8];

/// The word of the header that says until when a next hop is valid.
const UNTIL: usize = 0;

/// The kernel's coarse monotonic clock, by which the program compares how long a next hop is valid.
///
/// # Errors
/// Fails if the kernel refuses the clock.
pub fn coarse_now() -> anyhow::Result<Duration> {
    let now = clock_gettime(ClockId::CLOCK_MONOTONIC_COARSE).context("reading the coarse monotonic clock")?;
    Ok(now.into())
}

/// Publishes a default next hop for each family.
#[derive(Debug)]
pub struct DefaultHops {
    rows: MappedArray<Row>,
    /// For each family: the form that the header has named last.
    forms: [u32; 2],
    replies: Arc<AtomicBool>,
}

impl DefaultHops {
    pub(super) fn new(ebpf: &mut Ebpf, replies: Arc<AtomicBool>) -> anyhow::Result<Self> {
        let rows = MappedArray::new(take(ebpf, "NEXT_HOP_CACHE")?).context("the map NEXT_HOP_CACHE")?;
        Ok(Self { rows, forms: [0; 2], replies })
    }

    /// Whether the program sends replies to clients, and so uses default next hops.
    #[must_use]
    pub fn are_needed(&self) -> bool {
        self.replies.load(Ordering::Acquire)
    }

    /// Publishes a next hop that is valid until the time `until` of the coarse clock. Before the call, the family's
    /// former next hop must have been withdrawn for so long that no packet still uses the next hop before that.
    pub fn publish(&mut self, family: Family, hop: &DefaultHop, until: Duration) {
        let number = number_of(family);
        let header = default_hop_header(number) as usize;
        let form = self.forms[header] ^ 1;
        self.forms[header] = form;
        let first = default_hop_row(number, form) as usize;
        let (here, further) = laid_out(&hop.excluded);
        let row = DefaultHopRow {
            ingresses: hop.ingresses,
            excluded: here,
            further: further.len() as u32,
            egress: hop.ifindex,
            source_mac: hop.source_mac,
            destination_mac: hop.destination_mac,
            mtu: hop.mtu,
            ..DefaultHopRow::zeroed()
        };
        self.write(first, bytemuck::cast(row));
        for (row, number) in further.into_iter().zip(first + 1..) {
            self.write(number, bytemuck::cast(row));
        }
        self.renew(family, until);
    }

    /// Extends the validity of the published next hop.
    pub fn renew(&self, family: Family, until: Duration) {
        let header = default_hop_header(number_of(family)) as usize;
        let until = u64::try_from(until.as_nanos()).unwrap_or(u64::MAX) & !1 | u64::from(self.forms[header]);
        self.rows.word64(header, UNTIL).store(until, Ordering::Release);
    }

    /// Makes the program ask the kernel.
    pub fn withdraw(&self, family: Family) {
        let header = default_hop_header(number_of(family)) as usize;
        self.rows.word64(header, UNTIL).store(0, Ordering::Release);
    }

    fn write(&self, row: usize, words: Row) {
        for (word, place) in words.into_iter().zip((0..).step_by(8)) {
            self.rows.word64(row, place).store(word, Ordering::Relaxed);
        }
    }
}

impl Drop for DefaultHops {
    fn drop(&mut self) {
        [Family::V4, Family::V6].into_iter().for_each(|family| self.withdraw(family));
    }
}

/// Distributes excluded prefixes over the rows.
fn laid_out(excluded: &[ExcludedPrefix]) -> ([ExcludedPrefix; EXCLUDED_HERE], Vec<ExcludedRow>) {
    let at = |place: usize| excluded.get(place).copied().unwrap_or(ExcludedPrefix::UNUSED);
    let here = std::array::from_fn(at);
    let rows = excluded.len().saturating_sub(EXCLUDED_HERE).div_ceil(EXCLUDED_OF_ROW).min(EXCLUDED_ROWS);
    let further = (0..rows).map(|row| {
        let first = EXCLUDED_HERE + row * EXCLUDED_OF_ROW;
        ExcludedRow { prefixes: std::array::from_fn(|place| at(first + place)) }
    });
    (here, further.collect())
}

const fn number_of(family: Family) -> u8 {
    match family {
        Family::V4 => FAMILY_V4,
        Family::V6 => FAMILY_V6,
    }
}
