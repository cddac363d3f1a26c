//! The controller's side of signs in packets that a backend may have failed.

use std::{mem::offset_of, sync::atomic::Ordering, time::Duration};

use aya::maps::MapData;
use balancer_common::map_types::{Signs, WATCH_NO_HANDSHAKE};
use balancer_control::{
    io::{BackendId, Passive},
    snapshot::Unanswered,
};
use bytemuck::Zeroable as _;
use nix::time::{ClockId, clock_gettime};

use super::mapped::MappedArray;

/// The approximate number of packets a second from clients whose handshakes the program watches; a watched packet takes
/// 5 to 10 ns longer than other packets.
const WATCHED: u64 = 50_000;
/// The limit of sampling: the program watches the handshakes of at least one client in 256.
const MOST_BITS: u32 = 8;

/// The signs of failure for each backend.
pub(super) struct SignTable {
    rows: MappedArray<Signs>,
    /// The total number of packets, and the time at which the controller read this number.
    seen: Option<(Duration, u64)>,
}

impl SignTable {
    pub(super) fn new(map: MapData) -> anyhow::Result<Self> {
        Ok(Self { rows: MappedArray::new(map)?, seen: None })
    }

    /// Sets whether the program reports signs of a backend's failure, and how long the program withholds the backend's
    /// resets. A backend that `begins` does not take over signs of an earlier backend with the same id.
    pub(super) fn set(&mut self, id: BackendId, passive: Option<Passive>, begins: bool) {
        let index = usize::from(id.0);
        if begins {
            self.rows.store(index, Signs::zeroed());
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

    /// The unfinished handshakes with a backend; `None`: the backend has none.
    pub(super) fn unanswered(&self, id: BackendId) -> Option<Unanswered> {
        let waiting = self.rows.load(usize::from(id.0)).waiting();
        let now = clock_gettime(ClockId::CLOCK_MONOTONIC_COARSE).map(Duration::from).ok()?;
        (waiting.since != 0).then(|| Unanswered {
            begun: waiting.begun,
            lasted: now.saturating_sub(Duration::from_nanos(waiting.since)),
        })
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

/// A mask of the lowest bits of a port, in network order; the argument is the number of bits. The lowest bits of their
/// ports differ between clients.
fn mask(bits: u32) -> u32 {
    let mask = (1u16 << bits) - 1;
    u32::from(mask.to_be()) & WATCH_NO_HANDSHAKE
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn when_there_are_more_packets_then_fewer_clients_are_watched() {
        let [rows, _] = MappedArray::twice(1).unwrap();
        let mut table = SignTable { rows, seen: None };
        let second = Duration::from_secs(1);
        assert_eq!(table.unsampled(0, second), u32::from(0xff_u16.to_be()));
        let mut packets = 0;
        for (rate, low_bits) in [(0, 0), (49_999, 0), (50_000, 1), (100_000, 3), (14_000_000, 0xff)] {
            let now = table.seen.unwrap().0 + second;
            packets += rate;
            assert_eq!(table.unsampled(packets, now), u32::from(u16::to_be(low_bits)), "{rate}");
        }
    }

    #[test]
    fn when_a_backend_begins_then_nothing_is_left_of_the_one_before() {
        let [rows, mut kernel] = MappedArray::<Signs>::twice(2).unwrap();
        let mut table = SignTable { rows, seen: None };
        kernel.store(1, Signs { withheld: 7, waiting_since: 3, refused_since: 9, ..Signs::zeroed() });
        let passive = Some(Passive { withhold: Duration::from_secs(1) });
        table.set(BackendId(1), passive, false);
        assert_eq!(
            (table.withheld(BackendId(1)), kernel.load(1).withhold, kernel.load(1).tells),
            (7, 1_000_000_000, 1)
        );
        table.works(BackendId(1));
        assert!(kernel.load(1).refused_since == 0 && kernel.load(1).passed > 0);
        table.set(BackendId(1), None, true);
        assert_eq!(kernel.load(1), Signs::zeroed());
    }
}
