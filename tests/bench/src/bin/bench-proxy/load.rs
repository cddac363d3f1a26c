//! The clients: each request has its own connection.

use std::{
    sync::atomic::{AtomicUsize, Ordering},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Result, ensure};
use balancer_testkit::{http_client::Request, namespace::Namespace};
use nix::sys::prctl::set_timerslack;

/// The largest number of concurrent requests.
pub(crate) const WORKERS: usize = 8;

/// The times at which requests are sent.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Pace {
    /// Requests follow each other as fast as answers arrive.
    Full,
    /// Requests are sent with this interval.
    Every(Duration),
}

/// The results of all requests.
#[derive(Clone, Debug, Default)]
pub(crate) struct Outcome {
    /// The latency of each request that was answered.
    pub(crate) latencies: Vec<Duration>,
    /// Requests without an answer.
    pub(crate) failed: usize,
    /// The time from the first request to the last answer.
    pub(crate) took: Duration,
}

/// Sends all requests from inside `namespace`, but none after `limit`.
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
    // Otherwise, pauses are 50 µs longer.
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
