//! The checks of all backends, one task for each, and their outcomes on the way to the controller.

use std::{
    collections::{HashMap, VecDeque},
    future::pending,
    io, panic,
    sync::{Arc, Weak},
    time::Duration,
};

use balancer_core::{
    health::Verdict,
    io::{BackendId, CheckNumber, CheckOutcome, CheckSpec, Event},
};
use balancer_model::config::CheckConfig;
use tokio::{
    sync::{Semaphore, mpsc, watch},
    task::{AbortHandle, JoinSet},
    time::{Instant, sleep_until},
};

use super::{
    check::{Check, Whom},
    pace::Pace,
    service_path::Ways,
};

/// How long an outcome that is only counted may wait for others, so that the controller is woken once for all of them.
const HELD: Duration = Duration::from_millis(100);
/// How many outcomes may wait; checks wait when there are more.
const FOUND: usize = 1024;

/// Told to the checks of a service's backends when one of them begins to fail: an outage of all shows before its verdict.
type Alarm = watch::Sender<Option<Instant>>;

/// What is to be checked.
#[derive(Debug)]
pub(super) enum Order {
    Start(Box<CheckSpec>),
    Stop(BackendId),
}

/// How a check ended.
struct Found {
    backend: BackendId,
    /// Which of its checks says so.
    number: CheckNumber,
    outcome: CheckOutcome,
    took: Duration,
    /// Whether it may change what the controller thinks of the backend.
    matters: bool,
}

/// The tasks, and what they found that the controller has not been told.
pub(super) struct Rounds {
    events: mpsc::Sender<Event>,
    ways: Ways,
    permits: Arc<Semaphore>,
    tasks: HashMap<BackendId, (CheckNumber, AbortHandle)>,
    /// By service.
    alarms: HashMap<String, Weak<Alarm>>,
    running: JoinSet<()>,
    origin: Instant,
    held: VecDeque<(BackendId, Event)>,
    /// When what is held is to be told.
    due: Option<Instant>,
}

impl Rounds {
    /// None yet. No more than `at_once` are under way; others wait until one of them has ended.
    pub(super) fn new(events: mpsc::Sender<Event>, ways: Ways, at_once: usize) -> Self {
        let (tasks, alarms, held) = (HashMap::new(), HashMap::new(), VecDeque::new());
        let permits = Arc::new(Semaphore::new(at_once));
        Self { events, ways, permits, tasks, alarms, running: JoinSet::new(), origin: Instant::now(), held, due: None }
    }

    /// Follows orders until nobody gives any more. A panic of a task is a panic of this: a backend that nobody checks would
    /// stay as it was for ever.
    pub(super) async fn follow(mut self, mut orders: mpsc::UnboundedReceiver<Order>) {
        let (found_in, mut found) = mpsc::channel(FOUND);
        let events = self.events.clone();
        let mut telling = false;
        loop {
            let due = self.due;
            let waited = async {
                match due {
                    Some(due) => sleep_until(due).await,
                    None => pending().await,
                }
            };
            tokio::select! {
                biased;
                order = orders.recv() => match order {
                    Some(order) => self.obey(order, &found_in),
                    None => return,
                },
                permit = events.reserve(), if telling => {
                    let Ok(permit) = permit else { return };
                    if let Some((_, event)) = self.held.pop_front() {
                        permit.send(event);
                    }
                    telling = !self.held.is_empty();
                }
                Some(found) = found.recv(), if self.held.len() < FOUND => telling |= self.hold(found),
                Some(ended) = self.running.join_next() => {
                    if let Err(error) = ended && let Ok(payload) = error.try_into_panic() {
                        panic::resume_unwind(payload);
                    }
                }
                () = waited => {
                    self.due = None;
                    telling = !self.held.is_empty();
                }
            }
        }
    }

    fn obey(&mut self, order: Order, found: &mpsc::Sender<Found>) {
        let backend = match &order {
            Order::Start(spec) => spec.backend,
            Order::Stop(backend) => *backend,
        };
        if let Some((_, task)) = self.tasks.remove(&backend) {
            task.abort();
            self.held.retain(|(held, _)| *held != backend);
        }
        if let Order::Start(spec) = order {
            let pace = Pace::new(fastrand::Rng::new(), self.origin);
            let number = spec.number;
            let permits = Arc::clone(&self.permits);
            let alarm = self.alarm(&spec.name.service);
            let task = self.running.spawn(run(*spec, self.ways.clone(), (pace, alarm), permits, found.clone()));
            self.tasks.insert(backend, (number, task));
        }
    }

