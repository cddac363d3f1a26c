//! Runs the checks of all backends, with one task for each backend, and passes the outcomes to the controller.

use std::{
    collections::{HashMap, VecDeque},
    future::pending,
    io, panic,
    sync::{Arc, Weak},
    time::Duration,
};

use balancer_config::{config::CheckConfig, names::BackendName};
use balancer_control::{
    health::{Health, Verdict},
    io::{BackendId, CheckNumber, CheckOutcome, CheckSpec, Event},
};
use tokio::{
    sync::{Notify, Semaphore, mpsc, watch},
    task::{AbortHandle, JoinSet},
    time::{Instant, sleep_until},
};

use super::{
    check::{Check, Whom},
    load::Hearer,
    pace::Pace,
    series::{self, Series},
    service_path::Ways,
    time_outs::TimeOuts,
};

/// The maximum time for which the prober holds a routine outcome, so that the controller wakes only once for several
/// outcomes.
const HELD: Duration = Duration::from_millis(100);
/// The maximum number of outcomes that wait for the controller; at this number, checks wait.
const FOUND: usize = 1024;

/// Notifies the checks of a service's backends when one of the backends begins to fail, so that the balancer detects an
/// outage of all backends before the first verdict.
type Alarm = watch::Sender<Option<Instant>>;

/// An instruction to the prober's thread.
#[derive(Debug)]
pub(super) enum Order {
    Start(Box<CheckSpec>),
    Stop(BackendId),
    /// Check the backend at once, because clients' packets suggest that it has failed.
    Suspect(BackendId),
}

/// The running task that checks a backend.
struct Checks {
    number: CheckNumber,
    task: AbortHandle,
    suspected: Arc<Notify>,
}

/// The result of a check.
pub(super) struct Found {
    pub(super) backend: BackendId,
    /// The number of the check in the sequence of checks of its backend.
    pub(super) number: CheckNumber,
    pub(super) outcome: CheckOutcome,
    pub(super) took: Duration,
    /// Whether a suspicion triggered the check.
    pub(super) asked: bool,
    /// Whether the result may change the controller's verdict about the backend.
    pub(super) matters: bool,
}

/// The tasks that check backends, and the results that the controller has not received yet.
pub(super) struct Rounds {
    events: mpsc::Sender<Event>,
    ways: Ways,
    hearer: Hearer,
    permits: Arc<Semaphore>,
    tasks: HashMap<BackendId, Checks>,
    /// The alarms of services, by the name of the service.
    alarms: HashMap<String, Weak<Alarm>>,
    running: JoinSet<()>,
    origin: Instant,
    held: VecDeque<(BackendId, Event)>,
    /// The time at which the prober must pass the held results to the controller.
    due: Option<Instant>,
}

impl Rounds {
    /// Makes a `Rounds` without tasks. At most `at_once` checks run at the same time; further checks wait.
    pub(super) fn new(events: mpsc::Sender<Event>, (ways, hearer): (Ways, Hearer), at_once: usize) -> Self {
        let (tasks, alarms, held) = (HashMap::new(), HashMap::new(), VecDeque::new());
        let permits = Arc::new(Semaphore::new(at_once));
        let origin = Instant::now();
        Self { events, ways, hearer, permits, tasks, alarms, running: JoinSet::new(), origin, held, due: None }
    }

