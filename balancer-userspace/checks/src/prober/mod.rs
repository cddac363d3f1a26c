//! Runs health checks on a separate thread, which reports the outcome of every check.

mod body;
mod check;
#[cfg(test)]
mod check_test;
mod count;
mod datagram;
#[cfg(test)]
mod datagram_test;
mod dns;
mod exec;
#[cfg(test)]
mod exec_test;
mod fault;
mod files;
mod grpc;
mod http;
mod http2;
#[cfg(test)]
mod http2_test;
mod identity;
mod load;
mod pace;
mod question;
mod rounds;
mod series;
mod service_path;
mod talk;
mod tls;

use std::{
    collections::HashSet,
    io,
    net::{IpAddr, SocketAddr},
    sync::Arc,
};

use balancer_common::verdict::Signal;
use balancer_config::config::CheckKind;
use balancer_control::io::{BackendId, BackendSpec, CheckOutcome, CheckSpec, Event};
use balancer_runtime::{
    precedence,
    supervisor::{Supervisor, Thread},
};
use nix::sys::resource::{Resource, getrlimit};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    runtime,
    sync::{Semaphore, mpsc},
};

pub(crate) use self::check::socket;
use self::{
    load::LoadReceiver,
    question::Question,
    rounds::{Order, Rounds},
    service_path::BackendPaths,
};
use crate::load_report::LoadReports;

/// Runs a check over HTTP or gRPC on `stream`, which is connected to `target`, and judges the answer.
///
/// # Errors
/// Fails if this machine lacks the resources, or if the check is of another kind.
pub async fn ask_over(
    target: SocketAddr,
    check: &CheckKind,
    stream: impl AsyncRead + AsyncWrite + Unpin,
) -> io::Result<CheckOutcome> {
    let question = match check {
        CheckKind::Http(http) => Question::of_page(target, http, None)?,
        CheckKind::Grpc(grpc) => Question::of_service(target, grpc)?,
        CheckKind::None | CheckKind::Tcp { .. } | CheckKind::Udp(_) | CheckKind::Dns(_) | CheckKind::Exec(_) => {
            return Err(io::Error::other(format!("{check} has no question")));
        }
    };
    Ok(question.ask(question.means().await?, stream).await)
}

/// Checks may use at most this fraction (1/`SHARE`) of the file descriptors that the process may open. Many backends
/// may stop answering at the same time, and the rest of the process and check programs need file descriptors as well.
const SHARE: u64 = 4;

/// The maximum number of concurrent checks.
fn at_once() -> io::Result<usize> {
    let (files, _) = getrlimit(Resource::RLIMIT_NOFILE)?;
    Ok(usize::try_from(files / SHARE).unwrap_or(usize::MAX).clamp(1, Semaphore::MAX_PERMITS))
}

/// The running health checks. Dropping this value ends all checks.
#[derive(Debug)]
pub struct Prober {
    orders: Option<mpsc::UnboundedSender<Order>>,
    thread: Option<Thread>,
    ways: BackendPaths,
    hearer: LoadReceiver,
}

impl Drop for Prober {
    fn drop(&mut self) {
        let thread = self.thread.take().inspect(Thread::release);
        self.orders = None;
        if let Some(thread) = thread {
            thread.join();
        }
    }
}

impl Prober {
    /// Starts the thread, which does not run any checks yet. Outcomes go to `events` as [`Event::Checked`]: at once if
    /// the controller may have to act, and within 100 ms if the controller only counts them. If the channel `events` is
    /// full, checks wait.
    ///
    /// # Errors
    /// Fails if the thread cannot be started, or if the limit of open files cannot be read.
    pub fn new(events: mpsc::Sender<Event>, supervisor: &Supervisor) -> io::Result<Self> {
        // All sockets and timers of checks belong to this thread, so an outcome wakes only its own check, and a slow
        // TLS handshake delays no change.
        let runtime = runtime::Builder::new_current_thread().enable_all().build()?;
        let (orders, given) = mpsc::unbounded_channel();
        let ways = BackendPaths::default();
        let hearer = LoadReceiver::default();
        let rounds = Rounds::new(events, (ways.clone(), hearer.clone()), at_once()?);
        let thread = supervisor.thread("the health checks", move || {
            // The main loop reports if a thread was refused precedence.
            let _ = precedence::take();
            runtime.block_on(rounds.follow(given));
        })?;
        Ok(Self { orders: Some(orders), thread: Some(thread), ways, hearer })
    }

