//! Clients that all members know: what each tells the others of its client table, and what it takes over from them.
//!
//! Beside every entry of the table stands its *shadow*: what the others were last told, or have told. An entry is told
//! when it differs: at once if its client has come to another backend, or is new; and again when a quarter of the time
//! that it is remembered has passed since it was last told. Whether a newcomer that was seen in one tick only is told of
//! is up to the caller: a flood of sources that nobody will see again must not become everybody's.

mod place;
mod shadows;

use std::collections::HashMap;

use balancer_common::client_table::{BUCKET_ENTRIES, Entries, Entry, TICK_MASK, find, victim};

use self::{
    place::Place,
    shadows::{Shadow, Shadows},
};
use crate::{emptied::Emptied, records::Record};

/// A client table that packets change meanwhile.
pub trait Table {
    /// Entries in all: a power of two of buckets, [`BUCKET_ENTRIES`] each.
    fn entries(&self) -> usize;
    /// The entry at `index`; empty beyond the end.
    fn load(&self, index: usize) -> Entry;
    /// Replaces an entry that is still `old`.
    fn exchange(&self, index: usize, old: Entry, new: Entry) -> bool;
}

/// What must be known of a backend's memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Facts {
    /// Its service.
    pub service: u16,
    /// The service's present tick.
    pub tick: u16,
    /// Ticks after which a client is forgotten.
    pub remember: u16,
    /// Whether its known clients stay.
    pub keeps: bool,
}

/// What backends are there, and what holds for them; `None`: there is none of this id, or nobody is remembered.
pub trait Backends {
    /// Of the backend with this id.
    fn facts(&self, id: u16) -> Option<Facts>;
}

impl<F: Fn(u16) -> Option<Facts>> Backends for F {
    fn facts(&self, id: u16) -> Option<Facts> {
        self(id)
    }
}

/// What has become of a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Imported {
    /// The client was not known here, and is now.
    New,
    /// It was known at that backend.
    Known,
    /// It was known at that backend, and has come there from this one by a move that another member has made as well, and
    /// counts.
    Repeated(u16),
    /// It was known at another backend here, which it has left.
    Moved,
    /// It was known at another backend here, and was never there for the others.
    Conflict,
    /// It is known at another backend here, which holds.
    Stale,
    /// Its bucket has no room.
    Full,
    /// There is no such backend, or nobody is remembered there.
    Stranger,
    /// It was not seen for too long.
    Expired,
    /// There is no such bucket.
    Outside,
}

/// What others know of a client table. See the [module](self).
#[derive(Debug)]
pub struct Sharing {
    shadows: Shadows,
    /// Whether everything has been told once: until then, nobody knows since when an entry is what it is.
    begun: bool,
    /// The epoch in which everything was told last.
    told_in: u32,
    /// Clients that have moved here of late, by their entries.
    moves: HashMap<usize, Move>,
    #[cfg(test)]
    mutation: Option<crate::member::Mutation>,
}

/// A move that packets have made here, and that no other member has made as far as is known.
#[derive(Clone, Copy, Debug)]
struct Move {
    tag: u32,
    /// The backend that the client has left.
    from: u16,
    /// How often everything has been told since.
    told: u8,
}

/// A move is one that others have made as well if they tell of it before everything was told here so often again: each
/// tells every second.
const REPEATED_WITHIN: u8 = 10;

/// One bucket of a table, as it was read once.
struct Bucket([Entry; BUCKET_ENTRIES]);

impl Bucket {
    fn of(table: &impl Table, bucket: usize) -> Self {
        Self(std::array::from_fn(|at| table.load(bucket * BUCKET_ENTRIES + at)))
    }
}

impl Entries for Bucket {
    fn load(&self, index: usize) -> Entry {
        self.0.get(index).copied().unwrap_or(Entry::EMPTY)
    }

    fn store(&self, _: usize, _: Entry) {}
}

impl Sharing {
    /// Nobody has been told anything of a table of so many entries.
    #[must_use]
    pub fn new(entries: usize) -> Self {
        Self {
            shadows: Shadows::new(entries / BUCKET_ENTRIES),
            begun: false,
            told_in: 0,
            moves: HashMap::new(),
            #[cfg(test)]
            mutation: None,
        }
    }

    #[cfg(test)]
    pub(crate) const fn mutate(&mut self, mutation: Option<crate::member::Mutation>) {
        self.mutation = mutation;
    }

