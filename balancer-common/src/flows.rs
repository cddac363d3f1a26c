//! Connections of `snat` services: the storage of connections, their lifetime, and the port that the backend sees.
//!
//! The hash of a flow's endpoints determines two buckets; the flow has a row in one of these buckets. A flow therefore
//! finds a free row until the table is nearly full (Azar, Broder, Karlin, Upfal: "Balanced Allocations", 1994). One
//! word contains all data that changes during the lifetime of the flow:
//!
//! ```text
//! bits  63…32 tag | 31…8 last seen, in ticks | 7…0 state        0 = empty
//! ```
//!
//! *Eviction*: if both buckets of a new flow are full, or all addresses and ports of the pool are taken, the new flow
//! replaces the flow that [`expendable`] prefers: a flow that has ended, or in which the client has not confirmed the
//! answer. A flow that carries data in both directions is never evicted.

pub mod held;
mod life;

use bytemuck::{Pod, Zeroable};

pub use self::life::{Life, Numbers, Segment};
use crate::client::HashKey;

/// The number of rows in a bucket.
pub const FLOWS_PER_LINE: u32 = 8;
/// The length of a tick is 2^30 ns (1.07 s).
pub const TICK_SHIFT: u32 = 30;
const TICK_MASK: u32 = 0x00ff_ffff;

/// Converts `seconds` to ticks, rounded up.
#[must_use]
pub const fn ticks(seconds: u64) -> u32 {
    let ticks = (seconds * 1_000_000_000).div_ceil(1 << TICK_SHIFT);
    if ticks > MOST_TICKS as u64 { MOST_TICKS } else { ticks as u32 }
}

/// Converts ticks to seconds.
#[must_use]
pub const fn seconds(ticks: u32) -> u64 {
    ((ticks as u64) << TICK_SHIFT) / 1_000_000_000
}

/// The longest age that the program can distinguish from a time in the future: 99 days.
const MOST_TICKS: u32 = TICK_MASK / 2;

/// After a connection has ended that the backend has closed first, its address and port of the pool rest for this time:
/// a new connection to the same backend takes them only if the backend lets its SYN in at once ([`Numbers::lets_in`]),
/// or if all others are taken. A server keeps a connection that it has closed first in TIME-WAIT (RFC 9293), on Linux
/// for 60 seconds.
pub const REST_TICKS: u32 = ticks(60);
/// The age in ticks up to which a handshake or a question may still be in progress.
const IN_PROGRESS: u32 = 1;
/// The age in ticks up to which a client may still repeat a SYN that was refused: the first time after a second.
const RETRY: u32 = 2;

/// `FLOW_*` flag: the flow has a row.
pub const FLOW_TAKEN: u8 = 1;
/// `FLOW_*` flag: the backend has answered.
pub const FLOW_ANSWERED: u8 = 2;
/// `FLOW_*` flag: the client has confirmed the answer: a segment of it acknowledges the backend's SYN, or another
/// datagram has followed the answer. If both ends have closed the connection, the flag says that the backend may wait
/// (TIME-WAIT), because it has sent its FIN before it received the client's.
pub const FLOW_ESTABLISHED: u8 = 4;
/// `FLOW_*` flag: the client has sent FIN.
pub const FLOW_CLIENT_ENDS: u8 = 8;
/// `FLOW_*` flag: the backend has sent FIN.
pub const FLOW_BACKEND_ENDS: u8 = 16;
/// `FLOW_*` flag: one end has sent RST, and the backend has sent no other segment since.
pub const FLOW_RESET: u8 = 32;
/// `FLOW_*` flag: the flow carries datagrams.
pub const FLOW_DATAGRAMS: u8 = 64;
/// `FLOW_*` flag: packets no longer find the flow, but the flow's address and port are still taken.
pub const FLOW_RESTS: u8 = 128;

const ENDS: u8 = FLOW_CLIENT_ENDS | FLOW_BACKEND_ENDS;

/// The state of a row that a CPU is writing for a new flow, or that the controller has blocked.
const TAKEN: u8 = FLOW_TAKEN | FLOW_RESTS;
/// The tag of a blocked row.
const BLOCKED: u32 = 0x6b6c_6362;

/// The data of a flow that changes during the flow's lifetime, packed into one word.
#[repr(transparent)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FlowWord(pub u64);

