//! Copies the connections in an earlier controller's table to a table of another size.
//!
//! The earlier controller's program opens connections in the earlier table until the new program replaces it. The
//! controller therefore copies in three passes. At the start, the controller copies all connections. Shortly before the
//! replacement, the controller blocks the empty rows of the former table, so that this table takes no more connections,
//! and copies the changes since the first pass. After the replacement, the controller copies the changes since the
//! second pass. If a client's new connection finds no row in the meantime, the client sends its SYN again after a
//! second.

use std::{
    fs, io,
    mem::offset_of,
    path::{Path, PathBuf},
    sync::atomic::{AtomicU64, Ordering},
};

use anyhow::Context as _;
use balancer_common::{
    flows::{
        FLOW_ANSWERED, FLOW_BACKEND_ENDS, FLOW_CLIENT_ENDS, FLOW_ESTABLISHED, FLOW_RESTS, FLOW_TAKEN, FlowWord, Phase,
        ReturnWord, first_bucket, home, rank, return_hash, second_bucket,
    },
    map_types::{FLOWS_PER_LINE, FlowLine, FlowRow},
};
use tracing::{info, warn};

use super::{FLOW_MAPS, FlowTable, sweep};
use crate::{
    capacity::Capacity,
    mapped::MappedArray,
    pins::{Pins, open},
    replaced::entries,
};

const PER_LINE: usize = FLOWS_PER_LINE as usize;

/// A table of flows that an earlier controller's program may still use.
pub(crate) struct FormerFlows {
    table: Source,
    pins: Vec<Renaming>,
    /// For each row of the former table, the connection that the controller copied last.
    copied: Vec<Copied>,
    /// Whether the empty rows of the former table are blocked.
    is_blocked: bool,
    is_replaced: bool,
}

/// The maps of the former table that the controller needs for copying.
struct Source {
    lines: MappedArray<FlowLine>,
    rows: MappedArray<FlowRow>,
}

/// The pin of a former map, and the pin of the map that replaces it.
struct Renaming {
    name: &'static str,
    last: PathBuf,
    new: PathBuf,
}

/// A connection that the controller has copied.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Copied {
    /// The state word that was copied; 0: no connection was copied.
    word: u64,
    /// The row of the connection in the new table.
    row: Option<u32>,
}

/// The number of connections that a pass has copied, and the number of connections, without those that have ended, for
/// which the new table had no room.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Outcome {
    copied: u64,
    no_room: u64,
}

/// The numbers of entries of the three flow maps.
type Sizes = [Option<u32>; 3];

impl FormerFlows {
    /// The pinned table, if its size differs from the size that `capacity` requires.
    ///
    /// # Errors
    /// Fails if a pin cannot be opened, renamed or removed.
    pub(crate) fn find(pins: Option<&Pins>, capacity: &Capacity) -> anyhow::Result<Option<Self>> {
        let Some(pins) = pins else { return Ok(None) };
        let renamings: Vec<Renaming> = FLOW_MAPS.into_iter().map(|name| Renaming::of(pins, name)).collect();
        let interrupted = renamings.iter().any(|one| one.new.exists());
        let there = sizes(pins)?;
        if interrupted && !is_whole(there) {
            // An earlier controller was killed while it replaced the pins.
            renamings.iter().filter(|one| one.new.exists()).try_for_each(Renaming::rename)?;
        }
        for one in &renamings {
            pins.make_anew(&one.new_name())?;
        }
        let there = sizes(pins)?;
        if there == [None; 3] {
            return Ok(None);
        }
        if !is_whole(there) {
            warn!("the table of connections is incomplete: connections of snat services are forgotten");
            FLOW_MAPS.into_iter().try_for_each(|name| pins.make_anew(name))?;
            return Ok(None);
        }
        let [lines, rows, _] = [0, 1, 2].map(|at: usize| renamings.get(at).map(|one| open(&one.last)));
        let (Some(lines), Some(rows)) = (lines, rows) else { return Ok(None) };
        let table = Source { lines: MappedArray::new(lines?)?, rows: MappedArray::new(rows?)? };
        if interrupted {
            table.unblock();
        }
        if table.lines.len() as u32 == capacity.flow_lines() {
            return Ok(None);
        }
        Ok(Some(Self { table, pins: renamings, copied: Vec::new(), is_blocked: false, is_replaced: false }))
    }

