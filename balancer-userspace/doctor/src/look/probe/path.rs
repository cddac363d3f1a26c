//! Finds the size of the largest packet that reaches a backend.

use std::net::{IpAddr, SocketAddr};

use tokio::time::Instant;

use super::{LARGE, Probe, ROUND, SMALL, Target, large_port, port};
use crate::{
    facts::{Outcome, Path},
    look::packets::{RST, SYN, echo, tcp},
};

/// The minimum MTU of a link, for IPv4 and for IPv6.
const SMALLEST: [u32; 2] = [576, 1280];
/// The number of packet sizes that the doctor tries for a backend, after which the MTU is known to the byte.
const HALVINGS: u32 = 16;
/// The number that stands for the smallest size among the numbers of the sizes that the doctor tries.
const OF_SMALLEST: u16 = HALVINGS as u16;

impl Probe<'_> {
    /// Finds the size of the largest packet that reaches a backend. The function returns `None` if the backend does not
    /// answer small packets, or answers none that every link carries, because then something keeps pings away.
    pub(super) async fn path(&mut self, number: usize) -> Option<Path> {
        let wanted = self.targets[number].largest;
        if self.echoed(number, LARGE) {
            return Some(Path { wanted, passed: wanted, segment: None });
        }
        if !self.echoed(number, SMALL) {
            return None;
        }
        let segment = self.large_segment(number).await;
        if segment == Some(true) {
            return Some(Path { wanted, passed: wanted, segment });
        }
        let target = &self.targets[number];
        let backend = self.backends[target.index].address.ip();
        let smallest = SMALLEST[usize::from(backend.is_ipv6())].min(wanted);
        // The numbers of these pings are above the numbers of all targets.
        let sizes = usize::from(OF_SMALLEST) + 1;
        let numbered = |of: u16| (u16::MAX - of).wrapping_sub((number * sizes) as u16);
        if !self.passes(target, backend, numbered(OF_SMALLEST), smallest).await {
            return None;
        }
        let (mut passed, mut lost) = (smallest, wanted);
        for try_number in 0..HALVINGS {
            let size = passed.midpoint(lost);
            if size <= passed {
                break;
            }
            if self.passes(target, backend, numbered(try_number as u16), size).await {
                passed = size
            } else {
                lost = size
            }
        }
        Some(Path { wanted, passed, segment })
    }

    /// Whether a request to connect of the largest size, which servers answer like a small one, reaches the backend;
    /// `None` if the backend does not answer small ones.
    async fn large_segment(&mut self, number: usize) -> Option<bool> {
        let target = &self.targets[number];
        let backend = self.backends[target.index].address;
        let from = |source| SocketAddr::new(source, large_port(number));
        let wrap = |segment: Vec<u8>| target.outer.put_on(&segment, target.source, backend.ip(), port(number));
        let (to, packet, end) = if let (Some((vip, true)), Some(source)) = (target.vip, target.vip_source) {
            if self.tcp(number) != Outcome::Connected {
                return None;
            }
            let length = (target.largest as usize).saturating_sub(target.outer.length(backend.is_ipv4()));
            let segment = |sequence, flags, length| wrap(tcp(from(source), vip, sequence, flags, length));
            (vip, segment(1, SYN, length), segment(2, RST, 0))
        } else {
            let answered = self.ports[number].and_then(|port| self.answer(backend, port));
            if answered != Some(Outcome::Connected) {
                return None;
            }
            let segment = |sequence, flags, length| tcp(from(target.source), backend, sequence, flags, length);
            (backend, segment(1, SYN, target.largest as usize), segment(2, RST, 0))
        };
        for _ in 0..2 {
            self.hand_over(target, &packet);
            let until = Instant::now() + ROUND;
            while Instant::now() < until && self.answer(to, large_port(number)).is_none() {
                self.listen(until.min(Instant::now() + ROUND / 20)).await;
            }
            if self.answer(to, large_port(number)).is_some() {
                self.hand_over(target, &end);
                return Some(true);
            }
        }
        Some(false)
    }

    async fn passes(&mut self, target: &Target, backend: IpAddr, number: u16, size: u32) -> bool {
        for _ in 0..2 {
            self.hand_over(target, &echo(target.source, backend, self.id, number, size as usize));
            let until = Instant::now() + ROUND / 2;
            while Instant::now() < until && !self.has_echo(number) {
                self.listen(until.min(Instant::now() + ROUND / 20)).await;
            }
            if self.has_echo(number) {
                return true;
            }
        }
        false
    }
}
