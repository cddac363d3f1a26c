//! The live tables in the map of slots: where each lies, what is in it, and which of its slots have exceptions.

use std::{
    collections::HashMap,
    ops::Range,
    sync::{Arc, atomic::Ordering},
};

use anyhow::Context as _;
use balancer_common::map_types::{LiveTable, SLOT_EXCEPTIONS, SLOT_REFILLED, SLOTS_PER_LINE, SlotLine, TableSlot};
use balancer_core::io::ServiceId;
use bytemuck::Zeroable as _;

use super::{
    grace::{Grace, GracePeriods},
    mapped::MappedArray,
    regions::Regions,
};

/// [`SLOT_EXCEPTIONS`] as it is kept here.
const EXCEPTIONS: u8 = SLOT_EXCEPTIONS as u8;
/// [`SLOT_REFILLED`] as it is kept here.
const REFILLED: u8 = SLOT_REFILLED as u8;

const _: () = assert!((SLOT_EXCEPTIONS | SLOT_REFILLED) <= u8::MAX as u16);

/// The live table of a service.
struct Table {
    lines: Range<u32>,
    size: u32,
    /// The backends of its slots.
    slots: Arc<[u16]>,
    /// The flags of its slots, of which there are two.
    flags: Vec<u8>,
    /// How many of them have exceptions.
    exceptions: u64,
    /// Row of the active half of the service map, once published.
    row: Option<u32>,
}

impl Table {
    fn location(&self) -> LiveTable {
        LiveTable { first: self.lines.start * SLOTS_PER_LINE, size: self.size }
    }
}

/// Those of all services.
pub(super) struct Tables {
    slots: MappedArray<SlotLine>,
    regions: Regions,
    grace_periods: Arc<GracePeriods>,
    of: HashMap<ServiceId, Table>,
}

/// What clients may be known by where a table comes.
#[derive(Clone, Copy)]
pub(super) struct Known {
    /// The service remembers its clients.
    pub(super) remembers: bool,
    /// An earlier controller may have left some anywhere.
    pub(super) adopted: bool,
}

impl Tables {
    /// None, in a map of `lines` lines.
    pub(super) fn new(slots: MappedArray<SlotLine>, lines: u32, grace_periods: Arc<GracePeriods>) -> Self {
        Self { slots, regions: Regions::new(lines), grace_periods, of: HashMap::new() }
    }

    /// Where a service's table lies.
    pub(super) fn location(&self, service: ServiceId) -> Option<LiveTable> {
        self.of.get(&service).map(Table::location)
    }

    /// A service's row in the active half of the service map, once published.
    pub(super) fn row(&self, service: ServiceId) -> Option<u32> {
        self.of.get(&service)?.row
    }

    /// Whether a service has slots with exceptions.
    pub(super) fn has_exceptions(&self, service: ServiceId) -> bool {
        self.of.get(&service).is_some_and(|table| table.exceptions > 0)
    }

    /// Slots with exceptions, of all tables.
    pub(super) fn exceptions(&self) -> u64 {
        self.of.values().map(|table| table.exceptions).sum()
    }

    /// Writes a service's table beside the one before, and has the service's row name it, by `publish`, if it has one.
    /// Gives the grace period with which nobody reads the one before any more.
    pub(super) fn swap(
        &mut self,
        service: ServiceId,
        table: Arc<[u16]>,
        home: Option<&[u16]>,
        Known { remembers, adopted }: Known,
        publish: impl FnOnce(u32, LiveTable),
    ) -> anyhow::Result<Grace> {
        let size = u32::try_from(table.len())?;
        anyhow::ensure!(size > 0, "a lookup table needs slots");
        let lines = self.allocate(size.div_ceil(SLOTS_PER_LINE))?;
        let old = self.of.get(&service).filter(|_| remembers);
        let flags = flags(&table, home, old, adopted);
        let per_line = SLOTS_PER_LINE as usize;
        for (line, (slots, flags)) in lines.clone().zip(table.chunks(per_line).zip(flags.chunks(per_line))) {
            let mut value = SlotLine::zeroed();
            for (place, (&backend, &flags)) in value.slots.iter_mut().zip(slots.iter().zip(flags)) {
                *place = TableSlot { backend, flags: flags.into() };
            }
            self.slots.store(line as usize, value);
        }
        let old = self.of.remove(&service);
        let row = old.as_ref().and_then(|old| old.row);
        let exceptions = flags.iter().filter(|&&flags| flags & EXCEPTIONS != 0).count() as u64;
        let new = Table { lines, size, slots: table, flags, exceptions, row };
        if let Some(row) = row {
            publish(row, new.location());
        }
        self.of.insert(service, new);
        let grace = self.grace_periods.begin();
        if let Some(old) = old {
            self.regions.retire(old.lines, grace);
        }
        Ok(grace)
    }