    /// Follows orders until the sender is dropped. If a task panics, this function panics as well, because a backend
    /// without checks would keep its state forever.
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
            Order::Suspect(backend) => {
                if let Some(checks) = self.tasks.get(backend) {
                    checks.suspected.notify_one();
                }
                return;
            }
        };
        if let Some(checks) = self.tasks.remove(&backend) {
            checks.task.abort();
            self.held.retain(|(held, _)| *held != backend);
        }
        if let Order::Start(spec) = order {
            let pace = Pace::new(fastrand::Rng::new(), self.origin);
            let number = spec.number;
            let permits = Arc::clone(&self.permits);
            let alarm = self.alarm(&spec.name.service);
            let suspected = Arc::new(Notify::new());
            let news = News { alarm, suspected: Arc::clone(&suspected) };
            let means = (self.ways.clone(), self.hearer.clone());
            let task = self.running.spawn(run(*spec, means, (pace, news), permits, found.clone()));
            self.tasks.insert(backend, Checks { number, task, suspected });
        }
    }

    /// The alarm of a service, which exists as long as the prober checks a backend of the service.
    fn alarm(&mut self, service: &str) -> Arc<Alarm> {
        if let Some(alarm) = self.alarms.get(service).and_then(Weak::upgrade) {
            return alarm;
        }
        self.alarms.retain(|_, alarm| alarm.strong_count() > 0);
        let alarm = Arc::new(watch::Sender::new(None));
        self.alarms.insert(service.to_owned(), Arc::downgrade(&alarm));
        alarm
    }

    /// Holds a result until the controller receives it. The function returns whether the controller must get the result
    /// at once.
    fn hold(&mut self, found: Found) -> bool {
        let Found { backend, number, outcome, took, asked, matters } = found;
        if self.tasks.get(&backend).is_some_and(|checks| checks.number == number) {
            self.held.push_back((backend, Event::Checked { backend, check: number, outcome, took, asked }));
            self.due.get_or_insert_with(|| Instant::now() + HELD);
        }
        matters || self.held.len() == FOUND
    }
}

/// The events that make a check start earlier.
struct News {
    alarm: Arc<Alarm>,
    suspected: Arc<Notify>,
}

/// Runs the checks of one backend.
async fn run(
    spec: CheckSpec,
    (ways, hearer): (Ways, Hearer),
    (mut pace, News { alarm, suspected }): (Pace, News),
    permits: Arc<Semaphore>,
    found: mpsc::Sender<Found>,
) {
    let CheckSpec { backend, number, name, target, check: config, health } = spec;
    let first = if health.is_pending() { config.fast_interval } else { config.interval };
    let due = pace.first(Instant::now(), first);
    let whom = Whom { backend, name, target, ways, hearer };
    let mut alarms = alarm.subscribe();
    let mut check = None;
    let (name, time_outs) = (whom.name.clone(), TimeOuts::default());
    let mut count = Count { backend, number, name, config, health, time_outs, hindered: false, found, alarm };
    let mut series = Series::new(suspected);
    tokio::select! {
        () = sleep_until(due) => {}
        () = series.asked() => {}
    }
    loop {
        let Ok(permit) = permits.acquire().await else { return };
        let mut start = Instant::now();
        // If a series is requested, it cancels the running check, which may hang until its timeout.
        let outcome = tokio::select! {
            biased;
            outcome = once(&mut check, &whom, &count.config) => Some(outcome),
            () = series.asked() => None,
        };
        drop(permit);
        let told = match outcome {
            Some(outcome) => count.add(outcome, start, false).await,
            None => Box::pin(series::run(&whom, &mut count, &permits)).await,
        };
        if told.is_err() {
            return;
        }
        alarms.mark_unchanged();
        loop {
            let is_pending = count.health.is_pending();
            let next = pace.next(start, if is_pending { count.config.fast_interval } else { count.config.interval });
            tokio::select! {
                () = sleep_until(next) => break,
                Ok(()) = alarms.changed(), if !is_pending => {
                    sleep_until(next.min(pace.first(Instant::now(), count.config.fast_interval))).await;
                    break;
                }
                () = series.asked() => {
                    start = Instant::now();
                    if Box::pin(series::run(&whom, &mut count, &permits)).await.is_err() {
                        return;
                    }
                    alarms.mark_unchanged();
                }
            }
        }
        alarms.mark_unchanged();
    }
}

/// The counts of the results of a backend's checks so far.
pub(super) struct Count {
    backend: BackendId,
    number: CheckNumber,
    name: BackendName,
    pub(super) config: CheckConfig,
    /// The verdict about the backend, and the counts that lead to it. The controller gets the same outcomes, and counts
    /// them by the same rules.
    pub(super) health: Health,
    time_outs: TimeOuts,
    hindered: bool,
    found: mpsc::Sender<Found>,
    alarm: Arc<Alarm>,
}

/// The error that the receiver of results no longer exists.
pub(super) struct Ended;