/// The number of ticks without a packet after which a flow ends, for each phase of a flow.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
pub struct IdleTicks {
    /// The idle time of an established connection.
    pub tcp: u32,
    /// The idle time of a flow of datagrams in which the client has sent another datagram after an answer.
    pub udp: u32,
    /// The idle time of a flow of datagrams in which the client has sent nothing after the answer.
    pub udp_once: u32,
    /// The idle time of a flow that the backend has not answered, or in which the client has not confirmed the answer.
    pub half_open: u32,
    /// The idle time of a connection that both ends have closed or that one end has reset.
    pub closing: u32,
}

/// The phase in the lifetime of a flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// The backend has not answered, or the client has not confirmed the answer.
    HalfOpen,
    /// One end has reset the connection before the client has confirmed an answer.
    Refused,
    /// The connection carries data.
    Open,
    /// Both ends have closed the connection, or one end has reset it.
    Closing,
    /// Packets no longer find the flow, but the flow's address and port are still taken.
    Rests,
}

impl FlowWord {
    /// The state word that stands for an empty row.
    pub const EMPTY: Self = Self(0);

    /// A new flow with this tag, last seen at `now`.
    #[inline(always)]
    #[must_use]
    pub const fn new(tag: u32, state: u8, now: u32) -> Self {
        Self((tag as u64) << 32 | ((now & TICK_MASK) as u64) << 8 | state as u64)
    }

    /// The word of a row that the controller blocks at `now`: no flow takes a row in the same bucket.
    #[must_use]
    pub const fn block(now: u32) -> Self {
        Self::new(BLOCKED, TAKEN, now)
    }

    /// Whether the controller has blocked the row.
    #[inline(always)]
    #[must_use]
    pub const fn is_block(self) -> bool {
        self.tag() == BLOCKED && self.state() == TAKEN
    }

    /// The tag: the high half of the hash of the flow's endpoints.
    #[inline(always)]
    #[must_use]
    pub const fn tag(self) -> u32 {
        (self.0 >> 32) as u32
    }

    /// The flags: `FLOW_*` bits.
    #[inline(always)]
    #[must_use]
    pub const fn state(self) -> u8 {
        self.0 as u8
    }

    /// The tick of the flow's last packet, of which the word contains only the low bits.
    #[inline(always)]
    #[must_use]
    pub const fn seen(self) -> u32 {
        (self.0 >> 8) as u32 & TICK_MASK
    }

    /// The number of ticks since the flow's last packet. If another CPU wrote the state word after `now` was read, the
    /// age counts as 0.
    #[inline(always)]
    #[must_use]
    pub const fn age(self, now: u32) -> u32 {
        let age = now.wrapping_sub(self.seen()) & TICK_MASK;
        if age > MOST_TICKS { 0 } else { age }
    }

    /// Whether packets with this tag may belong to this flow.
    #[inline(always)]
    #[must_use]
    pub const fn is_found_by(self, tag: u32) -> bool {
        self.tag() == tag && self.state() & (FLOW_TAKEN | FLOW_RESTS) == FLOW_TAKEN
    }

    /// The same flow in `state`, last seen at `now`.
    #[inline(always)]
    #[must_use]
    pub const fn with(self, state: u8, now: u32) -> Self {
        Self::new(self.tag(), state, now)
    }

    /// Whether the state has all of these flags.
    #[inline(always)]
    const fn has(self, flags: u8) -> bool {
        self.state() & flags == flags
    }

    #[inline(always)]
    #[must_use]
    pub const fn phase(self) -> Phase {
        if self.has(FLOW_RESTS) {
            Phase::Rests
        } else if self.has(ENDS) || self.has(FLOW_RESET | FLOW_ESTABLISHED) {
            Phase::Closing
        } else if self.has(FLOW_RESET) {
            Phase::Refused
        } else if self.has(FLOW_ESTABLISHED) {
            Phase::Open
        } else {
            Phase::HalfOpen
        }
    }

    /// Whether the backend may keep an ended connection in TIME-WAIT. After a reset, or if the client has closed the
    /// connection first, the backend does not.
    #[inline(always)]
    const fn may_wait(self) -> bool {
        self.state() & (FLOW_RESET | FLOW_DATAGRAMS) == 0 && (!self.has(ENDS) || self.has(FLOW_ESTABLISHED))
    }

