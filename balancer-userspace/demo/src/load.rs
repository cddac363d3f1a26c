//! Clients that continuously send requests, and their observations.

use std::{
    collections::BTreeMap,
    io,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use anyhow::Result;

use crate::{
    config::PORT,
    http_client::{Reply, Request},
    namespace::Entrance,
    topology::{Family, Topology},
};

/// The number of requests per second that all clients together send.
const RATE: f64 = 300.0;

/// The time that a client waits for an answer.
const TIMEOUT: Duration = Duration::from_secs(5);

/// The number of worker threads, which is the number of concurrent requests. Each worker has its own clients, so that
/// the requests of one client have a fixed order.
const WORKERS: usize = 16;

/// The distance between the address numbers of two clients, so that few clients share a /24.
const STRIDE: u16 = 61;

/// The largest number of clients for which there are addresses.
pub const MAX_CLIENTS: u16 = 20_000 / STRIDE * STRIDE;

/// One in this number of clients sends no requests until [`Load::admit_newcomers`] is called.
const NEWCOMERS: usize = 6;

/// The address of a client, counted from 0. Clients with adjacent numbers are in different networks.
pub(crate) fn address(topology: &Topology, client: u16) -> IpAddr {
    let rows = MAX_CLIENTS / STRIDE;
    topology.client_address(Family::V4, 1 + client % rows * STRIDE + client / rows % STRIDE)
}

/// The clients, with the address of the service that they use.
pub(crate) struct Load {
    target: SocketAddr,
    sources: Vec<SocketAddr>,
    timeout: Duration,
    seen: Mutex<Seen>,
    newcomers: AtomicBool,
    /// For each worker, the number of complete rounds, in which each of the worker's clients sends a request.
    rounds: Vec<AtomicU64>,
}

/// The observations of all clients so far.
#[derive(Clone, Debug, Default)]
pub(crate) struct Seen {
    pub(crate) answered: u64,
    /// The number of requests that got no answer.
    pub(crate) failed: u64,
    /// The reason why the latest failed request failed.
    pub(crate) last_failure: Option<String>,
    /// The time at which a request last failed.
    pub(crate) failed_at: Option<Instant>,
    /// The number of sessions that had to start again, because a client reached another backend.
    pub(crate) sessions_lost: u64,
    /// The observations about each backend.
    pub(crate) backends: BTreeMap<String, SeenBackend>,
    /// The addresses of clients that have received an answer.
    addresses: Vec<Ipv4Addr>,
}

/// The clients' observations about one backend.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct SeenBackend {
    /// The number of clients whose latest answer came from this backend.
    pub(crate) clients: u64,
    /// The number of sessions that began on this backend.
    pub(crate) sessions: u64,
    /// The number of clients that moved to this backend from another backend.
    pub(crate) moved_in: u64,
    /// The number of clients that moved from this backend to another backend.
    pub(crate) moved_out: u64,
}

/// A guard that stops the workers when it is dropped.
struct StopOnDrop<'a>(&'a AtomicBool);

impl Drop for StopOnDrop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

#[derive(Clone, Debug, Default)]
struct Client {
    backend: Option<String>,
    session: Option<String>,
}

impl Load {
    pub(crate) fn new(topology: &Topology, clients: u16) -> Self {
        let sources: Vec<_> = (0..clients).map(|client| SocketAddr::new(address(topology, client), 0)).collect();
        let workers = sources.chunks(share(sources.len())).len();
        Self {
            target: SocketAddr::new(topology.vip(Family::V4), PORT),
            sources,
            timeout: TIMEOUT,
            rounds: (0..workers).map(|_| AtomicU64::new(0)).collect(),
            seen: Mutex::new(Seen::default()),
            newcomers: AtomicBool::new(false),
        }
    }

    /// Sets the time that clients wait for an answer.
    pub(crate) fn with_timeout(self, timeout: Duration) -> Self {
        Self { timeout, ..self }
    }

    /// Makes clients send requests from `namespace` while `meanwhile` runs.
    pub(crate) fn run(&self, namespace: &Entrance, meanwhile: impl FnOnce() -> Result<()>) -> Result<()> {
        let stop = AtomicBool::new(false);
        let chunks = self.sources.chunks(share(self.sources.len()));
        let period = Duration::from_secs(1).mul_f64(chunks.len() as f64 / RATE);
        thread::scope(|scope| {
            // The workers must also stop if `meanwhile` panics, because the scope waits for its threads.
            let _stop = StopOnDrop(&stop);
            let stop = &stop;
            for (sources, rounds) in chunks.zip(&self.rounds) {
                scope.spawn(move || {
                    if let Err(error) = self.work(namespace, sources, period, rounds, stop) {
                        self.lock().last_failure = Some(format!("{error:#}"));
                    }
                });
            }
            meanwhile()
        })
    }

    /// Lets the waiting clients start to send requests.
    pub(crate) fn admit_newcomers(&self) {
        self.newcomers.store(true, Ordering::Relaxed);
    }

    /// The number of requests that each client has sent at least. When this number has risen by two after an event,
    /// every client has experienced the effects of the event.
    pub(crate) fn rounds(&self) -> u64 {
        self.rounds.iter().map(|rounds| rounds.load(Ordering::Relaxed)).min().unwrap_or(0)
    }

