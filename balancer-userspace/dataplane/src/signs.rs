//! The controller's side of signs in packets that a backend may have failed.

use std::{collections::BTreeMap, mem::offset_of, sync::atomic::Ordering, time::Duration};

use aya::maps::MapData;
use balancer_common::map_types::{Signs, WATCH_NO_HANDSHAKE};
use balancer_control::{
    io::{BackendId, Passive},
    served::HandshakeCounts,
    snapshot::Unanswered,
};
use bytemuck::Zeroable as _;
use nix::time::{ClockId, clock_gettime};

use super::{handshakes::UnansweredHandshakes, mapped::MappedArray};

/// The approximate number of packets a second from clients whose handshakes the program watches; a watched packet takes
/// 5 to 10 ns longer than other packets.
const WATCHED: u64 = 50_000;
/// The limit of sampling: the program watches the handshakes of at least one client in 256.
const MOST_BITS: u32 = 8;

/// The signs of failure for each backend.
pub(super) struct SignTable {
    rows: MappedArray<Signs>,
    unanswered: UnansweredHandshakes,
    /// The last values of [`Signs::completed`] that the controller read, by backend id.
    completed: Vec<u32>,
    /// The total number of packets, and the time at which the controller read this number.
    seen: Option<(Duration, u64)>,
}

impl SignTable {
    pub(super) fn new(map: MapData, unanswered: UnansweredHandshakes) -> anyhow::Result<Self> {
        let rows = MappedArray::<Signs>::new(map)?;
        let completed = (0..rows.len()).map(|row| rows.load(row).completed).collect();
        Ok(Self { rows, unanswered, completed, seen: None })
    }

    /// Sets whether the program reports signs of a backend's failure, and how long the program withholds the backend's
    /// resets. A backend that `begins` does not take over signs of an earlier backend with the same id.
    pub(super) fn set(&mut self, id: BackendId, passive: Option<Passive>, begins: bool) {
        let index = usize::from(id.0);
        if begins {
            self.rows.store(index, Signs::zeroed());
            if let Some(completed) = self.completed.get_mut(index) {
                *completed = 0;
            }
        }
        let withhold = passive.map_or(Duration::ZERO, |passive| passive.withhold).as_nanos();
        let withhold = u64::try_from(withhold).unwrap_or(u64::MAX);
        self.rows.word64(index, offset_of!(Signs, withhold)).store(withhold, Ordering::Relaxed);
        self.rows.word32(index, offset_of!(Signs, tells)).store(passive.is_some().into(), Ordering::Release);
    }

    /// Records that a backend works, which means that the backend refuses connections on purpose.
    pub(super) fn works(&self, id: BackendId) {
        let index = usize::from(id.0);
        let since = self.rows.word64(index, offset_of!(Signs, refused_since));
        let passed = self.rows.word64(index, offset_of!(Signs, passed));
        let Ok(now) = clock_gettime(ClockId::CLOCK_MONOTONIC_COARSE).map(Duration::from) else { return };
        let before = self.rows.load(index).refusals();
        let after = before.works(u64::try_from(now.as_nanos()).unwrap_or(u64::MAX));
        if after != before {
            passed.store(after.passed, Ordering::Relaxed);
            since.store(after.since, Ordering::Release);
        }
    }

    /// Makes the program withhold the backend's next resets, whatever resets have reached clients before.
    pub(super) fn withhold_again(&self, id: BackendId) {
        let index = usize::from(id.0);
        self.rows.word64(index, offset_of!(Signs, passed)).store(0, Ordering::Relaxed);
        self.rows.word64(index, offset_of!(Signs, refused_since)).store(0, Ordering::Release);
    }

    /// The unfinished handshakes with a backend; `None`: the backend has none.
    pub(super) fn unanswered(&self, id: BackendId) -> Option<Unanswered> {
        let waiting = self.rows.load(usize::from(id.0)).waiting();
        let now = clock_gettime(ClockId::CLOCK_MONOTONIC_COARSE).map(Duration::from).ok()?;
        (waiting.since != 0).then(|| Unanswered {
            begun: waiting.begun,
            lasted: now.saturating_sub(Duration::from_nanos(waiting.since)),
        })
    }

    /// The numbers of watched handshakes whose outcome has become known since the last call, for the backends in `ids`
    /// with such handshakes.
    pub(super) fn handshakes(&mut self, ids: &[BackendId]) -> BTreeMap<BackendId, HandshakeCounts> {
        let mut unanswered = self.unanswered.take();
        let outcomes = ids.iter().filter_map(|id| {
            let row = usize::from(id.0);
            let completed = self.rows.word32(row, offset_of!(Signs, completed)).load(Ordering::Relaxed);
            let before = std::mem::replace(self.completed.get_mut(row)?, completed);
            let completed = completed.wrapping_sub(before).into();
            let of = HandshakeCounts { completed, unanswered: unanswered.remove(id).unwrap_or(0) };
            (of.tries() != 0).then_some((*id, of))
        });
        outcomes.collect()
    }

