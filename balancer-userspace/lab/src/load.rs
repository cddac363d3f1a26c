//! Clients that continuously send requests, each client in its own session.

use std::{
    collections::BTreeMap,
    io,
    net::SocketAddr,
    rc::Rc,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use balancer_demo::{http_client::whole_body, namespace::Entrance};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpSocket,
    task::LocalSet,
};

use crate::{
    client::{Answer, Client, Request, Verdict},
    interrupt,
    tally::Seen,
};

/// The time limit for a request.
const TIMEOUT: Duration = Duration::from_secs(5);
/// The time between two checks of a condition.
const GLANCE: Duration = Duration::from_millis(10);
/// The maximum length of an answer in bytes.
const LONGEST: usize = 64 << 10;

/// The clients, the address to which they send requests, and the rate.
#[derive(Clone, Debug)]
pub(crate) struct Plan {
    /// For each client: the number of the client, the number of its address, and the address.
    pub(crate) clients: Vec<(u16, u16, SocketAddr)>,
    pub(crate) target: SocketAddr,
    pub(crate) refuses_cookies: bool,
    /// The average time from one request of a client to the next.
    pub(crate) pause: Duration,
}

/// The current state of a client.
#[derive(Clone, Debug, Default)]
struct Standing {
    settled: bool,
    server: Option<String>,
    finished: u64,
}

#[derive(Debug)]
struct Shared {
    stop: AtomicBool,
    paused: AtomicBool,
    under_way: AtomicUsize,
    /// The longest delay with which a timer fired, in microseconds.
    late: AtomicU64,
    begin: Instant,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    recorded: Option<Vec<Seen>>,
    standing: BTreeMap<u16, Standing>,
    last_failure: String,
}

/// The running clients of the lab. Dropping the value ends the clients.
#[derive(Debug)]
pub(crate) struct Load {
    shared: Arc<Shared>,
    addresses: BTreeMap<u16, u16>,
    thread: Option<thread::JoinHandle<Result<()>>>,
}

impl Load {
    pub(crate) fn start(entrance: Entrance, plan: Plan) -> Self {
        let shared = Arc::new(Shared {
            stop: AtomicBool::new(false),
            paused: AtomicBool::new(false),
            under_way: AtomicUsize::new(0),
            late: AtomicU64::new(0),
            begin: Instant::now(),
            state: Mutex::default(),
        });
        let addresses: BTreeMap<u16, u16> =
            plan.clients.iter().map(|&(number, address, _)| (number, address)).collect();
        shared.state().standing = addresses.keys().map(|&client| (client, Standing::default())).collect();
        let inside = Arc::clone(&shared);
        let thread = thread::spawn(move || {
            entrance.enter()?;
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            let local = LocalSet::new();
            let plan = Rc::new(plan);
            for &(number, address, source) in &plan.clients {
                local.spawn_local(live(Arc::clone(&inside), Rc::clone(&plan), number, address, source));
            }
            local.spawn_local(watch_timers(Arc::clone(&inside)));
            runtime.block_on(local);
            Ok(())
        });
        Self { shared, addresses, thread: Some(thread) }
    }

    /// Waits until every client has a session and its last request has succeeded; unless sessions are `lasting`, waits
    /// until every client has begun a session.
    pub(crate) fn wait_settled(&self, limit: Duration, lasting: bool) -> Result<()> {
        let deadline = Instant::now() + limit;
        loop {
            let state = self.shared.state();
            let open = state
                .standing
                .values()
                .filter(|standing| if lasting { !standing.settled } else { standing.server.is_none() })
                .count();
            let failure = state.last_failure.clone();
            drop(state);
            if open == 0 {
                return Ok(());
            }
            interrupt::check()?;
            ensure!(
                Instant::now() < deadline,
                "{open} clients have no session after {limit:?}; the last failure: {failure}"
            );
            thread::sleep(GLANCE);
        }
    }

