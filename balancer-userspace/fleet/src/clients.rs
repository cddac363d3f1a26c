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

/// The facts about a backend that its remembered clients depend on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Facts {
    /// The id of the backend's service.
    pub service: u16,
    /// The service's present tick.
    pub tick: u16,
    /// Ticks after which a client is forgotten.
    pub remember: u16,
    /// Whether its known clients stay.
    pub keeps: bool,
}

/// The facts about backends by id; `None`: there is no backend of this id, or it remembers no clients.
pub trait Backends {
    /// Returns the facts about the backend with this id.
    fn facts(&self, id: u16) -> Option<Facts>;
}

impl<F: Fn(u16) -> Option<Facts>> Backends for F {
    fn facts(&self, id: u16) -> Option<Facts> {
        self(id)
    }
}

/// The outcome of importing a record.
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
    /// The client's bucket has no room.
    Full,
    /// There is no such backend, or nobody is remembered there.
    Stranger,
    /// It was not seen for too long.
    Expired,
    /// There is no such bucket.
    Outside,
}

/// The knowledge that other members have of a client table. See the [module](self).
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

    /// Collects the records that the others are to be told in `epoch`. `at_once` says which clients (by entry) are told
    /// of even if they were seen in one tick only. Clients that an earlier process has left at a backend which keeps no
    /// clients are not told of: a member that meets them sends them on, as if they were new.
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

    /// Returns the record of one entry if it is news to the others, and notes that they have been told.
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
    /// counts it; and whether this member has told the others so: that another one tells of the same place is not enough.
    fn move_made_here(&self, at: usize, entry: Entry) -> Option<(u16, bool)> {
        let told = Entry(self.shadows.get(at).told);
        if !told.is_empty() && told.tag() == entry.tag() && told.backend() != entry.backend() {
            return Some((told.backend(), false));
        }
        let is_told = !self.shadows.get(at).unheard;
        self.moves.get(&at).filter(|of| of.tag == entry.tag()).map(|of| (of.from, is_told))
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

/// The circumstances in which a member's records are heard.
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
mod tests;
