//! The table in which the kernel program records connections that clients make to the own address of a server on this
//! machine.

use std::sync::atomic::Ordering;

use anyhow::Context as _;
use aya::maps::MapData;
use balancer_common::{direct::KEY_LINE, map_types::DirectLine};

use super::mapped::MappedArray;

/// The name of the table's map.
pub(super) const DIRECT: &str = "DIRECT";

/// Draws the key of a new table. A table that an earlier controller has left keeps its key, because the hashes of its
/// connections depend on the key.
///
/// # Errors
/// Fails if the kernel refuses the mapping, or provides no random numbers.
pub(super) fn prepare(map: MapData) -> anyhow::Result<()> {
    let lines = MappedArray::<DirectLine>::new(map)?;
    for offset in [0, size_of::<u64>()] {
        let word = lines.word64(KEY_LINE as usize, offset);
        if word.load(Ordering::Relaxed) == 0 {
            let drawn = getrandom::u64().context("drawing the key of the table of direct connections")?;
            word.store(drawn, Ordering::Release);
        }
    }
    Ok(())
}
