//! The memory rule, written a second time from the contract: without code of the kernel program and without
//! optimization. Where the contract leaves a choice, a comment says what the program does.

use balancer_common::{
    client_table::BUCKET_ENTRIES,
    verdict::{Decision, MoveCause},
};
use balancer_control::io::{BackendSpec, ServiceId};

/// The modulus of ages, in ticks.
const TICKS: u16 = 1 << 14;

/// The remembered state of a client: a word `tag:32 | backend:16 | away:1 | established:1 | last seen:14`. 0 means no
/// client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Known {
    tag: u32,
    backend: u16,
    /// The client moved here because its home had failed.
    away: bool,
    /// The client was seen in more than one tick.
    established: bool,
    last_seen: u16,
}

impl Known {
    fn read(word: u64) -> Option<Self> {
        (word != 0).then_some(Self {
            tag: (word >> 32) as u32,
            backend: (word >> 16 & 0xffff) as u16,
            away: word >> 15 & 1 == 1,
            established: word >> 14 & 1 == 1,
            last_seen: (word % u64::from(TICKS)) as u16,
        })
    }

    fn write(self) -> u64 {
        u64::from(self.tag) * (1 << 32)
            + u64::from(self.backend) * (1 << 16)
            + u64::from(self.away) * (1 << 15)
            + u64::from(self.established) * (1 << 14)
            + u64::from(self.last_seen)
    }

    /// The number of ticks since the client was last seen. It is 0 if that time is up to 8 ticks in the future, because
    /// another CPU's clock is ahead.
    fn age(self, now: u16) -> u16 {
        let age = (now % TICKS + TICKS - self.last_seen) % TICKS;
        if age >= TICKS - 8 { 0 } else { age }
    }

    fn seen(self, now: u16) -> Self {
        if self.age(now) == 0 { self } else { Self { established: true, last_seen: now % TICKS, ..self } }
    }
}

/// A packet for which the program asks the client memory.
pub(super) struct Asked {
    /// Half of the client's hash.
    pub(super) tag: u32,
    pub(super) service: ServiceId,
    /// The backend that the live table or a rule names.
    pub(super) live: Option<u16>,
    /// Whether a rule names the backend.
    pub(super) pinned: bool,
    /// With `pinned`: the backend comes not from a rule, but from a connection that the client brought from another
    /// address.
    pub(super) migrates: bool,
    /// Whether the table would name the same backend if nothing had failed.
    pub(super) is_home: bool,
    /// Whether the packet is a SYN.
    pub(super) opens: bool,
    pub(super) datagram: bool,
    /// Whether the service has `failback = "return"`.
    pub(super) failback: bool,
    pub(super) now: u16,
    /// The number of ticks after which a client is forgotten.
    pub(super) remember: u16,
    /// The number of ticks without a packet after which a datagram opens a connection.
    pub(super) idle: u16,
}

/// The outcome for an unknown client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Newcomer {
    Recorded {
        forgets_another: bool,
    },
    /// The bucket is full.
    Full,
    /// The rate limit is reached.
    Limited,
}

/// The answer to a packet that asks the client memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Answer {
    /// The backend; `None` if no backend takes the client.
    pub(super) backend: Option<u16>,
    /// The decision, if the packet opens a connection.
    pub(super) decision: Option<Decision>,
    /// The backend that a known client leaves, and the reason.
    pub(super) moved: Option<(u16, MoveCause)>,
    pub(super) newcomer: Option<Newcomer>,
    /// Whether the client's entry is up to date, and the client was seen in two ticks or sends datagrams.
    pub(super) settled: bool,
}

/// The next backend of a known client.
enum Goes {
    /// The client stays at its backend.
    Stays,
    /// The client moves to the backend of the table or of a rule.
    Moves { to: u16, cause: MoveCause, away: bool },
    /// No backend takes the client, and it stays known.
    Nowhere,
}