    /// That of a service, which lives as long as one of its backends is checked.
    fn alarm(&mut self, service: &str) -> Arc<Alarm> {
        if let Some(alarm) = self.alarms.get(service).and_then(Weak::upgrade) {
            return alarm;
        }
        self.alarms.retain(|_, alarm| alarm.strong_count() > 0);
        let alarm = Arc::new(watch::Sender::new(None));
        self.alarms.insert(service.to_owned(), Arc::downgrade(&alarm));
        alarm
    }

    /// Whether the controller is to be told at once.
    fn hold(&mut self, found: Found) -> bool {
        let Found { backend, number, outcome, took, matters } = found;
        if self.tasks.get(&backend).is_some_and(|(current, _)| *current == number) {
            self.held.push_back((backend, Event::Checked { backend, check: number, outcome, took }));
            self.due.get_or_insert_with(|| Instant::now() + HELD);
        }
        matters || self.held.len() == FOUND
    }
}

/// The checks of one backend.
async fn run(
    spec: CheckSpec,
    ways: Ways,
    (mut pace, alarm): (Pace, Arc<Alarm>),
    permits: Arc<Semaphore>,
    found: mpsc::Sender<Found>,
) {
    let CheckSpec { backend, number, name, target, check: config, mut health } = spec;
    let first = if health.is_pending() { config.fast_interval } else { config.interval };
    sleep_until(pace.first(Instant::now(), first)).await;
    let whom = Whom { backend, name, target, ways };
    let mut alarms = alarm.subscribe();
    let mut check = None;
    let mut hindered = false;
    loop {
        let Ok(permit) = permits.acquire().await else { return };
        let start = Instant::now();
        let outcome = once(&mut check, &whom, &config).await.unwrap_or_else(|error| {
            let why = error.to_string();
            if !hindered {
                tracing::warn!(
                    "backend {} cannot be checked: {why} on this machine; its health stays as it is",
                    whom.name
                );
            }
            CheckOutcome::Hindered(why)
        });
        drop(permit);
        hindered = matches!(outcome, CheckOutcome::Hindered(_));
        // The controller gets the same outcomes and counts them in the same way.
        let (verdict, was_pending) = (health.verdict().clone(), health.is_pending());
        health.record(&outcome, &config);
        let failed_before = was_pending || matches!(verdict, Verdict::Down { .. });
        let begins_to_fail = !failed_before && matches!(outcome, CheckOutcome::Soft(_) | CheckOutcome::Hard(_));
        let matters = was_pending || health.is_pending() || *health.verdict() != verdict;
        if found.send(Found { backend, number, outcome, took: start.elapsed(), matters }).await.is_err() {
            return;
        }
        if begins_to_fail {
            raise(&alarm, config.interval);
            alarms.mark_unchanged();
        }
        if health.is_pending() {
            sleep_until(pace.next(start, config.fast_interval)).await;
            alarms.mark_unchanged();
            continue;
        }
        let next = pace.next(start, config.interval);
        tokio::select! {
            () = sleep_until(next) => {}
            Ok(()) = alarms.changed() => sleep_until(next.min(pace.first(Instant::now(), config.fast_interval))).await,
        }
    }
}

/// Has the others of a service checked soon, at most once in an `interval`: one that flaps does not have all checked fast.
fn raise(alarm: &Alarm, interval: Duration) {
    let now = Instant::now();
    alarm.send_if_modified(|last| {
        let may = last.is_none_or(|last| now.saturating_duration_since(last) >= interval);
        if may {
            *last = Some(now);
        }
        may
    });
}

/// Checks once, by what was made ready before if it could be.
async fn once(check: &mut Option<Check>, whom: &Whom, config: &CheckConfig) -> io::Result<CheckOutcome> {
    let check = match check {
        Some(check) => check,
        None => check.insert(Check::new(whom, config).await?),
    };
    check.run().await
}

#[cfg(test)]
pub(super) mod tests {
    use std::{
        collections::HashSet,
        net::SocketAddr,
        sync::atomic::{AtomicUsize, Ordering},
    };

    use balancer_core::health::Health;
    use balancer_model::{
        config::{CheckKind, HttpCheck, StatusRanges},
        fixture,
    };
    use tokio::{io::AsyncReadExt as _, net::TcpListener};

    use super::*;

    /// A check that its backend's number names.
    pub(in crate::prober) fn spec(number: u16, target: SocketAddr, check: CheckConfig) -> CheckSpec {
        let (backend, number) = (BackendId(number), CheckNumber(number.into()));
        CheckSpec { backend, number, name: fixture::name("web/web1"), target, check, health: Health::default() }
    }

