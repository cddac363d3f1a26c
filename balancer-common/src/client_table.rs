//! The client table: which backend a client was last steered to.
//!
//! One array of 64-byte buckets, eight entries of one 64-bit word each, so that no reader ever sees half an entry:
//!
//! ```text
//! bits  63…32 tag | 31…16 backend id | 15 away | 14 established | 13…0 last seen, in ticks        0 = empty
//! ```
//!
//! The tag is the high half of the client's hash. It names the client within its bucket (the low bits of the hash) and,
//! scaled to the table size, its slot. Backend ids are unique over all services, so an entry names its service as well.
//!
//! *Who goes when a bucket is full*: an empty or expired entry (of the newcomer's service: another's clock runs at another
//! speed), else the oldest that is not yet *established*, which a
//! client becomes when it is seen again in a later tick. A newcomer never pushes out an established client, so a flood
//! of sources that are each seen once churns among itself (scan resistance, as the A1 queue of 2Q: Johnson, Shasha 1994).

use bytemuck::{Pod, Zeroable};

use crate::verdict::{CauseIndex, Decision, MoveCause};

/// Entries of a bucket.
pub const BUCKET_ENTRIES: usize = 8;

/// Ticks are counted modulo 2^14.
pub const TICK_MASK: u16 = 0x3fff;

/// Ticks that `remember` is divided into, so that an entry's age stays far below the wrap-around.
pub const TICKS_PER_REMEMBER: u32 = 4096;

const RULE: CauseIndex = CauseIndex(MoveCause::Rule as u8);
/// So many ticks at most where `remember` has grown: a sweep must still find an entry before its age wraps around.
const MOST_TICKS: u32 = 12_000;
/// So many at least where it has shrunk.
const FEWEST_TICKS: u32 = 64;

const FAILBACK: CauseIndex = CauseIndex(MoveCause::Failback as u8);
const ESTABLISHED: u64 = 1 << 14;
const AWAY: u64 = 1 << 15;

/// A bucket: a cache line.
#[repr(C, align(64))]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
pub struct Bucket {
    /// Entries in no order; 0 is empty.
    pub entries: [u64; BUCKET_ENTRIES],
}

/// One client's entry.
#[repr(transparent)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry(pub u64);

impl Entry {
    /// An entry of a client seen for the first time, at `tick`.
    #[inline(always)]
    #[must_use]
    pub const fn new(tag: u32, backend: u16, tick: u16) -> Self {
        Self((tag as u64) << 32 | (backend as u64) << 16 | (tick & TICK_MASK) as u64)
    }

    /// Whether there is no client.
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

    /// The backend's id.
    #[inline(always)]
    #[must_use]
    pub const fn backend(self) -> u16 {
        (self.0 >> 16) as u16
    }

    /// Whether the client was moved here because its home failed.
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

    /// The tick of the last recorded packet.
    #[inline(always)]
    #[must_use]
    pub const fn last_seen(self) -> u16 {
        self.0 as u16 & TICK_MASK
    }

    /// Ticks since the last recorded packet. A clock read just before the entry was written by another CPU gives the
    /// largest ages; they are taken as 0.
    #[inline(always)]
    #[must_use]
    pub const fn age(self, now: u16) -> u16 {
        let age = now.wrapping_sub(self.last_seen()) & TICK_MASK;
        if age > TICK_MASK - 8 { 0 } else { age }
    }

    /// The entry of a client last seen `age` ticks before `now`.
    #[inline(always)]
    #[must_use]
    pub const fn aged(self, age: u16, now: u16) -> Self {
        Self(self.0 & !(TICK_MASK as u64) | (now.wrapping_sub(age) & TICK_MASK) as u64)
    }

    /// The entry after a packet in tick `now`: a client seen in a later tick than before is established.
    #[inline(always)]
    #[must_use]
    pub const fn touched(self, now: u16) -> Self {
        if self.age(now) == 0 {
            return self;
        }
        Self(self.0 & !(TICK_MASK as u64) | ESTABLISHED | (now & TICK_MASK) as u64)
    }

