//! Shares known clients in a fleet: selects the client table entries that a member sends to the other members, and
//! imports the entries of the other members.
//!
//! Every entry of the client table has a *shadow*: the state of the entry that this member last sent to, or received
//! from, the other members. The member sends an entry that differs from its shadow: at once if the client is new or has
//! moved to another backend, and again after a quarter of the time for which the service remembers the client. The
//! caller decides whether the member sends a new client that was seen in only one tick, because a flood of sources that
//! never return must not spread to all members.

mod place;
mod shadows;

use std::collections::HashMap;

use balancer_common::client_table::{BUCKET_ENTRIES, Entries, Entry, TICK_MASK, bucket_of, find, victim};

use self::{
    place::Place,
    shadows::{Shadow, Shadows},
};
use crate::{emptied::Emptied, records::Record};

/// A client table that packets change at the same time.
pub trait Table {
    /// The total number of entries: [`BUCKET_ENTRIES`] for each bucket, where the number of buckets is a power of two.
    fn entries(&self) -> usize;
    /// Returns the entry at `index`, or an empty entry beyond the end of the table.
    fn load(&self, index: usize) -> Entry;
    /// Replaces the entry at `index` by `new` if the entry is still `old`.
    fn exchange(&self, index: usize, old: Entry, new: Entry) -> bool;
}

/// The facts about a backend that determine how its remembered clients are treated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Facts {
    /// The id of the backend's service.
    pub service: u16,
    /// The current tick of the service.
    pub tick: u16,
    /// The number of ticks after which the service forgets a client that sends no packets.
    pub remember: u16,
    /// Whether the backend keeps its known clients.
    pub keeps: bool,
}

/// The facts about backends by id; `None` if the backend does not exist, or if its service remembers no clients.
pub trait Backends {
    /// Returns the facts about the backend with this id.
    fn facts(&self, id: u16) -> Option<Facts>;
}

impl<F: Fn(u16) -> Option<Facts>> Backends for F {
    fn facts(&self, id: u16) -> Option<Facts> {
        self(id)
    }
}

/// The outcome of importing a record of a client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Imported {
    /// The client was unknown to this member, and is now known.
    New,
    /// The client was already known at the backend of the record.
    Known,
    /// The client was already known at the record's backend, to which it had moved from the given backend; another
    /// member has also made this move and counts it.
    Repeated(u16),
    /// The client was known at another backend, and has now moved to the record's backend.
    Moved,
    /// The client was known at another backend, at which the reporting member did not know it.
    Conflict,
    /// The client is known at another backend, and that knowledge outweighs the record.
    Stale,
    /// The client's bucket in the client table is full.
    Full,
    /// The record's backend does not exist, or its service remembers no clients.
    Stranger,
    /// The client was last seen too long ago to be remembered.
    Expired,
    /// The record names a bucket that does not exist.
    Outside,
}

/// Tracks what the other members know of this member's client table. See the [module](self).
#[derive(Debug)]
pub struct Sharing {
    shadows: Shadows,
    /// Whether this member has sent all its entries once. Before that, this member does not know when clients came to
    /// their backends.
    begun: bool,
    /// The epoch in which this member last sent all its entries.
    told_in: u32,
    /// Recent moves of clients at this member, by the index of the client's entry.
    moves: HashMap<usize, Move>,
    #[cfg(test)]
    mutation: Option<crate::member::Mutation>,
}

/// A move of a client that packets caused at this member; no other member is known to have made the same move.
#[derive(Clone, Copy, Debug)]
struct Move {
    tag: u32,
    /// The backend from which the client moved.
    from: u16,
    /// The number of times that this member has sent all its changed entries since the move.
    told: u8,
}

/// The number of such sends within which another member's report of the same move means that both members have made the
/// move. Each member sends its changed entries every second.
const REPEATED_WITHIN: u8 = 10;