    /// Servers that take connections and say nothing hold up checks, and no check has more connections than it may.
    #[tokio::test]
    async fn so_many_are_under_way_at_once_and_no_more() {
        const AT_ONCE: usize = 2;
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let target = listener.local_addr().unwrap();
        let (events, mut told) = mpsc::channel(16);
        let (orders, given) = mpsc::unbounded_channel();
        tokio::spawn(Rounds::new(events, Ways::default(), AT_ONCE).follow(given));
        let interval = Duration::from_millis(100);
        let http = HttpCheck {
            port: None,
            tls: None,
            method: "GET".to_owned(),
            path: "/".to_owned(),
            host: None,
            expect_status: StatusRanges(vec![(200, 399)]),
            expect_body: None,
        };
        let kind = CheckKind::Http(http);
        let check = CheckConfig { kind, interval, timeout: interval, fast_interval: interval, ..fixture::check() };
        for number in 1..=5 {
            orders.send(Order::Start(Box::new(spec(number, target, check.clone())))).unwrap();
        }
        let count = Arc::new(AtomicUsize::new(0));
        let mut checked = HashSet::new();
        while checked.len() < 5 {
            tokio::select! {
                accepted = listener.accept() => {
                    let mut stream = accepted.unwrap().0;
                    count.fetch_add(1, Ordering::SeqCst);
                    let open = Arc::clone(&count);
                    tokio::spawn(async move {
                        let mut bytes = [0; 64];
                        while matches!(stream.read(&mut bytes).await, Ok(1..)) {}
                        open.fetch_sub(1, Ordering::SeqCst);
                    });
                    // One that has ended may be heard of after the next has begun.
                    tokio::time::sleep(interval / 5).await;
                    assert!(count.load(Ordering::SeqCst) <= AT_ONCE, "more than {AT_ONCE} at once");
                }
                event = told.recv() => {
                    let Some(Event::Checked { backend, outcome, .. }) = event else { panic!("{event:?}") };
                    assert!(matches!(outcome, CheckOutcome::Hard(_)), "{outcome:?}");
                    checked.insert(backend);
                }
            }
        }
    }

    /// Of three backends one begins to fail; the others are checked long before their next check would come.
    #[tokio::test]
    async fn when_one_of_a_service_begins_to_fail_then_the_others_are_checked_soon() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (works, fails) = (listener.local_addr().unwrap(), "127.0.0.1:1".parse().unwrap());
        let (events, mut told) = mpsc::channel(64);
        let (orders, given) = mpsc::unbounded_channel();
        tokio::spawn(Rounds::new(events, Ways::default(), 8).follow(given));
        let hour = Duration::from_secs(3600);
        let check =
            CheckConfig { interval: hour, fast_interval: Duration::from_millis(100), fall: 1, ..fixture::check() };
        let order = |number, target| {
            orders.send(Order::Start(Box::new(spec(number, target, check.clone())))).unwrap();
        };
        order(1, works);
        order(2, works);
        let mut next = async || match told.recv().await {
            Some(Event::Checked { backend, outcome, .. }) => (backend.0, outcome == CheckOutcome::Passed),
            other => panic!("{other:?}"),
        };
        let first: HashSet<_> = [next().await, next().await].into();
        assert_eq!(first, [(1, true), (2, true)].into());
        order(3, fails);
        let then: HashSet<_> = [next().await, next().await, next().await].into();
        assert_eq!(then, [(1, true), (2, true), (3, false)].into());
    }

    /// One that waits for its next check; there may be 60,000.
    #[tokio::test]
    async fn a_check_that_waits_is_small() {
        let spec = spec(1, "127.0.0.1:1".parse().unwrap(), fixture::check());
        let (found, _told) = mpsc::channel(1);
        let pace = Pace::new(fastrand::Rng::new(), Instant::now());
        let alarm = Arc::new(watch::Sender::new(None));
        let size = size_of_val(&run(spec, Ways::default(), (pace, alarm), Arc::new(Semaphore::new(1)), found));
        assert!(size < 2048, "{size} bytes");
    }

    #[tokio::test]
    async fn a_check_that_panics_ends_them_all() {
        let (events, _told) = mpsc::channel(1);
        let (_orders, given) = mpsc::unbounded_channel();
        let mut rounds = Rounds::new(events, Ways::default(), 1);
        rounds.running.spawn(async { panic!("no such number") });
        let ended = tokio::spawn(rounds.follow(given)).await;
        assert!(ended.is_err_and(|error| error.to_string().contains("no such number")));
    }
}
