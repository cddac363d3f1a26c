//! The query about a packet's client to the client table.

use crate::map_types::ALL_DOWN;

const LIVE_IS_HOME: u64 = 1 << 48;
const OPENS: u64 = 1 << 49;
const DATAGRAM: u64 = 1 << 50;
const FAILBACK: u64 = 1 << 51;
const PEEKS: u64 = 1 << 52;
const PINNED: u64 = 1 << 53;
const MARKS: u64 = 1 << 54;
const MIGRATES: u64 = 1 << 55;

/// A query to the client table about a packet's client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Query {
    pub hash: u64,
    pub service: u16,
    /// The backend of the client's slot in the live table; `None`: no backend takes new clients.
    pub live: Option<u16>,
    /// Whether the backend in the live table equals the backend in the base table.
    pub live_is_home: bool,
    /// Whether a rule names the backend; if so, `live` is the backend of the rule.
    pub pinned: bool,
    /// If `pinned` is set: whether a connection that the client has moved from another address determines the backend.
    /// Such a query changes only the entry of a client that is already at this backend, is unknown, or has been silent.
    pub migrates: bool,
    /// Whether the packet is a TCP segment that opens a connection.
    pub opens: bool,
    /// Whether the packet is a datagram. A client's first datagram, or the first datagram after `idle` ticks without
    /// one, counts as a new connection.
    pub datagram: bool,
    /// Whether the service has the setting `failback = "return"`.
    pub failback: bool,
    /// Whether the packet only quotes a packet of the client, as an ICMP error does: for such a packet, the program
    /// records nothing and counts nothing.
    pub peeks: bool,
    /// Whether to set the client's bits in the filter of [`crate::seen`] if the client is known.
    pub marks: bool,
    /// The current tick of the service.
    pub now: u16,
    /// The number of ticks after which an entry is expired.
    pub remember: u16,
    /// The number of ticks after which a datagram opens a connection; at least 1.
    pub idle: u16,
}

impl Query {
    /// The part of the client's hash that the client's entry stores: the high half.
    #[inline(always)]
    #[must_use]
    pub const fn tag(&self) -> u32 {
        (self.hash >> 32) as u32
    }

    /// Packs the query into arguments of a BPF function.
    #[inline(always)]
    #[must_use]
    pub fn packed(&self) -> PackedQuery {
        let bit = |set: bool, bit: u64| if set { bit } else { 0 };
        let first = u64::from(self.live.unwrap_or(ALL_DOWN))
            | u64::from(self.service) << 16
            | u64::from(self.now) << 32
            | bit(self.live_is_home, LIVE_IS_HOME)
            | bit(self.opens, OPENS)
            | bit(self.datagram, DATAGRAM)
            | bit(self.failback, FAILBACK)
            | bit(self.pinned, PINNED)
            | bit(self.migrates, MIGRATES)
            | bit(self.peeks, PEEKS)
            | bit(self.marks, MARKS);
        PackedQuery([self.hash, first, u64::from(self.remember) | u64::from(self.idle) << 16])
    }
}

/// A [`Query`] in three words. The low 48 bits of the second word hold `live`, `service` and `now`, and the bits above
/// hold the flags; the third word holds `remember` and `idle`.
#[repr(transparent)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PackedQuery(pub [u64; 3]);

impl PackedQuery {
    /// The value of [`Query::peeks`].
    #[inline(always)]
    #[must_use]
    pub const fn peeks(self) -> bool {
        self.0[1] & PEEKS != 0
    }

    /// The value of [`Query::marks`].
    #[inline(always)]
    #[must_use]
    pub const fn marks(self) -> bool {
        self.0[1] & MARKS != 0
    }

    /// The value of [`Query::migrates`].
    #[inline(always)]
    #[must_use]
    pub const fn migrates(self) -> bool {
        self.0[1] & MIGRATES != 0
    }

    /// The query for a packet that goes to a backend only if the packet's client is recorded at this backend.
    #[inline(always)]
    #[must_use]
    pub const fn of_known_alone(self) -> Self {
        let Self([hash, first, second]) = self;
        Self([hash, first & !(PINNED | MIGRATES) | ALL_DOWN as u64, second])
    }

    #[inline(always)]
    #[must_use]
    pub fn unpacked(self) -> Query {
        let Self([hash, first, second]) = self;
        let live = first as u16;
        Query {
            hash,
            service: (first >> 16) as u16,
            live: (live != ALL_DOWN).then_some(live),
            live_is_home: first & LIVE_IS_HOME != 0,
            pinned: first & PINNED != 0,
            migrates: self.migrates(),
            opens: first & OPENS != 0,
            datagram: first & DATAGRAM != 0,
            failback: first & FAILBACK != 0,
            peeks: self.peeks(),
            marks: self.marks(),
            now: (first >> 32) as u16,
            remember: second as u16,
            idle: (second >> 16) as u16,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NONE: Query = Query {
        hash: 0,
        service: 0,
        live: None,
        live_is_home: false,
        pinned: false,
        migrates: false,
        opens: false,
        datagram: false,
        failback: false,
        peeks: false,
        marks: false,
        now: 0,
        remember: 0,
        idle: 0,
    };

    #[test]
    fn when_a_query_is_packed_then_each_part_can_be_read_back() {
        let each = [
            NONE,
            Query { hash: u64::MAX, ..NONE },
            Query { service: u16::MAX, ..NONE },
            Query { live: Some(0), ..NONE },
            Query { live: Some(ALL_DOWN - 1), ..NONE },
            Query { live_is_home: true, ..NONE },
            Query { pinned: true, ..NONE },
            Query { migrates: true, ..NONE },
            Query { opens: true, ..NONE },
            Query { datagram: true, ..NONE },
            Query { failback: true, ..NONE },
            Query { peeks: true, ..NONE },
            Query { marks: true, ..NONE },
            Query { now: u16::MAX, ..NONE },
            Query { remember: u16::MAX, ..NONE },
            Query { idle: u16::MAX, ..NONE },
        ];
        for query in each {
            assert_eq!(query.packed().unpacked(), query);
        }
    }

    #[test]
    fn when_only_known_clients_are_meant_then_the_query_names_no_backend() {
        let query = Query { live: Some(7), pinned: true, opens: true, now: u16::MAX, hash: 9, service: 3, ..NONE };
        let known_alone = query.packed().of_known_alone().unpacked();
        assert_eq!(known_alone, Query { live: None, pinned: false, ..query });
    }

    #[test]
    fn when_a_hash_is_given_then_its_tag_is_the_high_half() {
        assert_eq!(Query { hash: 0x1234_5678_9abc_def0, ..NONE }.tag(), 0x1234_5678);
    }
}
