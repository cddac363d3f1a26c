//! Finds handshakes that clients with given addresses have begun and not continued.

use std::{net::IpAddr, time::Duration};

use anyhow::Context as _;
use aya::maps::{Array, Map, MapData};
use balancer_common::signs::{HANDSHAKE_UNIT_BITS, HANDSHAKES, Handshake, Handshaker};
use balancer_control::io::BackendId;
use nix::time::{ClockId, clock_gettime};

use crate::rows::address_words;

/// An unfinished handshake.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Begun {
    /// The address of the client.
    pub client: IpAddr,
    /// The backend that got the client's first packet.
    pub backend: BackendId,
    /// The time since the client's first packet. The recorded time wraps around after about 18 minutes, so the true
    /// time may be longer by a multiple of 18 minutes.
    pub ago: Duration,
}

/// The kernel program's record of unfinished handshakes.
pub struct Handshakes(Array<MapData, u64>);

impl Handshakes {
    pub(super) fn new(map: Map) -> anyhow::Result<Self> {
        Ok(Self(Array::try_from(map)?))
    }

    /// The unfinished handshakes of the clients in `clients`. The record contains no addresses, so the function tries
    /// each port of a client, which takes about 0.1 ms for one client.
    ///
    /// # Errors
    /// Fails if the kernel refuses the read.
    pub fn begun(&self, clients: &[IpAddr]) -> anyhow::Result<Vec<Begun>> {
        let now = clock_gettime(ClockId::CLOCK_MONOTONIC_COARSE).map(Duration::from)?;
        let notes: Result<Vec<u64>, _> = (0..HANDSHAKES).map(|place| self.0.get(&place, 0)).collect();
        let notes = notes.context("reading the handshakes that are watched")?;
        let now = u64::try_from(now.as_nanos()).unwrap_or(u64::MAX);
        Ok(clients.iter().flat_map(|&client| of(client, &notes, now)).collect())
    }
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
    use super::*;

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
