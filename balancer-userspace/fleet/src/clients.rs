//! Sharing known clients: which entries of its client table a member sends to the others, and which it takes over from
//! them.
//!
//! Every entry of the table has a *shadow*: the state of the entry that this member last sent to the others, or
//! received from them. An entry is sent when it differs from its shadow: at once if its client is new or has come to
//! another backend, and again after a quarter of the time that its client is remembered. The caller decides whether to
//! send a new client that was seen in only one tick, because a flood of sources that never return must not spread to
//! all members.

mod place;
mod shadows;

use std::collections::HashMap;

use balancer_common::client_table::{BUCKET_ENTRIES, Entries, Entry, TICK_MASK, bucket_of, find, victim};

use self::{
    place::Place,
    shadows::{Shadow, Shadows},
};
use crate::{emptied::Emptied, records::Record};

/// A client table that packets change concurrently.
pub trait Table {
    /// The total number of entries: a power of two of buckets, with [`BUCKET_ENTRIES`] each.
    fn entries(&self) -> usize;
    /// The entry at `index`; empty beyond the end.
    fn load(&self, index: usize) -> Entry;
    /// Replaces an entry if it is still `old`.
    fn exchange(&self, index: usize, old: Entry, new: Entry) -> bool;
}

/// The facts about a backend on which its remembered clients depend.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Facts {
    /// The id of the backend's service.
    pub service: u16,
    /// The service's current tick.
    pub tick: u16,
    /// The number of ticks after which a silent client is forgotten.
    pub remember: u16,
    /// Whether the backend keeps its known clients.
    pub keeps: bool,
}

/// The facts about backends by id; `None` if no such backend exists, or if its clients are not remembered.
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
    /// The client was unknown here, and is known now.
    New,
    /// The client was already known at the backend of the record.
    Known,
    /// The client was already known at the backend of the record, after a move from this backend that another member
    /// has made and counts as well.
    Repeated(u16),
    /// The client was known at another backend, which it has left.
    Moved,
    /// The client was known at another backend, but the reporting member did not know it there.
    Conflict,
    /// The client is known at another backend, and this member's knowledge outweighs the record.
    Stale,
    /// The client's bucket has no room.
    Full,
    /// There is no such backend, or its clients are not remembered.
    Stranger,
    /// The client was not seen for too long.
    Expired,
    /// There is no such bucket.
    Outside,
}

/// Records of what the other members know about a client table. See the [module](self).
#[derive(Debug)]
pub struct Sharing {
    shadows: Shadows,
    /// Whether the member has sent everything once. Before that, it does not know since when clients are at their
    /// places.
    begun: bool,
    /// The epoch in which the member last sent everything.
    told_in: u32,
    /// Clients that have moved here recently, by their entries.
    moves: HashMap<usize, Move>,
    #[cfg(test)]
    mutation: Option<crate::member::Mutation>,
}

/// A move of a client that packets have made here, and that no other member is known to have made.
#[derive(Clone, Copy, Debug)]
struct Move {
    tag: u32,
    /// The backend that the client has left.
    from: u16,
    /// The number of complete sends since the move.
    told: u8,
}

/// If another member reports the same move within this number of complete sends from here, the move counts as made by
/// both; each member sends every second.
const REPEATED_WITHIN: u8 = 10;

