//! The rules of client memory, written a second time from the description of these rules, without code of the kernel
//! program and without optimization. Comments mark the decisions that the description leaves to the program.

use balancer_common::{
    client_table::BUCKET_ENTRIES,
    verdict::{Decision, MoveCause},
};
use balancer_control::io::{BackendSpec, ServiceId};

/// The program computes ages in ticks modulo this number.
const TICKS: u16 = 1 << 14;

/// The remembered state of a client, as one word: `tag:32 | backend:16 | away:1 | established:1 | last seen:14`. A word
/// of 0 is an empty entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Known {
    tag: u32,
    backend: u16,
    /// Whether the client moved to this backend because the client's home backend had failed.
    away: bool,
    /// Whether the client was seen in more than one tick.
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

    /// The number of ticks since the client was last seen. A time up to 8 ticks in the future yields 0, because the
    /// clock of another CPU may be ahead of this CPU's clock.
    fn age(self, now: u16) -> u16 {
        let age = (now % TICKS + TICKS - self.last_seen) % TICKS;
        if age >= TICKS - 8 { 0 } else { age }
    }

    fn seen(self, now: u16) -> Self {
        if self.age(now) == 0 { self } else { Self { established: true, last_seen: now % TICKS, ..self } }
    }
}

/// A packet for which the program reads the client memory.
pub(super) struct Asked {
    /// Half of the client's hash, which identifies the client within the bucket.
    pub(super) tag: u32,
    pub(super) service: ServiceId,
    /// The backend that the live table or a rule names.
    pub(super) live: Option<u16>,
    /// Whether a rule names the backend `live`.
    pub(super) pinned: bool,
    /// If `pinned`: whether the backend comes from a connection that the client brought from another address, and not
    /// from a rule.
    pub(super) migrates: bool,
    /// Whether the live table would also name the backend `live` if no backend had failed.
    pub(super) is_home: bool,
    /// Whether the packet is a SYN.
    pub(super) opens: bool,
    pub(super) datagram: bool,
    /// Whether the service's setting `failback` is `"return"`.
    pub(super) failback: bool,
    pub(super) now: u16,
    /// The number of ticks after which a client is forgotten.
    pub(super) remember: u16,
    /// The number of ticks without a packet after which a datagram opens a connection.
    pub(super) idle: u16,
}

/// The result of recording an unknown client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Newcomer {
    Recorded {
        forgets_another: bool,
    },
    /// The program did not record the client, because the client's bucket is full.
    Full,
    /// The program did not record the client, because the rate limit is reached.
    Limited,
}

/// The answer of the client memory for one packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Answer {
    /// The backend; `None` if no backend takes the client.
    pub(super) backend: Option<u16>,
    /// The decision about the packet, if the packet opens a connection.
    pub(super) decision: Option<Decision>,
    /// The backend that a known client leaves, and the reason for the move.
    pub(super) moved: Option<(u16, MoveCause)>,
    pub(super) newcomer: Option<Newcomer>,
    /// Whether the client's entry is up to date, and the client was either seen in two ticks or sends datagrams.
    pub(super) settled: bool,
}

/// Where a known client goes next.
enum Goes {
    /// The client stays at its backend.
    Stays,
    /// The client moves to the backend that the live table or a rule names.
    Moves { to: u16, cause: MoveCause, away: bool },
    /// No backend takes the client, but the client memory keeps the client's entry.
    Nowhere,
}

/// Steers one packet by the client memory, and records the packet's client in `bucket`.
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
                // A client of another service has the same tag in the bucket, and that client keeps its entry.
                (Some(_), None) => Newcomer::Full,
                (None, None) if !may_record() => Newcomer::Limited,
                (None, None) => record(bucket, new, asked, is_ours),
            }
        });
        // A datagram opens a connection only if its client is recorded, because every datagram of an unrecorded client
        // would open another connection.
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
        // The program sends the packet to the connection's backend without recording the client there, because the
        // client is established or was seen recently, or because too many clients have arrived in this period.
        Goes::Moves { to, .. }
            if asked.migrates && (known.established || known.age(asked.now) <= patience(asked) || !may_record()) =>
        {
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
        // A rule takes precedence over the client memory.
        Some(to) if asked.pinned && to != known.backend => Goes::Moves { to, cause: MoveCause::Rule, away: false },
        Some(_) if asked.pinned => Goes::Stays,
        // A new connection moves the client back to its home backend once that backend takes clients again.
        Some(to) if keeps && asked.failback && opens && known.away && asked.is_home && to != known.backend => {
            Goes::Moves { to, cause: MoveCause::Failback, away: false }
        }
        Some(_) | None if keeps => Goes::Stays,
        None => Goes::Nowhere,
        // No backend except the known backend takes clients, so the live table still names the known backend.
        Some(to) if to == known.backend => Goes::Stays,
        Some(to) => Goes::Moves { to, cause: lost, away: !asked.is_home },
    }
}

/// The number of ticks without a recorded packet up to which a client may still have sent a packet in the last eighth
/// of `remember`.
const fn patience(asked: &Asked) -> u16 {
    asked.remember / 8 + asked.remember / 32 + 1
}

/// Finds an entry of the bucket for a new client and records the client in the entry. The program takes the first kind
/// of entry in this list that exists; among several such entries, the program takes the last one:
/// 1. an entry that is empty;
/// 2. the entry of an expired client of this service;
/// 3. among the clients that were seen in only one tick, the entry of the client seen longest ago, if that tick is more
///    than four ticks ago;
/// 4. the entry of this service's client that was seen longest ago, if `remember / 8`, one period and one tick have
///    passed since;
/// 5. the entry of any other client that was seen in only one tick.
fn record(bucket: &mut [u64; BUCKET_ENTRIES], new: Known, asked: &Asked, is_ours: impl Fn(&Known) -> bool) -> Newcomer {
    let expired = |known: &Known| is_ours(known) && known.age(asked.now) > asked.remember;
    let oldest = |wanted: &dyn Fn(&Known) -> bool| {
        let places = (0..BUCKET_ENTRIES).filter_map(|place| Some((place, Known::read(bucket[place])?)));
        places.filter(|(_, known)| wanted(known)).max_by_key(|(_, known)| known.age(asked.now)).map(|(place, _)| place)
    };
    let empty = (0..BUCKET_ENTRIES).rfind(|&place| bucket[place] == 0);
    let stale = |known: &Known| is_ours(known) && known.age(asked.now) > patience(asked);
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