/// Steers one packet by memory, and records it in the client's `bucket`.
pub(super) fn ask<'a>(
    bucket: &mut [u64; BUCKET_ENTRIES],
    asked: &Asked,
    backend: impl Fn(u16) -> Option<&'a BackendSpec>,
    may_record: impl FnOnce() -> bool,
) -> Answer {
    let is_ours = |known: &Known| backend(known.backend).is_some_and(|backend| backend.service == asked.service);
    let found = (0..BUCKET_ENTRIES).find_map(|place| {
        Known::read(bucket[place]).filter(|known| known.tag == asked.tag).map(|known| (place, known))
    });
    let of_us = found.filter(|(_, known)| is_ours(known));
    let remembered = of_us.filter(|(_, known)| known.age(asked.now) <= asked.remember);

    let Some((place, known)) = remembered else {
        let decision = if asked.pinned { Decision::Pinned } else { Decision::New };
        let newcomer = asked.live.map(|live| {
            let new =
                Known { tag: asked.tag, backend: live, away: false, established: false, last_seen: asked.now % TICKS };
            match (found, of_us) {
                (_, Some((place, _))) => {
                    bucket[place] = new.write();
                    Newcomer::Recorded { forgets_another: false }
                }
                // A client of another service has the same tag in this bucket. The entry of that client stays.
                (Some(_), None) => Newcomer::Full,
                (None, None) if !may_record() => Newcomer::Limited,
                (None, None) => record(bucket, new, asked, is_ours),
            }
        });
        // Otherwise, every datagram of an unrecorded client would open a connection.
        let opens = asked.opens || asked.datagram && matches!(newcomer, Some(Newcomer::Recorded { .. }));
        return Answer {
            backend: asked.live,
            decision: opens.then_some(decision),
            moved: None,
            newcomer,
            settled: false,
        };
    };

    let opens = asked.opens || asked.datagram && known.age(asked.now) >= asked.idle;
    let keeps = backend(known.backend).is_some_and(|backend| backend.keeps_known);
    let lost = backend(known.backend).map_or(MoveCause::Removed, |backend| backend.cause);
    let goes = goes(asked, known, keeps, lost, opens);
    let decision = match goes {
        Goes::Moves { .. } => Decision::Moved,
        Goes::Stays if asked.pinned => Decision::Pinned,
        Goes::Stays | Goes::Nowhere => Decision::Kept,
    };
    let (to, moved) = match goes {
        Goes::Nowhere => (None, None),
        // Too many clients came at once: this one goes to the backend without being recorded.
        Goes::Moves { to, .. } if asked.migrates && !may_record() => {
            return Answer { backend: Some(to), decision: None, moved: None, newcomer: None, settled: false };
        }
        Goes::Stays => {
            bucket[place] = known.seen(asked.now).write();
            (Some(known.backend), None)
        }
        Goes::Moves { to, cause, away } => {
            bucket[place] = Known { backend: to, away, ..known.seen(asked.now) }.write();
            (Some(to), Some((known.backend, cause)))
        }
    };
    let settled = to.is_some() && (asked.datagram || known.seen(asked.now).established);
    Answer { backend: to, decision: opens.then_some(decision), moved, newcomer: None, settled }
}

fn goes(asked: &Asked, known: Known, keeps: bool, lost: MoveCause, opens: bool) -> Goes {
    match asked.live {
        // Rules have the highest priority.
        Some(to) if asked.pinned && to != known.backend => Goes::Moves { to, cause: MoveCause::Rule, away: false },
        Some(_) if asked.pinned => Goes::Stays,
        // With a new connection, the client returns home, once its home takes clients again.
        Some(to) if keeps && asked.failback && opens && known.away && asked.is_home && to != known.backend => {
            Goes::Moves { to, cause: MoveCause::Failback, away: false }
        }
        Some(_) | None if keeps => Goes::Stays,
        None => Goes::Nowhere,
        // No other backend takes clients: the table is open.
        Some(to) if to == known.backend => Goes::Stays,
        Some(to) => Goes::Moves { to, cause: lost, away: !asked.is_home },
    }
}

/// Gives a new client a place. In this order: an empty one; that of a forgotten client; that of the client seen once
/// and longest ago, if that is more than four ticks; that of a client of this service that was seen twice, but not for
/// an eighth of the time, a period and a tick; that of another client seen once. Among equals, the program takes the
/// last one.
fn record(bucket: &mut [u64; BUCKET_ENTRIES], new: Known, asked: &Asked, is_ours: impl Fn(&Known) -> bool) -> Newcomer {
    let expired = |known: &Known| is_ours(known) && known.age(asked.now) > asked.remember;
    let oldest = |wanted: &dyn Fn(&Known) -> bool| {
        let places = (0..BUCKET_ENTRIES).filter_map(|place| Some((place, Known::read(bucket[place])?)));
        places.filter(|(_, known)| wanted(known)).max_by_key(|(_, known)| known.age(asked.now)).map(|(place, _)| place)
    };
    let empty = (0..BUCKET_ENTRIES).rfind(|&place| bucket[place] == 0);
    let patience = asked.remember / 8 + asked.remember / 32 + 1;
    let stale = |known: &Known| is_ours(known) && known.age(asked.now) > patience;
    let once = |known: &Known| !known.established;
    let once_and_gone = |known: &Known| once(known) && known.age(asked.now) > 4;
    let another = oldest(&once_and_gone).or_else(|| oldest(&stale)).or_else(|| oldest(&once));
    let (place, forgets_another) = match (empty.or_else(|| oldest(&expired)), another) {
        (Some(place), _) => (place, false),
        (None, Some(place)) => (place, true),
        (None, None) => return Newcomer::Full,
    };
    bucket[place] = new.write();
    Newcomer::Recorded { forgets_another }
}
