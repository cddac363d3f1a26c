//! Clients that arrive at random times, send one request per second for a few seconds, and leave.

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    sync::atomic::{AtomicUsize, Ordering},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};
use balancer_testkit::{
    http_client::Request,
    site::PORT,
    topology::{Family, Topology},
};

/// The number of requests that a client sends, one per second.
const REQUESTS: u32 = 4;
const PAUSE: Duration = Duration::from_secs(1);
/// The largest number of concurrent requests of all clients.
const WORKERS: usize = 64;
const TIMEOUT: Duration = Duration::from_secs(10);

/// The clients that have arrived, and the generator of random arrival times.
pub(crate) struct Clients {
    random: fastrand::Rng,
    /// The number of clients that have arrived; these clients have the first addresses.
    pub(crate) number: u16,
    /// The number of requests per second of all clients together.
    rate: f64,
}

/// A server's answer to a client.
struct Answered {
    client: u16,
    server: String,
    took: Duration,
}

/// The answers that clients received in a period of time.
#[derive(Default)]
pub(crate) struct Span {
    /// The latencies of requests, measured from the time at which the request was due, in ascending order.
    pub(crate) latencies: Vec<Duration>,
    /// The number of clients of each server.
    pub(crate) clients: BTreeMap<String, usize>,
    /// The number of answers from a server other than the client's first server.
    pub(crate) moved: usize,
    /// The number of requests that got no answer.
    pub(crate) failed: usize,
    /// The server that sent the first answer to each client.
    pub(crate) homes: BTreeMap<u16, String>,
}

impl Clients {
    pub(crate) fn new(rate: f64, seed: u64) -> Self {
        Self { random: fastrand::Rng::with_seed(seed), number: 0, rate }
    }

    /// Lets new clients arrive for `time`, and waits for the last answers to these clients.
    pub(crate) fn play(&mut self, topology: &Topology, time: Duration) -> Result<Span> {
        send(topology, &self.schedule(time)?)
    }

    /// Returns the requests of new clients, ordered by the times at which they are due.
    fn schedule(&mut self, time: Duration) -> Result<Vec<(Duration, u16)>> {
        let (mut at, mut due) = (Duration::ZERO, Vec::new());
        let clients = self.rate / f64::from(REQUESTS);
        loop {
            at += Duration::from_secs_f64(-(1.0 - self.random.f64()).ln() / clients);
            if at >= time {
                break;
            }
            self.number = self.number.checked_add(1).context("there are no addresses for more clients")?;
            due.extend((0..REQUESTS).map(|request| (at + PAUSE * request, self.number)));
        }
        due.sort_unstable();
        Ok(due)
    }
}

/// Sends one request from each client, one client after the other. Returns the server that answers each client.
pub(crate) fn homes(topology: &Topology, clients: impl Iterator<Item = u16>) -> Result<Span> {
    let due: Vec<_> = clients.enumerate().map(|(index, client)| (PAUSE / 20 * index as u32, client)).collect();
    send(topology, &due)
}

/// Sends each request when it is due, even if earlier requests are still unanswered.
fn send(topology: &Topology, due: &[(Duration, u16)]) -> Result<Span> {
    let (next, start) = (AtomicUsize::new(0), Instant::now());
    let target = SocketAddr::new(topology.vip(Family::V4), PORT);
    let work = || -> Result<(Vec<Answered>, usize)> {
        topology.client().enter()?;
        let (mut answered, mut failed) = (Vec::new(), 0);
        while let Some(&(at, client)) = due.get(next.fetch_add(1, Ordering::Relaxed)) {
            thread::sleep(at.saturating_sub(start.elapsed()));
            let source = SocketAddr::new(topology.client_address(Family::V4, client), 0);
            match (Request { timeout: TIMEOUT, ..Request::new(source, target) }).send() {
                Ok(reply) if reply.status == 200 => {
                    answered.push(Answered { client, server: reply.backend, took: start.elapsed().saturating_sub(at) });
                }
                _ => failed += 1,
            }
        }
        Ok((answered, failed))
    };
    let parts = thread::scope(|scope| {
        let threads: Vec<_> = (0..WORKERS).map(|_| scope.spawn(work)).collect();
        let join = |thread: thread::ScopedJoinHandle<'_, Result<_>>| {
            thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        };
        threads.into_iter().map(join).collect::<Result<Vec<_>>>()
    })?;
    let mut span = Span::default();
    for (answered, failed) in parts {
        span.failed += failed;
        answered.into_iter().for_each(|answered| span.add(answered));
    }
    span.latencies.sort_unstable();
    for home in span.homes.values() {
        *span.clients.entry(home.clone()).or_default() += 1;
    }
    Ok(span)
}

impl Span {
    fn add(&mut self, Answered { client, server, took }: Answered) {
        self.latencies.push(took);
        match self.homes.get(&client) {
            Some(home) if *home != server => self.moved += 1,
            Some(_) => {}
            None => {
                self.homes.insert(client, server);
            }
        }
    }

    /// Returns the fraction of the clients that a server has.
    pub(crate) fn part(&self, server: &str) -> f64 {
        self.clients.get(server).copied().unwrap_or_default() as f64 / self.homes.len() as f64
    }
}
