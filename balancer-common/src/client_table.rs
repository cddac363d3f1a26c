//! The client table records for each client the backend that the balancer last chose for the client.
//!
//! The table is one array of 64-byte buckets. Each bucket has eight entries of one 64-bit word, so readers never see a
//! half-written entry:
//!
//! ```text
//! bits  63…32 tag | 31…16 backend id | 15 away | 14 established | 13…0 last seen, in ticks        0 = empty
//! ```
//!
//! The tag is the high half of the client's hash. The tag identifies the client within its bucket; the tag scaled to
//! the size of the lookup table gives the client's slot. Backend ids are unique over all services, so an entry names
//! its service as well.
//!
//! The low eight bits of a bucket's index are the low bits of the hash; the other bits of the index come from the tag.
//! An entry and its bucket therefore determine the client's bucket in another table if the present table has at least
//! [`PORTABLE_BUCKETS`] buckets or the other table is smaller. Within a bucket, the tag distinguishes clients by those
//! of its 32 bits that are not part of the bucket's index.
//!
//! *Eviction*: if a bucket is full, a new client replaces the first of the following entries that exists in the bucket:
//!
//! 1. an empty entry, or an expired entry of the new client's service (other services have clocks of different speeds);
//! 2. the oldest entry that is not *established* and not *young*; a client becomes established when it is seen again in
//!    a later tick;
//! 3. the oldest established entry of the new client's service that is *stale*: not seen for an eighth of the time that
//!    clients are remembered for;
//! 4. a *young* entry.
//!
//! A flood of sources that send only one packet each therefore replaces only its own entries (scan resistance, as the
//! A1 queue of 2Q: Johnson, Shasha 1994). A flood of sources that become established keeps its entries for at most an
//! eighth of the time that clients are remembered for.

use bytemuck::{Pod, Zeroable};

pub const BUCKET_ENTRIES: usize = 8;

/// The number of bits of a bucket's index that are bits of the low half of the hash.
const HASH_BITS: u32 = PORTABLE_BUCKETS.trailing_zeros();

/// The minimum number of buckets of a table that can grow without forgetting its clients.
pub const PORTABLE_BUCKETS: u32 = 256;

/// The index of a client's bucket in a table whose number of buckets, a power of two, is one more than `mask`.
#[inline(always)]
#[must_use]
pub const fn bucket(hash: u64, mask: u32) -> u32 {
    bucket_of(hash as u32, (hash >> 32) as u32, mask)
}

/// Like [`bucket`], but for a client with this tag whose bucket in another table is `other`. If the other table has
/// fewer than [`PORTABLE_BUCKETS`] buckets, it must have at least as many buckets as this table.
#[inline(always)]
#[must_use]
pub const fn bucket_of(other: u32, tag: u32, mask: u32) -> u32 {
    (other & (PORTABLE_BUCKETS - 1) | tag << HASH_BITS) & mask
}

/// The mask of a tick: ticks are counted modulo 2^14.
pub const TICK_MASK: u16 = 0x3fff;

const ESTABLISHED: u64 = 1 << 14;
const AWAY: u64 = 1 << 15;

/// A bucket of the client table, which fills one cache line.
#[repr(C, align(64))]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
pub struct Bucket {
    /// The entries in any order; 0 marks an empty entry.
    pub entries: [u64; BUCKET_ENTRIES],
}

#[repr(transparent)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry(pub u64);

impl Entry {
    /// The 64-bit word that stands for an empty entry.
    pub const EMPTY: Self = Self(0);

    /// The entry of a client that the balancer sees for the first time, at `tick`.
    #[inline(always)]
    #[must_use]
    pub const fn new(tag: u32, backend: u16, tick: u16) -> Self {
        Self((tag as u64) << 32 | (backend as u64) << 16 | (tick & TICK_MASK) as u64)
    }

