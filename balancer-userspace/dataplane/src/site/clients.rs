//! Simulated clients, and where the balancer may send them.

use std::{
    net::{IpAddr, Ipv4Addr},
    time::{Duration, Instant},
};

use fastrand::Rng;

/// The number of known clients of the site.
pub(super) const CLIENTS: usize = 400;

#[derive(Clone, Debug)]
pub(super) struct Client {
    pub(super) address: IpAddr,
    /// The server that got the client's last packet.
    pub(super) server: usize,
    /// Whether another program has reported the client's server, and no packet of the client has come since.
    pub(super) is_reported: bool,
    /// Whether the client's server was removed while the checks found it down, and no packet of the client has come since.
    pub(super) is_free: bool,
    /// The time of the client's next SYN, and the number of the SYN's earlier tries.
    pub(super) next: (Instant, u32),
    /// The mean time between two connections.
    every: Duration,
}

impl Client {
    /// A client that opens connections every few seconds, or hardly ever.
    pub(super) fn new(number: usize, now: Instant, rng: &mut Rng) -> Self {
        let address = Ipv4Addr::new(203, 0, 113, 0).to_bits() + 7 * number as u32;
        let every = Duration::from_millis(rng.u64(match number % 3 {
            0 => 1000..3000,
            1 => 5000..15_000,
            _ => 20_000..60_000,
        }));
        let next = (now + every.mul_f64(rng.f64()), 0);
        let address = Ipv4Addr::from_bits(address).into();
        Self { address, server: 0, is_reported: false, is_free: false, next, every }
    }

    /// Plans the next connection.
    pub(super) fn rest(&mut self, now: Instant, rng: &mut Rng) {
        self.next = (now + self.every.mul_f64(0.5 + rng.f64()), 0);
    }

    /// Plans the next try of a SYN that got no answer, or the next connection after too many tries.
    pub(super) fn try_again(&mut self, now: Instant, rng: &mut Rng) {
        let tries = self.next.1 + 1;
        if tries > 3 { self.rest(now, rng) } else { self.next = (now + Duration::from_secs(1 << (tries - 1)), tries) }
    }

    /// Whether a packet of the client that goes to `server` moves the client.
    pub(super) const fn moves_to(&self, server: usize) -> bool {
        self.server != server && !self.is_free
    }

    /// Notes that a packet of the client went to `server`.
    pub(super) const fn seen_at(&mut self, server: usize) {
        (self.server, self.is_reported, self.is_free) = (server, false, false);
    }

    /// Notes that another program has reported the client at `server`, and that the balancer believes it.
    pub(super) const fn reported_at(&mut self, server: usize) {
        (self.server, self.is_reported, self.is_free) = (server, true, false);
    }
}