impl Count {
    /// Counts a check that began at `start`, and reports its outcome. The report is immediate if the controller may
    /// have to act, or if a suspicion triggered the check (`asked`). A [time-out that does not count](TimeOuts) is not
    /// reported.
    pub(super) async fn add(
        &mut self,
        outcome: io::Result<CheckOutcome>,
        start: Instant,
        asked: bool,
    ) -> Result<(), Ended> {
        let outcome = outcome.unwrap_or_else(|error| {
            let why = error.to_string();
            if !self.hindered {
                tracing::warn!(
                    "backend {} cannot be checked: {why} on this machine; its health stays as it is",
                    self.name
                );
            }
            CheckOutcome::Hindered(why)
        });
        self.hindered = matches!(outcome, CheckOutcome::Hindered(_));
        match outcome {
            CheckOutcome::Late(_) if matches!(self.health.verdict(), Verdict::Down { .. }) => {}
            CheckOutcome::Late(_) if self.time_outs.counts((start, asked), self.config.interval) => {}
            CheckOutcome::Late(_) => return Ok(()),
            CheckOutcome::Passed => self.time_outs = TimeOuts::default(),
            CheckOutcome::Soft(_) | CheckOutcome::Hard(_) | CheckOutcome::Hindered(_) => {}
        }
        let (verdict, was_pending) = (self.health.verdict().clone(), self.health.is_pending());
        self.health.record(&outcome, &self.config);
        let failed_before = was_pending || matches!(verdict, Verdict::Down { .. });
        let fails = matches!(outcome, CheckOutcome::Soft(_) | CheckOutcome::Hard(_) | CheckOutcome::Late(_));
        let begins_to_fail = !failed_before && fails;
        let matters = asked || was_pending || self.health.is_pending() || *self.health.verdict() != verdict;
        let took = start.elapsed();
        let found = Found { backend: self.backend, number: self.number, outcome, took, asked, matters };
        self.found.send(found).await.map_err(|_| Ended)?;
        if begins_to_fail {
            raise(&self.alarm, self.config.interval);
        }
        Ok(())
    }
}

/// Triggers checks of the service's other backends, at most once per `interval`, so that a backend that keeps failing
/// and recovering does not cause constant checks.
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

