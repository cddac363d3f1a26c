//! Whom nginx's `ip_hash` would move, with servers of equal weight.

use std::net::Ipv4Addr;

use balancer_simulate::rules::{Peer, nginx};

/// How many of `clients` another list of servers moves; a list says of each configured server whether it is in service.
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
    fn a_server_that_is_down_moves_its_clients_and_its_return_moves_them_again() {
        let (all, without) = ([true; 4], [true, false, true, true]);
        let own = moved(clients(), &all, &without);
        assert!((1..128).contains(&own), "{own}");
        assert_eq!(moved(clients(), &without, &all), own);
    }

    #[test]
    fn one_more_server_moves_most_clients() {
        assert!(moved(clients(), &[true; 3], &[true; 4]) > 256 / 2);
    }
}
