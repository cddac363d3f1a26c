//! The heaviest clients of a service, from samples of its packets.
//!
//! The module keeps two summaries of [`COUNTERS`] counters each, one by packets and one by bytes, with the space-saving
//! algorithm (Metwally, Agrawal, El Abbadi: *Efficient computation of frequent and top-k elements in data streams*,
//! ICDT 2005). A client without a counter takes over the counter with the smallest count, and this count becomes the
//! possible error. All counts decrease with time ([`Top::fade`]), so that the heaviest clients are those of about the
//! last minute.

use std::{
    collections::HashMap,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    time::Duration,
};

use balancer_common::{
    client::{mask_v4, mask_v6},
    map_types::{FAMILY_V4, Sample},
};

use balancer_config::config::ClientPrefix;

use crate::io::BackendId;

/// The number of counters in a summary: every client whose fraction of the traffic exceeds the inverse of this number
/// has a counter.
pub const COUNTERS: usize = 256;
/// The number of samples for each client, or for each counter if there are more clients, that a measure of unevenness
/// needs.
const SAMPLES_OF_EACH: f64 = 10.0;
/// The time in which counted traffic decreases to 1/e of its value.
pub const MEMORY: Duration = Duration::from_secs(60);
/// The amount of traffic below which a client counts as silent.
const NOTHING: f64 = 1e-3;

/// The measure by which clients count as heavy.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum By {
    /// The measure is the number of bytes.
    #[default]
    Bytes,
    /// The measure is the number of packets.
    Packets,
}

/// An amount of sampled traffic.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Traffic {
    /// The number of sampled packets.
    pub packets: f64,
    /// The number of bytes in the sampled packets.
    pub bytes: f64,
}

impl Traffic {
    const fn by(&self, by: By) -> f64 {
        match by {
            By::Bytes => self.bytes,
            By::Packets => self.packets,
        }
    }

    fn add(&mut self, other: Self) {
        self.packets += other.packets;
        self.bytes += other.bytes;
    }

    fn scale(&mut self, factor: f64) {
        self.packets *= factor;
        self.bytes *= factor;
    }
}

/// A client that has a counter in a summary.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Heavy {
    /// The client's masked address.
    pub client: IpAddr,
    /// The backend that got the client's last sampled packet.
    pub backend: BackendId,
    /// The client's traffic since the client got its counter.
    pub seen: Traffic,
    /// The amount of the client's traffic that went to `backend`.
    pub there: Traffic,
    /// The part of the count that the counter may have taken over from earlier clients, in packets or bytes.
    inherited: f64,
}

impl Heavy {
    fn count(&self, by: By) -> f64 {
        self.inherited + self.seen.by(by)
    }
}

#[derive(Clone, Debug)]
struct Summary {
    by: By,
    counters: Vec<Heavy>,
    places: HashMap<IpAddr, usize>,
}

impl Summary {
    fn new(by: By) -> Self {
        Self { by, counters: Vec::new(), places: HashMap::new() }
    }

    fn count(&mut self, client: IpAddr, backend: BackendId, traffic: Traffic) {
        if let Some(heavy) = self.places.get(&client).and_then(|&place| self.counters.get_mut(place)) {
            heavy.seen.add(traffic);
            if heavy.backend != backend {
                (heavy.backend, heavy.there) = (backend, Traffic::default());
            }
            heavy.there.add(traffic);
            return;
        }
        let newcomer = Heavy { client, backend, seen: traffic, there: traffic, inherited: 0.0 };
        if self.counters.len() < COUNTERS {
            self.places.insert(client, self.counters.len());
            self.counters.push(newcomer);
            return;
        }
        let by = self.by;
        let smallest =
            self.counters.iter_mut().enumerate().min_by(|(_, a), (_, b)| a.count(by).total_cmp(&b.count(by)));
        let Some((place, counter)) = smallest else { return };
        self.places.remove(&counter.client);
        self.places.insert(client, place);
        *counter = Heavy { inherited: counter.count(by), ..newcomer };
    }

    fn fade(&mut self, factor: f64) {
        for heavy in &mut self.counters {
            heavy.seen.scale(factor);
            heavy.there.scale(factor);
            heavy.inherited *= factor;
        }
        let (by, before) = (self.by, self.counters.len());
        self.counters.retain(|heavy| heavy.count(by) > NOTHING);
        if self.counters.len() < before {
            self.places = self.counters.iter().enumerate().map(|(place, heavy)| (heavy.client, place)).collect();
        }
    }
}

