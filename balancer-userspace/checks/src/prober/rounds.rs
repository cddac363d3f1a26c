//! Runs the checks of all backends, with one task for each backend, and passes the outcomes to the controller.

use std::{
    collections::{HashMap, VecDeque},
    future::pending,
    io, panic,
    sync::{Arc, Weak},
    time::Duration,
};

use balancer_common::verdict::Signal;
use balancer_config::config::CheckConfig;
use balancer_control::{
    counting::Counting,
    io::{BackendId, CheckNumber, CheckOutcome, CheckSpec, Event},
};
use tokio::{
    sync::{Semaphore, mpsc, watch},
    task::{AbortHandle, JoinSet},
    time::{Instant, sleep_until},
};

use super::{
    check::{Check, CheckedBackend},
    count::{Alarm, CheckResult, Count},
    load::LoadReceiver,
    pace::Pace,
    series::{self, Requests, Series},
    service_path::BackendPaths,
};

/// The maximum time for which the prober holds a routine outcome, so that the controller wakes only once for several
/// outcomes.
const HELD: Duration = Duration::from_millis(100);
/// The maximum number of outcomes that wait for the controller; at this number, checks wait.
const FOUND: usize = 1024;

/// An instruction to the prober's thread.
#[derive(Debug)]
pub(super) enum Order {
    Start(Box<CheckSpec>),
    Stop(BackendId),
    /// Check the backend at once, because of this signal that it has failed.
    Suspect(BackendId, Signal),
}

/// The running task that checks a backend.
struct Checks {
    number: CheckNumber,
    task: AbortHandle,
    requests: Arc<Requests>,
}

