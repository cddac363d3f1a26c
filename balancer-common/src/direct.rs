//! Direct connections: clients have made them to the address and port of a `nat` or `snat` backend on the balancer's
//! machine, not through the VIP. The backend's packets of such a connection keep their source.
//!
//! The kernel program keeps one word for each direct connection, in lines of
//! [`DIRECT_PER_LINE`](crate::map_types::DIRECT_PER_LINE) words. A word has a part of the connection's hash, the
//! connection's [`Kind`], and the tick in which the connection was last seen. A connection without a word counts as one
//! through the VIP, so that no flood changes anything for clients of the VIP.

use crate::{client::HashKey, flows, map_types::FAMILY_V4};

/// The number of lines with words.
pub const LINES: u32 = 1 << 12;
/// The index of the line that contains the key of the hash.
pub const KEY_LINE: u32 = LINES;

/// The tick lasts 2^33 ns (8.6 s).
pub const TICK_SHIFT: u32 = 33;
const KIND_BITS: u32 = 3;
const TICK_BITS: u32 = 13;
const TAG_SHIFT: u32 = KIND_BITS + TICK_BITS;
const TICK_MASK: u64 = (1 << TICK_BITS) - 1;
/// For this many ticks (five minutes) after the last packet through the VIP, a datagram to the backend's own address
/// does not change the kind of its connection, because the sender may have forged the datagram's source.
const PROTECTED_TICKS: u64 = 35;

/// The word of a connection; 0: the place is empty.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Word(pub u64);

/// The way by which a connection came, and the state of a direct one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Kind {
    /// The connection came through the VIP.
    Through = 1,
    /// The connection is direct, and its handshake may be incomplete.
    Direct = 2,
    /// The connection is direct, and the backend has sent a segment after the handshake.
    Open = 3,
    /// The connection is direct, and the backend has closed or reset it.
    Closed = 4,
}

/// A packet of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Event {
    /// A client's segment came through the VIP.
    Segment = 0,
    /// A client's datagram came through the VIP.
    Datagram = 1,
    /// A segment that opens a connection came to the backend's own address, and no socket has this connection.
    DirectSegment = 2,
    /// A datagram came to the backend's own address.
    DirectDatagram = 3,
    /// The backend sends a segment that opens a connection.
    Opens = 4,
    /// The backend sends a segment after the handshake.
    Continues = 5,
    /// The backend sends a segment that closes or resets a connection.
    Closes = 6,
    /// The backend answers a handshake, or sends a datagram.
    Answers = 7,
}

impl Event {
    /// The inverse of `as u8`; other numbers are [`Event::Answers`].
    #[inline(always)]
    #[must_use]
    pub const fn of_number(number: u8) -> Self {
        match number {
            0 => Self::Segment,
            1 => Self::Datagram,
            2 => Self::DirectSegment,
            3 => Self::DirectDatagram,
            4 => Self::Opens,
            5 => Self::Continues,
            6 => Self::Closes,
            _ => Self::Answers,
        }
    }

    /// The kind of a connection after this event. `None`: the table does not change.
    #[inline(always)]
    #[must_use]
    pub const fn kind(self, before: Word, now: u64) -> Option<Kind> {
        let known = before.kind();
        match self {
            Self::Datagram => Some(Kind::Through),
            Self::Segment if before.is_direct() => Some(Kind::Through),
            Self::DirectDatagram if before.is(Kind::Through) && before.age(now) < PROTECTED_TICKS => None,
            Self::DirectSegment | Self::Opens if before.is(Kind::Open) => known,
            Self::DirectSegment | Self::DirectDatagram | Self::Opens => Some(Kind::Direct),
            Self::Closes if before.is_direct() => Some(Kind::Closed),
            Self::Continues if before.is(Kind::Direct) => Some(Kind::Open),
            Self::Continues | Self::Answers if before.is_direct() => known,
            Self::Segment | Self::Closes | Self::Continues | Self::Answers => None,
        }
    }
}

impl Word {
    #[inline(always)]
    #[must_use]
    pub const fn new(hash: u64, kind: Kind, now: u64) -> Self {
        Self(hash >> TAG_SHIFT << TAG_SHIFT | (now & TICK_MASK) << KIND_BITS | kind as u64)
    }