    /// The number of a backend's resets that were withheld from clients.
    pub(super) fn withheld(&self, id: BackendId) -> u64 {
        self.rows.word64(usize::from(id.0), offset_of!(Signs, withheld)).load(Ordering::Relaxed)
    }

    /// The bits that must be clear in a client's port if the program is to watch the client's handshakes, given that
    /// `packets` have arrived until `now`. At the first call, the rate of packets is unknown.
    pub(super) fn unsampled(&mut self, packets: u64, now: Duration) -> u32 {
        let Some((before, then)) = self.seen.replace((now, packets)) else { return mask(MOST_BITS) };
        let millis = u64::try_from(now.saturating_sub(before).as_millis()).unwrap_or(u64::MAX).max(1);
        let rate = packets.saturating_sub(then).saturating_mul(1000) / millis;
        let bits = (rate / WATCHED).checked_ilog2().map_or(0, |bits| bits + 1);
        mask(bits.min(MOST_BITS))
    }
}

/// A mask of bits of a port, in network order; the argument is the number of bits. The low bits of their ports differ
/// between clients, except for the lowest bit: a Linux client chooses only odd or only even ports while it can.
fn mask(bits: u32) -> u32 {
    let mask = ((1u16 << bits) - 1) << 1;
    u32::from(mask.to_be()) & WATCH_NO_HANDSHAKE
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::handshakes::Handshakes as Record;

    fn table(rows: MappedArray<Signs>) -> SignTable {
        let [record, _] = MappedArray::twice(1).unwrap();
        let unanswered = UnansweredHandshakes::new(Record::of(record));
        SignTable { completed: vec![0; rows.len()], rows, unanswered, seen: None }
    }

    #[test]
    fn when_there_are_more_packets_then_fewer_clients_are_watched() {
        let [rows, _] = MappedArray::twice(1).unwrap();
        let mut table = table(rows);
        let second = Duration::from_secs(1);
        assert_eq!(table.unsampled(0, second), u32::from(0x1fe_u16.to_be()));
        let mut packets = 0;
        for (rate, low_bits) in [(0, 0), (49_999, 0), (50_000, 2), (100_000, 6), (14_000_000, 0x1fe)] {
            let now = table.seen.unwrap().0 + second;
            packets += rate;
            assert_eq!(table.unsampled(packets, now), u32::from(u16::to_be(low_bits)), "{rate}");
        }
    }

    #[test]
    fn when_all_clients_use_odd_ports_then_some_clients_are_watched() {
        for bits in 0..=MOST_BITS {
            let watched = (1..=u16::MAX).step_by(2).filter(|port| u32::from(port.to_be()) & mask(bits) == 0).count();
            assert_eq!(watched, 0x8000 >> bits, "{bits} bits");
        }
    }

    #[test]
    fn when_a_backend_begins_then_nothing_is_left_of_the_one_before() {
        let [rows, mut kernel] = MappedArray::<Signs>::twice(2).unwrap();
        let mut table = table(rows);
        kernel.store(1, Signs { withheld: 7, waiting_since: 3, refused_since: 9, ..Signs::zeroed() });
        let passive = Some(Passive { withhold: Duration::from_secs(1) });
        table.set(BackendId(1), passive, false);
        assert_eq!(
            (table.withheld(BackendId(1)), kernel.load(1).withhold, kernel.load(1).tells),
            (7, 1_000_000_000, 1)
        );
        table.works(BackendId(1));
        assert!(kernel.load(1).refused_since == 0 && kernel.load(1).passed > 0);
        kernel.store(1, Signs { refused_since: 9, ..kernel.load(1) });
        table.withhold_again(BackendId(1));
        assert_eq!((kernel.load(1).refused_since, kernel.load(1).passed), (0, 0));
        table.set(BackendId(1), None, true);
        assert_eq!(kernel.load(1), Signs::zeroed());
    }

    #[test]
    fn when_clients_continue_handshakes_then_each_counts_once_although_the_number_wraps_around() {
        let [rows, mut kernel] = MappedArray::<Signs>::twice(3).unwrap();
        let mut table = table(rows);
        let ids = [BackendId(1), BackendId(2)];
        let mut complete = |completed: u32| {
            kernel.store(1, Signs { completed, ..Signs::zeroed() });
            table.handshakes(&ids).into_iter().map(|(id, of)| (id.0, of.completed)).collect::<Vec<_>>()
        };
        assert_eq!(complete(u32::MAX - 1), [(1, u64::from(u32::MAX) - 1)]);
        assert_eq!((complete(3), complete(3)), (vec![(1, 5)], vec![]));
        table.set(BackendId(1), None, true);
        kernel.store(1, Signs { completed: 2, ..Signs::zeroed() });
        assert_eq!(table.handshakes(&ids).len(), 1);
    }
}