    /// Whether the flow's address and port rest, and the backend nevertheless lets in a SYN with the numbers `opening`.
    /// The numbers of the closed connection are `closed`.
    #[inline(always)]
    #[must_use]
    pub const fn lets_in(self, closed: Numbers, opening: Numbers) -> bool {
        self.has(ENDS) && self.may_wait() && closed.lets_in(opening)
    }

    /// Whether both ends have closed the flow some time ago, so that a new one may take its address and port at once,
    /// although others are free. `lets_in` is the result of [`lets_in`](Self::lets_in) for the new flow.
    #[inline(always)]
    #[must_use]
    pub const fn leaves(self, now: u32, lets_in: bool) -> bool {
        self.has(ENDS) && self.age(now) > IN_PROGRESS && (lets_in || !self.may_wait())
    }

    /// Whether a packet of the same client port, with the numbers `opening`, may begin another connection in the row of
    /// this ended flow, with the same address and port of the pool.
    #[inline(always)]
    #[must_use]
    pub const fn begins_again(self, closed: Numbers, opening: Numbers) -> bool {
        match self.phase() {
            Phase::Closing => !self.may_wait() || self.lets_in(closed, opening),
            Phase::HalfOpen | Phase::Open => self.has(FLOW_DATAGRAMS),
            Phase::Refused | Phase::Rests => false,
        }
    }

    /// Whether packets of the client and the backend still belong to the flow.
    #[inline(always)]
    #[must_use]
    pub const fn lives(self, now: u32, idle: &IdleTicks) -> bool {
        let age = self.age(now);
        match self.phase() {
            _ if self.0 == 0 => false,
            Phase::HalfOpen if self.has(FLOW_DATAGRAMS | FLOW_ANSWERED) => age <= idle.udp_once,
            Phase::HalfOpen => age <= idle.half_open,
            Phase::Open if self.has(FLOW_DATAGRAMS) => age <= idle.udp,
            Phase::Open => age <= idle.tcp,
            Phase::Refused | Phase::Closing => age <= idle.closing,
            Phase::Rests => false,
        }
    }

    /// Whether the flow counts as a connection that is open or half open.
    #[inline(always)]
    #[must_use]
    pub const fn counts(self, now: u32, idle: &IdleTicks) -> bool {
        matches!(self.phase(), Phase::HalfOpen | Phase::Open) && self.lives(now, idle)
    }

    /// Whether another flow may take this flow's row, address and port, even if others are free.
    #[inline(always)]
    #[must_use]
    pub const fn may_go(self, now: u32, idle: &IdleTicks) -> bool {
        let age = self.age(now);
        match self.phase() {
            Phase::HalfOpen | Phase::Refused | Phase::Open => !self.lives(now, idle),
            Phase::Rests if !self.may_wait() => true,
            Phase::Closing if !self.may_wait() && idle.closing < REST_TICKS => age > idle.closing,
            Phase::Closing | Phase::Rests => age > REST_TICKS,
        }
    }

    /// Whether packets of the flow have ended it, in whatever time: both ends have closed it, or one has reset it.
    #[inline(always)]
    #[must_use]
    pub const fn is_ended(self) -> bool {
        matches!(self.phase(), Phase::Closing | Phase::Rests)
    }

    /// Whether the connection has ended, so that a SYN from the same client port begins a new connection. A SYN after a
    /// refusal is the client's next attempt at the same connection: the reset may have ended an old connection that the
    /// backend kept in TIME-WAIT, and then the backend accepts this attempt, if it comes from the same port.
    #[inline(always)]
    #[must_use]
    pub const fn has_ended(self, now: u32, idle: &IdleTicks) -> bool {
        self.is_ended() || !self.lives(now, idle)
    }
}

/// The position in a bucket at which a flow with this tag preferably has its row. A lookup tries this row first. While
/// the CPU waits for the bucket, it therefore already reads the row, which it otherwise could only read afterwards.
#[inline(always)]
#[must_use]
pub const fn home(tag: u32) -> u32 {
    tag % FLOWS_PER_LINE
}

/// The rank (0 to 7) of a position in a bucket for a flow whose home is `home`: the home has the highest rank. The
/// function is its own inverse, so it also returns the position that has a rank.
#[inline(always)]
#[must_use]
pub const fn rank(home: u32, place: u32) -> u32 {
    home.wrapping_sub(place).wrapping_sub(1) % FLOWS_PER_LINE
}

