//! Clients that keep sending requests, and their results.

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use anyhow::{Result, anyhow, ensure};
use balancer_testkit::{
    http_client::Request,
    topology::{Family, Topology},
};

/// The port of the services.
pub(crate) const PORT: u16 = 80;
/// The number of clients of each address family.
const CLIENTS: u16 = 4;
/// The pause between two requests of a client.
const PAUSE: Duration = Duration::from_millis(10);
/// The time limit of a request on a busy machine.
const PATIENCE: Duration = Duration::from_secs(20);

#[derive(Debug, Default)]
struct Tally {
    requests: u64,
    failed: Vec<String>,
    homes: BTreeMap<SocketAddr, String>,
    moved: Vec<String>,
    longest: Duration,
}

/// Running clients, which stop when the value is dropped.
pub(crate) struct Clients {
    stop: Arc<AtomicBool>,
    tally: Arc<Mutex<Tally>>,
    threads: Vec<JoinHandle<Result<()>>>,
}

impl Clients {
    /// Starts clients of both address families. Each client opens one connection after another.
    pub(crate) fn start(topology: &Topology) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let tally = Arc::new(Mutex::new(Tally::default()));
        let started = Instant::now();
        let all = Family::BOTH.into_iter().flat_map(|family| (1..=CLIENTS).map(move |client| (family, client)));
        let threads = all.map(|(family, client)| {
            let source = SocketAddr::new(topology.client_address(family, client), 0);
            let target = SocketAddr::new(topology.vip(family), PORT);
            let request = Request { timeout: PATIENCE, ..Request::new(source, target) };
            let (entrance, stop, tally) = (topology.client().entrance(), Arc::clone(&stop), Arc::clone(&tally));
            thread::spawn(move || {
                entrance.enter()?;
                while !stop.load(Ordering::Relaxed) {
                    let begun = Instant::now();
                    let reply = request.send();
                    let mut tally = tally.lock().unwrap_or_else(PoisonError::into_inner);
                    tally.requests += 1;
                    tally.longest = tally.longest.max(begun.elapsed());
                    let after = started.elapsed().as_secs_f64();
                    match reply {
                        Ok(reply) => {
                            let before = tally.homes.insert(source, reply.backend.clone());
                            if before.as_ref().is_some_and(|before| *before != reply.backend) {
                                tally
                                    .moved
                                    .push(format!("{source} after {after:.2} s: {before:?} → {}", reply.backend));
                            }
                        }
                        Err(error) => {
                            let home = tally.homes.get(&source).cloned().unwrap_or_default();
                            tally.failed.push(format!("{source} of {home} after {after:.2} s: {error}"));
                        }
                    }
                    drop(tally);
                    thread::sleep(PAUSE);
                }
                Ok(())
            })
        });
        let threads = threads.collect();
        Self { stop, tally, threads }
    }

    /// Waits until every client has received at least one more answer.
    pub(crate) fn round(&self) {
        let requests = || self.tally.lock().unwrap_or_else(PoisonError::into_inner).requests;
        let (before, deadline) = (requests(), Instant::now() + PATIENCE);
        while requests() < before + 4 * u64::from(CLIENTS) && Instant::now() < deadline {
            thread::sleep(PAUSE);
        }
    }

    /// Stops the clients, and checks that no request has failed and no client has moved.
    pub(crate) fn finish(mut self) -> Result<String> {
        self.stop.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            thread.join().map_err(|_| anyhow!("a client has panicked"))??;
        }
        let tally = std::mem::take(&mut *self.tally.lock().unwrap_or_else(PoisonError::into_inner));
        ensure!(tally.requests >= 4 * u64::from(CLIENTS), "only {} requests", tally.requests);
        ensure!(
            tally.failed.is_empty() && tally.moved.is_empty(),
            "{} of {} requests failed: {:?}; clients were moved: {:?}",
            tally.failed.len(),
            tally.requests,
            tally.failed,
            tally.moved
        );
        Ok(format!("{} requests, none failed, nobody moved, longest {} ms", tally.requests, tally.longest.as_millis()))
    }
}

impl Drop for Clients {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}