/// The tasks that check backends, and the results that the controller has not received yet.
pub(super) struct Rounds {
    events: mpsc::Sender<Event>,
    ways: BackendPaths,
    hearer: LoadReceiver,
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
    pub(super) fn new(
        events: mpsc::Sender<Event>,
        (ways, hearer): (BackendPaths, LoadReceiver),
        at_once: usize,
    ) -> Self {
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

    fn obey(&mut self, order: Order, found: &mpsc::Sender<CheckResult>) {
        let backend = match &order {
            Order::Start(spec) => spec.backend,
            Order::Stop(backend) => *backend,
            Order::Suspect(backend, signal) => {
                if let Some(checks) = self.tasks.get(backend) {
                    checks.requests.add(*signal);
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
            let requests = Arc::new(Requests::default());
            let news = News { alarm, requests: Arc::clone(&requests) };
            let means = (self.ways.clone(), self.hearer.clone());
            let task = self.running.spawn(run(spec, means, (pace, news), permits, found.clone()));
            self.tasks.insert(backend, Checks { number, task, requests });
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
    fn hold(&mut self, found: CheckResult) -> bool {
        let CheckResult { backend, number, outcome, took, asked, matters } = found;
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
    requests: Arc<Requests>,
}

/// Runs the checks of one backend.
async fn run(
    spec: Box<CheckSpec>,
    (ways, hearer): (BackendPaths, LoadReceiver),
    (mut pace, News { alarm, requests }): (Pace, News),
    permits: Arc<Semaphore>,
    found: mpsc::Sender<CheckResult>,
) {
    let CheckSpec { backend, number, name, target, check: config, restart_grace, health } = *spec;
    let first = if health.is_pending() { config.fast_interval } else { config.interval };
    let due = pace.first(Instant::now(), first);
    let whom = CheckedBackend { backend, name, target, ways, hearer };
    let mut alarms = alarm.subscribe();
    let mut check = None;
    let name = whom.name.clone();
    let mut count = Count {
        backend,
        number,
        name,
        config,
        restart_grace,
        health,
        counting: Counting::default(),
        hindered: false,
        found,
        alarm,
    };
    let mut series = Series::new(requests);
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
            Some(outcome) => {
                let told = count.add(outcome, start, false).await;
                series.checked(count.fails());
                told
            }
            None => Box::pin(series::run(&whom, &mut count, &permits, &mut series)).await,
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
                    if Box::pin(series::run(&whom, &mut count, &permits, &mut series)).await.is_err() {
                        return;
                    }
                    alarms.mark_unchanged();
                }
            }
        }
        alarms.mark_unchanged();
    }
}

/// Runs a check once. If an earlier preparation of the check failed, the function prepares the check first.
async fn once(check: &mut Option<Check>, whom: &CheckedBackend, config: &CheckConfig) -> io::Result<CheckOutcome> {
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
    use balancer_control::health::Health;
    use tokio::{
        io::{AsyncReadExt as _, AsyncWriteExt as _},
        net::TcpListener,
    };

    use super::*;

    /// A check specification for the backend with the number `number`.
    pub(in crate::prober) fn spec(number: u16, target: SocketAddr, check: CheckConfig) -> CheckSpec {
        let (backend, number) = (BackendId(number), CheckNumber(number.into()));
        let (name, health) = (fixture::name("web/web1"), Health::default());
        CheckSpec { backend, number, name, target, check, restart_grace: Duration::ZERO, health }
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

    /// A server that listens, and running rounds with the channels for orders and events.
    async fn listening() -> (TcpListener, mpsc::UnboundedSender<Order>, mpsc::Receiver<Event>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (events, told) = mpsc::channel(64);
        let (orders, given) = mpsc::unbounded_channel();
        tokio::spawn(Rounds::new(events, Default::default(), 8).follow(given));
        (listener, orders, told)
    }

    /// The server dies between two checks that are an hour apart.
    #[tokio::test]
    async fn when_a_dead_backend_is_suspected_then_its_verdict_is_there_at_once() {
        let (listener, orders, mut told) = listening().await;
        let target = listener.local_addr().unwrap();
        let hour = Duration::from_secs(3600);
        let check = CheckConfig { interval: hour, fast_interval: hour, fall: 3, ..fixture::check() };
        orders.send(Order::Start(Box::new(spec(1, target, check)))).unwrap();
        let mut next = async || match tokio::time::timeout(Duration::from_secs(30), told.recv()).await {
            Ok(Some(Event::Checked { outcome, .. })) => Some(outcome == CheckOutcome::Passed),
            _ => None,
        };
        assert_eq!(next().await, Some(true));
        // The backend works, as a single check shows.
        orders.send(Order::Suspect(BackendId(1), Signal::Refused)).unwrap();
        assert_eq!(next().await, Some(true));
        drop(listener);
        // The next series must not begin until a second has passed since the last series.
        tokio::time::sleep(Duration::from_millis(1100)).await;
        orders.send(Order::Suspect(BackendId(1), Signal::Refused)).unwrap();
        assert_eq!([next().await, next().await, next().await], [Some(false); 3]);
        // The verdict has been reached, so the prober runs no further series.
        tokio::time::sleep(Duration::from_millis(1100)).await;
        orders.send(Order::Suspect(BackendId(1), Signal::Refused)).unwrap();
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
        (1..=DYING).for_each(|number| orders.send(Order::Suspect(BackendId(number), Signal::Refused)).unwrap());
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
        let (listener, orders, mut told) = listening().await;
        let target = listener.local_addr().unwrap();
        let (interval, timeout) = (Duration::from_millis(100), Duration::from_secs(3600));
        let check = CheckConfig { interval, timeout, fast_interval: interval, ..http() };
        orders.send(Order::Start(Box::new(spec(1, target, CheckConfig { fall: 3, ..check })))).unwrap();
        let hanging = listener.accept().await.unwrap();
        orders.send(Order::Suspect(BackendId(1), Signal::Refused)).unwrap();
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
        orders.send(Order::Suspect(BackendId(1), Signal::Refused)).unwrap();
        assert_eq!(next().await, (CheckOutcome::Late("http: timeout after 1s".to_owned()), true));
        orders.send(Order::Suspect(BackendId(1), Signal::Refused)).unwrap();
        assert_eq!(next().await, (CheckOutcome::Passed, true));
    }

    /// Starts the checks of a server that listens at the returned listener; its first check has passed.
    async fn restarting(grace: Duration, fall: u32) -> (TcpListener, Orders, Told) {
        let (listener, orders, mut told) = listening().await;
        let target = listener.local_addr().unwrap();
        let hour = Duration::from_secs(3600);
        let check = CheckConfig { interval: hour, fast_interval: hour, fall, ..fixture::check() };
        let spec = CheckSpec { restart_grace: grace, ..spec(1, target, check) };
        orders.send(Order::Start(Box::new(spec))).unwrap();
        assert_eq!(next(&mut told).await, CheckOutcome::Passed);
        (listener, orders, told)
    }

    type Orders = mpsc::UnboundedSender<Order>;
    type Told = mpsc::Receiver<Event>;

    async fn next(told: &mut Told) -> CheckOutcome {
        match tokio::time::timeout(Duration::from_secs(30), told.recv()).await {
            Ok(Some(Event::Checked { outcome, .. })) => outcome,
            other => panic!("{other:?}"),
        }
    }

    /// No regular check is due, so only the series notices that the server is back.
    #[tokio::test]
    async fn when_a_server_restarts_within_the_grace_then_no_refusal_counts_and_the_series_goes_on_until_it_is_back() {
        for fall in [1, 3] {
            let (listener, orders, mut told) = restarting(Duration::from_secs(3600), fall).await;
            let target = listener.local_addr().unwrap();
            drop(listener);
            orders.send(Order::Suspect(BackendId(1), Signal::Refused)).unwrap();
            for _ in 0..5 {
                assert_eq!(next(&mut told).await, CheckOutcome::Shut("connect: refused".to_owned()));
            }
            let _back = TcpListener::bind(target).await.unwrap();
            while next(&mut told).await != CheckOutcome::Passed {}
        }
    }

    #[tokio::test]
    async fn when_a_server_is_gone_for_longer_than_the_grace_then_refusals_count() {
        let (listener, orders, mut told) = restarting(Duration::from_millis(300), 3).await;
        drop(listener);
        orders.send(Order::Suspect(BackendId(1), Signal::Refused)).unwrap();
        let mut outcomes = Vec::new();
        while !matches!(outcomes.last(), Some(CheckOutcome::Hard(_))) {
            outcomes.push(next(&mut told).await);
        }
        let shut = outcomes.iter().filter(|outcome| matches!(outcome, CheckOutcome::Shut(_))).count();
        assert_eq!((shut + 1, shut > 0), (outcomes.len(), true), "{outcomes:?}");
    }

    /// Up to 60,000 checks may wait for the time at which they start again.
    #[tokio::test]
    async fn when_a_check_waits_then_it_takes_little_memory() {
        let spec = Box::new(spec(1, "127.0.0.1:1".parse().unwrap(), fixture::check()));
        let (found, _told) = mpsc::channel(1);
        let pace = Pace::new(fastrand::Rng::new(), Instant::now());
        let news = News { alarm: Arc::new(watch::Sender::new(None)), requests: Arc::default() };
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