    /// The entry after its client was moved to `backend`; `away`: because its home failed.
    #[inline(always)]
    #[must_use]
    pub const fn moved(self, backend: u16, away: bool, now: u16) -> Self {
        let kept = self.touched(now).0 & !(0xffff_0000 | AWAY);
        Self(kept | (backend as u64) << 16 | if away { AWAY } else { 0 })
    }
}

/// A bucket that others may be writing: every access is one whole word.
pub trait Entries {
    /// The entry at `index`, below [`BUCKET_ENTRIES`].
    fn load(&self, index: usize) -> Entry;
    /// Replaces it.
    fn store(&self, index: usize, entry: Entry);
}

/// Position of `tag`'s entry, and the entry.
#[inline(always)]
#[must_use]
pub fn find(bucket: &impl Entries, tag: u32) -> Option<(usize, Entry)> {
    let mut index = 0;
    while index < BUCKET_ENTRIES {
        let entry = bucket.load(index);
        if entry.tag() == tag && !entry.is_empty() {
            return Some((index, entry));
        }
        index += 1;
    }
    None
}

/// Position of the entry that a newcomer replaces, and whether that forgets a client: the maximum of one packed score.
/// `None`: every entry is established. `now` and `remember` say nothing of entries of backends that are not `ours`.
#[inline(always)]
#[must_use]
pub fn victim(bucket: &impl Entries, now: u16, remember: u16, ours: impl Fn(u16) -> bool) -> Option<(usize, bool)> {
    const EXPENDABLE: u32 = 1 << 17;
    const EXPIRED: u32 = 2 << 17;
    const EMPTY: u32 = 3 << 17;
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
            EXPENDABLE
        } else {
            0
        };
        let score = class | (age as u32) << 3 | index as u32;
        if score > best {
            best = score;
        }
        index += 1;
    }
    if best < EXPENDABLE { None } else { Some(((best & 7) as usize, best < EXPIRED)) }
}

/// What is known when a packet is steered by memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Steering {
    /// The live table's backend for the client's slot; `None`: nobody takes new clients.
    pub live: Option<u16>,
    /// A rule names the backend: `live` is that one, and every client goes there.
    pub pinned: bool,
    /// Whether the live table's backend is also the base table's.
    pub live_is_home: bool,
    /// The client's entry, unless it is expired or names another service's backend.
    pub entry: Option<Entry>,
    /// Whether the entry's backend still keeps known clients.
    pub keeps_known: bool,
    /// Why the entry's backend would not.
    pub cause: CauseIndex,
    /// Whether the packet opens a connection.
    pub opens: bool,
    /// `failback = "return"`.
    pub failback: bool,
    /// The service's tick.
    pub now: u16,
}

/// Where a packet goes and what is remembered of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Steered {
    /// The backend; `None`: nobody takes the client.
    pub backend: Option<u16>,
    /// How it was chosen, were this a new connection.
    pub decision: Decision,
    /// A known client that is moved with this packet, and why.
    pub moved: Option<CauseIndex>,
    /// What to write to the entry found, if it differs; with no entry, a newcomer is to be recorded.
    pub entry: Option<Entry>,
}

/// The rule of memory: a known client whose backend keeps known clients stays; everybody else follows the live table.
#[inline(always)]
#[must_use]
pub const fn steer(packet: &Steering) -> Steered {
    if packet.pinned {
        return steer_pinned(packet);
    }
    let Some(entry) = packet.entry else {
        return Steered { backend: packet.live, decision: Decision::New, moved: None, entry: None };
    };
    let home = match packet.live {
        Some(live) => packet.failback && packet.opens && packet.live_is_home && entry.away() && live != entry.backend(),
        None => false,
    };
    if packet.keeps_known && !home {
        let kept = Some(entry.touched(packet.now));
        return Steered { backend: Some(entry.backend()), decision: Decision::Kept, moved: None, entry: kept };
    }
    let cause = if packet.keeps_known { FAILBACK } else { packet.cause };
    match packet.live {
        None => Steered { backend: None, decision: Decision::Kept, moved: None, entry: None },
        // The table is "open": nobody else takes clients, so nobody is moved.
        Some(live) if live == entry.backend() => {
            let kept = Some(entry.touched(packet.now));
            Steered { backend: packet.live, decision: Decision::Kept, moved: None, entry: kept }
        }
        Some(live) => {
            let away = packet.keeps_known as u8 == 0 && !packet.live_is_home;
            let moved = Some(entry.moved(live, away, packet.now));
            Steered { backend: packet.live, decision: Decision::Moved, moved: Some(cause), entry: moved }
        }
    }
}

