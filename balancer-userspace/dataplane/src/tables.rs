//! The live tables in the map of slots: where each table is, what it contains, and which of its slots have exceptions.

mod room;

use std::{collections::HashMap, mem::offset_of, ops::Range, sync::Arc};

use balancer_common::map_types::{LiveTable, SLOT_EXCEPTIONS, SLOT_REFILLED, SLOTS_PER_LINE, SlotLine, SlotPlace};
use balancer_control::{bits::bits, io::ServiceId};
use bytemuck::Zeroable as _;

use super::{
    grace::{Grace, GracePeriods},
    mapped::MappedArray,
    mirrored::{Grows, Mirrored},
    regions::Regions,
};

const FLAGS: usize = offset_of!(SlotLine, flags);
/// The flag [`SLOT_EXCEPTIONS`] for every slot in a line.
const EXCEPTIONS: u64 = ((1 << SLOTS_PER_LINE) - 1) * SLOT_EXCEPTIONS;

/// The live table of one service.
#[derive(Debug)]
struct Table {
    lines: Range<u32>,
    size: u32,
    slots: Arc<[u16]>,
    /// The exception flags that the controller has set, for each line. The kernel program also sets flags, for clients
    /// that a QUIC connection moves to another backend.
    own: Vec<u64>,
    /// The number of flags that are set in `own`.
    exceptions: u64,
    /// The service's row in the active half of the service map; `None`: the service is not published yet.
    row: Option<u32>,
}

impl Table {
    fn location(&self) -> LiveTable {
        LiveTable { first: self.lines.start, size: self.size }
    }

    fn set_exception(&mut self, slots: &Mirrored<SlotLine>, slot: u32, has: bool) {
        if slot >= self.size {
            return;
        }
        let SlotPlace { line, index } = self.location().place(slot);
        let bit = SLOT_EXCEPTIONS << index;
        let Some(own) = self.own.get_mut((line - self.lines.start) as usize) else { return };
        if (*own & bit != 0) != has {
            *own ^= bit;
            self.exceptions = if has { self.exceptions + 1 } else { self.exceptions - 1 };
        }
        if slots.is(line as usize, FLAGS, bit, has) {
            return;
        }
        // The program may set flags of the same line at the same time, so the change must be atomic.
        if has {
            slots.set_bits(line as usize, FLAGS, bit);
        } else {
            slots.clear_bits(line as usize, FLAGS, bit);
        }
    }
}

/// The state that, together with the table's slots, determines the lines of a new table.
struct Before<'a> {
    /// The base table, if its length equals that of the new table.
    home: Option<&'a [u16]>,
    /// The previous table, if its length equals that of the new table.
    same: Option<&'a Table>,
    /// Whether known clients of the service may be at any backend.
    anywhere: bool,
}

/// The tables of all services in the map of slots.
#[derive(Debug)]
pub(super) struct Tables {
    slots: Mirrored<SlotLine>,
    regions: Regions,
    grace_periods: Arc<GracePeriods>,
    of: HashMap<ServiceId, Table>,
}

/// The reasons why the service may have known clients when its table is written.
#[derive(Clone, Copy)]
pub(super) struct Known {
    /// Whether the service remembers clients.
    pub(super) remembers: bool,
    /// Whether an earlier controller may have left clients of the service at any backend.
    pub(super) adopted: bool,
}

/// The consequences of a swap.
pub(super) struct Swapped {
    /// The grace period after which the program reads none of the replaced tables.
    pub(super) grace: Grace,
    /// The services whose tables the swap has moved within the map, each with the grace period after which the program
    /// no longer reads the earlier lines.
    pub(super) moved: Vec<(ServiceId, Grace)>,
}

impl Tables {
    /// Makes a value without tables, for a map of `lines` lines.
    pub(super) fn new(slots: MappedArray<SlotLine>, lines: u32, grace_periods: Arc<GracePeriods>) -> Self {
        Self { slots: Mirrored::new(slots), regions: Regions::new(lines), grace_periods, of: HashMap::new() }
    }

    /// The location of a service's table in the map of slots.
    pub(super) fn location(&self, service: ServiceId) -> Option<LiveTable> {
        self.of.get(&service).map(Table::location)
    }

    /// The service's row in the active half of the service map, if the service is published.
    pub(super) fn row(&self, service: ServiceId) -> Option<u32> {
        self.of.get(&service)?.row
    }

    /// Whether a service has slots that are flagged as exceptions.
    pub(super) fn has_exceptions(&self, service: ServiceId) -> bool {
        self.of.get(&service).is_some_and(|table| table.exceptions > 0)
    }

    /// The number of slots flagged as exceptions in all tables.
    pub(super) fn exceptions(&self) -> u64 {
        self.of.values().map(|table| table.exceptions).sum()
    }

