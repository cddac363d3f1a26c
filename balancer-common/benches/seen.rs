//! Measures how likely the filter of recently seen clients makes the balancer forget a known client that sends few
//! packets.
//!
//! The benchmark measures the worst order: the client under test sends last in each period, after every other client
//! has sent a packet. The client under test loses a period if other clients have set its filter bits in that period.
//! The balancer forgets the client after as many consecutive lost periods as the client sends packets in `remember`:
//! eight, if the client sends one packet in each eighth of `remember`. The benchmark makes every client the client
//! under test.

use balancer_common::seen;

/// The number of packets that a client sends within `remember`, each in a different period.
const PACKETS: [u64; 4] = [2, 4, 8, 16];
/// The minimum number of clients that the benchmark tests for a line of output.
const TRIED: u64 = 1 << 24;

fn main() {
    println!("    clients   made for  periods lost   forgotten of a million, by packets in `remember`");
    print!("{:38}", "");
    PACKETS.iter().for_each(|packets| print!("{packets:>12}"));
    println!();
    for (clients, made_for) in [
        (1_000, 1_000),
        (16_000, 16_000),
        (65_536, 65_536),
        (262_144, 262_144),
        (1_000_000, 1_000_000),
        (4_194_304, 4_194_304),
        (131_072, 262_144),
        (524_288, 262_144),
    ] {
        line(clients, made_for);
    }
}

fn line(clients: u64, made_for: u64) {
    // The table has four entries for each client, and eight entries make a bucket.
    let buckets = (made_for * 4).div_ceil(8).next_power_of_two() as u32;
    let mut owners = vec![0u8; seen::words(buckets) as usize * 64];
    let mut lost_in_a_row = vec![0u8; clients as usize];
    let mut lost = 0;
    let mut forgotten = [0u64; PACKETS.len()];
    let rounds = TRIED.div_ceil(clients);
    let longest = PACKETS.iter().max().copied().unwrap_or(0);
    for round in 0..rounds {
        lost_in_a_row.fill(0);
        for packet in 1..=longest {
            let salt = seen::salt(round * longest + packet);
            owners.fill(0);
            let bits = |client: u64| {
                // The salt function ends like a hash function, so its result looks random.
                let (word, bits) = seen::place(seen::salt(client) ^ client & 1, salt, buckets - 1);
                let [first, second] = [bits.trailing_zeros(), 63 - bits.leading_zeros()];
                let second = (second != first).then_some(second);
                std::iter::once(first).chain(second).map(move |bit| word as usize * 64 + bit as usize)
            };
            for bit in (0..clients).flat_map(bits) {
                owners[bit] = owners[bit].saturating_add(1);
            }
            for (client, in_a_row) in (0..).zip(&mut lost_in_a_row) {
                if bits(client).all(|bit| owners[bit] > 1) {
                    lost += 1;
                    *in_a_row += u8::from(u64::from(*in_a_row) + 1 == packet);
                }
            }
            if let Some(place) = PACKETS.iter().position(|&packets| packets == packet) {
                forgotten[place] +=
                    lost_in_a_row.iter().filter(|&&in_a_row| u64::from(in_a_row) == packet).count() as u64;
            }
        }
    }
    let tried = (rounds * clients) as f64;
    print!("{clients:11}{made_for:11}{:13.2}%", lost as f64 / tried / longest as f64 * 100.0);
    forgotten.iter().for_each(|&count| print!("{:12.3}", count as f64 / tried * 1e6));
    println!();
}