/// The same for a client that a rule pins to `packet.live`: it goes there and is known there from then on.
#[inline(always)]
const fn steer_pinned(packet: &Steering) -> Steered {
    let pinned = Steered { backend: packet.live, decision: Decision::Pinned, moved: None, entry: None };
    match (packet.entry, packet.live) {
        (Some(entry), Some(live)) if live == entry.backend() => {
            Steered { entry: Some(entry.touched(packet.now)), ..pinned }
        }
        (Some(entry), Some(live)) => Steered {
            decision: Decision::Moved,
            moved: Some(RULE),
            entry: Some(entry.moved(live, false, packet.now)),
            ..pinned
        },
        (None, _) | (_, None) => pinned,
    }
}

/// A packet that consults the client table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Query {
    /// The high half of the client's hash.
    pub tag: u32,
    /// The service.
    pub service: u16,
    /// The live table's backend for the client's slot; `None`: nobody takes new clients.
    pub live: Option<u16>,
    /// Whether the live table's backend is also the base table's.
    pub live_is_home: bool,
    /// A rule names the backend: `live` is that one.
    pub pinned: bool,
    /// A TCP segment that opens a connection.
    pub opens: bool,
    /// A datagram: the first one, or the first after `idle` ticks, counts as a new connection.
    pub datagram: bool,
    /// `failback = "return"`.
    pub failback: bool,
    /// The service's tick.
    pub now: u16,
    /// Ticks after which an entry is expired.
    pub remember: u16,
    /// Ticks after which a datagram opens a connection; at least 1.
    pub idle: u16,
}

/// What the rule of memory needs to know of a backend.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BackendFacts {
    /// Its service.
    pub service: u16,
    /// Whether it keeps known clients.
    pub keeps_known: bool,
    /// Why it would not.
    pub cause: CauseIndex,
}

/// What became of a newcomer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Recorded {
    /// It was no newcomer.
    Known,
    /// It has an entry.
    Inserted,
    /// It has an entry, and another client lost its own.
    Evicted,
    /// It has none: its bucket is full of established clients.
    Full,
    /// It has none: too many newcomers at once.
    Limited,
}

/// The answer to a [`Query`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Answer {
    /// The backend; `None`: nobody takes the client.
    pub backend: Option<u16>,
    /// How it was chosen, if the packet opens a connection.
    pub decision: Option<Decision>,
    /// The backend that a known client is moved from with this packet, and why.
    pub moved: Option<(u16, CauseIndex)>,
    /// What became of a newcomer.
    pub recorded: Recorded,
}