/// How readily a flow gives way to a new one: the class with the highest number goes first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
enum Yields {
    /// The flow must stay: it carries data in both directions, or is just being opened.
    Never,
    /// The backend has answered just now, and the client's next packet may be on its way.
    Answering,
    /// The client has asked just now, and the backend's answer may be on its way.
    Asking,
    /// The connection was just reset before it carried data, and the client may try again.
    Retrying,
    /// The flow has ended, but the backend may keep the connection in TIME-WAIT.
    Waiting,
    /// Both ends have closed the flow, and packets of the last segments may still come.
    Ended,
    /// One end has reset the flow.
    Reset,
    /// The backend has answered, and the client has not confirmed this.
    Answered,
    /// Nobody has answered.
    Unanswered,
    /// The connection was reset before it carried data.
    Refused,
    /// See [`FlowWord::may_go`].
    Gone,
    /// The row is empty.
    Empty,
}

impl FlowWord {
    #[inline(always)]
    const fn yields(self, now: u32, idle: &IdleTicks) -> Yields {
        if self.0 == 0 {
            return Yields::Empty;
        }
        if self.may_go(now, idle) {
            return Yields::Gone;
        }
        let in_progress = self.age(now) <= IN_PROGRESS;
        match self.phase() {
            Phase::Rests if self.state() == TAKEN => Yields::Never,
            Phase::Closing if !self.has(ENDS) => Yields::Reset,
            Phase::Closing | Phase::Rests if self.may_wait() => Yields::Waiting,
            Phase::Closing | Phase::Rests => Yields::Ended,
            Phase::Open => Yields::Never,
            Phase::Refused if self.age(now) <= RETRY => Yields::Retrying,
            Phase::Refused => Yields::Refused,
            Phase::HalfOpen if self.has(FLOW_ANSWERED) && in_progress => Yields::Answering,
            Phase::HalfOpen if self.has(FLOW_ANSWERED) => Yields::Answered,
            Phase::HalfOpen if in_progress => Yields::Asking,
            Phase::HalfOpen => Yields::Unanswered,
        }
    }

    /// Whether the flow gives way before a new connection is dropped.
    #[inline(always)]
    #[must_use]
    pub const fn gives_way(self, now: u32, idle: &IdleTicks) -> bool {
        expendable(self, 0, now, idle) != 0
    }
}

const CLASS_SHIFT: u32 = 28;

/// Scores how suitable a flow's row is for reuse. The best row has the highest score; the low four bits of a score are
/// the [`rank`] of the row, which decides between equal rows. The score 0 means that the flow must stay.
#[inline(always)]
#[must_use]
pub const fn expendable(word: FlowWord, rank: u32, now: u32, idle: &IdleTicks) -> u32 {
    let class = word.yields(now, idle);
    if matches!(class, Yields::Never) { 0 } else { (class as u32) << CLASS_SHIFT | word.age(now) << 4 | rank & 15 }
}

/// The score of the port of a flow for a new flow, from the [`expendable`] score of the flow. A server that lets in the
/// new flow does not wait. Where the server has answered a SYN and still waits for the client, it does not let in
/// another one, so such a port is taken last.
#[inline(always)]
#[must_use]
pub const fn of_port(word: FlowWord, score: u32, lets_in: bool) -> u32 {
    const AGES: u32 = (1 << CLASS_SHIFT) - 1;
    let class = score >> CLASS_SHIFT;
    let class = if lets_in && class == Yields::Waiting as u32 {
        Yields::Ended
    } else if class == Yields::Answered as u32 && !word.has(FLOW_DATAGRAMS) {
        Yields::Answering
    } else {
        return score;
    };
    score & AGES | (class as u32) << CLASS_SHIFT
}

/// Whether a new flow that takes a port with this score of [`of_port`] disturbs nobody: the port's flow has ended or was
/// never open, and the server lets in the new one.
#[inline(always)]
#[must_use]
pub const fn is_good(score: u32) -> bool {
    score >> CLASS_SHIFT >= Yields::Ended as u32
}

