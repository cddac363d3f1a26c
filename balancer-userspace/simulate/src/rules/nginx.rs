//! Computes which server nginx chooses with `ip_hash`: the rule of `ngx_http_upstream_get_ip_hash_peer`.

use std::net::IpAddr;

use super::Peer;

/// The number of hashes that nginx tries before it chooses servers in rotation.
const TRIES: usize = 20;

/// Returns the server of a client, as an index into `peers`; `None` if nginx chooses servers in rotation. The weight of
/// each peer must not be zero. The rule uses only the first three bytes of IPv4 addresses.
#[must_use]
pub fn ip_hash(client: IpAddr, peers: &[Peer]) -> Option<usize> {
    match client {
        IpAddr::V4(address) => {
            let [network @ .., _host] = address.octets();
            choose(&network, peers)
        }
        IpAddr::V6(address) => choose(&address.octets(), peers),
    }
}

fn choose(bytes: &[u8], peers: &[Peer]) -> Option<usize> {
    let total: u64 = peers.iter().map(|peer| u64::from(peer.weight)).sum();
    let mut hash = 89;
    for _ in 0..=TRIES {
        hash = bytes.iter().fold(hash, |hash: u64, &byte| (hash * 113 + u64::from(byte)) % 6271);
        let mut place = hash.checked_rem(total)?;
        let chosen = peers.iter().position(|peer| {
            let weight = u64::from(peer.weight);
            let is_here = place < weight;
            place = place.saturating_sub(weight);
            is_here
        });
        if let Some(chosen) = chosen.filter(|&chosen| peers.get(chosen).is_some_and(|peer| peer.up)) {
            return Some(chosen);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;
    use crate::rules::measured;

    fn server(client: &str, peers: &[Peer]) -> Option<usize> {
        ip_hash(client.parse().unwrap(), peers)
    }

    #[test]
    fn when_addresses_share_a_slash_24_then_they_are_one_client_and_each_ipv6_address_is_one() {
        assert_eq!(server("203.0.113.1", &[Peer::UP; 4]), server("203.0.113.254", &[Peer::UP; 4]));
        let all = (0..64).map(|host| server(&format!("2001:db8::{host:x}"), &[Peer::UP; 4]));
        assert!((0..4).all(|peer| all.clone().any(|of| of == Some(peer))));
    }

    #[test]
    fn when_no_server_is_up_then_nginx_takes_turns() {
        let down = Peer { up: false, ..Peer::UP };
        assert_eq!(ip_hash(Ipv4Addr::LOCALHOST.into(), &[down; 3]), None);
        assert_eq!(ip_hash(Ipv4Addr::LOCALHOST.into(), &[]), None);
    }

    /// The expected numbers are the results of nginx 1.22.1 in `docs/src/performance.md#stickiness`.
    #[test]
    fn when_a_server_leaves_then_clients_move_as_measured_with_nginx() {
        let ten = Peer { weight: 10, up: true };
        let all = [ten; 4];
        let is = |after: &[(usize, Peer)], own: (usize, usize), others: usize| {
            let moves = measured::moves(ip_hash, &all, after);
            assert_eq!(moves, (own, others), "{after:?}");
        };
        is(&[(0, ten), (2, ten), (3, ten)], (1_009, 1_009), 1_985);
        is(&[(0, ten), (1, Peer { weight: 5, up: true }), (2, ten), (3, ten)], (1_009, 855), 2_122);
        is(&[(0, ten), (1, Peer { weight: 10, up: false }), (2, ten), (3, ten)], (1_009, 1_009), 0);
        let (own, others) = measured::moves(ip_hash, &all, &[(3, ten), (2, ten), (1, ten), (0, ten)]);
        assert_eq!(own.1 + others, 4_000);
        let (own, others) = measured::moves(ip_hash, &all, &[(0, ten), (1, ten), (2, ten), (3, ten), (4, ten)]);
        assert_eq!(own.1 + others, 3_193);
    }
}