/// Runs a check once. If an earlier preparation of the check failed, the function prepares the check first.
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

    use balancer_config::{
        config::{CheckKind, HttpCheck, StatusRanges},
        fixture,
    };
    use tokio::{
        io::{AsyncReadExt as _, AsyncWriteExt as _},
        net::TcpListener,
    };

    use super::*;

    /// A check specification for the backend with the number `number`.
    pub(in crate::prober) fn spec(number: u16, target: SocketAddr, check: CheckConfig) -> CheckSpec {
        let (backend, number) = (BackendId(number), CheckNumber(number.into()));
        CheckSpec { backend, number, name: fixture::name("web/web1"), target, check, health: Health::default() }
    }

    fn http() -> CheckConfig {
        let http = HttpCheck {
            port: None,
            tls: None,
            http2: false,
            method: "GET".to_owned(),
            path: "/".to_owned(),
            host: None,
            headers: Vec::new(),
            expect_status: StatusRanges(vec![(200, 399)]),
            expect_body: None,
        };
        CheckConfig { kind: CheckKind::Http(http), ..fixture::check() }
    }

    /// The servers accept connections and send nothing, so checks wait; together they have at most the allowed number
    /// of connections.
    #[tokio::test]
    async fn when_checks_wait_for_servers_then_only_so_many_run_at_once() {
        const AT_ONCE: usize = 2;
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let target = listener.local_addr().unwrap();
        let (events, mut told) = mpsc::channel(16);
        let (orders, given) = mpsc::unbounded_channel();
        tokio::spawn(Rounds::new(events, Default::default(), AT_ONCE).follow(given));
        let interval = Duration::from_millis(100);
        let check = CheckConfig { interval, timeout: interval, fast_interval: interval, ..http() };
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
                    // The test may notice the end of one check only after the next check has begun.
                    tokio::time::sleep(interval / 5).await;
                    assert!(count.load(Ordering::SeqCst) <= AT_ONCE, "more than {AT_ONCE} at once");
                }
                event = told.recv() => {
                    let Some(Event::Checked { backend, outcome, .. }) = event else { panic!("{event:?}") };
                    assert!(matches!(outcome, CheckOutcome::Late(_)), "{outcome:?}");
                    checked.insert(backend);
                }
            }
        }
    }

    /// When one of three backends begins to fail, the prober checks the other two long before their next regular check.
    #[tokio::test]
    async fn when_one_of_a_service_begins_to_fail_then_the_others_are_checked_soon() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (works, fails) = (listener.local_addr().unwrap(), "127.0.0.1:1".parse().unwrap());
        let (events, mut told) = mpsc::channel(64);
        let (orders, given) = mpsc::unbounded_channel();
        tokio::spawn(Rounds::new(events, Default::default(), 8).follow(given));
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

    /// The server dies between two checks that are an hour apart.
    #[tokio::test]
    async fn when_a_dead_backend_is_suspected_then_its_verdict_is_there_at_once() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let target = listener.local_addr().unwrap();
        let (events, mut told) = mpsc::channel(64);
        let (orders, given) = mpsc::unbounded_channel();
        tokio::spawn(Rounds::new(events, Default::default(), 8).follow(given));
        let hour = Duration::from_secs(3600);
        let check = CheckConfig { interval: hour, fast_interval: hour, fall: 3, ..fixture::check() };
        orders.send(Order::Start(Box::new(spec(1, target, check)))).unwrap();
        let mut next = async || match tokio::time::timeout(Duration::from_secs(30), told.recv()).await {
            Ok(Some(Event::Checked { outcome, .. })) => Some(outcome == CheckOutcome::Passed),
            _ => None,
        };
        assert_eq!(next().await, Some(true));
        // The backend works, as a single check shows.
        orders.send(Order::Suspect(BackendId(1))).unwrap();
        assert_eq!(next().await, Some(true));
        drop(listener);
        // The next series must not begin until a second has passed since the last series.
        tokio::time::sleep(Duration::from_millis(1100)).await;
        orders.send(Order::Suspect(BackendId(1))).unwrap();
        assert_eq!([next().await, next().await, next().await], [Some(false); 3]);
        // The verdict has been reached, so the prober runs no further series.
        tokio::time::sleep(Duration::from_millis(1100)).await;
        orders.send(Order::Suspect(BackendId(1))).unwrap();
        assert!(tokio::time::timeout(Duration::from_millis(500), next()).await.is_err());
    }

    #[tokio::test]
    async fn when_ten_of_a_thousand_backends_die_then_these_have_verdicts_and_the_others_are_checked_as_before() {
        const ALL: u16 = 1000;
        const DYING: u16 = 10;
        let (lives, dies) =
            (TcpListener::bind("127.0.0.1:0").await.unwrap(), TcpListener::bind("127.0.0.1:0").await.unwrap());
        let targets = [dies.local_addr().unwrap(), lives.local_addr().unwrap()];
        let accept = |listener: TcpListener| tokio::spawn(async move { while listener.accept().await.is_ok() {} });
        let (_lives, dies) = (accept(lives), accept(dies));
        let (events, mut told) = mpsc::channel(64);
        let (orders, given) = mpsc::unbounded_channel();
        tokio::spawn(Rounds::new(events, Default::default(), 64).follow(given));
        let (interval, timeout) = (Duration::from_millis(500), Duration::from_secs(30));
        let check = CheckConfig { interval, timeout, fast_interval: interval, fall: 3, ..fixture::check() };
        for number in 1..=ALL {
            let target = targets[usize::from(number > DYING)];
            orders.send(Order::Start(Box::new(spec(number, target, check.clone())))).unwrap();
        }
        let mut next = async || match tokio::time::timeout(Duration::from_secs(30), told.recv()).await {
            Ok(Some(Event::Checked { backend, outcome, .. })) => (backend.0, outcome),
            other => panic!("{other:?}"),
        };
        let mut passed = HashSet::new();
        while passed.len() < usize::from(ALL) {
            let (backend, outcome) = next().await;
            assert_eq!(outcome, CheckOutcome::Passed, "backend {backend}");
            passed.insert(backend);
        }
        dies.abort();
        drop(dies.await);
        (1..=DYING).for_each(|number| orders.send(Order::Suspect(BackendId(number))).unwrap());
        let (mut failed, mut passed) = (vec![0; usize::from(DYING) + 1], vec![0; usize::from(ALL) + 1]);
        while failed[1..].iter().any(|&failures| failures < 3)
            || passed[usize::from(DYING) + 1..].iter().any(|&passes| passes < 2)
        {
            match next().await {
                (backend, CheckOutcome::Passed) => passed[usize::from(backend)] += 1,
                (backend, CheckOutcome::Hard(_)) if backend <= DYING => failed[usize::from(backend)] += 1,
                other => panic!("{other:?}"),
            }
        }
    }

    /// The server accepts connections and sends nothing, so several checks wait for their timeouts at the same time.
    #[tokio::test]
    async fn when_a_check_hangs_as_its_backend_is_suspected_then_others_run_beside_it() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let target = listener.local_addr().unwrap();
        let (events, mut told) = mpsc::channel(64);
        let (orders, given) = mpsc::unbounded_channel();
        tokio::spawn(Rounds::new(events, Default::default(), 8).follow(given));
        let (interval, timeout) = (Duration::from_millis(100), Duration::from_secs(3600));
        let check = CheckConfig { interval, timeout, fast_interval: interval, ..http() };
        orders.send(Order::Start(Box::new(spec(1, target, CheckConfig { fall: 3, ..check })))).unwrap();
        let hanging = listener.accept().await.unwrap();
        orders.send(Order::Suspect(BackendId(1))).unwrap();
        let series =
            [listener.accept().await.unwrap(), listener.accept().await.unwrap(), listener.accept().await.unwrap()];
        drop((hanging, series));
        for _ in 0..3 {
            let event = tokio::time::timeout(Duration::from_secs(30), told.recv()).await.unwrap();
            assert!(matches!(event, Some(Event::Checked { outcome: CheckOutcome::Hard(_), .. })), "{event:?}");
        }
    }

    /// The server answers the first request and none of the next three, which are those of a series.
    #[tokio::test]
    async fn when_a_server_pauses_during_a_series_then_the_time_outs_count_once() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let target = listener.local_addr().unwrap();
        tokio::spawn(async move {
            let mut paused = Vec::new();
            for number in 0.. {
                let (mut stream, _) = listener.accept().await.unwrap();
                if (1..=3).contains(&number) {
                    paused.push(stream);
                } else {
                    let _ = stream.read(&mut [0; 1024]).await;
                    let _ = stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").await;
                }
            }
        });
        let (events, mut told) = mpsc::channel(64);
        let (orders, given) = mpsc::unbounded_channel();
        tokio::spawn(Rounds::new(events, Default::default(), 8).follow(given));
        let hour = Duration::from_secs(3600);
        let check = CheckConfig { interval: hour, timeout: Duration::from_secs(1), fast_interval: hour, ..http() };
        orders.send(Order::Start(Box::new(spec(1, target, CheckConfig { fall: 3, ..check })))).unwrap();
        let mut next = async || match tokio::time::timeout(Duration::from_secs(30), told.recv()).await {
            Ok(Some(Event::Checked { outcome, asked, .. })) => (outcome, asked),
            other => panic!("{other:?}"),
        };
        assert_eq!(next().await, (CheckOutcome::Passed, false));
        orders.send(Order::Suspect(BackendId(1))).unwrap();
        assert_eq!(next().await, (CheckOutcome::Late("http: timeout after 1s".to_owned()), true));
        orders.send(Order::Suspect(BackendId(1))).unwrap();
        assert_eq!(next().await, (CheckOutcome::Passed, true));
    }

    /// Up to 60,000 checks may wait for the time at which they start again.
    #[tokio::test]
    async fn when_a_check_waits_then_it_takes_little_memory() {
        let spec = spec(1, "127.0.0.1:1".parse().unwrap(), fixture::check());
        let (found, _told) = mpsc::channel(1);
        let pace = Pace::new(fastrand::Rng::new(), Instant::now());
        let news = News { alarm: Arc::new(watch::Sender::new(None)), suspected: Arc::new(Notify::new()) };
        let size = size_of_val(&run(spec, Default::default(), (pace, news), Arc::new(Semaphore::new(1)), found));
        assert!(size < 2048, "{size} bytes");
    }

    #[tokio::test]
    async fn when_a_check_panics_then_all_checks_end() {
        let (events, _told) = mpsc::channel(1);
        let (_orders, given) = mpsc::unbounded_channel();
        let mut rounds = Rounds::new(events, Default::default(), 1);
        rounds.running.spawn(async { panic!("no such number") });
        let ended = tokio::spawn(rounds.follow(given)).await;
        assert!(ended.is_err_and(|error| error.to_string().contains("no such number")));
    }
}