    /// The paths at which the controller must pin the new maps, with the names of these maps.
    pub(crate) fn paths(&self) -> impl Iterator<Item = (&'static str, &Path)> {
        self.pins.iter().map(|one| (one.name, one.new.as_path()))
    }

    /// Copies all connections to the new table, which no program uses yet.
    pub(crate) fn copy_to(&mut self, new: &FlowTable) {
        let (from, to) = (self.table.lines.len(), new.lines.len());
        if new.capacity() == 0 {
            return;
        }
        self.copied = vec![Copied::default(); from * PER_LINE];
        // The new table may have no room for some connections. Clients notice the loss of a connection that carries
        // data, but not of one that has ended, of which only the port still rests.
        let open = self.copy(new, |word| word.phase() == Phase::Open);
        let ended = self.copy(new, |word| matches!(word.phase(), Phase::Closing | Phase::Rests));
        let half_open = self.copy(new, |_| true);
        let copied = open.copied + ended.copied + half_open.copied;
        if from > 1 {
            info!(
                "a table of connections with {to} buckets replaces one with {from}: {copied} connections are carried over"
            );
        }
    }

    /// Blocks the empty rows of the former table and copies the rows that have changed, shortly before the program is
    /// replaced.
    pub(crate) fn block(&mut self, new: &FlowTable) {
        if self.copied.is_empty() {
            return;
        }
        self.is_blocked = true;
        let block = FlowWord::block(sweep::now());
        for word in self.table.lines.words() {
            let _taken = word.compare_exchange(0, block.0, Ordering::Relaxed, Ordering::Relaxed);
        }
        self.copy(new, |_| true);
    }

    /// Copies the rows that have changed since [`block`](Self::block), now that no program uses the former table, and
    /// replaces the pins of the former table.
    ///
    /// # Errors
    /// Fails if the file system refuses to rename a pin.
    pub(crate) fn replace(mut self, new: &FlowTable) -> anyhow::Result<()> {
        let Outcome { no_room, .. } = self.copy(new, |_| true);
        if no_room > 0 {
            warn!("{no_room} connections have no room in the new table, and are reset by their next packet");
        }
        self.is_replaced = true;
        self.pins.iter().try_for_each(Renaming::rename)
    }

    /// Copies the rows that have changed since the last copy and whose state word is `wanted`.
    fn copy(&mut self, new: &FlowTable, wanted: impl Fn(FlowWord) -> bool) -> Outcome {
        let mut outcome = Outcome::default();
        for (index, copied) in self.copied.iter_mut().enumerate() {
            let now = self.table.word(index);
            if now.0 == copied.word || !wanted(now) {
                continue;
            }
            if let Some(row) = copied.row.filter(|_| now.0 != 0 && FlowWord(copied.word).tag() == now.tag()) {
                new.continues(row as usize, copied.word, now, self.table.numbers(index));
                copied.word = now.0;
                continue;
            }
            let row = match self.table.flow(index, now) {
                Read::Flow(row) => Some(row),
                Read::Empty => None,
                Read::Changes => continue,
            };
            if let Some(former) = copied.row {
                new.ends(former as usize, copied.word);
            }
            *copied = Copied::default();
            let Some(row) = row else { continue };
            match new.put(&row, now) {
                Some(row) => {
                    *copied = Copied { word: now.0, row: Some(row) };
                    outcome.copied += 1;
                }
                // The next pass tries again: the port may be that of a connection that has just ended.
                None if matches!(now.phase(), Phase::Closing | Phase::Rests) => {}
                None => outcome.no_room += 1,
            }
        }
        outcome
    }
}

