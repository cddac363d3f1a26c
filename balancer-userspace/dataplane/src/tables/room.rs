//! Room for new tables in the map of slots.
//!
//! A swap needs free lines for the new table while the program still reads the old table. The map therefore keeps a
//! *reserve*: as many consecutive free lines as the longest table has. If the map is full except for the reserve, a swap
//! writes the new table into the reserve, and then moves this table to the lines of the old table. A new table, or a
//! table of another size, may find enough free lines in the map but not together. In this case, the other tables move to
//! the start of the map first, one by one, through the reserve if necessary.
//!
//! With the reserve, a swap to a table that is not longer always succeeds. A longer table always finds its lines if the
//! tables, the new table and the reserve together are not longer than the map.

use std::{mem, ops::Range};

use anyhow::Context as _;
use balancer_common::map_types::{LiveTable, SLOTS_PER_LINE, SlotLine};
use balancer_control::io::ServiceId;

use super::{Tables, flags};
use crate::grace::Grace;

/// Tables that were moved, in order, each with the grace period after which the program no longer reads its old lines.
type Moved = Vec<(ServiceId, Grace)>;

fn length(range: &Range<u32>) -> u32 {
    range.end - range.start
}

impl Tables {
    /// Allocates the lines for a new table of a service, and moves other tables if necessary.
    pub(super) fn make_room(
        &mut self,
        service: ServiceId,
        lines: u32,
        moved: &mut Moved,
        publish: &impl Fn(u32, LiveTable),
    ) -> anyhow::Result<Range<u32>> {
        let reserve = self.reserve().max(lines);
        let old = self.of.get(&service).map(|table| table.lines.clone());
        self.regions.release(|grace| self.grace_periods.is_over(grace));
        if let Some(range) = self.regions.allocate_beside(lines, reserve, old.as_ref()) {
            return Ok(range);
        }
        self.wait_for_retired();
        if let Some(range) = self.regions.allocate_beside(lines, reserve, old.as_ref()) {
            return Ok(range);
        }
        if old.as_ref().is_none_or(|old| length(old) < lines) {
            self.compact(lines.saturating_add(reserve), moved, publish);
            if let Some(range) = self.regions.allocate_beside(lines, reserve, None) {
                return Ok(range);
            }
        }
        self.regions.allocate(lines).with_context(|| format!("no room for a table of {} slots", lines * SLOTS_PER_LINE))
    }

    /// Moves tables until the reserve is free, after the table of `service` was swapped.
    pub(super) fn restore_reserve(&mut self, service: ServiceId, moved: &mut Moved, publish: &impl Fn(u32, LiveTable)) {
        let reserve = self.reserve();
        if self.regions.largest() >= reserve {
            return;
        }
        self.wait_for_retired();
        let Some(own) = self.of.get(&service).map(|table| table.lines.clone()) else { return };
        match self.regions.allocate_beside(length(&own), reserve, Some(&own)) {
            Some(range) => self.relocate(service, range, moved, publish),
            None => self.compact(reserve, moved, publish),
        }
    }

    /// The number of lines of the longest table.
    fn reserve(&self) -> u32 {
        self.of.values().map(|table| length(&table.lines)).max().unwrap_or(0)
    }

    /// Waits until the program no longer reads any replaced table.
    fn wait_for_retired(&mut self) {
        if let Some(last) = self.regions.last_retired() {
            self.grace_periods.wait(last);
            self.regions.release(|_| true);
        }
    }

    /// Moves tables to the start of the map until `wanted` consecutive lines are free, or until all free lines are
    /// together. A table that is longer than the gap before it goes through other free lines; without such lines, the
    /// function ends early.
    fn compact(&mut self, wanted: u32, moved: &mut Moved, publish: &impl Fn(u32, LiveTable)) {
        self.wait_for_retired();
        while self.regions.largest() < wanted {
            let Some((service, gap)) = self.behind_first_gap() else { return };
            let Some(lines) = self.of.get(&service).map(|table| length(&table.lines)) else { return };
            if length(&gap) < lines {
                let Some(aside) = self.regions.allocate(lines) else { return };
                self.relocate(service, aside, moved, publish);
                self.wait_for_retired();
            }
            // The gap is now the first free range with so many lines.
            let Some(range) = self.regions.allocate(lines) else { return };
            self.relocate(service, range, moved, publish);
            self.wait_for_retired();
        }
    }