    /// The entry of an established client that another balancer reported; the client was last seen `age` ticks before
    /// `now`.
    #[inline(always)]
    #[must_use]
    pub const fn heard_of(tag: u32, backend: u16, away: bool, age: u16, now: u16) -> Self {
        let flags = ESTABLISHED | if away { AWAY } else { 0 };
        Self(Self::new(tag, backend, now.wrapping_sub(age)).0 | flags)
    }

    #[inline(always)]
    #[must_use]
    pub const fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// The high half of the client's hash.
    #[inline(always)]
    #[must_use]
    pub const fn tag(self) -> u32 {
        (self.0 >> 32) as u32
    }

    /// The id of the backend.
    #[inline(always)]
    #[must_use]
    pub const fn backend(self) -> u16 {
        (self.0 >> 16) as u16
    }

    /// Whether the balancer moved the client to this backend because the client's home backend failed.
    #[inline(always)]
    #[must_use]
    pub const fn away(self) -> bool {
        self.0 & AWAY != 0
    }

    /// Whether the client was seen in more than one tick.
    #[inline(always)]
    #[must_use]
    pub const fn established(self) -> bool {
        self.0 & ESTABLISHED != 0
    }

    /// The tick in which a packet of the client was last recorded.
    #[inline(always)]
    #[must_use]
    pub const fn last_seen(self) -> u16 {
        self.0 as u16 & TICK_MASK
    }

    /// The number of ticks since a packet of the client was last recorded. If another CPU wrote the entry after `now`
    /// was read, the difference wraps around to a very large age, which counts as 0.
    #[inline(always)]
    #[must_use]
    pub const fn age(self, now: u16) -> u16 {
        let age = now.wrapping_sub(self.last_seen()) & TICK_MASK;
        if age > TICK_MASK - 8 { 0 } else { age }
    }

    /// The entry with the client last seen `age` ticks before `now`.
    #[inline(always)]
    #[must_use]
    pub const fn aged(self, age: u16, now: u16) -> Self {
        Self(self.0 & !(TICK_MASK as u64) | (now.wrapping_sub(age) & TICK_MASK) as u64)
    }

    /// The entry after a packet in tick `now`: a client that was already seen in an earlier tick is now established.
    #[inline(always)]
    #[must_use]
    pub const fn touched(self, now: u16) -> Self {
        if self.age(now) == 0 {
            return self;
        }
        Self(self.0 & !(TICK_MASK as u64) | ESTABLISHED | (now & TICK_MASK) as u64)
    }

    /// The entry after its client was moved to `backend`; `away` says whether the reason is that the client's home
    /// backend failed.
    #[inline(always)]
    #[must_use]
    pub const fn moved(self, backend: u16, away: bool, now: u16) -> Self {
        let kept = self.touched(now).0 & !(0xffff_0000 | AWAY);
        Self(kept | (backend as u64) << 16 | if away { AWAY } else { 0 })
    }
}

/// A bucket that other CPUs may be writing: every access reads or writes one whole word.
pub trait Entries {
    /// The entry at `index`, below [`BUCKET_ENTRIES`].
    fn load(&self, index: usize) -> Entry;
    /// Replaces the entry at `index`.
    fn store(&self, index: usize, entry: Entry);
    /// Returns `number` unchanged. In the kernel program, the function hides the number's origin from the verifier,
    /// which then checks the code after the call once instead of once for each possible value.
    #[inline(always)]
    fn forget(&self, number: u64) -> u64 {
        number
    }
}

/// Finds the entry of `tag`, with its position.
#[inline(always)]
#[must_use]
pub fn find(bucket: &impl Entries, tag: u32) -> Option<(usize, Entry)> {
    let mut index = 0;
    while index < BUCKET_ENTRIES {
        let entry = bucket.load(index);
        if entry.tag() == tag && !entry.is_empty() {
            return Some((bucket.forget(index as u64) as usize, entry));
        }
        index += 1;
    }
    None
}

