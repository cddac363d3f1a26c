//! The clients, which use a new connection for each request.

use std::{
    sync::atomic::{AtomicUsize, Ordering},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Result, ensure};
use balancer_testkit::{http_client::Request, namespace::Namespace};
use nix::sys::prctl::set_timerslack;

/// The largest number of concurrent requests of all clients.
pub(crate) const WORKERS: usize = 8;

/// The times at which clients send requests.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Pace {
    /// Clients send the next request as soon as they receive an answer.
    Full,
    /// Clients together send one request in each interval.
    Every(Duration),
}

/// The results of all requests of a load.
#[derive(Clone, Debug, Default)]
pub(crate) struct Outcome {
    /// The latencies of all answered requests.
    pub(crate) latencies: Vec<Duration>,
    /// The number of requests that got no answer.
    pub(crate) failed: usize,
    /// The time from the first request to the last answer.
    pub(crate) took: Duration,
}

/// Sends all requests from `namespace`, but starts no request after the time `limit`.
pub(crate) fn send(namespace: &Namespace, requests: &[Request], pace: Pace, limit: Duration) -> Result<Outcome> {
    let (next, start) = (AtomicUsize::new(0), Instant::now());
    let outcomes = thread::scope(|scope| {
        let work = || work(namespace, requests, pace, start, limit, &next);
        let threads: Vec<_> = (0..WORKERS).map(|_| scope.spawn(work)).collect();
        let join = |thread: thread::ScopedJoinHandle<'_, Result<Outcome>>| {
            thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        };
        threads.into_iter().map(join).collect::<Result<Vec<_>>>()
    })?;
    let mut all = Outcome { took: start.elapsed(), ..Outcome::default() };
    for outcome in outcomes {
        all.latencies.extend(outcome.latencies);
        all.failed += outcome.failed;
    }
    ensure!(!all.latencies.is_empty(), "nobody was answered");
    all.latencies.sort_unstable();
    Ok(all)
}

fn work(
    namespace: &Namespace,
    requests: &[Request],
    pace: Pace,
    start: Instant,
    limit: Duration,
    next: &AtomicUsize,
) -> Result<Outcome> {
    namespace.enter()?;
    // With the default timer slack of the kernel, pauses would be 50 µs longer.
    set_timerslack(1)?;
    let mut outcome = Outcome::default();
    while start.elapsed() < limit {
        let index = next.fetch_add(1, Ordering::Relaxed);
        let Some(request) = requests.get(index) else { break };
        if let Pace::Every(interval) = pace {
            let due = interval.mul_f64(index as f64);
            thread::sleep(due.saturating_sub(start.elapsed()));
        }
        let begin = Instant::now();
        match request.send() {
            Ok(reply) if reply.status == 200 => outcome.latencies.push(begin.elapsed()),
            _ => outcome.failed += 1,
        }
    }
    Ok(outcome)
}