    /// The table that begins where the first free range ends, and this range.
    fn behind_first_gap(&self) -> Option<(ServiceId, Range<u32>)> {
        let gap = self.regions.free().first()?.clone();
        let (&service, _) = self.of.iter().find(|(_, table)| table.lines.start == gap.end)?;
        Some((service, gap))
    }

    /// Copies a table to the lines `to`, and switches the service's row to these lines.
    fn relocate(&mut self, service: ServiceId, to: Range<u32>, moved: &mut Moved, publish: &impl Fn(u32, LiveTable)) {
        let Some(table) = self.of.get_mut(&service) else { return };
        let from = mem::replace(&mut table.lines, to.clone());
        for (before, after) in from.clone().zip(to.clone()) {
            let known = flags(&self.slots, before);
            let line = SlotLine { flags: known, ..self.slots.load(before as usize) };
            self.slots.store(after as usize, line);
        }
        if let Some(row) = table.row {
            publish(row, table.location());
        }
        self.copy_late_flags(&from, &to);
        let grace = self.grace_periods.begin();
        self.regions.retire(from, grace);
        moved.push((service, grace));
    }
}

#[cfg(test)]
mod tests {
    use std::{
        cell::RefCell,
        collections::{BTreeMap, HashMap},
        sync::Arc,
    };

    use shuttle::rand::{Rng as _, thread_rng};

    use super::*;
    use crate::{grace::GracePeriods, mapped::MappedArray, mirrored::Grows as _, tables::Known, threads::Shuttled};

    const KNOWN: Known = Known { remembers: true, adopted: false };

    /// The tables in a map, and the location of each published table as the program sees it.
    struct Bench {
        tables: Tables,
        /// The slots of each service's table.
        wanted: BTreeMap<u16, Arc<[u16]>>,
        seen: RefCell<HashMap<u32, LiveTable>>,
    }

    impl Bench {
        fn new(lines: u32) -> Self {
            let [slots, _] = MappedArray::twice(lines as usize).unwrap();
            let periods = Arc::new(GracePeriods::waiting_by(&Shuttled, Box::new(|| ())).unwrap());
            Self { tables: Tables::new(slots, lines, periods), wanted: BTreeMap::new(), seen: RefCell::default() }
        }

        /// Swaps the table of a service for a table of this many lines, in which every slot names `backend`.
        fn swap(&mut self, service: u16, lines: u32, backend: u16) -> anyhow::Result<()> {
            let table: Arc<[u16]> = vec![backend; (lines * SLOTS_PER_LINE) as usize].into();
            let publish = |row, live| {
                self.seen.borrow_mut().insert(row, live);
            };
            self.tables.swap(ServiceId(service), Arc::clone(&table), None, KNOWN, &publish)?;
            self.wanted.insert(service, table);
            Ok(())
        }

        /// Publishes the wanted services; the row of a service is its id.
        fn publish(&mut self) {
            let rows = self.wanted.keys().map(|&service| (ServiceId(service), u32::from(service))).collect();
            for &service in self.wanted.keys() {
                let live = self.tables.location(ServiceId(service)).unwrap();
                self.seen.borrow_mut().insert(service.into(), live);
            }
            self.tables.published(&rows);
        }

        /// Asserts that the program finds the wanted slots in the table of each service.
        fn check(&self) {
            for (&service, wanted) in &self.wanted {
                let live = self.seen.borrow()[&u32::from(service)];
                assert_eq!(Some(live), self.tables.location(ServiceId(service)), "service {service}");
                let slot = |slot| {
                    let place = live.place(slot);
                    self.tables.slots.load(place.line as usize).slot(place.index).backend
                };
                let found: Vec<u16> = (0..live.size).map(slot).collect();
                assert_eq!(found, wanted.to_vec(), "service {service}");
            }
        }

