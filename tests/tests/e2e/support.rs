//! Functions that several tests use.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{
    fmt::{self, Display},
    fs,
    net::SocketAddr,
    ops::RangeInclusive,
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::{Duration, Instant},
};

use balancer_testkit::{
    http_client::{Request, send_all},
    metrics::Metrics,
    namespace::Entrance,
    pace::patience,
    site::{PATIENCE, WORKERS},
    stop::StopOnDrop,
    topology::{Family, Topology},
};

/// Waits until `done` is true, or fails with `what` after a time limit that is long enough for fleets on a busy
/// machine.
#[track_caller]
pub(crate) fn wait(what: &str, done: impl FnMut() -> bool) {
    wait_for(3 * PATIENCE, what, done);
}

/// Waits until `done` is true, or fails with `what` after `limit`, which grows on a slow machine.
#[track_caller]
pub(crate) fn wait_for(limit: Duration, what: &str, mut done: impl FnMut() -> bool) {
    let deadline = Instant::now() + patience(limit);
    while !done() {
        assert!(Instant::now() < deadline, "{what}");
        thread::sleep(Duration::from_millis(20));
    }
}

/// Returns whether a process is running. A killed process still runs until the kernel has ended it, and is then a
/// zombie until its parent process has noticed the end.
pub(crate) fn runs(pid: impl Display) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit(") ").next().is_some_and(|state| state.starts_with(['R', 'S', 'D', 'T']))
}

/// The counters that begin with each controller.
const OF_A_CONTROLLER: [&str; 3] = ["balancer_handshakes_total", "balancer_signals_total", "balancer_withheld_total"];

/// Checks that no counter has decreased that outlives a controller and for which `counts` is true.
pub(crate) fn never_backwards(before: &Metrics, after: &Metrics, counts: impl Fn(&str) -> bool) {
    let mut compared = 0;
    for (sample, value) in before.counters().filter(|(sample, _)| counts(sample)) {
        if OF_A_CONTROLLER.iter().any(|name| sample.starts_with(name)) {
            continue;
        }
        let now = after.sample(sample).unwrap_or(-1.0);
        assert!(now >= value, "{sample} went from {value} to {now}");
        compared += 1;
    }
    assert!(compared > 20, "only {compared} counters");
}

/// The results of clients that connect repeatedly.
pub(crate) struct Load {
    asked: usize,
    failed: Vec<String>,
}

impl Display for Load {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} of {} requests failed", self.failed.len(), self.asked)?;
        self.failed.first().map_or(Ok(()), |first| write!(f, ", the first: {first}"))
    }
}

impl Load {
    /// Asserts that the clients sent more than `least` requests, and that all requests were answered.
    #[track_caller]
    pub(crate) fn assert_answered(&self, least: usize) {
        self.assert_answered_but(0, least);
    }

    /// Asserts that the clients sent more than `least` requests, and that at most `most` requests were not answered.
    #[track_caller]
    pub(crate) fn assert_answered_but(&self, most: usize, least: usize) {
        let Self { asked, failed } = self;
        assert!(failed.len() <= most && *asked > least, "{} of {asked} failed: {:?}", failed.len(), failed.first());
    }
}

/// Runs `work` while clients in the namespace `entrance` repeat the given requests.
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
        let _stop = StopOnDrop(&stop);
        work();
        stop.store(true, Ordering::Relaxed);
        let [mut load, other] = clients.map(|client| client.join().unwrap());
        load.asked += other.asked;
        load.failed.extend(other.failed);
        load
    })
}

pub(crate) fn requests(topology: &Topology, family: Family, port: u16, clients: RangeInclusive<u16>) -> Vec<Request> {
    let target = SocketAddr::new(topology.vip(family), port);
    let source = |client| SocketAddr::new(topology.client_address(family, client), 0);
    clients.map(|client| Request { timeout: PATIENCE, ..Request::new(source(client), target) }).collect()
}

/// Returns the backend that answers each request.
#[track_caller]
pub(crate) fn homes(topology: &Topology, requests: &[Request]) -> Vec<String> {
    let replies = send_all(topology.client(), requests, WORKERS).unwrap();
    replies.into_iter().map(|reply| reply.unwrap().answer().unwrap().backend).collect()
}