/// A consistent copy of a bucket.
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
    /// Makes the initial state for a table with this number of entries, before the member has sent any entry.
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

    /// Records that this member has sent all its entries in this epoch.
    pub fn has_told(&mut self, epoch: u32) {
        (self.begun, self.told_in) = (true, epoch);
        self.moves.retain(|_, of| {
            of.told += 1;
            of.told <= REPEATED_WITHIN
        });
    }

    /// Frees the id of a removed backend: clients that become known under this id later are sent again.
    pub fn forget_backend(&mut self, id: u16) {
        self.shadows.forget_backend(id);
        self.moves.retain(|_, of| of.from != id);
    }

    /// Assumes that other members may have forgotten the records of this member. This member sends each entry again
    /// unless another member reports the entry before the next [`confirm`](Self::confirm).
    pub fn doubt(&mut self) {
        self.shadows.doubt();
    }

    /// Records that another member has reported all clients known to the other members.
    pub fn confirm(&mut self) {
        self.shadows.confirm();
    }

    /// Collects the records that this member must send to the other members in `epoch`. `at_once` returns for a
    /// client's entry whether the client is sent even if it was seen in only one tick. The function skips clients that
    /// an earlier process has left at a backend which keeps no clients: the next member that receives packets of such a
    /// client treats it as new.
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

    /// Returns the record of an entry if the other members do not have this entry yet, and marks the entry as sent.
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

    /// Returns the records of all known clients, for a member that knows no clients.
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

    /// Imports a record that another member has sent. Before the function writes an entry, it calls `flag` with
    /// service, tag and backend, because a client of the entry's slot is then at another backend than the slot's.
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
        let buckets = table.entries() / BUCKET_ENTRIES;
        if record.bucket as usize >= buckets {
            return Imported::Outside;
        }
        let bucket = bucket_of(record.bucket, record.tag, buckets as u32 - 1) as usize;
        let first = bucket * BUCKET_ENTRIES;
        let Some(facts) = backends.facts(record.backend) else { return Imported::Stranger };
        if record.age > facts.remember {
            return Imported::Expired;
        }
        let bucket = Bucket::of(table, bucket);
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
            // The other members know the place that outweighs the record only if this member has already sent it.
            let holds = (place, away) != (theirs, record.away);
            let move_made_here = self.move_made_here(at, old).filter(|_| record.moved);
            // The other members must learn that the client also moved at this member, so that they count the two moves
            // as one.
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
            // An entry of another service has the same bucket and the same tag, which happens once in several million
            // imports.
            return Imported::Full;
        }
        // The result must not depend on whether a backend currently keeps its clients, because members import a record
        // at different times.
        let is_known = owner.is_some_and(|owner| old.age(owner.tick) <= owner.remember);
        let ours = self.placed(at, old, owner.is_some_and(|owner| owner.keeps), epoch);
        if is_known && !theirs.holds_against(&ours, emptied) {
            // The reporting member has an older state of the entry, so this member sends its own record once more.
            self.shadows.mark_unheard(at);
            return Imported::Stale;
        }
        let outcome = if is_known && !record.moved { Imported::Conflict } else { Imported::Moved };
        flag(facts.service, record.tag, record.backend);
        self.write(table, at, old, new, record, outcome)
    }

    /// The epoch in which a client came to its backend, if this member has not sent the client yet; 0 if the epoch is
    /// unknown. If the backend no longer keeps clients, the client was recorded before that change.
    const fn came_in(&self, epoch: u32, keeps: bool) -> u32 {
        match (self.begun, keeps) {
            (false, _) => 0,
            (true, true) => epoch,
            (true, false) => self.told_in,
        }
    }

    /// Returns the [`Place`] of the client of an entry. If this member has not sent the entry yet, the client came to
    /// this backend in the current epoch.
    fn placed(&self, at: usize, entry: Entry, keeps: bool, epoch: u32) -> Place {
        let shadow = self.shadows.get(at);
        let (told, backend) = (Entry(shadow.told), entry.backend());
        if told.is_empty() || told.tag() != entry.tag() {
            // If the backend of an old place keeps no clients and the other members do not know the place, the place is
            // invalid.
            let epoch = if self.begun || keeps { self.came_in(epoch, keeps) } else { Place::NONE };
            Place { backend, moved: false, epoch }
        } else if told.backend() != backend {
            Place { backend, moved: true, epoch: self.came_in(epoch, keeps) }
        } else {
            Place { backend, moved: shadow.moved, epoch: shadow.epoch }
        }
    }

    /// The backend that the client of an entry recently left because of packets at this member, if no other member
    /// counts this move. The flag tells whether this member has told the other members about the move; another member's
    /// report of the same place is not enough.
    fn move_made_here(&self, at: usize, entry: Entry) -> Option<(u16, bool)> {
        let told = Entry(self.shadows.get(at).told);
        if !told.is_empty() && told.tag() == entry.tag() && told.backend() != entry.backend() {
            return Some((told.backend(), false));
        }
        let is_told = !self.shadows.get(at).unheard;
        self.moves.get(&at).filter(|of| of.tag == entry.tag()).map(|of| (of.from, is_told))
    }

    /// Whether the other members know the place of the client of an entry.
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
            // A packet has changed the entry in the meantime; the next collection sends the entry that the packet has
            // written.
            return Imported::Stale;
        }
        self.shadows.set(at, Shadow { told: new.0, epoch: record.epoch, moved: record.moved, ..Shadow::default() });
        outcome
    }
}

/// The circumstances under which this member imports records of another member.
#[derive(Clone, Copy, Debug)]
pub struct Heard<'a> {
    /// Whether the other member, and not this member, counts a move that both have made.
    pub precedes: bool,
    /// The epoch of the records, which this member also applies.
    pub epoch: u32,
    /// The backends whose known clients had to leave, up to the epoch of the records.
    pub emptied: &'a Emptied,
}

#[cfg(test)]
mod tests;
