//! An HTTP server for a listening socket, with limits on the number of connections, the time for requests, and the time
//! for answers.

use std::{
    collections::HashMap,
    convert::Infallible,
    future::pending,
    io,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};

use anyhow::anyhow;
use axum::{Router, body::Body};
use bytes::Bytes;
use hyper::{
    body::{Frame, SizeHint},
    server::conn::http1,
    service::{Service as _, service_fn},
};
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    service::TowerToHyperService,
};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpListener, TcpStream},
    sync::{Notify, watch},
    task::{self, AbortHandle, JoinSet},
    time::{Instant, sleep, sleep_until, timeout},
};
use tracing::{debug, warn};

/// Limits on the number of connections, and on the time that clients may take.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limits {
    /// The maximum number of connections. At this limit, the server accepts a new connection by closing the connection
    /// that has been idle the longest. If no connection is idle, the new connection waits.
    pub(crate) connections: usize,
    /// The maximum time for receiving the header of a request, and the maximum idle time of a connection.
    pub(crate) ask: Duration,
    /// The maximum time from the header of a request to the last byte of the answer.
    pub(crate) answer: Duration,
    /// The time after which the server accepts no further requests on a connection.
    pub(crate) lifetime: Duration,
    /// The maximum time that pending requests may take after `shutdown` has completed.
    pub(crate) farewell: Duration,
}

/// A socket that accepts connections.
pub(crate) trait Listen: Send {
    /// The type of an accepted connection.
    type Stream: AsyncRead + AsyncWrite + Unpin + Send + 'static;

    /// Waits for the next connection, and accepts it.
    fn accept(&self) -> impl Future<Output = io::Result<Self::Stream>> + Send;
}

impl Listen for TcpListener {
    type Stream = TcpStream;

    async fn accept(&self) -> io::Result<TcpStream> {
        Self::accept(self).await.map(|(stream, _)| stream)
    }
}

/// Serves connections until `shutdown` completes and every pending request has been answered or has timed out; `router`
/// makes a router for each connection.
///
/// # Errors
/// Fails if the listener can no longer accept connections.
pub(crate) async fn serve<L: Listen>(
    listener: L,
    limits: Limits,
    router: impl Fn(&L::Stream) -> Router,
    shutdown: impl Future,
) -> anyhow::Result<()> {
    let (stop, stopped) = watch::channel(());
    let mut connections = Connections::default();
    let mut shutdown = std::pin::pin!(shutdown);
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            ended = connections.running.join_next_with_id(), if !connections.running.is_empty() => {
                connections.forget(ended);
                continue;
            }
            _ = &mut shutdown => break,
        };
        match accepted {
            Ok(stream) => {
                tokio::select! {
                    () = connections.make_room(limits.connections) => {
                        let router = router(&stream);
                        connections.spawn(stream, router, limits, stopped.clone());
                    }
                    _ = &mut shutdown => break,
                }
            }
            Err(error) if is_passing(&error) => {
                warn!("cannot accept a connection: {error}");
                sleep(Duration::from_millis(100)).await;
            }
            Err(error) => return Err(anyhow!("no connection can be accepted any more: {error}")),
        }
    }
    drop(listener);
    drop(stop);
    let finish = async { while connections.running.join_next().await.is_some() {} };
    if timeout(limits.farewell, finish).await.is_err() {
        debug!("connections closed unanswered");
    }
    Ok(())
}

/// Whether accepting the next connection may succeed after this error of accept(2), because the network or a lack of
/// resources caused the error.
pub(crate) fn is_passing(error: &io::Error) -> bool {
    !matches!(error.raw_os_error(), Some(libc::EBADF | libc::EFAULT | libc::EINVAL | libc::ENOTSOCK | libc::EOPNOTSUPP))
}

/// The pending requests on a connection.
#[derive(Clone, Copy, Debug)]
struct Activity {
    /// The number of requests whose answers the kernel has not taken completely.
    requests: usize,
    /// The time at which the connection became busy or idle.
    since: Instant,
}

/// A pending request, which ends when no byte of its answer is in memory any more.
struct UnderWay {
    activity: watch::Sender<Activity>,
    quiet: Arc<Notify>,
}

