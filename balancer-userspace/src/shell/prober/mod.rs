//! Health checks: one task for each checked backend, which tells how every check ended.

mod check;

use std::{collections::HashMap, net::SocketAddr, time::Duration};

use tokio::{
    sync::mpsc,
    task::JoinHandle,
    time::{Instant, sleep, sleep_until},
};

use crate::{
    config::model::{CheckConfig, CheckKind},
    core::io::{BackendId, BackendName, Event},
};

/// The longest wait before the first check.
const FIRST: Duration = Duration::from_millis(500);
/// How far an interval may be off either way, as a share of it.
const JITTER: f64 = 0.05;

/// The running health checks. They end when this is dropped.
#[derive(Debug)]
pub struct Prober {
    events: mpsc::Sender<Event>,
    tasks: HashMap<BackendId, JoinHandle<()>>,
}

impl Drop for Prober {
    fn drop(&mut self) {
        self.tasks.values().for_each(JoinHandle::abort);
    }
}

impl Prober {
    /// No checks yet. Outcomes go to `events` as [`Event::Checked`]; when the channel is full, checks wait.
    #[must_use]
    pub fn new(events: mpsc::Sender<Event>) -> Self {
        Self { events, tasks: HashMap::new() }
    }

    /// Checks `target` for `backend` from now on, on the current tokio runtime, instead of an earlier check of it. The
    /// first check comes at a random moment of the first 500 ms (or `interval`, if that is shorter), so that many
    /// backends are not checked at once; each next one `interval` ± 5% after the start of the one before. Checks of a
    /// backend never overlap. [`CheckKind::None`] checks nothing.
    pub fn start(&mut self, backend: BackendId, name: BackendName, target: SocketAddr, check: CheckConfig) {
        self.stop(backend);
        if check.kind != CheckKind::None {
            let task = tokio::spawn(run(backend, name, target, check, self.events.clone()));
            self.tasks.insert(backend, task);
        }
    }

    /// Ends the checks of `backend`. An outcome may still be under way in the channel.
    pub fn stop(&mut self, backend: BackendId) {
        if let Some(task) = self.tasks.remove(&backend) {
            task.abort();
        }
    }
}

async fn run(
    backend: BackendId,
    name: BackendName,
    target: SocketAddr,
    config: CheckConfig,
    events: mpsc::Sender<Event>,
) {
    sleep(first_delay(config.interval)).await;
    let mut hindered = false;
    loop {
        let start = Instant::now();
        match check::check(target, &config).await {
            Ok(outcome) => {
                hindered = false;
                if events.send(Event::Checked { backend, outcome, took: start.elapsed() }).await.is_err() {
                    return;
                }
            }
            Err(error) if !hindered => {
                hindered = true;
                tracing::warn!("backend {name} cannot be checked: {error} on this machine; its health stays as it is");
            }
            Err(_) => {}
        }
        sleep_until(start + jittered(config.interval)).await;
    }
}

fn first_delay(interval: Duration) -> Duration {
    interval.min(FIRST).mul_f64(fastrand::f64())
}

fn jittered(interval: Duration) -> Duration {
    interval.mul_f64(1.0 - JITTER + 2.0 * JITTER * fastrand::f64())
}

#[cfg(test)]
mod tests {
    use tokio::net::TcpListener;

    use super::*;
    use crate::core::io::CheckOutcome;

    fn name() -> BackendName {
        BackendName { service: "web".to_owned(), backend: "web1".to_owned() }
    }

    fn tcp() -> CheckConfig {
        let interval = Duration::from_millis(100);
        CheckConfig { kind: CheckKind::Tcp { port: None }, interval, timeout: interval, fall: 1, rise: 1 }
    }

    async fn next(events: &mut mpsc::Receiver<Event>) -> (BackendId, CheckOutcome) {
        let event = tokio::time::timeout(Duration::from_secs(30), events.recv()).await.expect("an event");
        let Some(Event::Checked { backend, outcome, .. }) = event else { panic!("{event:?}") };
        (backend, outcome)
    }

    #[tokio::test]
    async fn follows_a_server_that_dies_and_returns() {
        let (sender, mut events) = mpsc::channel(1);
        let mut prober = Prober::new(sender);
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let target = listener.local_addr().unwrap();
        prober.start(BackendId(7), name(), target, tcp());
        assert_eq!(next(&mut events).await, (BackendId(7), CheckOutcome::Passed));
        assert_eq!(next(&mut events).await, (BackendId(7), CheckOutcome::Passed));
        drop(listener);
        while next(&mut events).await.1 != CheckOutcome::Hard("connect: refused".to_owned()) {}
        let _listener = TcpListener::bind(target).await.unwrap();
        while next(&mut events).await.1 != CheckOutcome::Passed {}
    }

    #[tokio::test]
    async fn starting_again_replaces_and_stopping_ends() {
        let (sender, mut events) = mpsc::channel(1);
        let mut prober = Prober::new(sender);
        let open = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let closed = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
        prober.start(BackendId(1), name(), open.local_addr().unwrap(), tcp());
        next(&mut events).await;
        prober.start(BackendId(1), name(), closed, tcp());
        while next(&mut events).await.1 == CheckOutcome::Passed {}
        assert!(matches!(next(&mut events).await.1, CheckOutcome::Hard(_)));

        prober.start(BackendId(1), name(), closed, CheckConfig { kind: CheckKind::None, ..tcp() });
        assert!(prober.tasks.is_empty());
        prober.start(BackendId(2), name(), closed, tcp());
        drop(prober);
        // The channel closes once the last task is gone.
        while events.recv().await.is_some() {}
    }

    #[test]
    fn jitter_stays_within_five_percent() {
        let interval = Duration::from_secs(2);
        for _ in 0..10_000 {
            let jittered = jittered(interval);
            assert!((Duration::from_millis(1900)..=Duration::from_millis(2100)).contains(&jittered), "{jittered:?}");
        }
    }

    #[test]
    fn a_thousand_backends_do_not_start_at_once() {
        let mut by_tenth = [0u32; 10];
        for _ in 0..1000 {
            let delay = first_delay(Duration::from_secs(2));
            by_tenth[usize::try_from(delay.as_millis() * 10 / FIRST.as_millis()).unwrap()] += 1;
        }
        // 100 expected in each, standard deviation 9.5: five of them.
        assert!(by_tenth.iter().all(|&count| count.abs_diff(100) < 48), "{by_tenth:?}");
        assert!(first_delay(Duration::from_millis(100)) < Duration::from_millis(100));
    }
}