    /// Whether the word belongs to the connection with this hash.
    #[inline(always)]
    #[must_use]
    pub const fn is_of(self, hash: u64) -> bool {
        self.0 != 0 && (self.0 ^ hash) >> TAG_SHIFT == 0
    }

    #[inline(always)]
    const fn is(self, kind: Kind) -> bool {
        self.0 & ((1 << KIND_BITS) - 1) == kind as u64
    }

    #[inline(always)]
    const fn kind(self) -> Option<Kind> {
        match self.0 & ((1 << KIND_BITS) - 1) {
            1 => Some(Kind::Through),
            2 => Some(Kind::Direct),
            3 => Some(Kind::Open),
            4 => Some(Kind::Closed),
            _ => None,
        }
    }

    /// Whether the backend's packets keep their source.
    #[inline(always)]
    #[must_use]
    pub const fn is_direct(self) -> bool {
        self.is(Kind::Direct) || self.is(Kind::Open) || self.is(Kind::Closed)
    }

    /// The number of ticks since the connection was last seen.
    #[inline(always)]
    const fn age(self, now: u64) -> u64 {
        now.wrapping_sub(self.0 >> KIND_BITS) & TICK_MASK
    }

    /// How well this place suits the connection with this hash: its own place best, then an empty one, then one whose
    /// connection is not open, and then the one that was silent for longest.
    #[inline(always)]
    #[must_use]
    pub const fn suits(self, hash: u64, now: u64) -> u64 {
        if self.is_of(hash) {
            3 << TICK_BITS
        } else if self.0 == 0 {
            2 << TICK_BITS
        } else {
            self.age(now) | if self.is(Kind::Open) { 0 } else { 1 << TICK_BITS }
        }
    }
}

/// The line of the connection with this hash.
#[inline(always)]
#[must_use]
pub const fn line(hash: u64) -> u32 {
    hash as u32 & (LINES - 1)
}

/// The hash of a connection. `ends` contains the client's port and the backend's port, as in a client's packet.
#[inline(always)]
#[must_use]
pub fn hash(key: HashKey, client: &[u32; 4], backend: &[u32; 4], ends: u32, family: u8, protocol: u8) -> u64 {
    let pair = |a: u32, b: u32| u64::from(a) | u64::from(b) << 32;
    let rest = u64::from(ends) | u64::from(protocol) << 32 | u64::from(family) << 40;
    if family == FAMILY_V4 {
        return flows::hash(key, pair(client[0], backend[0]), rest);
    }
    let of_client = flows::hash(key, pair(client[0], client[1]), pair(client[2], client[3]));
    let of_backend = flows::hash(key, pair(backend[0], backend[1]), pair(backend[2], backend[3]) ^ rest);
    flows::hash(key, of_client, of_backend)
}

#[cfg(test)]
mod tests {
    use super::*;

    const HASH: u64 = 0x0123_4567_89ab_cdef;
    const NOW: u64 = 1 << 20;
    const NONE: Word = Word(0);

    fn word(kind: Kind) -> Word {
        Word::new(HASH, kind, NOW)
    }

    #[test]
    fn when_a_word_is_made_then_it_belongs_to_its_hash_and_has_its_kind_and_age() {
        for kind in [Kind::Direct, Kind::Open, Kind::Closed, Kind::Through] {
            let word = word(kind);
            assert!(word.is_of(HASH) && word.is(kind), "{word:?}");
            assert!(!word.is_of(HASH ^ 1 << 63) && !word.is_of(HASH ^ 1 << TAG_SHIFT), "{word:?}");
            assert_eq!([NOW, NOW + 7, NOW + TICK_MASK].map(|now| word.age(now)), [0, 7, TICK_MASK], "{word:?}");
            assert_eq!(word.is_direct(), kind != Kind::Through);
        }
        assert!(!NONE.is_of(0) && !NONE.is_direct());
    }