/// Steers one packet by memory and updates the memory.
///
/// `backend` looks a backend up, `may_record` says whether another newcomer may be recorded now.
#[inline(always)]
pub fn consult(
    bucket: &impl Entries,
    query: &Query,
    backend: impl Fn(u16) -> Option<BackendFacts>,
    may_record: impl FnOnce() -> bool,
) -> Answer {
    let found = find(bucket, query.tag);
    let mut entry = None;
    let mut facts = BackendFacts { service: 0, keeps_known: false, cause: CauseIndex(0) };
    if let Some((_, candidate)) = found
        && candidate.age(query.now) <= query.remember
        && let Some(of) = backend(candidate.backend())
        && of.service == query.service
    {
        facts = of;
        entry = Some(candidate);
    }
    let opens = query.opens
        || query.datagram
            && match entry {
                Some(entry) => entry.age(query.now) >= query.idle,
                None => true,
            };
    let steered = steer(&Steering {
        live: query.live,
        live_is_home: query.live_is_home,
        pinned: query.pinned,
        entry,
        keeps_known: facts.keeps_known,
        cause: facts.cause,
        opens,
        failback: query.failback,
        now: query.now,
    });
    let ours = |id| backend(id).is_some_and(|of| of.service == query.service);
    let mut moved = None;
    let recorded = if let (Some((index, old)), Some(new)) = (found, steered.entry) {
        if new != old {
            bucket.store(index, new);
        }
        if let Some(cause) = steered.moved {
            moved = Some((old.backend(), cause));
        }
        Recorded::Known
    } else if let (None, Some(live)) = (entry, steered.backend) {
        let newcomer = Entry::new(query.tag, live, query.now);
        match found {
            // Its own entry, expired.
            Some((index, _)) => {
                bucket.store(index, newcomer);
                Recorded::Inserted
            }
            None if !may_record() => Recorded::Limited,
            None => match victim(bucket, query.now, query.remember, ours) {
                None => Recorded::Full,
                Some((index, forgets)) => {
                    bucket.store(index, newcomer);
                    if forgets { Recorded::Evicted } else { Recorded::Inserted }
                }
            },
        }
    } else {
        Recorded::Known
    };
    let decision = if opens { Some(steered.decision) } else { None };
    Answer { backend: steered.backend, decision, moved, recorded }
}

/// Whether a packet of an unflagged slot is to be recorded although it opens nothing: each client is due in one tick of
/// every `mask` + 1, so that long connections stay known at the cost of a table access for few packets.
#[inline(always)]
#[must_use]
pub const fn due(hash: u64, now: u16, mask: u16) -> bool {
    (hash >> 32) as u16 & mask == now & mask
}

/// Ticks and masks of a service that remembers for `seconds` (at least 1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Clock {
    /// Seconds in a tick.
    pub tick_seconds: u32,
    /// Ticks after which an entry is expired.
    pub remember: u16,
    /// See [`due`].
    pub due_mask: u16,
}

impl Clock {
    /// The coarsest clock that divides the time well: ticks of `seconds` / 4096, at least one second, and every client
    /// due at least eight times (once a tick if there are fewer than eight) before it would be forgotten.
    #[must_use]
    pub const fn new(seconds: u32) -> Self {
        Self::with_ticks(seconds, seconds.div_ceil(TICKS_PER_REMEMBER))
    }

    /// Seconds in a tick where clients are to be remembered for `seconds`, and those known are remembered in ticks of
    /// `tick_seconds` (0: there are none): the same while that divides the time well.
    #[must_use]
    pub const fn tick_after(tick_seconds: u32, seconds: u32) -> u32 {
        if tick_seconds > 0 {
            let ticks = seconds.div_ceil(tick_seconds);
            if ticks <= MOST_TICKS && (ticks >= FEWEST_TICKS || tick_seconds == 1) {
                return tick_seconds;
            }
        }
        seconds.div_ceil(TICKS_PER_REMEMBER)
    }