/// The recent traffic of a service, as its samples show it.
#[derive(Clone, Debug)]
pub struct Top {
    bytes: Summary,
    packets: Summary,
    total: Traffic,
    backends: HashMap<BackendId, Traffic>,
    observed: Duration,
}

impl Default for Top {
    fn default() -> Self {
        Self {
            bytes: Summary::new(By::Bytes),
            packets: Summary::new(By::Packets),
            total: Traffic::default(),
            backends: HashMap::new(),
            observed: Duration::ZERO,
        }
    }
}

impl Top {
    /// Counts a sampled packet from `client`, a masked address, to `backend`.
    pub fn count(&mut self, client: IpAddr, backend: BackendId, bytes: u32) {
        let traffic = Traffic { packets: 1.0, bytes: f64::from(bytes) };
        self.total.add(traffic);
        self.backends.entry(backend).or_default().add(traffic);
        self.bytes.count(client, backend, traffic);
        self.packets.count(client, backend, traffic);
    }

    /// Decreases all counts according to the elapsed time.
    pub fn fade(&mut self, elapsed: Duration) {
        let factor = (-elapsed.as_secs_f64() / MEMORY.as_secs_f64()).exp();
        self.observed += elapsed;
        self.total.scale(factor);
        self.backends.retain(|_, traffic| {
            traffic.scale(factor);
            traffic.packets > NOTHING
        });
        self.bytes.fade(factor);
        self.packets.fade(factor);
    }

    /// The heaviest clients in descending order, at most [`COUNTERS`] clients.
    #[must_use]
    pub fn heaviest(&self, by: By) -> Vec<Heavy> {
        let summary = match by {
            By::Bytes => &self.bytes,
            By::Packets => &self.packets,
        };
        let mut heaviest = summary.counters.clone();
        heaviest.sort_by(|a, b| b.seen.by(by).total_cmp(&a.seen.by(by)).then(a.client.cmp(&b.client)));
        heaviest
    }

    /// All traffic of the service that was sampled recently.
    #[must_use]
    pub const fn total(&self) -> Traffic {
        self.total
    }

    /// Returns the recently sampled traffic to one backend.
    #[must_use]
    pub fn to_backend(&self, backend: BackendId) -> Traffic {
        self.backends.get(&backend).copied().unwrap_or_default()
    }

    /// The ratio of `part` to all traffic of the service; 0 if there is no traffic.
    #[must_use]
    pub fn share(&self, part: &Traffic, by: By) -> f64 {
        ratio(part.by(by), self.total.by(by))
    }

    /// The fraction of its backend's bytes that a client sends, and the number of samples from which the fraction was
    /// computed.
    #[must_use]
    pub fn share_of_backend(&self, heavy: &Heavy) -> (f64, f64) {
        let all = self.to_backend(heavy.backend);
        (ratio(heavy.there.bytes, all.bytes), all.packets)
    }

    /// The traffic per second, if the program samples one packet in `interval`.
    #[must_use]
    pub fn rate(&self, sampled: &Traffic, interval: u32) -> Traffic {
        let memory = MEMORY.as_secs_f64();
        let seconds = memory * (1.0 - (-self.observed.as_secs_f64().max(1.0) / memory).exp());
        let mut rate = *sampled;
        rate.scale(f64::from(interval) / seconds);
        rate
    }

    /// A measure of how unevenly clients load the service: the Gini coefficient of bytes over `clients` known clients,
    /// from 0 (all send the same amount) towards 1 (few clients send everything). The function treats clients without a
    /// counter as equal, so the result is a lower bound. `None`: the service has no traffic or fewer than two clients,
    /// or so few samples that chance decides which clients have any.
    #[must_use]
    pub fn gini(&self, clients: u64) -> Option<f64> {
        if self.total.packets < SAMPLES_OF_EACH * clients.min(COUNTERS as u64) as f64 {
            return None;
        }
        let heavy: Vec<f64> = self.bytes.counters.iter().map(|heavy| heavy.seen.bytes).collect();
        let rest = (self.total.bytes - heavy.iter().sum::<f64>()).max(0.0);
        gini(heavy, rest, clients)
    }
}

fn ratio(part: f64, whole: f64) -> f64 {
    if whole > 0.0 { (part / whole).min(1.0) } else { 0.0 }
}