impl UnderWay {
    fn new(activity: watch::Sender<Activity>, quiet: Arc<Notify>) -> Self {
        activity.send_modify(|activity| {
            activity.requests += 1;
            activity.since = Instant::now();
        });
        Self { activity, quiet }
    }
}

impl Drop for UnderWay {
    fn drop(&mut self) {
        self.activity.send_modify(|activity| {
            activity.requests -= 1;
            activity.since = Instant::now();
        });
        self.quiet.notify_one();
    }
}

#[derive(Default)]
struct Connections {
    running: JoinSet<()>,
    open: HashMap<task::Id, (AbortHandle, watch::Receiver<Activity>)>,
    /// The notification that a request has ended.
    quiet: Arc<Notify>,
}

impl Connections {
    fn forget(&mut self, ended: Option<Result<(task::Id, ()), task::JoinError>>) {
        let id = match ended {
            Some(Ok((id, ()))) => id,
            Some(Err(error)) => error.id(),
            None => return,
        };
        self.open.remove(&id);
    }

    /// Waits until there are fewer connections than `limit`.
    async fn make_room(&mut self, limit: usize) {
        while let Some(ended) = self.running.try_join_next_with_id() {
            self.forget(Some(ended));
        }
        while self.running.len() >= limit {
            if let Some(longest) = self.longest_idle() {
                longest.abort();
            }
            tokio::select! {
                ended = self.running.join_next_with_id() => self.forget(ended),
                () = self.quiet.notified() => {}
            }
        }
    }

    fn longest_idle(&self) -> Option<&AbortHandle> {
        let idle = self.open.values().filter_map(|(task, activity)| {
            let Activity { requests, since } = *activity.borrow();
            (requests == 0).then_some((since, task))
        });
        idle.min_by_key(|(since, _)| *since).map(|(_, task)| task)
    }

    fn spawn<S>(&mut self, stream: S, router: Router, limits: Limits, stopped: watch::Receiver<()>)
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let (sender, activity) = watch::channel(Activity { requests: 0, since: Instant::now() });
        let quiet = Arc::clone(&self.quiet);
        let task = self.running.spawn(connection(stream, router, limits, (sender, quiet), stopped));
        self.open.insert(task.id(), (task, activity));
    }
}

/// Serves one connection until the connection ends.
pub(crate) async fn serve_one<S>(stream: S, router: Router, limits: Limits)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let (sender, _) = watch::channel(Activity { requests: 0, since: Instant::now() });
    // The sender lives until the function returns, so that nothing stops the connection.
    let (_stop, stopped) = watch::channel(());
    connection(stream, router, limits, (sender, Arc::default()), stopped).await;
}

async fn connection(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    router: Router,
    limits: Limits,
    (sender, quiet): (watch::Sender<Activity>, Arc<Notify>),
    mut stopped: watch::Receiver<()>,
) {
    let mut activity = sender.subscribe();
    let router = TowerToHyperService::new(router);
    let service = service_fn(move |request| {
        let under_way = UnderWay::new(sender.clone(), Arc::clone(&quiet));
        let answer = router.call(request);
        async { Ok::<_, Infallible>(answer.await?.map(|body| holding(body, under_way))) }
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(limits.ask)
        .serve_connection(TokioIo::new(stream), service);
    let mut connection = std::pin::pin!(connection);
    let mut last = Some(Instant::now() + limits.lifetime);
    loop {
        let Activity { requests, since } = *activity.borrow_and_update();
        tokio::select! {
            ended = &mut connection => {
                if let Err(error) = ended {
                    debug!("connection: {error}");
                }
                return;
            }
            _ = activity.changed() => {}
            () = until((requests > 0).then_some(since + limits.answer)) => {
                debug!("connection closed: the client did not read the answer within {} s", limits.answer.as_secs());
                return;
            }
            () = until(last) => {
                last = None;
                connection.as_mut().graceful_shutdown();
            }
            _ = stopped.changed() => {
                connection.as_mut().graceful_shutdown();
                let _ = connection.await;
                return;
            }
        }
    }
}

async fn until(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => sleep_until(deadline).await,
        None => pending().await,
    }
}

/// A body that keeps `held` alive as long as any byte of the body is in memory.
pub(crate) fn holding<T: Send + Sync + 'static>(body: Body, held: T) -> Body {
    Body::new(Holding { body, held: Arc::new(held) })
}

