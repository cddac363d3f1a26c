//! Reads the kernel program's record of handshakes that clients have begun and not continued.

use std::{
    collections::BTreeMap,
    net::IpAddr,
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use aya::maps::MapData;
use balancer_common::signs::{HANDSHAKE_UNIT_BITS, Handshake, Handshaker};
use balancer_control::io::BackendId;
use nix::time::{ClockId, clock_gettime};

use crate::{mapped::MappedArray, rows::address_words};

/// The age at which an unfinished handshake counts as unanswered: a client repeats its SYN after one second.
const UNANSWERED: Duration = Duration::from_secs(2);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Begun {
    pub client: IpAddr,
    /// The backend that got the client's first packet.
    pub backend: BackendId,
    /// The time since the client's first packet. The recorded time wraps around after about 18 minutes, so the true
    /// time may be longer by a multiple of 18 minutes.
    pub ago: Duration,
}

/// The kernel program's record of unfinished handshakes.
#[derive(Clone)]
pub struct Handshakes(Arc<MappedArray<u64>>);

impl Handshakes {
    pub(super) fn new(map: MapData) -> anyhow::Result<Self> {
        Ok(Self::of(MappedArray::new(map)?))
    }

    pub(super) fn of(record: MappedArray<u64>) -> Self {
        Self(Arc::new(record))
    }

    fn read(&self) -> Vec<u64> {
        self.0.words().iter().map(|word| word.load(Ordering::Relaxed)).collect()
    }

    /// The unfinished handshakes of the clients in `clients`. The record contains no addresses, so the function tries
    /// each port of a client, which takes about 0.1 ms for one client.
    #[must_use]
    pub fn begun(&self, clients: &[IpAddr]) -> Vec<Begun> {
        let (notes, now) = (self.read(), now());
        clients.iter().flat_map(|&client| of(client, &notes, now)).collect()
    }
}

/// The time of the coarse clock that the kernel program reads, in ns.
fn now() -> u64 {
    let now = clock_gettime(ClockId::CLOCK_MONOTONIC_COARSE).map(Duration::from).unwrap_or_default();
    u64::try_from(now.as_nanos()).unwrap_or(u64::MAX)
}

/// Finds the handshakes that have become unanswered.
pub(super) struct UnansweredHandshakes {
    record: Handshakes,
    /// The handshakes that were found unanswered, by their indices in the record; 0: none.
    counted: Vec<u64>,
}

impl UnansweredHandshakes {
    pub(super) fn new(record: Handshakes) -> Self {
        Self { counted: vec![0; record.0.len()], record }
    }

    /// The numbers of handshakes that have become unanswered since the last call, by backend.
    pub(super) fn take(&mut self) -> BTreeMap<BackendId, u64> {
        newly_unanswered(&self.record.read(), &mut self.counted, now())
    }
}

fn newly_unanswered(notes: &[u64], counted: &mut [u64], now: u64) -> BTreeMap<BackendId, u64> {
    let mut found = BTreeMap::new();
    for (&note, counted) in notes.iter().zip(counted) {
        let handshake = Handshake(note);
        let is_old = u64::from(handshake.age(now)) << HANDSHAKE_UNIT_BITS >= UNANSWERED.as_nanos() as u64;
        if note != 0 && note != *counted && is_old {
            *counted = note;
            *found.entry(BackendId(handshake.backend())).or_default() += 1;
        }
    }
    found
}

fn of(client: IpAddr, notes: &[u64], now: u64) -> impl Iterator<Item = Begun> {
    let words = address_words(client);
    (0..=u16::MAX).filter_map(move |port| {
        let handshaker = Handshaker::new(&words, port);
        let note = Handshake(*notes.get(handshaker.place() as usize)?);
        let ago = || Duration::from_nanos(u64::from(note.age(now)) << HANDSHAKE_UNIT_BITS);
        note.is_of(handshaker).then(|| Begun { client, backend: BackendId(note.backend()), ago: ago() })
    })
}

#[cfg(test)]
mod tests {
    use balancer_common::signs::HANDSHAKES;

    use super::*;

    #[test]
    fn when_handshakes_have_waited_for_two_seconds_then_each_counts_once() {
        const SECOND: u64 = 1_000_000_000;
        let begin = 9_000 * SECOND;
        let note = |port: u16, backend, at: u64| {
            Handshake::new(Handshaker::new(&[1, 0, 0, 0], port), backend, begin + at * SECOND).0
        };
        let mut counted = vec![0; 5];
        let mut notes = vec![note(1, 3, 0), 0, note(2, 3, 0), note(3, 4, 0), 0];
        let mut take = |notes: &[u64], at: u64| -> Vec<(u16, u64)> {
            let found = newly_unanswered(notes, &mut counted, begin + at * SECOND);
            found.into_iter().map(|(backend, number)| (backend.0, number)).collect()
        };
        assert_eq!(take(&notes, 1), []);
        assert_eq!(take(&notes, 3), [(3, 2), (4, 1)]);
        assert_eq!(take(&notes, 4), []);
        (notes[0], notes[4]) = (note(1, 3, 6), note(4, 4, 6));
        assert_eq!(take(&notes, 7), []);
        assert_eq!(take(&notes, 9), [(3, 1), (4, 1)]);
    }

    #[test]
    fn when_handshakes_are_of_a_client_then_they_are_found_and_those_of_others_are_not() {
        let (mut notes, begin) = (vec![0; HANDSHAKES as usize], 9_000_000_000_000);
        let client = |text: &str| text.parse::<IpAddr>().unwrap();
        for (address, port, backend) in [
            ("10.1.0.7", 40_000_u16, 3),
            ("10.1.0.7", 41_111, 4),
            ("10.1.0.8", 40_000, 3),
            ("2001:db8:1::7", 50_000, 5),
            ("203.0.113.9", 40_000, 3),
        ] {
            let handshaker = Handshaker::new(&address_words(client(address)), port.to_be());
            notes[handshaker.place() as usize] = Handshake::new(handshaker, backend, begin).0;
        }
        let found = |address: &str| -> Vec<(u16, u64)> {
            let of_it = of(client(address), &notes, begin + 5_000_000_000);
            let mut found: Vec<_> = of_it.map(|begun| (begun.backend.0, begun.ago.as_secs())).collect();
            found.sort_unstable();
            found
        };
        assert_eq!(found("10.1.0.7"), [(3, 4), (4, 4)]);
        assert_eq!(found("10.1.0.8"), [(3, 4)]);
        assert_eq!(found("2001:db8:1::7"), [(5, 4)]);
        assert!(found("10.1.0.9").is_empty() && found("2001:db8:1::8").is_empty());
    }
}