/// The Gini coefficient of `values` and further equal values with sum `rest`; there are `clients` values in total.
fn gini(mut values: Vec<f64>, rest: f64, clients: u64) -> Option<f64> {
    let others = clients.saturating_sub(values.len() as u64);
    let clients = (values.len() as u64 + others) as f64;
    let each = if others > 0 { rest / others as f64 } else { 0.0 };
    let total = values.iter().sum::<f64>() + each * others as f64;
    if clients < 2.0 || total <= 0.0 {
        return None;
    }
    values.sort_by(f64::total_cmp);
    // G = 2 Σ i·x_i / (n Σ x_i) - (n + 1) / n over ascending x_i; the equal values have consecutive ranks.
    let below = values.partition_point(|&value| value < each);
    let mut rank = 0.0;
    let mut weighted = 0.0;
    for (index, value) in values.iter().enumerate() {
        if index == below {
            weighted += each * others as f64 * (rank + (others as f64 + 1.0) / 2.0);
            rank += others as f64;
        }
        rank += 1.0;
        weighted += rank * value;
    }
    if below == values.len() {
        weighted += each * others as f64 * (rank + (others as f64 + 1.0) / 2.0);
    }
    Some((2.0 * weighted / (clients * total) - (clients + 1.0) / clients).clamp(0.0, 1.0))
}