impl Drop for FormerFlows {
    fn drop(&mut self) {
        if self.is_replaced {
            return;
        }
        // If the start fails, the controller makes the blocked rows usable again. The next start removes any pins of
        // new maps that remain.
        if self.is_blocked {
            self.table.unblock();
        }
        for one in &self.pins {
            let _left = fs::remove_file(&one.new);
        }
    }
}

/// The content of a row, as a reader finds it.
enum Read {
    Flow(FlowRow),
    Empty,
    /// The program is writing the row at the moment.
    Changes,
}

impl Source {
    fn word(&self, index: usize) -> FlowWord {
        let word = FlowWord(self.lines.words()[index].load(Ordering::Acquire));
        if word.is_block() { FlowWord::EMPTY } else { word }
    }

    /// The sequence numbers in a row, as one word.
    fn numbers(&self, index: usize) -> u64 {
        self.rows.word64(index, offset_of!(FlowRow, numbers)).load(Ordering::Relaxed)
    }

    /// Reads a row whose state word is `word`.
    fn flow(&self, index: usize, word: FlowWord) -> Read {
        if word == FlowWord::EMPTY {
            return Read::Empty;
        }
        let row = self.rows.load(index);
        // The program changes the tag of a row before it writes the row.
        let is_of = word.tag() == (row.ends >> 32) as u32 && self.word(index).tag() == word.tag();
        if is_of { Read::Flow(row) } else { Read::Changes }
    }

    fn unblock(&self) {
        for word in self.lines.words() {
            let there = word.load(Ordering::Relaxed);
            if FlowWord(there).is_block() {
                let _changed = word.compare_exchange(there, 0, Ordering::Relaxed, Ordering::Relaxed);
            }
        }
    }
}

impl Renaming {
    fn of(pins: &Pins, name: &'static str) -> Self {
        Self { name, last: pins.map(name), new: pins.map(&new_name(name)) }
    }

    fn new_name(&self) -> String {
        new_name(self.name)
    }

    fn rename(&self) -> anyhow::Result<()> {
        match fs::rename(&self.new, &self.last) {
            // The controller has removed all pins, because the data path is not to outlive it.
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            done => done.with_context(|| format!("replacing the pinned map {}", self.last.display())),
        }
    }
}

fn new_name(name: &str) -> String {
    format!("NEW-{name}")
}

/// The numbers of entries of the pinned maps.
fn sizes(pins: &Pins) -> anyhow::Result<Sizes> {
    let [lines, rows, returns] = FLOW_MAPS.map(|name| entries(pins, name));
    Ok([lines?, rows?, returns?])
}

/// Whether the maps belong to the same table.
fn is_whole(sizes: Sizes) -> bool {
    match sizes {
        [Some(lines), Some(rows), Some(returns)] => {
            rows == lines.saturating_mul(FLOWS_PER_LINE) && returns == lines.saturating_mul(Capacity::RETURNS_PER_LINE)
        }
        _ => false,
    }
}

impl FlowTable {
    /// Puts a connection into an empty row, in the same way as the kernel program. `None`: the table has no room for
    /// the connection.
    fn put(&self, row: &FlowRow, word: FlowWord) -> Option<u32> {
        let index = self.take_row(row.ends, word)?;
        let Some(place) = self.take_return(row, index) else {
            self.word(index).store(0, Ordering::Release);
            return None;
        };
        let row = FlowRow { returns: place as u32, ..*row };
        let words = self.rows.words().chunks_exact(size_of::<FlowRow>() / 8).nth(index).unwrap_or_default();
        for (there, bytes) in words.iter().zip(bytemuck::bytes_of(&row).chunks_exact(8)) {
            let mut word = [0; 8];
            word.copy_from_slice(bytes);
            there.store(u64::from_ne_bytes(word), Ordering::Relaxed);
        }
        self.word(index).store(word.0, Ordering::Release);
        u32::try_from(index).ok()
    }