/// The age in ticks from which a new client may replace an established entry. The entry of a client that sends a packet
/// in each eighth of `remember` never reaches this age, although a refresh period takes up to a 32nd of `remember`.
#[inline(always)]
#[must_use]
pub const fn stale_after(remember: u16) -> u16 {
    remember / 8 + remember / 32 + 1
}

/// The number of ticks for which an entry that was seen once is protected from other new clients.
pub const YOUNG: u16 = 4;

/// The position of the entry that a new client replaces, and whether this replacement makes the balancer forget another
/// client. The function chooses the entry with the highest packed score. `None`: every entry of the bucket is
/// established and not stale. `now` and `remember` do not apply to entries of backends that are not `ours`.
#[inline(always)]
#[must_use]
pub fn victim(bucket: &impl Entries, now: u16, remember: u16, ours: impl Fn(u16) -> bool) -> Option<(usize, bool)> {
    const FRESH: u32 = 1 << 17;
    const STALE: u32 = 2 << 17;
    const EXPENDABLE: u32 = 3 << 17;
    const EXPIRED: u32 = 4 << 17;
    const EMPTY: u32 = 5 << 17;
    let mut best = 0;
    let mut index = 0;
    while index < BUCKET_ENTRIES {
        let entry = bucket.load(index);
        let age = entry.age(now);
        let class = if entry.is_empty() {
            EMPTY
        } else if age > remember && ours(entry.backend()) {
            EXPIRED
        } else if !entry.established() {
            if age > YOUNG { EXPENDABLE } else { FRESH }
        } else if age > stale_after(remember) && ours(entry.backend()) {
            STALE
        } else {
            0
        };
        let score = class | (age as u32) << 3 | index as u32;
        if score > best {
            best = score;
        }
        best = bucket.forget(u64::from(best)) as u32;
        index += 1;
    }
    if best < FRESH { None } else { Some(((best & 7) as usize, best < EXPIRED)) }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use proptest::prelude::*;

    use core::cell::Cell;

    /// A bucket of the client table in host memory.
    pub(crate) struct Cells([Cell<u64>; BUCKET_ENTRIES]);

    impl Cells {
        pub(crate) fn of(entries: [u64; BUCKET_ENTRIES]) -> Self {
            Self(entries.map(Cell::new))
        }
    }

    impl Entries for Cells {
        fn load(&self, index: usize) -> Entry {
            Entry(self.0[index].get())
        }

        fn store(&self, index: usize, entry: Entry) {
            self.0[index].set(entry.0);
        }
    }

    proptest! {
        #[test]
        fn when_an_entry_is_packed_then_its_fields_can_be_read_back(tag: u32, backend in 1u16.., tick in 0..=TICK_MASK, to in 1u16.., away: bool) {
            let entry = Entry::new(tag, backend, tick);
            prop_assert_eq!((entry.tag(), entry.backend(), entry.last_seen()), (tag, backend, tick));
            prop_assert!(!entry.is_empty() && !entry.established() && !entry.away());
            prop_assert_eq!(entry.touched(tick), entry);
            let later = (tick + 3) & TICK_MASK;
            let moved = entry.moved(to, away, later);
            prop_assert_eq!((moved.tag(), moved.backend(), moved.last_seen()), (tag, to, later));
            prop_assert_eq!((moved.away(), moved.established()), (away, true));
        }

        #[test]
        fn when_a_table_becomes_another_size_then_an_entry_and_its_bucket_tell_the_new_bucket(
            hash: u64, from in 0u32..31, to in 0u32..31,
        ) {
            let (from, to) = ((1 << from) - 1, (1 << to) - 1);
            let told = bucket_of(bucket(hash, from), (hash >> 32) as u32, to);
            if to <= from || from >= PORTABLE_BUCKETS - 1 {
                prop_assert_eq!(told, bucket(hash, to));
            }
            prop_assert!(bucket(hash, to) <= to);
        }

        #[test]
        fn when_the_tick_counter_wraps_around_then_ages_stay_right(tick in 0..=TICK_MASK, age in 0..TICK_MASK - 8) {
            prop_assert_eq!(Entry::new(1, 1, tick).age((tick + age) & TICK_MASK), age);
        }

        #[test]
        fn when_a_bucket_is_full_then_the_oldest_goes_that_is_not_established_or_else_is_stale(
            entries in prop::array::uniform8((any::<u32>(), 1u16.., 0u16..4096, any::<bool>())),
        ) {
            let now = 5000;
            let entries = entries.map(|(tag, backend, age, established)| {
                Entry::new(tag, backend, now - age).0 | if established { ESTABLISHED } else { 0 }
            });
            let all = || entries.iter().map(|&entry| Entry(entry));
            let is_stale = |entry: &Entry| entry.age(now) > stale_after(4096);
            match victim(&Cells::of(entries), now, 4096, |_| true) {
                Some((index, forgets)) => {
                    let chosen = Entry(entries[index]);
                    prop_assert!(forgets && (!chosen.established() || is_stale(&chosen)));
                    let waits = |entry: &Entry| !entry.established() && entry.age(now) <= YOUNG;
                    prop_assert!(!chosen.established() || all().all(|entry| entry.established() || waits(&entry)));
                    prop_assert!(!waits(&chosen) || all().all(|entry| waits(&entry) || !is_stale(&entry)));
                    let alike = |entry: &Entry| (entry.established(), waits(entry)) == (chosen.established(), waits(&chosen));
                    let oldest = all().filter(alike);
                    prop_assert_eq!(Some(chosen.age(now)), oldest.map(|entry| entry.age(now)).max());
                }
                None => prop_assert!(all().all(|entry| entry.established() && !is_stale(&entry))),
            }
        }

        #[test]
        fn when_a_bucket_is_full_then_empty_entries_go_first_and_expired_ones_next(at in 0usize..8, empty in 0usize..8) {
            let mut entries = [Entry::new(7, 1, 1000).0; BUCKET_ENTRIES];
            entries[at] = Entry::new(9, 1, 10).0 | ESTABLISHED;
            prop_assert_eq!(victim(&Cells::of(entries), 1000, 500, |_| true), Some((at, false)));
            entries[empty] = 0;
            prop_assert_eq!(victim(&Cells::of(entries), 1000, 500, |_| true), Some((empty, false)));
        }

        #[test]
        fn when_another_services_clock_runs_faster_then_it_expires_no_entry(
            entries in prop::array::uniform8((any::<u32>(), 1u16..4, 0..=TICK_MASK, any::<bool>())),
            now in 0..=TICK_MASK,
            remember in 1u16..=4096,
        ) {
            let ours = |backend| backend == 1;
            let entries = entries.map(|(tag, backend, seen, established)| {
                Entry::new(tag, backend, seen).0 | if established { ESTABLISHED } else { 0 }
            });
            let expired = |entry: Entry| ours(entry.backend()) && entry.age(now) > remember;
            let mut all = entries.iter().map(|&entry| Entry(entry));
            match victim(&Cells::of(entries), now, remember, ours) {
                Some((index, forgets)) => {
                    let chosen = Entry(entries[index]);
                    prop_assert_eq!(expired(chosen), !forgets);
                    prop_assert!(expired(chosen) || !all.any(expired));
                    prop_assert!(!chosen.established() || ours(chosen.backend()), "another's clock says nothing");
                }
                None => prop_assert!(all.all(|entry| entry.established() && !expired(entry))),
            }
        }
    }

    #[test]
    fn when_a_tag_is_zero_then_its_client_is_found_like_any_other() {
        let bucket = Cells::of([0; BUCKET_ENTRIES]);
        assert_eq!(find(&bucket, 0), None);
        bucket.store(3, Entry::new(0, 1, 0));
        assert_eq!(find(&bucket, 0), Some((3, Entry::new(0, 1, 0))));
    }
}