    #[test]
    fn when_a_packet_comes_through_the_vip_then_its_connection_is_not_direct() {
        for before in [NONE, word(Kind::Direct), word(Kind::Open), word(Kind::Through)] {
            for event in [Event::Segment, Event::Datagram] {
                let after = event.kind(before, NOW);
                assert!(after == Some(Kind::Through) || after.is_none() && !before.is_direct(), "{before:?} {event:?}");
            }
        }
        assert_eq!(Event::Segment.kind(NONE, NOW), None, "a word for each connection would displace others");
    }

    #[test]
    fn when_a_client_connects_directly_then_the_backends_packets_keep_their_source_until_its_next_one_to_the_vip() {
        assert_eq!(Event::DirectSegment.kind(NONE, NOW), Some(Kind::Direct));
        assert_eq!(Event::DirectDatagram.kind(NONE, NOW), Some(Kind::Direct));
        assert_eq!(Event::Opens.kind(NONE, NOW), Some(Kind::Direct));
        assert_eq!(Event::DirectSegment.kind(word(Kind::Through), NOW), Some(Kind::Direct));
        assert_eq!(Event::Continues.kind(word(Kind::Direct), NOW), Some(Kind::Open));
        assert_eq!(Event::Answers.kind(word(Kind::Direct), NOW), Some(Kind::Direct));
        for event in [Event::Continues, Event::Closes, Event::Answers] {
            assert_eq!(event.kind(NONE, NOW), None, "{event:?}");
            assert_eq!(event.kind(word(Kind::Through), NOW), None, "{event:?}");
        }
    }

    #[test]
    fn when_a_backend_has_closed_a_direct_connection_then_it_stays_closed_until_the_client_opens_another() {
        assert_eq!(Event::Closes.kind(word(Kind::Open), NOW), Some(Kind::Closed));
        assert_eq!(Event::Continues.kind(word(Kind::Closed), NOW), Some(Kind::Closed));
        assert_eq!(Event::DirectSegment.kind(word(Kind::Closed), NOW), Some(Kind::Direct));
        assert_eq!(Event::DirectSegment.kind(word(Kind::Open), NOW), Some(Kind::Open));
    }

    #[test]
    fn when_a_datagram_has_come_through_the_vip_then_direct_ones_change_nothing_for_five_minutes() {
        let through = word(Kind::Through);
        assert_eq!(Event::DirectDatagram.kind(through, NOW + PROTECTED_TICKS - 1), None);
        assert_eq!(Event::DirectDatagram.kind(through, NOW + PROTECTED_TICKS), Some(Kind::Direct));
    }

    #[test]
    fn when_places_are_taken_then_empty_ones_go_first_and_open_connections_last() {
        let of = |kind, age| Word::new(!HASH, kind, NOW - age);
        let rising = [
            of(Kind::Open, 0),
            of(Kind::Open, TICK_MASK),
            of(Kind::Direct, 0),
            of(Kind::Closed, 1),
            of(Kind::Through, TICK_MASK),
            NONE,
            word(Kind::Open),
        ];
        assert!(rising.is_sorted_by(|a, b| a.suits(HASH, NOW) < b.suits(HASH, NOW)), "{rising:?}");
    }

    #[test]
    fn when_an_event_is_a_number_then_it_can_be_read_back() {
        use Event::{Answers, Closes, Continues, Datagram, DirectDatagram, DirectSegment, Opens, Segment};
        for event in [Segment, Datagram, DirectSegment, DirectDatagram, Opens, Continues, Closes, Answers] {
            assert_eq!(Event::of_number(event as u8), event);
        }
    }

    #[test]
    fn when_an_end_of_a_connection_differs_then_its_hash_differs() {
        let key = HashKey { k0: 0x1234_5678_9abc_def1, k1: 0xfedc_ba98_7654_3211 };
        let (a, b) = ([1, 2, 3, 4], [5, 6, 7, 8]);
        for family in [FAMILY_V4, crate::map_types::FAMILY_V6] {
            let hash = |a, b, ends, protocol| hash(key, a, b, ends, family, protocol);
            let mut all = vec![hash(&a, &b, 9, 6), hash(&b, &a, 9, 6), hash(&a, &b, 10, 6), hash(&a, &b, 9, 17)];
            all.sort_unstable();
            all.dedup();
            assert_eq!(all.len(), 4);
        }
    }
}
