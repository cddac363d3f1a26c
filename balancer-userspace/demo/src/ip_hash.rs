//! Computes which clients would get another server from nginx's `ip_hash`, for servers of equal weight.

use std::net::Ipv4Addr;

use balancer_simulate::rules::{Peer, nginx};

/// Counts the `clients` that get another server when one list of servers replaces the other. Each list contains, for
/// every configured server, whether the server is in service.
pub(crate) fn moved(clients: impl IntoIterator<Item = Ipv4Addr>, before: &[bool], after: &[bool]) -> usize {
    let peers = |up: &[bool]| up.iter().map(|&up| Peer { up, ..Peer::UP }).collect::<Vec<_>>();
    let (before, after) = (peers(before), peers(after));
    let is_moved = |&client: &Ipv4Addr| nginx::ip_hash(client.into(), &before) != nginx::ip_hash(client.into(), &after);
    clients.into_iter().filter(is_moved).count()
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::moved;

    fn clients() -> impl Iterator<Item = Ipv4Addr> {
        (0..=255).map(|network| Ipv4Addr::new(203, 0, network, 7))
    }

    #[test]
    fn when_a_server_goes_down_and_returns_then_its_clients_move_twice() {
        let (all, without) = ([true; 4], [true, false, true, true]);
        let own = moved(clients(), &all, &without);
        assert!((1..128).contains(&own), "{own}");
        assert_eq!(moved(clients(), &without, &all), own);
    }

    #[test]
    fn when_a_server_is_added_then_most_clients_move() {
        assert!(moved(clients(), &[true; 3], &[true; 4]) > 256 / 2);
    }
}