    /// Everything has been told, in this epoch.
    pub fn has_told(&mut self, epoch: u32) {
        (self.begun, self.told_in) = (true, epoch);
        self.moves.retain(|_, of| {
            of.told += 1;
            of.told <= REPEATED_WITHIN
        });
    }

    /// A backend's number is free: nobody has been told of whoever comes to be known under it.
    pub fn forget_backend(&mut self, id: u16) {
        self.shadows.forget_backend(id);
        self.moves.retain(|_, of| of.from != id);
    }

    /// Others may have forgotten what they were told: what nobody tells before the next [`confirm`](Self::confirm) is
    /// told again.
    pub fn doubt(&mut self) {
        self.shadows.doubt();
    }

    /// Somebody has told everything that the others know.
    pub fn confirm(&mut self) {
        self.shadows.confirm();
    }

    /// What the others are to be told in `epoch`. `at_once` says which clients (by entry) are told of even if they were
    /// seen in one tick only. Those that a process before has left at a backend which keeps nobody are not told of: whoever
    /// meets them sends them on, as if they were new.
    pub fn collect(
        &mut self,
        table: &impl Table,
        backends: &impl Backends,
        epoch: u32,
        mut at_once: impl FnMut(Entry) -> bool,
    ) -> Vec<Record> {
        let mut records = Vec::new();
        for bucket in 0..table.entries() / BUCKET_ENTRIES {
            let Bucket(entries) = Bucket::of(table, bucket);
            if self.shadows.agree(bucket, &entries) {
                continue;
            }
            for (at, entry) in entries.into_iter().enumerate() {
                let index = bucket * BUCKET_ENTRIES + at;
                records.extend(self.news_of(index, entry, backends, epoch, &mut at_once));
            }
        }
        records
    }

    /// What the others are to be told of one entry, if that is news to them; they have been told then.
    fn news_of(
        &mut self,
        index: usize,
        entry: Entry,
        backends: &impl Backends,
        epoch: u32,
        at_once: impl FnOnce(Entry) -> bool,
    ) -> Option<Record> {
        let facts = backends.facts(entry.backend()).filter(|_| !entry.is_empty())?;
        let age = entry.age(facts.tick);
        let shadow = self.shadows.get(index);
        let told = Entry(shadow.told);
        let same = !told.is_empty() && told.tag() == entry.tag();
        if age > facts.remember || !same && !facts.keeps && !self.begun {
            return None;
        }
        let (moved, epoch) = if same && told.backend() == entry.backend() && told.away() == entry.away() {
            let since = entry.last_seen().wrapping_sub(told.last_seen()) & TICK_MASK;
            let due = since >= (facts.remember / 4).max(1) && since <= TICK_MASK / 2;
            #[cfg(test)]
            let due = due && self.mutation != Some(crate::member::Mutation::TellsOnce);
            if !due && !shadow.unheard {
                return None;
            }
            (shadow.moved, shadow.epoch)
        } else if same || entry.established() || at_once(entry) {
            let moved = same && told.backend() != entry.backend();
            #[cfg(test)]
            let moved = moved && self.mutation != Some(crate::member::Mutation::ForgetsMoves);
            if moved {
                self.moves.insert(index, Move { tag: entry.tag(), from: told.backend(), told: 0 });
            }
            (moved, self.came_in(epoch, facts.keeps))
        } else {
            return None;
        };
        self.shadows.set(index, Shadow { told: entry.0, epoch, moved, ..Shadow::default() });
        let bucket = (index / BUCKET_ENTRIES) as u32;
        let (tag, backend, away) = (entry.tag(), entry.backend(), entry.away());
        Some(Record { bucket, tag, backend, away, moved, age, epoch })
    }

    /// Everything that is known, for somebody who knows nothing.
    #[must_use]
    pub fn dump(&self, table: &impl Table, backends: &impl Backends, epoch: u32) -> Vec<Record> {
        let known = |index: usize| {
            let entry = table.load(index);
            let facts = backends.facts(entry.backend()).filter(|_| !entry.is_empty())?;
            let age = entry.age(facts.tick);
            let shadow = self.shadows.get(index);
            let told = Entry(shadow.told);
            let is_told = told.tag() == entry.tag() && told.backend() == entry.backend();
            let came_in = || self.came_in(epoch, facts.keeps);
            let (epoch, moved) = if is_told { (shadow.epoch, shadow.moved) } else { (came_in(), false) };
            let bucket = (index / BUCKET_ENTRIES) as u32;
            let (tag, backend, away) = (entry.tag(), entry.backend(), entry.away());
            (age <= facts.remember).then_some(Record { bucket, tag, backend, away, moved, age, epoch })
        };
        (0..table.entries()).filter_map(known).collect()
    }

