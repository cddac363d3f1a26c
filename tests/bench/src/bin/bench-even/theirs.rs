//! `HAProxy` as `src/lb_chash.c` of 2.6 describes it: a ring with 16 nodes for each unit of weight, and with
//! `hash-balance-factor` the next server on the ring that has room.
//!
//! Every user has one connection at a time, which is opened again every five minutes; a connection counts until then.

use super::{
    Rule, SERVERS,
    clients::{ADDRESSES, Population},
};

const NODES: u64 = 16 * 100;
const LASTS: usize = 5;

pub(crate) struct Haproxy {
    /// In percent of the mean.
    factor: Option<usize>,
    /// Places on the ring, in ascending order, and their servers.
    ring: Vec<(u32, usize)>,
    /// The servers of each address' connections.
    open: Vec<Vec<usize>>,
    served: [usize; SERVERS],
    moved: Vec<bool>,
}

/// Spreads a number evenly over the ring.
const fn mixed(number: u64) -> u32 {
    let number = (number ^ (number >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let number = (number ^ (number >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    (number >> 32) as u32
}

impl Haproxy {
    pub(crate) fn new(factor: Option<usize>) -> Self {
        let node = |server: usize| move |node: u64| (mixed((server as u64 + 1) << 32 | node), server);
        let mut ring: Vec<(u32, usize)> = (0..SERVERS).flat_map(|server| (0..NODES).map(node(server))).collect();
        ring.sort_unstable();
        Self { factor, ring, open: vec![Vec::new(); ADDRESSES], served: [0; SERVERS], moved: vec![false; ADDRESSES] }
    }

    /// Whether a server has room for one more connection: `chash_server_is_eligible`, of equal weights.
    fn has_room(&self, server: usize) -> bool {
        let Some(factor) = self.factor else { return true };
        let all = ((self.served.iter().sum::<usize>() + 1) * factor).div_ceil(100);
        let slots = all / SERVERS + usize::from(server < all % SERVERS);
        self.served[server] < slots.max(1)
    }

    fn server(&self, address: usize) -> usize {
        let hash = mixed(0xffff_0000_0000_0000 | address as u64);
        let from = self.ring.partition_point(|&(place, _)| place < hash);
        let mut servers = self.ring[from..].iter().chain(&self.ring[..from]).map(|&(_, server)| server);
        servers.find(|&server| self.has_room(server)).unwrap_or(0)
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
                let server = self.server(address);
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
