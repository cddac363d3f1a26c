//! Which server nginx's `ip_hash` would choose: the rule of `ngx_http_upstream_get_ip_hash_peer`, for servers of equal
//! weight.

use std::net::Ipv4Addr;

/// Hashes that are tried before nginx falls back to round robin.
const TRIES: usize = 20;

/// The server of a client, as an index into `up`, which says of each configured server whether it is in service;
/// `None`: nginx takes turns. Only the first three bytes of an IPv4 address count.
pub(crate) fn server(client: Ipv4Addr, up: &[bool]) -> Option<usize> {
    let [network @ .., _host] = client.octets();
    let mut hash = 89;
    for _ in 0..=TRIES {
        hash = network.iter().fold(hash, |hash, &byte| (hash * 113 + usize::from(byte)) % 6271);
        let chosen = hash.checked_rem(up.len())?;
        if up.get(chosen) == Some(&true) {
            return Some(chosen);
        }
    }
    None
}

/// How many of `clients` another list of servers moves.
pub(crate) fn moved(clients: impl IntoIterator<Item = Ipv4Addr>, before: &[bool], after: &[bool]) -> usize {
    clients.into_iter().filter(|&client| server(client, before) != server(client, after)).count()
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::{moved, server};

    fn clients() -> impl Iterator<Item = Ipv4Addr> {
        (0..=255).map(|network| Ipv4Addr::new(203, 0, network, 7))
    }

    #[test]
    fn a_network_of_256_addresses_is_one_client() {
        let up = [true; 4];
        assert_eq!(server(Ipv4Addr::new(203, 0, 113, 1), &up), server(Ipv4Addr::new(203, 0, 113, 254), &up));
    }

    #[test]
    fn a_server_that_is_down_moves_its_clients_and_its_return_moves_them_again() {
        let (all, without) = ([true; 4], [true, false, true, true]);
        let own = clients().filter(|&client| server(client, &all) == Some(1)).count();
        assert!(own > 0);
        assert_eq!(moved(clients(), &all, &without), own);
        assert_eq!(moved(clients(), &without, &all), own);
    }

    #[test]
    fn one_more_server_moves_most_clients() {
        assert!(moved(clients(), &[true; 3], &[true; 4]) > 256 / 2);
        assert_eq!(server(Ipv4Addr::LOCALHOST, &[false; 3]), None);
        assert_eq!(server(Ipv4Addr::LOCALHOST, &[]), None);
    }
}