    /// Takes note of the rows that services have now. Tables of services without one are given up; gives those.
    pub(super) fn published(&mut self, rows: &HashMap<ServiceId, u32>) -> Vec<ServiceId> {
        for (id, table) in &mut self.of {
            table.row = rows.get(id).copied();
        }
        let (regions, grace_periods) = (&mut self.regions, &self.grace_periods);
        let gone = self.of.extract_if(|_, table| table.row.is_none());
        gone.map(|(id, table)| {
            regions.retire(table.lines, grace_periods.begin());
            id
        })
        .collect()
    }

    /// Flags every slot of a service.
    pub(super) fn flag_all(&mut self, service: ServiceId) {
        let size = self.of.get(&service).map_or(0, |table| table.size);
        (0..size).for_each(|slot| self.flag(service, slot));
    }

    /// Flags a slot of a service.
    pub(super) fn flag(&mut self, service: ServiceId, slot: u32) {
        let Some(table) = self.of.get_mut(&service) else { return };
        let place = table.location().first + slot;
        let (Some(flags), Some(&backend)) = (table.flags.get_mut(slot as usize), table.slots.get(slot as usize)) else {
            return;
        };
        if *flags & EXCEPTIONS == 0 {
            *flags |= EXCEPTIONS;
            table.exceptions += 1;
            store_slot(&self.slots, place, TableSlot { backend, flags: (*flags).into() });
        }
    }

    /// Takes the flags of these slots of a service back.
    pub(super) fn take_back_exceptions(&mut self, service: ServiceId, slots: &[u32]) {
        let Some(table) = self.of.get_mut(&service) else { return };
        let first = table.location().first;
        for &slot in slots {
            let (Some(flags), Some(&backend)) = (table.flags.get_mut(slot as usize), table.slots.get(slot as usize))
            else {
                continue;
            };
            if *flags & EXCEPTIONS == 0 {
                continue;
            }
            *flags &= !EXCEPTIONS;
            table.exceptions -= 1;
            store_slot(&self.slots, first + slot, TableSlot { backend, flags: (*flags).into() });
        }
    }

    fn allocate(&mut self, lines: u32) -> anyhow::Result<Range<u32>> {
        self.regions.release(|grace| self.grace_periods.is_over(grace));
        if let Some(range) = self.regions.allocate(lines) {
            return Ok(range);
        }
        if let Some(last) = self.regions.last_retired() {
            self.grace_periods.wait(last);
            self.regions.release(|_| true);
        }
        self.regions.allocate(lines).with_context(|| {
            format!("no room for a table of {} slots: restart to make the map of slots larger", lines * SLOTS_PER_LINE)
        })
    }
}

/// The flags of the slots of `table`, where it comes after `old`, below which a service with memory has clients, or after
/// what an earlier controller may have left clients in.
fn flags(table: &[u16], home: Option<&[u16]>, old: Option<&Table>, adopted: bool) -> Vec<u8> {
    let mut flags: Vec<u8> = match home.filter(|home| home.len() == table.len()) {
        Some(home) => table.iter().zip(home).map(|(now, home)| u8::from(now != home) * REFILLED).collect(),
        None => vec![REFILLED; table.len()],
    };
    // Set before the swap is visible: the clients of a slot that changes stay where they are known, and those of a flagged
    // slot may be anywhere.
    match old {
        Some(old) if old.slots.len() == table.len() => {
            for (flags, (now, (before, known))) in
                flags.iter_mut().zip(table.iter().zip(old.slots.iter().zip(&old.flags)))
            {
                *flags |= (known & EXCEPTIONS) | (u8::from(now != before) * EXCEPTIONS);
            }
        }
        None if !adopted => {}
        Some(_) | None => flags.iter_mut().for_each(|flags| *flags |= EXCEPTIONS),
    }
    flags
}

/// Replaces one slot in one piece.
fn store_slot(slots: &MappedArray<SlotLine>, place: u32, slot: TableSlot) {
    let offset = (place % SLOTS_PER_LINE) as usize * size_of::<TableSlot>();
    slots.word32((place / SLOTS_PER_LINE) as usize, offset).store(bytemuck::cast(slot), Ordering::Release);
}