    /// Waits until every client has finished this number of further requests, with or without success.
    pub(crate) fn wait_rounds(&self, rounds: u64, limit: Duration) {
        let counts = || -> BTreeMap<u16, u64> {
            self.shared.state().standing.iter().map(|(&client, standing)| (client, standing.finished)).collect()
        };
        let (before, deadline) = (counts(), Instant::now() + limit);
        while Instant::now() < deadline && counts().iter().any(|(client, finished)| finished - before[client] < rounds)
        {
            thread::sleep(GLANCE);
        }
    }

    /// Lets pending requests finish, and starts no new requests.
    pub(crate) fn pause(&self) {
        self.shared.paused.store(true, Ordering::SeqCst);
        while self.shared.under_way.load(Ordering::SeqCst) > 0 {
            thread::sleep(GLANCE);
        }
    }

    pub(crate) fn resume(&self) {
        self.shared.paused.store(false, Ordering::SeqCst);
    }

    /// Starts to record requests. The function returns for each client the number of its address, and the server that
    /// has its session.
    pub(crate) fn record(&self) -> BTreeMap<u16, (u16, String)> {
        self.shared.late.store(0, Ordering::SeqCst);
        let mut state = self.shared.state();
        state.recorded = Some(Vec::new());
        let known = |(&client, standing): (&u16, &Standing)| {
            let server = standing.settled.then(|| standing.server.clone()).flatten()?;
            Some((client, (*self.addresses.get(&client)?, server)))
        };
        state.standing.iter().filter_map(known).collect()
    }

    /// Returns the recorded requests, and the reason for the last failure, if there was one.
    pub(crate) fn recorded(&self) -> (Vec<Seen>, Option<String>) {
        let mut state = self.shared.state();
        let recorded = state.recorded.take().unwrap_or_default();
        let failed = recorded.iter().any(|seen| seen.verdict == Verdict::Failed);
        (recorded, failed.then(|| state.last_failure.clone()))
    }

    /// The longest time for which a client waited for a processor during the recording.
    pub(crate) fn late(&self) -> Duration {
        Duration::from_micros(self.shared.late.load(Ordering::SeqCst))
    }

    fn end(&mut self) -> Result<()> {
        self.shared.stop.store(true, Ordering::SeqCst);
        let Some(thread) = self.thread.take() else { return Ok(()) };
        thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)).context("the clients")
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        if let Err(error) = self.end() {
            eprintln!("{error:#}");
        }
    }
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn is_over(&self) -> bool {
        self.stop.load(Ordering::SeqCst)
    }

    fn note(&self, seen: Seen, settled: bool, failure: Option<String>) {
        let mut state = self.state();
        let standing = state.standing.entry(seen.client).or_default();
        standing.settled = settled;
        standing.finished += 1;
        if let Some(server) = &seen.server {
            standing.server = Some(server.clone());
        }
        state.last_failure = failure.unwrap_or_else(|| std::mem::take(&mut state.last_failure));
        if let Some(recorded) = &mut state.recorded {
            recorded.push(seen);
        }
    }
}

async fn watch_timers(shared: Arc<Shared>) {
    while !shared.is_over() {
        let begin = Instant::now();
        tokio::time::sleep(GLANCE).await;
        let late = begin.elapsed().saturating_sub(GLANCE).as_micros();
        shared.late.fetch_max(u64::try_from(late).unwrap_or(u64::MAX), Ordering::SeqCst);
    }
}

async fn live(shared: Arc<Shared>, plan: Rc<Plan>, number: u16, address: u16, source: SocketAddr) {
    let mut client = Client::new(number, plan.refuses_cookies);
    let mut first = true;
    while !shared.is_over() {
        // A random delay before the first request spreads the clients over time.
        let share = if first { fastrand::f64() } else { 0.5 + fastrand::f64() };
        first = false;
        tokio::time::sleep(plan.pause.mul_f64(share)).await;
        shared.under_way.fetch_add(1, Ordering::SeqCst);
        if !shared.paused.load(Ordering::SeqCst) {
            visit(&shared, &plan, &mut client, number, address, source).await;
        }
        shared.under_way.fetch_sub(1, Ordering::SeqCst);
    }
}