    /// Takes over what another member says. `flag` is called with the service, the tag and the backend before an entry is
    /// written: its slot of the table has a client elsewhere.
    pub fn import(
        &mut self,
        table: &impl Table,
        record: &Record,
        heard: Heard<'_>,
        backends: &impl Backends,
        mut flag: impl FnMut(u16, u32, u16),
    ) -> Imported {
        let Heard { precedes, epoch, emptied } = heard;
        let theirs = Place::of(record);
        let first = record.bucket as usize * BUCKET_ENTRIES;
        if first + BUCKET_ENTRIES > table.entries() {
            return Imported::Outside;
        }
        let Some(facts) = backends.facts(record.backend) else { return Imported::Stranger };
        if record.age > facts.remember {
            return Imported::Expired;
        }
        let bucket = Bucket::of(table, record.bucket as usize);
        let new = Entry::heard_of(record.tag, record.backend, record.away, record.age, facts.tick);
        let Some((at, old)) = find(&bucket, record.tag) else {
            let ours = |id| backends.facts(id).is_some_and(|other| other.service == facts.service);
            let Some((at, _)) = victim(&bucket, facts.tick, facts.remember, ours) else { return Imported::Full };
            flag(facts.service, record.tag, record.backend);
            return self.write(table, first + at, bucket.load(at), new, record, Imported::New);
        };
        let at = first + at;
        if old.backend() == record.backend {
            let ours = self.placed(at, old, facts.keeps, epoch);
            let (place, away) = if theirs.holds_against(&ours, emptied) {
                (theirs, record.away)
            } else {
                (ours, old.away() && (record.away || ours != theirs))
            };
            // Others do not know what holds against the record, unless they were told.
            let holds = (place, away) != (theirs, record.away);
            let move_made_here = self.move_made_here(at, old).filter(|_| record.moved);
            // Nor that it has moved here as well, where they are to count that once.
            let untold = move_made_here.is_some_and(|(_, is_told)| !is_told) && !precedes;
            let unheard = holds && !self.is_heard(at, old) || untold;
            let age = record.age.min(old.age(facts.tick));
            let entry = Entry::heard_of(record.tag, record.backend, away, age, facts.tick);
            if table.exchange(at, old, entry) {
                let Place { moved, epoch, .. } = place;
                self.shadows.set(at, Shadow { told: entry.0, epoch, moved, unheard, ..Shadow::default() });
            }
            let Some((from, _)) = move_made_here else { return Imported::Known };
            if precedes {
                self.moves.remove(&at);
                return Imported::Repeated(from);
            }
            self.moves.insert(at, Move { tag: record.tag, from, told: 0 });
            return Imported::Known;
        }
        let owner = backends.facts(old.backend());
        if owner.is_some_and(|owner| owner.service != facts.service) {
            // One in 2^32: another service's client has this bucket and tag.
            return Imported::Full;
        }
        // Whether a backend keeps its clients now must not matter: members look at different moments.
        let is_known = owner.is_some_and(|owner| old.age(owner.tick) <= owner.remember);
        let ours = self.placed(at, old, owner.is_some_and(|owner| owner.keeps), epoch);
        if is_known && !theirs.holds_against(&ours, emptied) {
            // Whoever tells this does not know better: it is told once more.
            self.shadows.mark_unheard(at);
            return Imported::Stale;
        }
        let outcome = if is_known && !record.moved { Imported::Conflict } else { Imported::Moved };
        flag(facts.service, record.tag, record.backend);
        self.write(table, at, old, new, record, outcome)
    }

    /// The epoch in which a client came to be where it is that nobody was told of yet; 0: nobody knows. It came to a
    /// backend that keeps nobody before that was so: whoever has left it meanwhile has moved later.
    const fn came_in(&self, epoch: u32, keeps: bool) -> u32 {
        match (self.begun, keeps) {
            (false, _) => 0,
            (true, true) => epoch,
            (true, false) => self.told_in,
        }
    }