    /// Starts to check a backend; if the backend is already checked, replaces the earlier check and continues its
    /// counts. The first check starts at a random moment within 500 ms (or within `interval`, if `interval` is
    /// shorter), so that the checks of many backends do not coincide. Each further check starts `interval` ± 10% after
    /// the start of the previous check, or `fast_interval` ± 10% while a verdict is pending. Two checks of one backend
    /// never overlap. With [`CheckKind::None`], the prober checks nothing.
    pub fn start(&mut self, spec: CheckSpec) {
        match spec.check.kind {
            CheckKind::None => self.stop(spec.backend),
            CheckKind::Tcp { .. }
            | CheckKind::Http(_)
            | CheckKind::Grpc(_)
            | CheckKind::Udp(_)
            | CheckKind::Dns(_)
            | CheckKind::Exec(_) => self.order(Order::Start(Box::new(spec))),
        }
    }

    /// Sets the data path's path to a backend, for checks that use this path.
    pub fn set_way(&self, row: Arc<BackendSpec>) {
        self.ways.insert(row);
    }

    /// Forgets the data path's path to a backend.
    pub fn forget_way(&self, backend: BackendId) {
        self.ways.remove(backend);
    }

    /// Makes the prober report the `X-Load` headers of answers to HTTP checks to `reports` from now on.
    pub fn tell_words(&self, reports: LoadReports) {
        self.hearer.set(reports);
    }

    /// Sets the VIPs of all services. No check uses a VIP as its source, because backends also have the VIPs.
    pub fn set_vips(&self, vips: HashSet<IpAddr>) {
        self.ways.set_vips(vips);
    }

    /// Checks a suspected backend immediately and then every 50 ms, until `fall` consecutive checks have failed or one
    /// check has passed. The prober starts at most one such series of checks per second for a backend, and fewer if
    /// signals of this kind were wrong before.
    pub fn suspect(&self, backend: BackendId, signal: Signal) {
        self.order(Order::Suspect(backend, signal));
    }

    /// Ends the checks of `backend`. An outcome of an earlier check may still be in the channel.
    pub fn stop(&mut self, backend: BackendId) {
        self.order(Order::Stop(backend));
    }