        fn lines(&self, service: u16) -> u32 {
            self.wanted.get(&service).map_or(0, |table| table.len() as u32 / SLOTS_PER_LINE)
        }
    }

    #[test]
    fn when_free_lines_are_apart_then_a_new_table_and_all_swaps_find_room() {
        shuttle::check_random(
            || {
                // Four tables of three lines, and seven more lines.
                let mut bench = Bench::new(19);
                for service in 0..5 {
                    bench.swap(service, 3, 1).unwrap();
                }
                bench.publish();
                for service in [1, 3] {
                    bench.wanted.remove(&service);
                }
                bench.publish();
                bench.swap(7, 5, 1).unwrap();
                bench.publish();
                for (service, lines) in [(7, 5), (0, 3), (2, 3), (4, 3), (7, 5)] {
                    bench.swap(service, lines, 2).unwrap();
                    bench.check();
                }
            },
            20,
        );
    }

    #[test]
    fn when_tables_and_reserve_fit_into_the_map_then_every_change_and_every_later_swap_succeeds() {
        shuttle::check_random(
            || {
                const LINES: u32 = 40;
                let mut bench = Bench::new(LINES);
                for backend in 1..60 {
                    let service = thread_rng().gen_range(0..12);
                    let (before, wanted) = (bench.lines(service), thread_rng().gen_range(0..9));
                    if wanted == 0 {
                        bench.wanted.remove(&service);
                        bench.publish();
                        continue;
                    }
                    let same = thread_rng().gen_bool(0.7) && before > 0;
                    let lines = if same { before } else { wanted };
                    let others: Vec<u32> =
                        bench.wanted.keys().filter(|&&of| of != service).map(|&of| bench.lines(of)).collect();
                    let longest = others.iter().copied().max().unwrap_or(0).max(before).max(lines);
                    let beside = if lines > before { lines } else { 0 };
                    if others.iter().sum::<u32>() + before + beside + longest > LINES {
                        continue;
                    }
                    bench.swap(service, lines, backend).unwrap();
                    bench.publish();
                    bench.check();
                    // Afterwards, each table can be replaced.
                    for service in bench.wanted.keys().copied().collect::<Vec<_>>() {
                        bench.swap(service, bench.lines(service), backend + 1).unwrap();
                    }
                    bench.check();
                }
            },
            60,
        );
    }

    #[test]
    fn when_a_larger_map_replaces_the_map_then_all_tables_stay_and_more_find_room() {
        shuttle::check_random(
            || {
                let mut bench = Bench::new(9);
                bench.swap(0, 3, 1).unwrap();
                bench.swap(1, 3, 1).unwrap();
                bench.publish();
                assert!(bench.swap(2, 8, 1).is_err());
                let [larger, program] = MappedArray::<SlotLine>::twice(30).unwrap();
                bench.tables.begin(larger);
                bench.swap(0, 3, 2).unwrap();
                bench.tables.end();
                for service in 2..5 {
                    bench.swap(service, 5, 3).unwrap();
                    bench.publish();
                    bench.check();
                }
                let line = bench.tables.location(ServiceId(0)).unwrap().first;
                assert_eq!(program.load(line as usize).slot(0).backend, 2);
            },
            5,
        );
    }

    #[test]
    fn when_a_change_fails_then_its_tables_give_their_lines_back() {
        shuttle::check_random(
            || {
                let mut bench = Bench::new(10);
                bench.swap(0, 3, 1).unwrap();
                bench.publish();
                bench.swap(1, 3, 1).unwrap();
                assert!(bench.swap(2, 8, 1).is_err());
                assert_eq!(bench.tables.discard_unpublished(), [ServiceId(1)]);
                bench.wanted.remove(&1);
                bench.swap(2, 3, 1).unwrap();
                bench.publish();
                bench.check();
            },
            5,
        );
    }
}
