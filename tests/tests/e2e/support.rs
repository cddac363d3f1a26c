//! What several tests do.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::{Duration, Instant},
};

use balancer_tests::{http_client::Request, namespace::Entrance, site::PATIENCE};

/// Waits until it is done. `what` is wrong where it takes too long.
#[track_caller]
pub(crate) fn wait(what: &str, mut done: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !done() {
        assert!(Instant::now() < deadline, "{what}");
        thread::sleep(Duration::from_millis(20));
    }
}

/// What clients met that connected all the time.
pub(crate) struct Load {
    asked: usize,
    failed: Vec<String>,
}

impl Load {
    /// At least so many requests were made, and all were answered.
    #[track_caller]
    pub(crate) fn assert_answered(&self, least: usize) {
        let Self { asked, failed } = self;
        assert!(failed.is_empty() && *asked > least, "{} of {asked} failed: {:?}", failed.len(), failed.first());
    }
}

/// Has clients behind `entrance` make these requests again and again while `work` is done.
pub(crate) fn under_load(entrance: &Entrance, requests: &[Request], work: impl FnOnce()) -> Load {
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        let client = |part| {
            let stop = &stop;
            move || {
                entrance.enter().unwrap();
                let mut load = Load { asked: 0, failed: Vec::new() };
                for request in requests.iter().skip(part).step_by(2).cycle() {
                    if stop.load(Ordering::Relaxed) {
                        break;
                    }
                    load.asked += 1;
                    load.failed.extend(request.send().and_then(|reply| reply.answer()).err().map(|e| e.to_string()));
                }
                load
            }
        };
        let clients = [0, 1].map(|part| scope.spawn(client(part)));
        let _stops = Stop(&stop);
        work();
        stop.store(true, Ordering::Relaxed);
        let [mut load, other] = clients.map(|client| client.join().unwrap());
        load.asked += other.asked;
        load.failed.extend(other.failed);
        load
    })
}

/// Ends the clients also where the work panics.
struct Stop<'a>(&'a AtomicBool);

impl Drop for Stop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}