struct Holding<T> {
    body: Body,
    held: Arc<T>,
}

impl<T: Send + Sync + 'static> hyper::body::Body for Holding<T> {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        let frame = ready!(Pin::new(&mut self.body).poll_frame(context));
        let held = |data| Bytes::from_owner(Lent { data, _held: Arc::clone(&self.held) });
        Poll::Ready(frame.map(|frame| frame.map(|frame| frame.map_data(held))))
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

struct Lent<T> {
    data: Bytes,
    _held: Arc<T>,
}

impl<T> AsRef<[u8]> for Lent<T> {
    fn as_ref(&self) -> &[u8] {
        &self.data
    }
}

#[cfg(test)]
mod tests {
    use std::{net::SocketAddr, os::fd::AsRawFd as _};

    use axum::{extract::State, routing::get};
    use tokio::{
        io::{AsyncReadExt as _, AsyncWriteExt as _},
        sync::Semaphore,
        task::JoinHandle,
    };

    use super::*;

    const LARGE: usize = 64 << 20;
    const HOUR: Duration = Duration::from_secs(3600);
    const PATIENT: Limits = Limits { connections: 4, ask: HOUR, answer: HOUR, lifetime: HOUR, farewell: HOUR };

    type Server = JoinHandle<anyhow::Result<()>>;

    /// A gate at which requests wait: contains the number of requests that have arrived, and the number that may pass.
    #[derive(Clone)]
    struct Gate {
        come: Arc<Semaphore>,
        open: Arc<Semaphore>,
    }