    fn order(&self, order: Order) {
        if let Some(orders) = &self.orders {
            // If the thread has ended, no checks run any more, but then the process ends as well.
            let _ = orders.send(order);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use balancer_config::{
        config::{CheckConfig, ExecCheck},
        fixture,
    };
    use balancer_control::{
        health::Health,
        io::{CheckNumber, CheckOutcome},
    };
    use nix::unistd::geteuid;
    use tokio::net::TcpListener;

    use super::{rounds::tests::spec, *};

    fn tcp() -> CheckConfig {
        let interval = Duration::from_millis(100);
        CheckConfig { interval, timeout: interval, fast_interval: interval, fall: 1, rise: 1, ..fixture::check() }
    }

    async fn next(events: &mut mpsc::Receiver<Event>) -> (BackendId, CheckOutcome) {
        let event = tokio::time::timeout(Duration::from_secs(30), events.recv()).await.expect("an event");
        let Some(Event::Checked { backend, outcome, .. }) = event else { panic!("{event:?}") };
        (backend, outcome)
    }

    #[tokio::test]
    async fn when_a_server_dies_and_returns_then_its_checks_follow() {
        let (sender, mut events) = mpsc::channel(1);
        let mut prober = Prober::new(sender, &Supervisor::default()).unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let target = listener.local_addr().unwrap();
        prober.start(spec(7, target, tcp()));
        assert_eq!(next(&mut events).await, (BackendId(7), CheckOutcome::Passed));
        assert_eq!(next(&mut events).await, (BackendId(7), CheckOutcome::Passed));
        drop(listener);
        while next(&mut events).await.1 != CheckOutcome::Hard("connect: refused".to_owned()) {}
        let _listener = TcpListener::bind(target).await.unwrap();
        while next(&mut events).await.1 != CheckOutcome::Passed {}
    }

    #[tokio::test]
    async fn when_checks_are_started_again_or_stopped_then_the_earlier_ones_end() {
        let (sender, mut events) = mpsc::channel(1);
        let mut prober = Prober::new(sender, &Supervisor::default()).unwrap();
        let open = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let closed = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
        prober.start(spec(1, open.local_addr().unwrap(), tcp()));
        next(&mut events).await;
        prober.start(spec(1, closed, tcp()));
        while next(&mut events).await.1 == CheckOutcome::Passed {}
        assert!(matches!(next(&mut events).await.1, CheckOutcome::Hard(_)));

        prober.start(spec(1, closed, CheckConfig { kind: CheckKind::None, ..tcp() }));
        prober.start(spec(2, closed, tcp()));
        while next(&mut events).await.0 != BackendId(2) {}
        for _ in 0..3 {
            assert_eq!(next(&mut events).await.0, BackendId(2));
        }
        drop(prober);
        // The channel closes after the last task has ended.
        while events.recv().await.is_some() {}
    }

    /// The test measures the time between checks of a server that first refuses connections and then accepts them.
    #[tokio::test]
    async fn when_a_verdict_is_pending_then_checks_come_faster() {
        let (sender, mut events) = mpsc::channel(1);
        let mut prober = Prober::new(sender, &Supervisor::default()).unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let target = listener.local_addr().unwrap();
        drop(listener);
        // Regular checks are an hour apart, so that only fast checks run during the test.
        let hour = Duration::from_secs(3600);
        let check = CheckConfig {
            interval: hour,
            timeout: Duration::from_secs(10),
            fast_interval: Duration::from_millis(100),
            fall: 3,
            rise: 1000,
            ..tcp()
        };
        prober.start(spec(1, target, check));
        for _ in 0..3 {
            assert_eq!(next(&mut events).await.1, CheckOutcome::Hard("connect: refused".to_owned()));
        }
        // The verdict has been reached, so no further check follows.
        assert!(tokio::time::timeout(Duration::from_millis(500), events.recv()).await.is_err());
    }

    #[tokio::test]
    async fn when_a_check_is_started_again_then_counting_continues() {
        let (sender, mut events) = mpsc::channel(1);
        let mut prober = Prober::new(sender, &Supervisor::default()).unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let target = listener.local_addr().unwrap();
        drop(listener);
        // The next check follows soon only while a verdict is pending.
        let check = CheckConfig { interval: Duration::from_secs(3600), fall: 4, ..tcp() };
        let mut health = Health::default();
        (0..2).for_each(|_| health.record(&CheckOutcome::Hard("connect: refused".to_owned()), &check));
        let number = CheckNumber(9);
        prober.start(CheckSpec { number, health, ..spec(1, target, check) });
        for _ in 0..2 {
            let event = tokio::time::timeout(Duration::from_secs(30), events.recv()).await.expect("an event");
            let Some(Event::Checked { check, .. }) = event else { panic!("{event:?}") };
            assert_eq!(check, number);
        }
        assert!(tokio::time::timeout(Duration::from_millis(500), events.recv()).await.is_err(), "the verdict is there");
    }

    #[tokio::test]
    async fn when_a_program_cannot_be_started_then_nothing_is_said_about_the_backend() {
        let (sender, mut events) = mpsc::channel(1);
        let mut prober = Prober::new(sender, &Supervisor::default()).unwrap();
        let exec =
            ExecCheck { port: None, command: vec!["/nonexistent/check".to_owned()], user: ExecCheck::default_user() };
        let check = CheckConfig { kind: CheckKind::Exec(exec), ..tcp() };
        prober.start(spec(1, "127.0.0.1:80".parse().unwrap(), check));
        let why = if geteuid().is_root() {
            "cannot start \"/nonexistent/check\": No such file or directory (os error 2)"
        } else {
            "cannot run a program as user \"nobody\""
        };
        let CheckOutcome::Hindered(told) = next(&mut events).await.1 else { panic!("it was started") };
        assert!(told.starts_with(why), "{told}");
    }
}
