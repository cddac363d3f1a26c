//! The algorithm of `HAProxy` 2.6 in `src/lb_chash.c`: a hash ring with 16 nodes for each unit of a server's weight.
//! The server of the nearest node on the ring gets the connections of an address. With `hash-balance-factor`, the next
//! node's server that has room gets the connections of an address. The option `--haproxy` compares the choices of this
//! module with the choices of the real HAProxy.
//!
//! Every user has one connection at a time, and opens a new connection every five minutes. Each connection counts for
//! five minutes, until the user opens the next connection.

use super::{
    Rule, SERVERS,
    clients::{ADDRESSES, Population},
};

/// The number of nodes of a server with weight 100.
const NODES: u32 = 16 * WEIGHT;
/// The number of possible node ids of a server, `SRV_EWGHT_RANGE` in `HAProxy`.
const IDS: u32 = 16 * 256;
pub(crate) const WEIGHT: u32 = 100;
const LASTS: usize = 5;

pub(crate) struct Haproxy {
    /// The value of `hash-balance-factor`, in percent of the mean load.
    factor: Option<usize>,
    /// The positions of nodes on the ring in ascending order, with the server of each node.
    ring: Vec<(u32, usize)>,
    /// The servers of each address's connections.
    open: Vec<Vec<usize>>,
    served: [usize; SERVERS],
    moved: Vec<bool>,
}

/// Returns a different IPv4 address for each number. Scattered addresses, like those of real gateways, are necessary,
/// because `full_hash` distributes neighbouring addresses unevenly.
const fn scattered(number: u32) -> u32 {
    let mut address = number.wrapping_add(1).wrapping_mul(0x85eb_ca6b);
    address = (address ^ (address >> 13)).wrapping_mul(0xc2b2_ae35);
    address ^ (address >> 16)
}

/// The function `full_hash` of `include/haproxy/tools.h`.
const fn full_hash(number: u32) -> u32 {
    let mut hash = number.wrapping_add(0x7ed5_5d16).wrapping_add(number << 12);
    hash = (hash ^ 0xc761_c23c) ^ (hash >> 19);
    hash = hash.wrapping_add(0x1656_67b1).wrapping_add(hash << 5);
    hash = hash.wrapping_add(0xd3a2_646c) ^ (hash << 9);
    hash = hash.wrapping_add(0xfd70_46c5).wrapping_add(hash << 3);
    hash = (hash ^ 0xb55a_4f09) ^ (hash >> 16);
    hash.wrapping_mul(3_221_225_473)
}

impl Haproxy {
    pub(crate) fn new(factor: Option<usize>) -> Self {
        let node = |server: u32| move |node: u32| (full_hash((server + 1) * IDS + node), server as usize);
        let mut ring: Vec<(u32, usize)> = (0..SERVERS as u32).flat_map(|server| (0..NODES).map(node(server))).collect();
        ring.sort_unstable();
        Self { factor, ring, open: vec![Vec::new(); ADDRESSES], served: [0; SERVERS], moved: vec![false; ADDRESSES] }
    }

    /// Returns whether a server may receive another connection: `chash_server_is_eligible` for equal weights.
    fn has_room(&self, server: usize) -> bool {
        let Some(factor) = self.factor else { return true };
        let all = ((self.served.iter().sum::<usize>() + 1) * factor).div_ceil(100);
        let (weight, weights) = (NODES as usize, NODES as usize * SERVERS);
        let (before, rest) = (server * weight, all % weights);
        let slots = weight * (all / weights) + (before + weight) * rest / weights - before * rest / weights;
        self.served[server] < slots.max(1)
    }

    /// Chooses the server of a new connection from an IPv4 address: `chash_get_server_hash`.
    pub(crate) fn server(&self, address: u32) -> usize {
        let hash = full_hash(address);
        let next = self.ring.partition_point(|&(place, _)| place < hash) % self.ring.len();
        let before = (next + self.ring.len() - 1) % self.ring.len();
        let is_nearer = hash.wrapping_sub(self.ring[before].0) <= self.ring[next].0.wrapping_sub(hash);
        let from = if is_nearer { before } else { next };
        let mut servers = self.ring[from..].iter().chain(&self.ring[..from]).map(|&(_, server)| server);
        servers.find(|&server| self.has_room(server)).unwrap_or(0)
    }

    /// Counts a new connection to a server.
    pub(crate) fn opened(&mut self, server: usize) {
        self.served[server] += 1;
    }

    /// Counts the end of a connection to a server.
    pub(crate) fn closed(&mut self, server: usize) {
        self.served[server] -= 1;
    }
}

impl Rule for Haproxy {
    fn minute(&mut self, minute: usize, population: &Population) -> [f64; SERVERS] {
        for (address, &users) in population.users.iter().enumerate() {
            let users = if population.here[address] { users as usize } else { 0 };
            if users == self.open[address].len() && address % LASTS != minute % LASTS {
                continue;
            }
            let before = std::mem::take(&mut self.open[address]);
            before.iter().for_each(|&server| self.served[server] -= 1);
            for user in 0..users {
                let server = self.server(scattered(address as u32));
                self.served[server] += 1;
                self.moved[address] |= before.get(user).is_some_and(|&before| before != server);
                self.open[address].push(server);
            }
        }
        self.served.map(|served| served as f64)
    }

    fn count(&mut self) {
        self.moved.fill(false);
    }

    fn counted(&self) -> (usize, usize) {
        (self.moved.iter().filter(|&&moved| moved).count(), 0)
    }
}