    async fn pass(State(Gate { come, open }): State<Gate>) -> &'static str {
        come.add_permits(1);
        open.acquire().await.unwrap().forget();
        "open"
    }

    /// Starts a server that answers `/` at once, `/gate` when the gate lets the request pass, and `/large` with more
    /// data than sockets buffer.
    async fn serving(limits: Limits) -> (SocketAddr, Gate, Server) {
        let gate = Gate { come: Arc::new(Semaphore::new(0)), open: Arc::new(Semaphore::new(0)) };
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let router = Router::new()
            .route("/", get(async || "here"))
            .route("/gate", get(pass))
            .route("/large", get(async || vec![b'x'; LARGE]))
            .with_state(gate.clone());
        (address, gate, tokio::spawn(serve(listener, limits, move |_| router.clone(), pending::<()>())))
    }

    async fn asking(address: SocketAddr, path: &str) -> TcpStream {
        let mut stream = TcpStream::connect(address).await.unwrap();
        let request = format!("GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        stream
    }

    /// Reads until the server closes the connection; returns an empty text if the connection is reset.
    async fn rest(stream: &mut TcpStream) -> String {
        let mut answer = String::new();
        let _ = timeout(Duration::from_secs(60), stream.read_to_string(&mut answer)).await.expect("an end");
        answer
    }

    async fn here(address: SocketAddr) {
        let answer = rest(&mut asking(address, "/").await).await;
        assert!(answer.starts_with("HTTP/1.1 200 ") && answer.ends_with("here"), "{answer:?}");
    }

    #[tokio::test]
    async fn when_a_thousand_connections_are_idle_then_others_are_served() {
        let files = nix::sys::resource::Resource::RLIMIT_NOFILE;
        let (_, hard) = nix::sys::resource::getrlimit(files).unwrap();
        nix::sys::resource::setrlimit(files, hard.min(4096), hard).unwrap();
        let (address, _gate, _server) = serving(PATIENT).await;
        let mut idle = Vec::new();
        for number in 0..1_000 {
            let mut stream = TcpStream::connect(address).await.unwrap();
            // Every second client has sent only the beginning of a request, and the other clients have sent nothing.
            if number % 2 == 0 {
                stream.write_all(b"GET /metrics HTTP/1.1\r\nX-Slow: 1").await.unwrap();
            }
            idle.push(stream);
        }
        here(address).await;
        // The server has closed all but the last few connections, beginning with the connection that had been idle the
        // longest.
        for mut stream in idle.drain(..1_000 - PATIENT.connections) {
            assert_eq!(rest(&mut stream).await, "");
        }
    }

    #[tokio::test]
    async fn when_the_head_of_a_request_takes_too_long_then_the_connection_ends() {
        let (address, _gate, _server) = serving(Limits { ask: Duration::from_millis(200), ..PATIENT }).await;
        let mut slow = TcpStream::connect(address).await.unwrap();
        slow.write_all(b"GET / HTTP/1.1\r\n").await.unwrap();
        let (mut reader, mut writer) = slow.into_split();
        // A client that sends a single byte now and then cannot extend the time limit.
        let dripping = tokio::spawn(async move {
            while writer.write_all(b"x").await.is_ok() {
                sleep(Duration::from_millis(20)).await
            }
        });
        let mut answer = String::new();
        let _ = timeout(Duration::from_secs(60), reader.read_to_string(&mut answer)).await.expect("an end");
        assert!(!answer.contains("200"), "{answer}");
        timeout(Duration::from_secs(60), dripping).await.unwrap().unwrap();
    }

    #[tokio::test]
    async fn when_all_connections_are_busy_then_they_stay_and_another_waits() {
        let (address, gate, _server) = serving(PATIENT).await;
        let mut busy = Vec::new();
        for _ in 0..PATIENT.connections {
            busy.push(asking(address, "/gate").await);
        }
        gate.come.acquire_many(PATIENT.connections as u32).await.unwrap().forget();
        let mut late = asking(address, "/").await;
        assert!(timeout(Duration::from_millis(300), late.readable()).await.is_err(), "it is answered, or closed");
        gate.open.add_permits(1);
        assert!(rest(&mut late).await.ends_with("here"));
        gate.open.add_permits(PATIENT.connections);
        for mut stream in busy {
            assert!(rest(&mut stream).await.ends_with("open"));
        }
    }

    #[tokio::test]
    async fn when_a_connection_waits_then_an_idle_one_makes_room() {
        let (address, gate, _server) = serving(Limits { connections: 1, ..PATIENT }).await;
        let mut kept = TcpStream::connect(address).await.unwrap();
        kept.write_all(b"GET /gate HTTP/1.1\r\nHost: x\r\n\r\n").await.unwrap();
        gate.come.acquire().await.unwrap().forget();
        let mut late = asking(address, "/").await;
        // The answer to the first request is complete, and the connection could stay open for an hour.
        gate.open.add_permits(1);
        assert!(rest(&mut kept).await.ends_with("open"));
        assert!(rest(&mut late).await.ends_with("here"));
    }

    #[tokio::test]
    async fn when_an_answer_is_not_read_then_its_connection_ends_in_time() {
        let (address, _gate, _server) =
            serving(Limits { connections: 1, answer: Duration::from_millis(500), ..PATIENT }).await;
        let mut stuck = asking(address, "/large").await;
        let mut first = [0; 16];
        stuck.read_exact(&mut first).await.unwrap();
        // The limit allows only one connection, and this connection is busy until its time limit.
        here(address).await;
        assert!(rest(&mut stuck).await.len() < LARGE);
    }

    #[tokio::test]
    async fn when_a_connection_is_too_old_then_it_begins_no_request() {
        let (address, gate, _server) = serving(Limits { lifetime: Duration::from_millis(300), ..PATIENT }).await;
        let mut stream = TcpStream::connect(address).await.unwrap();
        stream.write_all(b"GET /gate HTTP/1.1\r\nHost: x\r\n\r\n").await.unwrap();
        gate.come.acquire().await.unwrap().forget();
        sleep(Duration::from_millis(600)).await;
        gate.open.add_permits(1);
        // The answer is complete, and the server closes the connection although the client has not requested this.
        assert!(rest(&mut stream).await.ends_with("open"));
    }

    #[tokio::test]
    async fn when_a_listener_is_broken_then_the_error_is_reported() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        nix::sys::socket::shutdown(listener.as_raw_fd(), nix::sys::socket::Shutdown::Both).unwrap();
        let served = timeout(Duration::from_secs(60), serve(listener, PATIENT, |_| Router::new(), pending::<()>()));
        let error = served.await.unwrap().unwrap_err().to_string();
        assert!(error.starts_with("no connection can be accepted any more: Invalid argument"), "{error}");
    }
}