    /// A clock with ticks of `tick_seconds`, at least 1, of which `seconds` are at most 2^14 − 1.
    #[must_use]
    pub const fn with_ticks(seconds: u32, tick_seconds: u32) -> Self {
        let remember = seconds.div_ceil(tick_seconds);
        let period = match remember / 8 {
            0 => 1,
            ticks if ticks > 64 => 64,
            ticks => 1 << (31 - ticks.leading_zeros()),
        };
        Self { tick_seconds, remember: remember as u16, due_mask: period as u16 - 1 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    use core::cell::Cell;

    /// A bucket on the host.
    struct Cells([Cell<u64>; BUCKET_ENTRIES]);

    impl Cells {
        fn of(entries: [u64; BUCKET_ENTRIES]) -> Self {
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

    fn steering(entry: Option<Entry>) -> Steering {
        Steering {
            live: Some(5),
            live_is_home: true,
            pinned: false,
            entry,
            keeps_known: true,
            cause: MoveCause::Down.into(),
            opens: true,
            failback: false,
            now: 100,
        }
    }

    proptest! {
        #[test]
        fn an_entry_keeps_its_fields(tag: u32, backend in 1u16.., tick in 0..=TICK_MASK, to in 1u16.., away: bool) {
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
        fn age_survives_the_wrap_around(tick in 0..=TICK_MASK, age in 0..TICK_MASK - 8) {
            prop_assert_eq!(Entry::new(1, 1, tick).age((tick + age) & TICK_MASK), age);
        }

        #[test]
        fn a_newcomer_never_pushes_out_an_established_client(
            entries in prop::array::uniform8((any::<u32>(), 1u16.., 0u16..4096, any::<bool>())),
        ) {
            let now = 5000;
            let entries = entries.map(|(tag, backend, age, established)| {
                Entry::new(tag, backend, now - age).0 | if established { ESTABLISHED } else { 0 }
            });
            match victim(&Cells::of(entries), now, 4096, |_| true) {
                Some((index, forgets)) => {
                    let chosen = Entry(entries[index]);
                    prop_assert!(!chosen.established() && forgets);
                    let oldest = entries.iter().map(|&e| Entry(e)).filter(|e| !e.established());
                    prop_assert_eq!(Some(chosen.age(now)), oldest.map(|e| e.age(now)).max());
                }
                None => prop_assert!(entries.iter().all(|&entry| Entry(entry).established())),
            }
        }

        #[test]
        fn an_expired_entry_goes_before_a_live_one_and_an_empty_one_first(at in 0usize..8, empty in 0usize..8) {
            let mut entries = [Entry::new(7, 1, 1000).0; BUCKET_ENTRIES];
            entries[at] = Entry::new(9, 1, 10).0 | ESTABLISHED;
            prop_assert_eq!(victim(&Cells::of(entries), 1000, 500, |_| true), Some((at, false)));
            entries[empty] = 0;
            prop_assert_eq!(victim(&Cells::of(entries), 1000, 500, |_| true), Some((empty, false)));
        }

        #[test]
        fn no_clock_expires_another_services_entries(
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
                    prop_assert!(expired(chosen) || !chosen.established() && !all.any(expired));
                }
                None => prop_assert!(all.all(|entry| entry.established() && !expired(entry))),
            }
        }

        #[test]
        fn every_client_is_due_once_in_a_period(hash: u64, bits in 0u32..7, start in 0..=TICK_MASK) {
            let mask = (1u16 << bits) - 1;
            let ticks = (0..=mask).filter(|tick| due(hash, (start + tick) & TICK_MASK, mask)).count();
            prop_assert_eq!(ticks, 1);
        }

        #[test]
        fn a_clock_covers_its_time(seconds in 1u32..=100 * 86_400) {
            let clock = Clock::new(seconds);
            let covered = clock.tick_seconds * u32::from(clock.remember);
            prop_assert!(covered >= seconds && covered < seconds + clock.tick_seconds);
            prop_assert!(u32::from(clock.remember) <= TICKS_PER_REMEMBER);
            prop_assert!(u32::from(clock.due_mask) < u32::from(clock.remember / 8).max(1));
        }
    }

    #[test]
    fn tag_zero_is_a_client_like_any_other() {
        let bucket = Cells::of([0; BUCKET_ENTRIES]);
        assert_eq!(find(&bucket, 0), None);
        bucket.store(3, Entry::new(0, 1, 0));
        assert_eq!(find(&bucket, 0), Some((3, Entry::new(0, 1, 0))));
    }

    #[test]
    fn a_known_client_stays_wherever_the_table_points() {
        let entry = Entry::new(1, 9, 90);
        let steered = steer(&steering(Some(entry)));
        assert_eq!((steered.backend, steered.decision, steered.moved), (Some(9), Decision::Kept, None));
        assert_eq!(steered.entry, Some(entry.touched(100)));
        let nobody = Steering { live: None, ..steering(Some(entry)) };
        assert_eq!(steer(&nobody).backend, Some(9));
    }

    #[test]
    fn a_client_moves_with_its_cause_when_its_backend_lets_go() {
        for cause in [MoveCause::Down, MoveCause::Drain, MoveCause::Maint, MoveCause::Removed] {
            let packet = Steering {
                keeps_known: false,
                live_is_home: false,
                cause: cause.into(),
                opens: false,
                ..steering(Some(Entry::new(1, 9, 90)))
            };
            let steered = steer(&packet);
            assert_eq!(
                (steered.backend, steered.decision, steered.moved),
                (Some(5), Decision::Moved, Some(cause.into()))
            );
            let entry = steered.entry.expect("an entry");
            assert_eq!((entry.backend(), entry.away()), (5, true));
            // Once moved it is known at the new place.
            let again = steer(&Steering { keeps_known: true, entry: Some(entry), ..packet });
            assert_eq!((again.backend, again.decision, again.moved), (Some(5), Decision::Kept, None));
        }
    }

    #[test]
    fn only_a_client_that_is_away_goes_home_and_only_with_a_new_connection() {
        let away = Entry::new(1, 9, 90).moved(9, true, 95);
        let back = Steering { failback: true, ..steering(Some(away)) };
        let steered = steer(&back);
        assert_eq!((steered.backend, steered.moved), (Some(5), Some(FAILBACK)));
        assert_eq!(steered.entry.map(Entry::away), Some(false));
        for stays in [
            Steering { failback: false, ..back },
            Steering { opens: false, ..back },
            Steering { live_is_home: false, ..back },
            Steering { entry: Some(Entry::new(1, 9, 90)), ..back },
        ] {
            assert_eq!((steer(&stays).backend, steer(&stays).moved), (Some(9), None), "{stays:?}");
        }
    }

    #[test]
    fn a_rule_moves_a_client_once_and_it_stays_after_the_rules_end() {
        let pinned = Steering { pinned: true, failback: true, ..steering(Some(Entry::new(1, 9, 90))) };
        for packet in [pinned, Steering { keeps_known: false, ..pinned }] {
            let first = steer(&packet);
            assert_eq!((first.backend, first.decision, first.moved), (Some(5), Decision::Moved, Some(RULE)));
            let again = steer(&Steering { entry: first.entry, ..packet });
            assert_eq!((again.backend, again.decision, again.moved), (Some(5), Decision::Pinned, None));
            let over = Steering { pinned: false, live: Some(7), keeps_known: true, entry: again.entry, ..packet };
            assert_eq!((steer(&over).backend, steer(&over).decision), (Some(5), Decision::Kept), "and is not away");
        }
        let newcomer = steer(&Steering { entry: None, ..pinned });
        assert_eq!((newcomer.backend, newcomer.decision, newcomer.moved), (Some(5), Decision::Pinned, None));
    }

    #[test]
    fn nobody_is_moved_to_where_they_are() {
        let packet = Steering { keeps_known: false, live: Some(9), ..steering(Some(Entry::new(1, 9, 90))) };
        assert_eq!((steer(&packet).backend, steer(&packet).moved), (Some(9), None));
    }

    #[test]
    fn a_newcomer_follows_the_table() {
        let steered = steer(&steering(None));
        assert_eq!((steered.backend, steered.decision, steered.entry), (Some(5), Decision::New, None));
    }

    const QUERY: Query = Query {
        tag: 77,
        service: 1,
        live: Some(5),
        live_is_home: true,
        pinned: false,
        opens: true,
        datagram: false,
        failback: false,
        now: 1000,
        remember: 500,
        idle: 30,
    };

    fn serving(_: u16) -> Option<BackendFacts> {
        Some(BackendFacts { service: 1, keeps_known: true, cause: MoveCause::Down.into() })
    }

    #[test]
    fn a_newcomer_is_recorded_and_then_kept() {
        let bucket = Cells::of([0; BUCKET_ENTRIES]);
        let first = consult(&bucket, &QUERY, serving, || true);
        assert_eq!((first.backend, first.decision), (Some(5), Some(Decision::New)));
        assert_eq!(first.recorded, Recorded::Inserted);
        let moved_table = Query { live: Some(6), now: 1100, ..QUERY };
        let second = consult(&bucket, &moved_table, serving, || panic!("known already"));
        assert_eq!(
            (second.backend, second.decision, second.recorded),
            (Some(5), Some(Decision::Kept), Recorded::Known)
        );
        assert!(find(&bucket, 77).expect("an entry").1.established());
        let later = Query { now: 1601, ..moved_table };
        let third = consult(&bucket, &later, serving, || panic!("it has its own entry"));
        assert_eq!((third.backend, third.decision), (Some(6), Some(Decision::New)), "forgotten after 500 ticks");
    }

    #[test]
    fn an_entry_of_another_service_is_nobody() {
        let bucket = Cells::of([0; BUCKET_ENTRIES]);
        bucket.store(0, Entry::new(77, 9, 1000));
        let other = |_| Some(BackendFacts { service: 2, keeps_known: true, cause: MoveCause::Down.into() });
        assert_eq!(consult(&bucket, &QUERY, other, || true).decision, Some(Decision::New));
    }

    #[test]
    fn a_flood_leaves_established_clients_alone() {
        let bucket = Cells::of(core::array::from_fn(|i| Entry::new(i as u32, 3, 900).touched(950).0));
        let before: Vec<_> = (0..BUCKET_ENTRIES).map(|i| bucket.load(i)).collect();
        for tag in 1000..2000 {
            let answer = consult(&bucket, &Query { tag, ..QUERY }, serving, || true);
            assert_eq!((answer.backend, answer.recorded), (Some(5), Recorded::Full));
        }
        assert_eq!(before, (0..BUCKET_ENTRIES).map(|i| bucket.load(i)).collect::<Vec<_>>());
        let limited = consult(&bucket, &Query { tag: 5000, ..QUERY }, serving, || false);
        assert_eq!((limited.backend, limited.recorded), (Some(5), Recorded::Limited));
    }

    #[test]
    fn a_newcomer_leaves_established_clients_of_a_slower_clock_alone() {
        // Known in tick 10 of a service that remembers for days; the newcomer's is at 1000 and forgets after 500.
        let of = |id| Some(BackendFacts { service: id, keeps_known: true, cause: MoveCause::Down.into() });
        let query = Query { live: Some(1), ..QUERY };
        let bucket = Cells::of(core::array::from_fn(|i| Entry::new(i as u32, 2, 5).touched(10).0));
        assert_eq!(consult(&bucket, &query, of, || true).recorded, Recorded::Full);
        bucket.store(6, Entry::new(6, 1, 5).touched(10));
        assert_eq!(consult(&bucket, &query, of, || true).recorded, Recorded::Inserted, "in the place of its own");
        assert_eq!(bucket.load(6), Entry::new(77, 1, 1000));
    }

    #[test]
    fn datagrams_decide_once_until_they_pause() {
        let bucket = Cells::of([0; BUCKET_ENTRIES]);
        let decisions = [1000, 1001, 1020, 1049, 1079, 1080].map(|now| {
            consult(&bucket, &Query { opens: false, datagram: true, now, ..QUERY }, serving, || true).decision
        });
        let kept = Some(Decision::Kept);
        assert_eq!(decisions, [Some(Decision::New), None, None, None, kept, None]);
    }

    #[test]
    fn a_move_is_counted_once_whatever_packet_brings_it() {
        let bucket = Cells::of([0; BUCKET_ENTRIES]);
        bucket.store(0, Entry::new(77, 9, 1000));
        let gone = |id| Some(BackendFacts { service: 1, keeps_known: id != 9, cause: MoveCause::Drain.into() });
        let segment = Query { opens: false, ..QUERY };
        let first = consult(&bucket, &segment, gone, || true);
        assert_eq!((first.backend, first.decision, first.moved), (Some(5), None, Some((9, MoveCause::Drain.into()))));
        let second = consult(&bucket, &QUERY, gone, || true);
        assert_eq!((second.backend, second.decision, second.moved), (Some(5), Some(Decision::Kept), None));
    }
}