/// Whether a flow with this score of [`expendable`] may go even if other rows or ports are free.
#[inline(always)]
#[must_use]
pub const fn is_gone(score: u32) -> bool {
    score >> CLASS_SHIFT >= Yields::Gone as u32
}

/// An entry of the index that finds the flow of a reply.
#[repr(transparent)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ReturnWord(pub u64);

impl ReturnWord {
    /// The entry that leads to `row` (below 2^31) of the flow with this tag.
    #[inline(always)]
    #[must_use]
    pub const fn new(tag: u32, row: u32) -> Self {
        Self((tag as u64) << 32 | (row as u64 + 1))
    }

    /// The tag: the high half of the hash of the flow's endpoints.
    #[inline(always)]
    #[must_use]
    pub const fn tag(self) -> u32 {
        (self.0 >> 32) as u32
    }

    /// The number of the flow's row; for an empty entry, the result is no valid row number.
    #[inline(always)]
    #[must_use]
    pub const fn row(self) -> u32 {
        (self.0 as u32).wrapping_sub(1)
    }
}

const MULTIPLIER: u64 = 0x9e37_79b9_7f4a_7c15;

/// A hash of two words under a key. Two rounds multiply by odd numbers that the key determines, so that a client
/// without the key cannot choose ports that collide (Dietzfelbinger and others: "A Reliable Randomized Algorithm for
/// the Closest-Pair Problem", 1997, section 2). A third round multiplies by a constant to mix bits that the first two
/// rounds do not mix.
#[inline(always)]
#[must_use]
pub const fn hash(key: HashKey, first: u64, second: u64) -> u64 {
    let mut state = (first ^ key.k0).wrapping_mul(key.k1 | 1);
    state = (state ^ state >> 32 ^ second).wrapping_mul(key.k0 | 1);
    state = (state ^ state >> 32).wrapping_mul(MULTIPLIER);
    state ^ state >> 32
}

/// The hash of both endpoints as a backend sees them. The hash needs no key, because clients choose neither endpoint.
#[inline(always)]
#[must_use]
pub const fn return_hash(pool: &[u32; 4], backend: &[u32; 4], ports: u32, protocol: u8) -> u64 {
    let low =
        (backend[0] as u64 | (backend[1] as u64) << 32) ^ (pool[1] as u64 | (pool[0] as u64) << 32).rotate_left(17);
    let high =
        (backend[2] as u64 | (backend[3] as u64) << 32) ^ (pool[3] as u64 | (pool[2] as u64) << 32).rotate_left(17);
    let mut state = (low ^ protocol as u64).wrapping_mul(MULTIPLIER);
    state = (state ^ state >> 32 ^ high).wrapping_mul(MULTIPLIER);
    state = (state ^ state >> 32 ^ ports as u64).wrapping_mul(MULTIPLIER);
    state ^= state >> 29;
    state = state.wrapping_mul(MULTIPLIER);
    state ^ state >> 32
}

/// The first of a flow's two buckets, out of `count`: the low half of the hash scaled to `count` (Lemire's
/// multiply-shift reduction). The high half of the hash is the flow's tag.
#[inline(always)]
#[must_use]
pub const fn first_bucket(hash: u64, count: u32) -> u32 {
    (((hash & 0xffff_ffff) * count as u64) >> 32) as u32
}

/// The second of a flow's two buckets, out of `count`.
#[inline(always)]
#[must_use]
pub const fn second_bucket(hash: u64, count: u32) -> u32 {
    first_bucket((hash ^ hash >> 32).wrapping_mul(MULTIPLIER) >> 32, count)
}

/// The number of addresses and ports that the program tries for a flow.
pub const PORT_TRIES: u32 = 16;
/// After this number of attempts, the program takes the port of a flow that gives way if the backend lets in the new
/// flow there.
pub const PATIENT_TRIES: u32 = 4;

/// The address (as an index) and port (host order) at a random place of a pool that has `addresses` addresses with the
/// ports `first` to `last`.
#[inline(always)]
#[must_use]
pub const fn candidate(random: u32, addresses: u32, first: u16, last: u16) -> (u32, u16) {
    let ports = (last as u32).wrapping_sub(first as u32).wrapping_add(1);
    let number = ((random as u64 * ports.wrapping_mul(addresses) as u64) >> 32) as u32;
    (number / ports, first.wrapping_add((number % ports) as u16))
}

#[cfg(test)]
mod tests;