    /// Writes a new table of a service into free lines, and calls `publish` to switch the service's row to this table,
    /// if the service has a row. If the map has too few consecutive free lines, the function also moves other tables
    /// within the map, and calls `publish` for these tables.
    pub(super) fn swap(
        &mut self,
        service: ServiceId,
        table: Arc<[u16]>,
        home: Option<&[u16]>,
        Known { remembers, adopted }: Known,
        publish: &impl Fn(u32, LiveTable),
    ) -> anyhow::Result<Swapped> {
        let size = u32::try_from(table.len())?;
        anyhow::ensure!(size > 0, "a lookup table needs slots");
        let mut moved = Vec::new();
        let lines = self.make_room(service, size.div_ceil(SLOTS_PER_LINE), &mut moved, publish)?;
        let old = self.of.get(&service).filter(|_| remembers);
        let same = old.filter(|old| old.slots.len() == table.len());
        let before = Before {
            home: home.filter(|home| home.len() == table.len()),
            same,
            anywhere: same.is_none() && (old.is_some() || adopted),
        };
        let mut own = Vec::with_capacity(lines.len());
        for (index, line) in lines.clone().enumerate() {
            let value = self.line(index, &table, &before);
            own.push(value.flags & EXCEPTIONS);
            self.slots.store(line as usize, value);
        }
        let exceptions = own.iter().map(|flags| u64::from(flags.count_ones())).sum();
        let is_same = same.is_some();
        let old = self.of.remove(&service);
        let row = old.as_ref().and_then(|old| old.row);
        let new = Table { lines, size, slots: table, own, exceptions, row };
        if let Some(row) = row {
            publish(row, new.location());
        }
        // The program may have set flags of the previous table after the controller had read this table.
        if let Some(old) = old.as_ref().filter(|_| is_same) {
            self.copy_late_flags(&old.lines, &new.lines);
        }
        self.of.insert(service, new);
        let grace = self.grace_periods.begin();
        if let Some(old) = old {
            self.regions.retire(old.lines, grace);
        }
        self.restore_reserve(service, &mut moved, publish);
        Ok(Swapped { grace: moved.last().map_or(grace, |&(_, last)| last), moved })
    }

    /// Sets the exception flags that the program has set in a replaced table since the controller copied the table.
    fn copy_late_flags(&self, from: &Range<u32>, to: &Range<u32>) {
        for (before, after) in from.clone().zip(to.clone()) {
            let late = flags(&self.slots, before) & EXCEPTIONS;
            self.slots.set_bits(after as usize, FLAGS, late);
        }
    }

    /// Records the new rows of the services. Discards the tables of services that have no row, and returns these
    /// services.
    pub(super) fn published(&mut self, rows: &HashMap<ServiceId, u32>) -> Vec<ServiceId> {
        for (id, table) in &mut self.of {
            table.row = rows.get(id).copied();
        }
        self.discard_unpublished()
    }

    /// Discards the tables of services that have no row, and returns these services.
    pub(super) fn discard_unpublished(&mut self) -> Vec<ServiceId> {
        let (regions, grace_periods) = (&mut self.regions, &self.grace_periods);
        let gone = self.of.extract_if(|_, table| table.row.is_none());
        gone.map(|(id, table)| {
            regions.retire(table.lines, grace_periods.begin());
            id
        })
        .collect()
    }

    /// Writes to a larger map as well from now on.
    pub(super) fn begin(&mut self, larger: MappedArray<SlotLine>) {
        self.slots.begin(larger);
    }

    /// Flags every slot of the map, including the slots of an earlier controller's tables.
    pub(super) fn flag_everything(&self) {
        for line in 0..self.slots.len() {
            self.slots.set_bits(line, FLAGS, EXCEPTIONS);
        }
    }

    /// Flags every slot of a service's table.
    pub(super) fn flag_all(&mut self, service: ServiceId) {
        let size = self.of.get(&service).map_or(0, |table| table.size);
        (0..size).for_each(|slot| self.flag(service, slot));
    }

    pub(super) fn flag(&mut self, service: ServiceId, slot: u32) {
        if let Some(table) = self.of.get_mut(&service) {
            table.set_exception(&self.slots, slot, true);
        }
    }

    /// Clears the flags of these slots of a service.
    pub(super) fn take_back_exceptions(&mut self, service: ServiceId, slots: &[u32]) {
        if let Some(table) = self.of.get_mut(&service) {
            slots.iter().for_each(|&slot| table.set_exception(&self.slots, slot, false));
        }
    }

    /// Makes a line of the map from `table`.
    fn line(&self, index: usize, table: &[u16], &Before { home, same, anywhere }: &Before<'_>) -> SlotLine {
        let mut line = SlotLine::zeroed();
        let begin = index * SLOTS_PER_LINE as usize;
        let slots = begin..table.len().min(begin + SLOTS_PER_LINE as usize);
        let backends = &table[slots.clone()];
        let all = (1 << backends.len()) - 1;
        let refilled = home.map_or(all, |home| differing(backends, &home[slots.clone()]));
        // The known clients of a changed slot stay at their backends, and the clients of a flagged slot may be at any
        // backend.
        let moved = same.map_or(0, |old| differing(backends, &old.slots[slots]));
        let elsewhere = if anywhere { all } else { moved };
        let known = same.map(|old| flags(&self.slots, old.lines.start + index as u32));
        line.backends[..backends.len()].copy_from_slice(backends);
        line.flags = (refilled * SLOT_REFILLED) | (elsewhere * SLOT_EXCEPTIONS) | (known.unwrap_or(0) & EXCEPTIONS);
        line
    }
}

impl Grows for Tables {
    fn end(&mut self) {
        let before = self.slots.len();
        self.slots.end();
        let lines = |lines: usize| u32::try_from(lines).unwrap_or(u32::MAX);
        self.regions.add(lines(before)..lines(self.slots.len()));
    }

    fn give_up(&mut self) {
        self.slots.give_up();
    }
}

/// The slots of a line whose backend differs from the backend in `others`, as one bit for each slot. Usually no slot
/// differs.
fn differing(backends: &[u16], others: &[u16]) -> u64 {
    if backends == others { 0 } else { bits(backends.iter().zip(others), |(one, other)| one != other) }
}

/// The flags of a line.
fn flags(slots: &Mirrored<SlotLine>, line: u32) -> u64 {
    slots.bits(line as usize, FLAGS)
}