/// A copy of a bucket that is consistent in itself.
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
    /// The state of a table with this many entries before anything was sent.
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

    /// Records that the member has sent everything in this epoch.
    pub fn has_told(&mut self, epoch: u32) {
        (self.begun, self.told_in) = (true, epoch);
        self.moves.retain(|_, of| {
            of.told += 1;
            of.told <= REPEATED_WITHIN
        });
    }

    /// Frees a backend's id: the member has not yet sent clients that become known under this id later.
    pub fn forget_backend(&mut self, id: u16) {
        self.shadows.forget_backend(id);
        self.moves.retain(|_, of| of.from != id);
    }

    /// Assumes that other members may have forgotten what this member sent: entries that none of them reports before
    /// the next [`confirm`](Self::confirm) are sent again.
    pub fn doubt(&mut self) {
        self.shadows.doubt();
    }

    /// Records that a member has sent everything that the others know.
    pub fn confirm(&mut self) {
        self.shadows.confirm();
    }

    /// Collects the records to send to the others in `epoch`. `at_once` returns whether to send a client (by entry)
    /// even if it was seen in only one tick. The function skips clients that an earlier process has left at a backend
    /// which keeps no clients: a member that receives their packets steers them as if they were new.
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

    /// Returns the record of an entry if the other members do not know it yet, and records that it was sent.
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

    /// The records of all known clients, for a member that knows none.
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

    /// Imports a record of another member. Before it writes an entry, it calls `flag` with service, tag and backend,
    /// because the entry's slot of the lookup table then has a client on another backend.
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
            // The others do not know the place that outweighs the record, unless this member has told them.
            let holds = (place, away) != (theirs, record.away);
            let move_made_here = self.move_made_here(at, old).filter(|_| record.moved);
            // They do not know either that the client moved here as well, which they need to count the two moves once.
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
            // An entry of another service has the same bucket and tag, which happens once in some million times.
            return Imported::Full;
        }
        // Whether a backend keeps its clients now must not matter, because members look at different moments.
        let is_known = owner.is_some_and(|owner| old.age(owner.tick) <= owner.remember);
        let ours = self.placed(at, old, owner.is_some_and(|owner| owner.keeps), epoch);
        if is_known && !theirs.holds_against(&ours, emptied) {
            // The reporting member has an older state, so this member sends it the record once more.
            self.shadows.mark_unheard(at);
            return Imported::Stale;
        }
        let outcome = if is_known && !record.moved { Imported::Conflict } else { Imported::Moved };
        flag(facts.service, record.tag, record.backend);
        self.write(table, at, old, new, record, outcome)
    }

    /// The epoch in which an unsent client came to its place; 0: unknown. If the backend keeps no clients, the client
    /// came before the backend ceased to keep them: a client that has left it since has moved later.
    const fn came_in(&self, epoch: u32, keeps: bool) -> u32 {
        match (self.begun, keeps) {
            (false, _) => 0,
            (true, true) => epoch,
            (true, false) => self.told_in,
        }
    }

    /// The place of an entry's client. If the entry was not sent yet, the client came there in this epoch.
    fn placed(&self, at: usize, entry: Entry, keeps: bool, epoch: u32) -> Place {
        let shadow = self.shadows.get(at);
        let (told, backend) = (Entry(shadow.told), entry.backend());
        if told.is_empty() || told.tag() != entry.tag() {
            // An old place does not count if its backend keeps no clients and the other members do not know the place.
            let epoch = if self.begun || keeps { self.came_in(epoch, keeps) } else { Place::NONE };
            Place { backend, moved: false, epoch }
        } else if told.backend() != backend {
            Place { backend, moved: true, epoch: self.came_in(epoch, keeps) }
        } else {
            Place { backend, moved: shadow.moved, epoch: shadow.epoch }
        }
    }

    /// The backend that an entry's client has recently left because of packets here, if no other member counts that
    /// move; and whether this member has told the others, because another member's report of the same place is not
    /// enough.
    fn move_made_here(&self, at: usize, entry: Entry) -> Option<(u16, bool)> {
        let told = Entry(self.shadows.get(at).told);
        if !told.is_empty() && told.tag() == entry.tag() && told.backend() != entry.backend() {
            return Some((told.backend(), false));
        }
        let is_told = !self.shadows.get(at).unheard;
        self.moves.get(&at).filter(|of| of.tag == entry.tag()).map(|of| (of.from, is_told))
    }

    /// Whether the other members know the place of an entry's client.
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
            // A packet was faster; the next collection sends the entry that the packet has written.
            return Imported::Stale;
        }
        self.shadows.set(at, Shadow { told: new.0, epoch: record.epoch, moved: record.moved, ..Shadow::default() });
        outcome
    }
}

/// The circumstances in which a member's records are imported.
#[derive(Clone, Copy, Debug)]
pub struct Heard<'a> {
    /// Whether the other member counts a move that both members have made.
    pub precedes: bool,
    /// The epoch that this member applies, to which the records belong.
    pub epoch: u32,
    /// The backends that had to lose their clients up to that epoch.
    pub emptied: &'a Emptied,
}

#[cfg(test)]
mod tests;