    /// Takes an empty row of the connection's two buckets; prefers the first bucket if more than half of it is empty,
    /// and in this bucket the row at which lookups look first. The kernel program does not find this row for packets
    /// yet.
    fn take_row(&self, ends: u64, word: FlowWord) -> Option<usize> {
        const ENOUGH: usize = PER_LINE / 2 + 1;
        let buckets = u32::try_from(self.lines.len()).ok()?;
        let home = home(word.tag());
        let rows = |bucket: u32| {
            let places = (0..FLOWS_PER_LINE).rev().map(move |number| rank(home, number) as usize);
            places.map(move |place| bucket as usize * PER_LINE + place)
        };
        let is_empty = |row: &usize| self.word(*row).load(Ordering::Relaxed) == 0;
        let both = [first_bucket(ends, buckets), second_bucket(ends, buckets)];
        let [one, other] = both.map(|bucket| rows(bucket).filter(is_empty).count());
        let [first, second] = if one >= ENOUGH || one >= other { both } else { [both[1], both[0]] };
        let taken = FlowWord::new(!word.tag(), FLOW_TAKEN | FLOW_RESTS, word.seen());
        rows(first)
            .chain(rows(second))
            .find(|&row| self.word(row).compare_exchange(0, taken.0, Ordering::AcqRel, Ordering::Relaxed).is_ok())
    }

    /// Takes an entry in the index of replies for a connection. `None`: another connection has the address and port, or
    /// the index has no room.
    fn take_return(&self, row: &FlowRow, index: usize) -> Option<usize> {
        let ends = u32::from(row.backend_port) | u32::from(row.pool_port) << 16;
        let hash = return_hash(&row.pool, &row.backend, ends, row.protocol);
        let tag = (hash >> 32) as u32;
        let begin = first_bucket(hash, u32::try_from(self.returns.len()).ok()?) as usize * PER_LINE;
        let places = self.returns.words().get(begin..begin + PER_LINE)?;
        let has_tag = |word: &AtomicU64| {
            let there = word.load(Ordering::Acquire);
            there != 0 && ReturnWord(there).tag() == tag
        };
        if places.iter().any(has_tag) {
            return None;
        }
        let entry = ReturnWord::new(tag, u32::try_from(index).ok()?);
        let free = |word: &AtomicU64| word.compare_exchange(0, entry.0, Ordering::AcqRel, Ordering::Relaxed).is_ok();
        let place = places.iter().position(free)?;
        if places.iter().filter(|word| has_tag(word)).count() > 1 {
            // In the meantime, the program has taken the same address and port for another connection.
            let _ours = places[place].compare_exchange(entry.0, 0, Ordering::AcqRel, Ordering::Relaxed);
            return None;
        }
        Some(begin + place)
    }

    /// Updates the connection in `row`; it was copied when its state word was `was`, and in the former table its state
    /// word is `now`, with these sequence numbers.
    fn continues(&self, row: usize, was: u64, now: FlowWord, numbers: u64) {
        const SAID: u8 = FLOW_ANSWERED | FLOW_ESTABLISHED | FLOW_CLIENT_ENDS | FLOW_BACKEND_ENDS;
        let _kept = self.word(row).fetch_update(Ordering::AcqRel, Ordering::Acquire, |there| {
            let there = FlowWord(there);
            if there.0 == was {
                self.rows.word64(row, offset_of!(FlowRow, numbers)).store(numbers, Ordering::Relaxed);
                return Some(now.0);
            }
            // The old and the new program have changed the connection in their tables.
            let is_same = there.is_found_by(now.tag());
            is_same.then(|| there.with(there.state() | now.state() & SAID, there.seen()).0)
        });
    }

    /// Removes the connection in `row` after the former program has ended it, unless the new program has seen more
    /// packets of it.
    fn ends(&self, row: usize, was: u64) {
        let _continued = self.give_up(row, FlowWord(was), FlowWord(was).seen());
    }
}

#[cfg(test)]
#[path = "former_test.rs"]
mod tests;