/// The client of a sampled packet, for client prefixes of these lengths.
#[must_use]
pub fn client_of(sample: &Sample, prefix: ClientPrefix) -> IpAddr {
    if sample.family == u32::from(FAMILY_V4) {
        let [first, ..] = sample.source;
        IpAddr::V4(Ipv4Addr::from((first & mask_v4(prefix.v4)).to_ne_bytes()))
    } else {
        let [low, high]: [u64; 2] = bytemuck::cast(sample.source);
        let [mask_low, mask_high] = mask_v6(prefix.v6);
        IpAddr::V6(Ipv6Addr::from(bytemuck::cast::<_, [u8; 16]>([low & mask_low, high & mask_high])))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn both(length: u8) -> ClientPrefix {
        ClientPrefix { v4: length.min(32), v6: length }
    }

    const WEB1: BackendId = BackendId(1);
    const WEB2: BackendId = BackendId(2);

    fn client(number: u32) -> IpAddr {
        IpAddr::V4(Ipv4Addr::from(0x0a00_0000 + number))
    }

    /// The traffic comes from 100,000 clients, the i-th with weight i^-1.1. Samples of unordered packets are
    /// independent draws.
    #[test]
    fn when_the_load_is_zipf_then_the_heaviest_clients_are_found_with_their_shares() {
        const CLIENTS: u32 = 100_000;
        const SAMPLES: u32 = 300_000;
        let mut sum = 0.0;
        let cumulated: Vec<f64> = (1..=CLIENTS)
            .map(|rank| {
                sum += f64::from(rank).powf(-1.1);
                sum
            })
            .collect();
        for seed in 1..=3 {
            let mut random = fastrand::Rng::with_seed(seed);
            let mut top = Top::default();
            for _ in 0..SAMPLES {
                let draw = random.f64() * sum;
                let rank = cumulated.partition_point(|&below| below <= draw) as u32 + 1;
                top.count(client(rank), WEB1, 1000);
            }
            for by in [By::Bytes, By::Packets] {
                let heaviest = top.heaviest(by);
                let mut found: Vec<IpAddr> = heaviest.iter().take(10).map(|heavy| heavy.client).collect();
                found.sort();
                assert_eq!(found, (1..=10).map(client).collect::<Vec<_>>(), "seed {seed}");
                for heavy in heaviest.iter().take(10) {
                    let IpAddr::V4(address) = heavy.client else { panic!("IPv6") };
                    let truth = f64::from(address.to_bits() - 0x0a00_0000).powf(-1.1) / sum;
                    let share = top.share(&heavy.seen, by);
                    assert!((share / truth - 1.0).abs() < 0.1, "seed {seed}: {address} {share} instead of {truth}");
                }
            }
        }
    }

    #[test]
    fn when_traffic_is_long_ago_then_it_fades() {
        let mut top = Top::default();
        (0..1000).for_each(|_| top.count(client(1), WEB1, 100));
        top.fade(MEMORY * 3);
        (0..100).for_each(|_| top.count(client(2), WEB1, 100));
        assert_eq!(top.heaviest(By::Bytes)[0].client, client(2));
        top.fade(MEMORY * 20);
        assert!(top.heaviest(By::Packets).is_empty() && top.total().packets < 1.0);
    }

    #[test]
    fn when_rates_are_computed_then_they_are_recent() {
        let mut top = Top::default();
        // At one sample in 1024 packets, 10 samples of 500 bytes a second mean 10,240 packets a second.
        for _ in 0..600 {
            top.fade(Duration::from_secs(1));
            (0..10).for_each(|_| top.count(client(1), WEB1, 500));
        }
        let rate = top.rate(&top.total(), 1024);
        assert!((rate.packets / 10_240.0 - 1.0).abs() < 0.02, "{rate:?}");
        assert!((rate.bytes / 5_120_000.0 - 1.0).abs() < 0.02, "{rate:?}");
    }

    #[test]
    fn when_a_client_moves_then_it_is_heavy_at_its_new_backend() {
        let mut top = Top::default();
        (0..60).for_each(|_| top.count(client(1), WEB1, 100));
        (0..40).for_each(|_| top.count(client(2), WEB2, 100));
        (0..40).for_each(|_| top.count(client(1), WEB2, 100));
        let heaviest = top.heaviest(By::Bytes);
        assert_eq!((heaviest[0].client, heaviest[0].backend), (client(1), WEB2));
        assert_eq!(top.share_of_backend(&heaviest[0]), (0.5, 80.0));
        assert!((top.share(&heaviest[0].seen, By::Bytes) - 100.0 / 140.0).abs() < 1e-9);
    }

    #[test]
    fn when_a_newcomer_takes_over_a_counter_then_it_is_not_taken_for_earlier_clients() {
        let mut top = Top::default();
        for number in 0..10_000 {
            top.count(client(number), WEB1, 100);
        }
        let heaviest = top.heaviest(By::Bytes);
        assert_eq!(heaviest.len(), COUNTERS);
        assert!(top.share(&heaviest[0].seen, By::Bytes) < 0.001, "{:?}", heaviest[0]);
    }

    #[test]
    fn when_values_are_given_then_the_gini_coefficient_is_right() {
        let of = |values: &[f64], rest, clients| gini(values.to_vec(), rest, clients);
        let near = |gini: Option<f64>, expected: f64| assert!((gini.unwrap() - expected).abs() < 1e-9, "{gini:?}");
        near(of(&[5.0, 5.0, 5.0, 5.0], 0.0, 4), 0.0);
        near(of(&[1.0, 3.0], 0.0, 2), 0.25);
        near(of(&[10.0], 0.0, 10), 0.9);
        // The result is the same whether or not `values` contains the equal values.
        near(of(&[6.0, 2.0], 8.0, 6), of(&[6.0, 2.0, 2.0, 2.0, 2.0, 2.0], 0.0, 6).unwrap());
        assert_eq!(of(&[], 0.0, 10), None);
        assert_eq!(of(&[7.0], 0.0, 1), None);
    }

    #[test]
    fn when_there_are_few_samples_then_they_do_not_say_how_uneven_the_load_is() {
        // Each of a hundred clients sends the same.
        let after = |rounds: u32| {
            let mut top = Top::default();
            (0..rounds).for_each(|round| top.count(client(round % 100), WEB1, 100));
            top.gini(100)
        };
        assert_eq!((after(0), after(3), after(999)), (None, None, None));
        assert!(after(1000).unwrap() < 0.01, "{:?}", after(1000));
    }

    #[test]
    fn when_a_packet_is_sampled_then_its_client_is_masked() {
        let mut sample = Sample {
            source: [u32::from_ne_bytes([203, 0, 113, 77]), 0, 0, 0],
            bytes: 60,
            service: 0,
            backend: 1,
            family: u32::from(FAMILY_V4),
            reserved: 0,
        };
        assert_eq!(client_of(&sample, both(32)).to_string(), "203.0.113.77");
        assert_eq!(client_of(&sample, both(24)).to_string(), "203.0.113.0");
        sample.family = 6;
        sample.source = bytemuck::cast("2001:db8:1:2:3:4:5:6".parse::<Ipv6Addr>().unwrap().octets());
        assert_eq!(client_of(&sample, both(64)).to_string(), "2001:db8:1:2::");
        assert_eq!(client_of(&sample, both(128)).to_string(), "2001:db8:1:2:3:4:5:6");
    }
}