    /// Returns a copy of the observations so far.
    pub(crate) fn seen(&self) -> Seen {
        self.lock().clone()
    }

    fn lock(&self) -> MutexGuard<'_, Seen> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn work(
        &self,
        namespace: &Entrance,
        sources: &[SocketAddr],
        period: Duration,
        rounds: &AtomicU64,
        stop: &AtomicBool,
    ) -> Result<()> {
        namespace.enter()?;
        let mut clients = vec![Client::default(); sources.len()];
        let mut next = Instant::now();
        loop {
            for (index, (&source, client)) in sources.iter().zip(&mut clients).enumerate() {
                // After a slow answer, the worker continues at its normal pace and does not make up for missed
                // requests.
                next = (next + period).max(Instant::now());
                thread::sleep(next.saturating_duration_since(Instant::now()));
                if stop.load(Ordering::Relaxed) {
                    return Ok(());
                }
                if index % NEWCOMERS == NEWCOMERS - 1 && !self.newcomers.load(Ordering::Relaxed) {
                    continue;
                }
                let request = Request::new(source, self.target).session(client.session.clone());
                let reply = Request { timeout: self.timeout, ..request }.send();
                self.lock().note(source.ip(), client, reply);
            }
            rounds.fetch_add(1, Ordering::Relaxed);
        }
    }
}

/// The number of clients that each worker has.
fn share(clients: usize) -> usize {
    clients.div_ceil(WORKERS).max(1)
}

impl Seen {
    /// The number of clients that have received an answer.
    pub(crate) fn clients(&self) -> u64 {
        self.backends.values().map(|backend| backend.clients).sum()
    }

    /// The number of clients whose latest answer came from this backend.
    pub(crate) fn clients_of(&self, backend: &str) -> u64 {
        self.backends.get(backend).map_or(0, |backend| backend.clients)
    }

    /// The number of times that a client moved from this backend to another backend.
    pub(crate) fn moves_from(&self, backend: &str) -> u64 {
        self.backends.get(backend).map_or(0, |backend| backend.moved_out)
    }

    /// The number of times that a client reached a different backend than before.
    pub(crate) fn moves(&self) -> u64 {
        self.backends.values().map(|backend| backend.moved_in).sum()
    }

    /// The addresses of clients that have received an answer.
    pub(crate) fn addresses(&self) -> impl Iterator<Item = Ipv4Addr> {
        self.addresses.iter().copied()
    }

    fn note(&mut self, address: IpAddr, client: &mut Client, reply: io::Result<Reply>) {
        let answer = match reply.and_then(|reply| reply.answer()) {
            Ok(answer) => answer,
            Err(error) => {
                self.failed += 1;
                self.last_failure = Some(error.to_string());
                self.failed_at = Some(Instant::now());
                return;
            }
        };
        self.answered += 1;
        if answer.requests == 1 {
            self.backends.entry(answer.backend.clone()).or_default().sessions += 1;
            self.sessions_lost += u64::from(client.session.is_some());
        }
        if let (None, IpAddr::V4(address)) = (&client.backend, address) {
            self.addresses.push(address);
        }
        if client.backend.as_ref() != Some(&answer.backend) {
            let now = self.backends.entry(answer.backend.clone()).or_default();
            now.clients += 1;
            now.moved_in += u64::from(client.backend.is_some());
            if let Some(before) = client.backend.replace(answer.backend).and_then(|name| self.backends.get_mut(&name)) {
                before.clients -= 1;
                before.moved_out += 1;
            }
        }
        client.session = Some(answer.session);
    }
}

#[cfg(test)]
mod tests {
    use std::{
        io,
        net::{IpAddr, Ipv4Addr},
    };

    use super::{Client, Seen};
    use crate::{answer::Answer, http_client::Reply};

    fn reply(backend: &str, requests: u64) -> io::Result<Reply> {
        let answer =
            Answer { backend: backend.to_owned(), session: "1f".to_owned(), requests, client: "10.1.0.7".to_owned() };
        Ok(Reply { status: 200, backend: backend.to_owned(), body: serde_json::to_vec(&answer).unwrap() })
    }

    const ADDRESS: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 1, 0, 7));

    #[test]
    fn when_a_client_moves_then_both_backends_count_it_once() {
        let (mut seen, mut client) = (Seen::default(), Client::default());
        seen.note(ADDRESS, &mut client, reply("web1", 1));
        seen.note(ADDRESS, &mut client, reply("web1", 2));
        seen.note(ADDRESS, &mut client, Err(io::ErrorKind::ConnectionRefused.into()));
        seen.note(ADDRESS, &mut client, reply("web2", 1));
        seen.note(ADDRESS, &mut client, reply("web2", 2));
        let (one, two) = (seen.backends["web1"], seen.backends["web2"]);
        assert_eq!((one.clients, one.sessions, one.moved_in, one.moved_out), (0, 1, 0, 1));
        assert_eq!((two.clients, two.sessions, two.moved_in, two.moved_out), (1, 1, 1, 0));
        assert_eq!((seen.answered, seen.failed, seen.sessions_lost), (4, 1, 1));
        assert!(seen.last_failure.unwrap().contains("refused"));
    }
}