async fn visit(shared: &Shared, plan: &Plan, client: &mut Client, number: u16, address: u16, source: SocketAddr) {
    let request = client.request();
    let begin = Instant::now();
    let answered = tokio::time::timeout(TIMEOUT, ask(source, plan.target, &request)).await;
    let answered = answered.unwrap_or_else(|_| Err(io::Error::from(io::ErrorKind::TimedOut)));
    let took = begin.elapsed();
    let (verdict, server) = client.take(answered.as_ref().ok());
    let failure = (verdict == Verdict::Failed).then(|| match &answered {
        Ok(answer) => {
            let words = answer.body.split_whitespace().collect::<Vec<_>>().join(" ");
            format!("status {}: {}", answer.status, words.chars().take(200).collect::<String>())
        }
        Err(error) => error.to_string(),
    });
    let begin = begin.duration_since(shared.begin).as_secs_f64();
    let seen = Seen { client: number, address, begin, took: took.as_secs_f64(), verdict, server };
    shared.note(seen, client.is_settled(), failure);
}

async fn ask(source: SocketAddr, target: SocketAddr, request: &Request) -> io::Result<Answer> {
    let socket = TcpSocket::new_v4()?;
    socket.bind(source)?;
    let mut stream = socket.connect(target).await?;
    stream.set_nodelay(true)?;
    let Request { method, target: path, cookie, body } = request;
    let cookie = cookie.as_ref().map_or_else(String::new, |value| format!("Cookie: {value}\r\n"));
    let mut bytes = format!(
        "{method} {path} HTTP/1.1\r\nHost: {target}\r\nConnection: close\r\nContent-Type: application/octet-stream\r\n\
         Content-Length: {body}\r\n{cookie}\r\n"
    )
    .into_bytes();
    bytes.resize(bytes.len() + body, b'x');
    stream.write_all(&bytes).await?;
    let mut answer = Vec::new();
    while stream.read_buf(&mut answer).await? > 0 && answer.len() < LONGEST {}
    parse(&answer)
}

fn parse(bytes: &[u8]) -> io::Result<Answer> {
    let invalid = |what: &str| io::Error::new(io::ErrorKind::InvalidData, what.to_owned());
    let mut headers = [httparse::EMPTY_HEADER; 48];
    let mut response = httparse::Response::new(&mut headers);
    let parsed = response.parse(bytes).map_err(|error| invalid(&error.to_string()))?;
    let httparse::Status::Complete(head) = parsed else { return Err(invalid("the answer ended within its head")) };
    let values = |name: &str| -> Vec<String> {
        let named = response.headers.iter().filter(|header| header.name.eq_ignore_ascii_case(name));
        named.map(|header| String::from_utf8_lossy(header.value).into_owned()).collect()
    };
    let first = |name: &str| values(name).into_iter().next();
    let body = whole_body(&bytes[head..], first("transfer-encoding"), first("content-length"))?;
    Ok(Answer {
        status: response.code.unwrap_or_default(),
        cookies: values("set-cookie"),
        body: String::from_utf8_lossy(&body).into_owned(),
    })
}

#[cfg(test)]
mod tests {
    use super::parse;

    #[test]
    fn when_an_answer_comes_whole_or_in_chunks_then_it_is_read() {
        let whole = b"HTTP/1.1 200 OK\r\nSet-Cookie: a=1; Path=/\r\nset-cookie: b=2\r\nContent-Length: 2\r\n\r\nok";
        let chunks = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\no\r\n1\r\nk\r\n0\r\n\r\n";
        assert_eq!(parse(whole).unwrap().cookies, ["a=1; Path=/", "b=2"]);
        for answer in [&whole[..], &chunks[..]] {
            assert_eq!(parse(answer).unwrap().body, "ok");
            assert!(parse(&answer[..answer.len() - 6]).is_err());
        }
    }
}