    /// The place of an entry's client: where it came in this epoch, if nobody was told yet.
    fn placed(&self, at: usize, entry: Entry, keeps: bool, epoch: u32) -> Place {
        let shadow = self.shadows.get(at);
        let (told, backend) = (Entry(shadow.told), entry.backend());
        if told.is_empty() || told.tag() != entry.tag() {
            // A place of before that holds nobody any more, and that others do not know, is none.
            let epoch = if self.begun || keeps { self.came_in(epoch, keeps) } else { Place::NONE };
            Place { backend, moved: false, epoch }
        } else if told.backend() != backend {
            Place { backend, moved: true, epoch: self.came_in(epoch, keeps) }
        } else {
            Place { backend, moved: shadow.moved, epoch: shadow.epoch }
        }
    }

    /// The backend that an entry's client has left for where it is by packets here, if that was of late and no other member
    /// counts it; and whether others were told.
    fn move_made_here(&self, at: usize, entry: Entry) -> Option<(u16, bool)> {
        let told = Entry(self.shadows.get(at).told);
        if !told.is_empty() && told.tag() == entry.tag() && told.backend() != entry.backend() {
            return Some((told.backend(), false));
        }
        self.moves.get(&at).filter(|of| of.tag == entry.tag()).map(|of| (of.from, true))
    }

    /// Whether others know the place of an entry's client, and since when it is there.
    fn is_heard(&self, at: usize, entry: Entry) -> bool {
        let shadow = self.shadows.get(at);
        let told = Entry(shadow.told);
        let place = |entry: Entry| (entry.tag(), entry.backend(), entry.away());
        let is_told = !told.is_empty() && place(told) == place(entry);
        is_told && !shadow.doubtful && !shadow.unheard
    }

    fn write(
        &mut self,
        table: &impl Table,
        at: usize,
        old: Entry,
        new: Entry,
        record: &Record,
        outcome: Imported,
    ) -> Imported {
        if !table.exchange(at, old, new) {
            // A packet was faster; what it has written is told with the next look.
            return Imported::Stale;
        }
        self.shadows.set(at, Shadow { told: new.0, epoch: record.epoch, moved: record.moved, ..Shadow::default() });
        outcome
    }
}

/// What is to be known of a member's telling.
#[derive(Clone, Copy, Debug)]
pub struct Heard<'a> {
    /// Whether a move that both have made counts there.
    pub precedes: bool,
    /// The epoch that is applied here, and whose it is.
    pub epoch: u32,
    /// Which backends could not keep their clients, by that epoch.
    pub emptied: &'a Emptied,
}

#[cfg(test)]
mod tests {
    use std::{cell::Cell, sync::LazyLock};

    use super::*;

    struct Cells(Vec<Cell<u64>>);

    impl Cells {
        fn new(buckets: usize) -> Self {
            Self(vec![Cell::new(0); buckets * BUCKET_ENTRIES])
        }

        fn put(&self, index: usize, entry: Entry) {
            self.0[index].set(entry.0);
        }
    }

    impl Table for Cells {
        fn entries(&self) -> usize {
            self.0.len()
        }

        fn load(&self, index: usize) -> Entry {
            Entry(self.0.get(index).map_or(0, Cell::get))
        }

        fn exchange(&self, index: usize, old: Entry, new: Entry) -> bool {
            let is = self.0[index].get() == old.0;
            if is {
                self.0[index].set(new.0);
            }
            is
        }
    }

    const NOW: u16 = 1000;

    /// Backends 1 to 19, of one service.
    fn backends(id: u16) -> Option<Facts> {
        (1..20).contains(&id).then_some(Facts { service: 0, tick: NOW, remember: 400, keeps: true })
    }

    fn established(tag: u32, backend: u16, age: u16) -> Entry {
        Entry::heard_of(tag, backend, false, age, NOW)
    }

    fn all(sharing: &mut Sharing, table: &Cells, epoch: u32) -> Vec<Record> {
        sharing.collect(table, &backends, epoch, |_| false)
    }

