//! Sends many HTTP requests concurrently.

use std::{
    io,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
};

use anyhow::Result;
pub use balancer_demo::http_client::{Reply, Request};

use crate::namespace::Namespace;

/// Sends all requests from `namespace`, at most `workers` at a time. The results are in the order of `requests`.
///
/// # Errors
/// Fails if the namespace cannot be entered.
pub fn send_all(namespace: &Namespace, requests: &[Request], workers: usize) -> Result<Vec<io::Result<Reply>>> {
    let next = AtomicUsize::new(0);
    let done = Mutex::new(Vec::with_capacity(requests.len()));
    let work = || -> Result<()> {
        namespace.enter()?;
        loop {
            let index = next.fetch_add(1, Ordering::Relaxed);
            let Some(request) = requests.get(index) else { return Ok(()) };
            let result = request.send();
            done.lock().unwrap_or_else(PoisonError::into_inner).push((index, result));
        }
    };
    thread::scope(|scope| {
        let threads: Vec<_> = (0..workers.clamp(1, requests.len().max(1))).map(|_| scope.spawn(work)).collect();
        threads
            .into_iter()
            .try_for_each(|thread| thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
    })?;
    let mut done = done.into_inner().unwrap_or_else(PoisonError::into_inner);
    done.sort_by_key(|&(index, _)| index);
    Ok(done.into_iter().map(|(_, result)| result).collect())
}
