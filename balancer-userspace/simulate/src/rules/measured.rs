//! The clients of `tests/bench/src/bin/bench-sticky`, and the servers that nginx and `HAProxy` chose for them.

use std::net::{IpAddr, Ipv4Addr};

use super::{Peer, haproxy, nginx};

/// Returns 4,000 clients, each in another network.
pub(crate) fn clients() -> impl Iterator<Item = IpAddr> {
    let first = Ipv4Addr::new(10, 16, 0, 0).to_bits();
    let host = |number: u16| u32::from(1 + number.wrapping_mul(37) % 250);
    (0..4_000u16).map(move |number| IpAddr::V4(Ipv4Addr::from_bits(first + (u32::from(number) << 8) + host(number))))
}

/// Returns three numbers: the clients that the second server had, those of them that move, and the clients of other
/// servers that move. `after` contains indexes of servers in the list before the change.
pub(crate) fn moves(
    rule: impl Fn(IpAddr, &[Peer]) -> Option<usize>,
    before: &[Peer],
    after: &[(usize, Peer)],
) -> ((usize, usize), usize) {
    let peers: Vec<Peer> = after.iter().map(|&(_, peer)| peer).collect();
    let (mut own, mut own_moved, mut others) = (0, 0, 0);
    for client in clients() {
        let home = rule(client, before);
        let moved = rule(client, &peers).map(|place| after[place].0) != home;
        if home == Some(1) {
            own += 1;
            own_moved += usize::from(moved);
        } else {
            others += usize::from(moved);
        }
    }
    ((own, own_moved), others)
}

/// The indexes of the servers that nginx 1.22.1 with `ip_hash` and `HAProxy` 2.6.12 with `balance source` chose; the
/// clients' addresses came from PROXY headers. The three cases: four servers of weight 1; four servers of the weights
/// 3, 1, 2 and 1; and the servers of the first case with the second one down (`HAProxy`: weight 0).
const ANSWERS: &str = include_str!("answers.txt");

#[test]
fn when_clients_of_both_families_arrive_then_they_go_where_the_real_programs_sent_them() {
    let equal = [Peer::UP; 4];
    let weighted = [3, 1, 2, 1].map(|weight| Peer { weight, up: true });
    let mut without = equal;
    without[1].up = false;
    for line in ANSWERS.lines() {
        let (client, answers) = line.split_once(' ').unwrap();
        let client: IpAddr = client.parse().unwrap();
        let answers: Vec<usize> = answers.split(' ').map(|answer| answer.parse().unwrap()).collect();
        let of = |peers: &[Peer]| [nginx::ip_hash(client, peers), haproxy::Map::new(peers).server(client)];
        let computed: Vec<usize> = [equal, weighted, without].iter().flat_map(|peers| of(peers)).flatten().collect();
        assert_eq!(computed, answers, "{client}");
    }
}
