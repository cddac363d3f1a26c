//! Health checks: one task for each checked backend, which tells how every check ended.

mod check;
#[cfg(test)]
mod check_test;
mod exec;
#[cfg(test)]
mod exec_test;
mod http;
mod tls;

use std::{collections::HashMap, net::SocketAddr, time::Duration};

use tokio::{
    sync::mpsc,
    task::JoinHandle,
    time::{Instant, sleep, sleep_until},
};

use self::check::Check;
use crate::{
    config::model::{CheckConfig, CheckKind},
    core::{
        health::Health,
        io::{BackendId, BackendName, CheckOutcome, Event},
    },
};

/// The longest wait before the first check.
const FIRST: Duration = Duration::from_millis(500);
/// How far an interval may be off either way, as a share of it.
const JITTER: f64 = 0.1;

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
    /// backends are not checked at once; each next one `interval` (while a verdict is pending `fast_interval`) ± 10%
    /// after the start of the one before. Checks of a backend never overlap. [`CheckKind::None`] checks nothing.
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
    let mut random = fastrand::Rng::new();
    sleep(first_delay(config.interval, &mut random)).await;
    let check = Check::new(&name, target, &config);
    // As the controller counts, which is told the same.
    let mut health = Health::default();
    let mut hindered = false;
    loop {
        let start = Instant::now();
        let outcome = match &check {
            Ok(check) => check.run().await.map_err(|error| error.to_string()),
            Err(error) => Err(error.to_string()),
        };
        let outcome = outcome.unwrap_or_else(|why| {
            if !hindered {
                tracing::warn!("backend {name} cannot be checked: {why} on this machine; its health stays as it is");
            }
            CheckOutcome::Hindered(why)
        });
        hindered = matches!(outcome, CheckOutcome::Hindered(_));
        health.record(&outcome, &config);
        if events.send(Event::Checked { backend, outcome, took: start.elapsed() }).await.is_err() {
            return;
        }
        let interval = if health.is_pending() { config.fast_interval } else { config.interval };
        sleep_until(start + jittered(interval, &mut random)).await;
    }
}

fn first_delay(interval: Duration, random: &mut fastrand::Rng) -> Duration {
    interval.min(FIRST).mul_f64(random.f64())
}

fn jittered(interval: Duration, random: &mut fastrand::Rng) -> Duration {
    interval.mul_f64(1.0 - JITTER + 2.0 * JITTER * random.f64())
}

#[cfg(test)]
mod tests {
    use tokio::net::TcpListener;

    use super::*;
    use crate::config::model::ExecCheck;

    fn name() -> BackendName {
        BackendName { service: "web".to_owned(), backend: "web1".to_owned() }
    }

    fn tcp() -> CheckConfig {
        let interval = Duration::from_millis(100);
        CheckConfig {
            kind: CheckKind::Tcp { port: None },
            interval,
            timeout: interval,
            fast_interval: interval,
            fall: 1,
            rise: 1,
        }
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

    /// The pauses between checks, of a server that refuses from the start and then accepts.
    #[tokio::test]
    async fn a_pending_verdict_is_checked_faster() {
        let (sender, mut events) = mpsc::channel(1);
        let mut prober = Prober::new(sender);
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let target = listener.local_addr().unwrap();
        drop(listener);
        // At an hour between checks only the fast ones come at all.
        let hour = Duration::from_secs(3600);
        let check = CheckConfig {
            interval: hour,
            timeout: Duration::from_secs(10),
            fast_interval: Duration::from_millis(100),
            fall: 3,
            rise: 1000,
            ..tcp()
        };
        prober.start(BackendId(1), name(), target, check);
        for _ in 0..3 {
            assert_eq!(next(&mut events).await.1, CheckOutcome::Hard("connect: refused".to_owned()));
        }
        // The verdict is there.
        assert!(tokio::time::timeout(Duration::from_millis(500), events.recv()).await.is_err());
    }

    #[tokio::test]
    async fn a_program_that_cannot_be_started_says_nothing_of_the_backend() {
        let (sender, mut events) = mpsc::channel(1);
        let mut prober = Prober::new(sender);
        let exec = ExecCheck { port: None, command: vec!["/nonexistent/check".to_owned()] };
        let check = CheckConfig { kind: CheckKind::Exec(exec), ..tcp() };
        prober.start(BackendId(1), name(), "127.0.0.1:80".parse().unwrap(), check);
        let why = "cannot start \"/nonexistent/check\": No such file or directory (os error 2)";
        assert_eq!(next(&mut events).await.1, CheckOutcome::Hindered(why.to_owned()));
    }

    #[test]
    fn jitter_stays_within_ten_percent() {
        let interval = Duration::from_secs(2);
        let mut random = fastrand::Rng::with_seed(7);
        let waits: Vec<Duration> = (0..10_000).map(|_| jittered(interval, &mut random)).collect();
        let allowed = Duration::from_millis(1800)..=Duration::from_millis(2200);
        assert!(waits.iter().all(|wait| allowed.contains(wait)));
        let spread = *waits.iter().max().unwrap() - *waits.iter().min().unwrap();
        assert!(spread > Duration::from_millis(390), "{spread:?}");
    }

    #[test]
    fn a_thousand_backends_do_not_start_at_once() {
        let mut by_tenth = [0u32; 10];
        let mut random = fastrand::Rng::with_seed(7);
        for _ in 0..1000 {
            let delay = first_delay(Duration::from_secs(2), &mut random);
            by_tenth[usize::try_from(delay.as_millis() * 10 / FIRST.as_millis()).unwrap()] += 1;
        }
        // 100 expected in each, standard deviation 9.5: five of them.
        assert!(by_tenth.iter().all(|&count| count.abs_diff(100) < 48), "{by_tenth:?}");
        assert!(first_delay(Duration::from_millis(100), &mut random) < Duration::from_millis(100));
    }
}