    fn heard(epoch: u32) -> Heard<'static> {
        static NONE: LazyLock<Emptied> = LazyLock::new(Emptied::default);
        Heard { precedes: false, epoch, emptied: &NONE }
    }

    fn record(tag: u32, backend: u16, epoch: u32) -> Record {
        Record { bucket: 0, tag, backend, away: false, moved: false, age: 0, epoch }
    }

    #[test]
    fn a_client_is_told_of_once_and_again_when_it_moves_or_a_quarter_has_passed() {
        let (table, mut sharing) = (Cells::new(2), Sharing::new(16));
        sharing.has_told(0);
        table.put(9, established(7, 3, 200));
        let told = all(&mut sharing, &table, 5);
        assert_eq!(told, [Record { bucket: 1, age: 200, ..record(7, 3, 5) }]);
        assert_eq!(all(&mut sharing, &table, 6), []);
        table.put(9, established(7, 3, 101));
        assert_eq!(all(&mut sharing, &table, 6), []);
        table.put(9, established(7, 3, 100));
        assert_eq!(all(&mut sharing, &table, 6), [Record { bucket: 1, age: 100, ..record(7, 3, 5) }]);
        table.put(9, established(7, 4, 0));
        assert_eq!(all(&mut sharing, &table, 7), [Record { bucket: 1, moved: true, ..record(7, 4, 7) }]);
    }

    #[test]
    fn newcomers_are_told_of_only_where_that_is_asked_for() {
        let (table, mut sharing) = (Cells::new(1), Sharing::new(8));
        sharing.has_told(0);
        table.put(0, Entry::new(7, 3, NOW));
        assert_eq!(all(&mut sharing, &table, 1), []);
        assert_eq!(sharing.collect(&table, &backends, 1, |_| true), [record(7, 3, 1)]);
        assert_eq!(sharing.collect(&table, &backends, 2, |_| true), []);
    }

    #[test]
    fn what_was_heard_is_not_told_again() {
        let (table, mut sharing) = (Cells::new(1), Sharing::new(8));
        let mut flagged = Vec::new();
        let flag = |service, tag, backend| flagged.push((service, tag, backend));
        assert_eq!(sharing.import(&table, &record(7, 3, 1), heard(9), &backends, flag), Imported::New);
        assert_eq!(flagged, [(0, 7, 3)]);
        assert_eq!(all(&mut sharing, &table, 2), []);
        assert_eq!(sharing.import(&table, &record(7, 3, 1), heard(9), &backends, |_, _, _| {}), Imported::Known);
        assert_eq!(sharing.dump(&table, &backends, 9), [record(7, 3, 1)]);
    }

    #[test]
    fn a_client_that_two_know_at_two_backends_ends_at_the_older_for_both() {
        for (left, right, winner) in [
            ((3, 1), (4, 2), 3),
            ((3, 2), (4, 1), 4),
            ((4, 1), (3, 1), 3),
            ((12, 1), (4, 9), 12),
            ((12, 3), (13, 2), 13),
        ] {
            let end = |(own, own_epoch): (u16, u32), (other, epoch): (u16, u32)| {
                let (table, mut sharing) = (Cells::new(1), Sharing::new(8));
                sharing.has_told(0);
                table.put(0, established(7, own, 0));
                all(&mut sharing, &table, own_epoch);
                sharing.import(&table, &record(7, other, epoch), heard(9), &backends, |_, _, _| {});
                table.load(0).backend()
            };
            assert_eq!((end(left, right), end(right, left)), (winner, winner), "{left:?} {right:?}");
        }
    }

    #[test]
    fn a_move_beats_a_place_on_both_sides() {
        let (table, mut sharing) = (Cells::new(1), Sharing::new(8));
        table.put(0, established(7, 3, 0));
        all(&mut sharing, &table, 1);
        let moved = Record { moved: true, ..record(7, 4, 9) };
        assert_eq!(sharing.import(&table, &moved, heard(9), &backends, |_, _, _| {}), Imported::Moved);
        assert_eq!(table.load(0).backend(), 4);
        assert_eq!(sharing.import(&table, &record(7, 3, 1), heard(9), &backends, |_, _, _| {}), Imported::Stale);
        assert_eq!(table.load(0).backend(), 4);
    }

    #[test]
    fn what_others_do_not_know_is_told_though_they_tell_of_the_same_place() {
        let (table, mut sharing) = (Cells::new(1), Sharing::new(8));
        // Found in the table by a process that has just begun: nobody knows since when.
        table.put(0, established(7, 9, 0));
        let import = |sharing: &mut Sharing, record| sharing.import(&table, &record, heard(9), &backends, |_, _, _| {});
        assert_eq!(import(&mut sharing, record(7, 9, 8)), Imported::Known);
        assert_eq!(import(&mut sharing, record(7, 6, 4)), Imported::Stale);
        assert_eq!(import(&mut sharing, record(7, 9, 8)), Imported::Known);
        assert_eq!(all(&mut sharing, &table, 9), [record(7, 9, 0)]);
        // Now they know, whoever tells them late.
        assert_eq!(import(&mut sharing, record(7, 9, 8)), Imported::Known);
        assert_eq!(all(&mut sharing, &table, 9), []);
        // Unless they may have forgotten.
        sharing.doubt();
        assert_eq!(import(&mut sharing, record(7, 9, 8)), Imported::Known);
        assert_eq!(all(&mut sharing, &table, 9), [record(7, 9, 0)]);
    }

    #[test]
    fn a_place_from_before_that_holds_nobody_is_none() {
        let (table, mut sharing) = (Cells::new(1), Sharing::new(8));
        let drained = |id| backends(id).map(|facts| Facts { keeps: id != 3, ..facts });
        table.put(0, established(7, 3, 0));
        table.put(1, established(8, 3, 0));
        // Somebody who did not know the client has sent it on meanwhile.
        let sent = sharing.import(&table, &record(7, 2, 5), heard(5), &drained, |_, _, _| {});
        assert_eq!((sent, table.load(0).backend()), (Imported::Conflict, 2));
        assert_eq!(sharing.collect(&table, &drained, 5, |_| true), []);
        sharing.has_told(5);
        table.put(1, established(8, 4, 0));
        assert_eq!(sharing.collect(&table, &drained, 5, |_| true), [record(8, 4, 5)]);
    }

    #[test]
    fn where_two_have_moved_a_client_and_one_says_that_it_is_at_home_there_both_come_to_know() {
        let (table, mut sharing) = (Cells::new(1), Sharing::new(8));
        sharing.has_told(2);
        table.put(0, established(7, 3, 0));
        all(&mut sharing, &table, 2);
        table.put(0, established(7, 4, 0));
        let away = Record { moved: true, away: true, ..record(7, 4, 5) };
        assert_eq!(sharing.import(&table, &away, heard(5), &backends, |_, _, _| {}), Imported::Known);
        let told = all(&mut sharing, &table, 5);
        assert_eq!(told, [Record { away: false, ..away }]);
        let (other, mut others) = (Cells::new(1), Sharing::new(8));
        assert_eq!(others.import(&other, &away, heard(5), &backends, |_, _, _| {}), Imported::New);
        assert_eq!(others.import(&other, &told[0], heard(5), &backends, |_, _, _| {}), Imported::Known);
        assert!(!other.load(0).away() && !table.load(0).away());
    }

    #[test]
    fn a_client_that_leaves_a_failed_backend_has_moved_later_than_it_came_there() {
        let (table, mut sharing) = (Cells::new(1), Sharing::new(8));
        let failed = |id| backends(id).map(|facts| Facts { keeps: id != 6, ..facts });
        table.put(0, established(7, 2, 0));
        all(&mut sharing, &table, 7);
        sharing.has_told(7);
        // It came to 6 in epoch 7, and 6 failed in epoch 8, before anybody was told.
        table.put(0, established(7, 6, 0));
        let came = sharing.collect(&table, &failed, 8, |_| false);
        assert_eq!(came, [Record { moved: true, ..record(7, 6, 7) }]);
        sharing.has_told(8);
        table.put(0, established(7, 3, 0));
        let left = sharing.collect(&table, &failed, 8, |_| false);
        assert_eq!(left, [Record { moved: true, ..record(7, 3, 8) }]);
        let (other, mut others) = (Cells::new(1), Sharing::new(8));
        let mut import = |record| others.import(&other, record, heard(8), &failed, |_, _, _| {});
        assert_eq!((import(&left[0]), import(&came[0])), (Imported::New, Imported::Stale));
    }

    #[test]
    fn what_cannot_be_is_dropped() {
        let (table, mut sharing) = (Cells::new(1), Sharing::new(8));
        let mut import = |record: Record| sharing.import(&table, &record, heard(9), &backends, |_, _, _| {});
        assert_eq!(import(Record { bucket: 1, ..record(7, 3, 1) }), Imported::Outside);
        assert_eq!(import(Record { bucket: u32::MAX, ..record(7, 3, 1) }), Imported::Outside);
        assert_eq!(import(record(7, 44, 1)), Imported::Stranger);
        assert_eq!(import(Record { age: 401, ..record(7, 3, 1) }), Imported::Expired);
        for tag in 0..8 {
            assert_eq!(import(record(tag, 3, 1)), Imported::New);
        }
        assert_eq!(import(record(8, 3, 1)), Imported::Full);
        assert_eq!(import(record(5, 12, 9)), Imported::Stale);
    }
}
