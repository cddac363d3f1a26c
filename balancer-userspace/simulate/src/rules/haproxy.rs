//! Computes which server `HAProxy` chooses with `balance source` and the default hash type (map-based).

use std::net::IpAddr;

use super::{Peer, reduced};

/// A map that has as many entries as the total weight of the servers that take clients.
#[derive(Clone, Debug)]
pub struct Map(Vec<usize>);

impl Map {
    /// Builds the map of `peers`: each entry gets the server that is furthest behind its share, and the first one if
    /// several servers are equally far behind.
    #[must_use]
    pub fn new(peers: &[Peer]) -> Self {
        let weights: Vec<i64> = reduced(peers.iter().map(|peer| peer.weight))
            .zip(peers)
            .map(|(weight, peer)| if peer.up { i64::from(weight) } else { 0 })
            .collect();
        let total: i64 = weights.iter().sum();
        let mut scores = vec![0i64; weights.len()];
        let mut places = Vec::new();
        for _ in 0..total {
            let mut best: Option<(usize, i64)> = None;
            for (peer, (score, &weight)) in
                scores.iter_mut().zip(&weights).enumerate().filter(|(_, (_, weight))| **weight > 0)
            {
                *score += weight;
                // HAProxy compares how many times each score contains the total, so this loop does the same.
                let rank = (*score + total) / total;
                if best.is_none_or(|(_, best)| rank > best) {
                    best = Some((peer, rank));
                }
            }
            let Some((best, _)) = best else { break };
            if let Some(score) = scores.get_mut(best) {
                *score -= total;
            }
            places.push(best);
        }
        Self(places)
    }

    /// Returns the server of a client, as an index into the list of peers; `None` if no server takes clients.
    #[must_use]
    pub fn server(&self, client: IpAddr) -> Option<usize> {
        let hash = match client {
            IpAddr::V4(address) => address.to_bits(),
            IpAddr::V6(address) => {
                let words = address.octets();
                words
                    .chunks_exact(4)
                    .fold(0, |hash, word| hash ^ word.iter().fold(0, |word, &byte| word << 8 | u32::from(byte)))
            }
        };
        let place = (hash as usize).checked_rem(self.0.len())?;
        self.0.get(place).copied()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rules::measured;

    #[test]
    fn when_no_server_is_up_then_no_client_has_a_server() {
        let client = "203.0.113.7".parse().unwrap();
        assert_eq!(Map::new(&[]).server(client), None);
        assert_eq!(Map::new(&[Peer { up: false, ..Peer::UP }]).server(client), None);
        assert_eq!(Map::new(&[Peer { up: false, ..Peer::UP }, Peer::UP]).server(client), Some(1));
    }

    /// The expected numbers are the results of `HAProxy` 2.6.12 in `docs/src/performance.md#stickiness`.
    #[test]
    fn when_a_server_leaves_then_clients_move_as_measured_with_haproxy() {
        let ten = Peer { weight: 10, up: true };
        let all = [ten; 4];
        let rule = |client, peers: &[Peer]| Map::new(peers).server(client);
        let is = |after: &[(usize, Peer)], own: (usize, usize), others: usize| {
            assert_eq!(measured::moves(rule, &all, after), (own, others), "{after:?}");
        };
        is(&[(0, ten), (2, ten), (3, ten)], (1_008, 1_008), 1_997);
        is(&[(0, ten), (1, Peer { weight: 5, up: true }), (2, ten), (3, ten)], (1_008, 863), 2_136);
        is(&[(0, ten), (1, Peer { weight: 10, up: false }), (2, ten), (3, ten)], (1_008, 1_008), 1_997);
        let (own, others) = measured::moves(rule, &all, &[(3, ten), (2, ten), (1, ten), (0, ten)]);
        assert_eq!(own.1 + others, 4_000);
        let (own, others) = measured::moves(rule, &all, &[(0, ten), (1, ten), (2, ten), (3, ten), (4, ten)]);
        assert_eq!(own.1 + others, 3_201);
    }
}
