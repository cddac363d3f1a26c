//! A small web application that keeps sessions in memory, as many applications do: a client that reaches another server
//! gets a new session. A special request makes the server's health check fail.

use std::{
    collections::{HashMap, VecDeque},
    hash::{BuildHasher as _, RandomState},
    net::SocketAddr,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use anyhow::{Context as _, Result};
use axum::{
    Json, Router,
    extract::{ConnectInfo, Query, State, connect_info::Connected},
    http::{HeaderMap, HeaderValue, StatusCode, header},
    response::{Html, IntoResponse as _, Response},
    routing::{get, post},
    serve::IncomingStream,
};
use serde::{Deserialize, Serialize};
use socket2::{Domain, Protocol, SockRef, Socket, Type};
use tokio::{
    net::TcpListener,
    signal::unix::{SignalKind, signal},
    task::JoinSet,
};

use crate::answer::{Answer, BACKEND_HEADER, SESSION_COOKIE};

/// The time after which the server closes the connection of a hanging health check.
const HANG: Duration = Duration::from_secs(60);
/// The duration of a health check that the server answers slowly.
const SLOW: Duration = Duration::from_secs(2);

/// The maximum number of sessions; above this number, the server forgets the oldest session.
const MAX_SESSIONS: usize = 100_000;

/// Serves until SIGTERM: `GET /` returns the server's name and the session's request count, `GET /healthz` returns 200,
/// and `POST /fail?mode=503|body|hang|slow|reset|flap|ok` changes the answer of `/healthz`.
///
/// # Errors
/// Fails if the server cannot listen on an address, or if the name is not valid in a header.
pub async fn serve(name: &str, listen: &[SocketAddr]) -> Result<()> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let listeners = listen.iter().map(|&address| listener(address)).collect::<Result<Vec<_>>>()?;
    let app = app(name)?;
    let mut servers = JoinSet::new();
    for listener in listeners {
        let service = app.clone().into_make_service_with_connect_info::<Peer>();
        servers.spawn(async move { axum::serve(listener, service).await });
    }
    tokio::select! {
        _ = terminate.recv() => Ok(()),
        _ = interrupt.recv() => Ok(()),
        Some(ended) = servers.join_next() => Ok(ended??),
    }
}

fn app(name: &str) -> Result<Router> {
    let shared = Arc::new(Shared {
        name: name.to_owned(),
        header: HeaderValue::from_str(name).with_context(|| format!("{name:?} cannot be sent in a header"))?,
        sessions: Mutex::new(Sessions::new(MAX_SESSIONS)),
        mode: Mutex::new(Mode::Ok),
        flaps: AtomicU64::new(0),
    });
    Ok(Router::new()
        .route("/", get(answer))
        .route("/healthz", get(health))
        .route("/fail", post(fail))
        .with_state(shared))
}

/// The IPv6 socket accepts only IPv6 connections, so that the server can listen on both `0.0.0.0` and `[::]`.
fn listener(address: SocketAddr) -> Result<TcpListener> {
    let bound = || -> std::io::Result<TcpListener> {
        let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
        if address.is_ipv6() {
            socket.set_only_v6(true)?;
        }
        socket.set_reuse_address(true)?;
        socket.set_nonblocking(true)?;
        socket.bind(&address.into())?;
        socket.listen(1024)?;
        TcpListener::from_std(socket.into())
    };
    bound().with_context(|| format!("cannot listen on {address}"))
}

struct Shared {
    name: String,
    header: HeaderValue,
    sessions: Mutex<Sessions>,
    mode: Mutex<Mode>,
    /// The number of health checks that the server has answered in [`Mode::Flap`].
    flaps: AtomicU64,
}

/// The way in which the server answers `/healthz`.
#[derive(Clone, Copy, PartialEq, Deserialize, Serialize)]
enum Mode {
    #[serde(rename = "ok")]
    Ok,
    #[serde(rename = "503")]
    Unavailable,
    /// The server answers 200 with another body than the usual one.
    #[serde(rename = "body")]
    Body,
    #[serde(rename = "hang")]
    Hang,
    #[serde(rename = "slow")]
    Slow,
    #[serde(rename = "reset")]
    Reset,
    /// The server answers with 503, a reset and 200 in rotation.
    #[serde(rename = "flap")]
    Flap,
}

/// The client that sent a request, and the socket of the connection.
#[derive(Clone)]
struct Peer {
    address: SocketAddr,
    socket: Option<Arc<Socket>>,
}

impl Connected<IncomingStream<'_, TcpListener>> for Peer {
    fn connect_info(stream: IncomingStream<'_, TcpListener>) -> Self {
        let socket = SockRef::from(stream.io()).try_clone().ok().map(Arc::new);
        Self { address: *stream.remote_addr(), socket }
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Fail {
    mode: Mode,
}

async fn health(State(shared): State<Arc<Shared>>, ConnectInfo(peer): ConnectInfo<Peer>) -> Response {
    let mut mode = *shared.mode.lock().unwrap_or_else(PoisonError::into_inner);
    if mode == Mode::Flap {
        mode = match shared.flaps.fetch_add(1, Ordering::Relaxed) % 3 {
            0 => Mode::Unavailable,
            1 => Mode::Reset,
            _ => Mode::Ok,
        };
    }
    let named = [(BACKEND_HEADER, shared.header.clone())];
    match mode {
        Mode::Ok | Mode::Flap => (named, "ok\n").into_response(),
        Mode::Body => (named, "told to fail\n").into_response(),
        Mode::Unavailable => (StatusCode::SERVICE_UNAVAILABLE, named, "told to fail\n").into_response(),
        Mode::Hang => {
            tokio::time::sleep(HANG).await;
            (StatusCode::GATEWAY_TIMEOUT, named, "told to hang\n").into_response()
        }
        Mode::Slow => {
            tokio::time::sleep(SLOW).await;
            (named, "ok\n").into_response()
        }
        Mode::Reset => {
            let _ = peer.socket.map(|socket| socket.set_linger(Some(Duration::ZERO)));
            // The panic ends the task of the connection without an answer, which also closes the socket.
            std::panic::resume_unwind(Box::new(()))
        }
    }
}

async fn fail(State(shared): State<Arc<Shared>>, Query(fail): Query<Fail>) -> StatusCode {
    *shared.mode.lock().unwrap_or_else(PoisonError::into_inner) = fail.mode;
    StatusCode::NO_CONTENT
}

async fn answer(
    State(shared): State<Arc<Shared>>,
    ConnectInfo(client): ConnectInfo<Peer>,
    headers: HeaderMap,
) -> Response {
    let (session, requests) =
        shared.sessions.lock().unwrap_or_else(PoisonError::into_inner).count(session_cookie(&headers));
    let answer = Answer {
        backend: shared.name.clone(),
        session: format!("{session:016x}"),
        requests,
        client: client.address.ip().to_string(),
    };
    let cookie = format!("{SESSION_COOKIE}={}; Path=/; HttpOnly; SameSite=Lax", answer.session);
    let wants_html = headers
        .get(header::ACCEPT)
        .and_then(|accept| accept.to_str().ok())
        .is_some_and(|accept| accept.contains("text/html"));
    let head = [(BACKEND_HEADER, shared.name.clone()), (header::SET_COOKIE.as_str(), cookie)];
    if wants_html { (head, Html(page(&answer))).into_response() } else { (head, Json(answer)).into_response() }
}

fn page(answer: &Answer) -> String {
    // Only the name needs escaping, because no other text comes from outside.
    let name = answer.backend.replace('&', "&amp;").replace('<', "&lt;");
    format!(
        "<!doctype html><title>{name}</title><h1>{name}</h1><p>Request {} of session {}, from {}.</p>\n",
        answer.requests, answer.session, answer.client
    )
}

fn session_cookie(headers: &HeaderMap) -> Option<u64> {
    headers
        .get_all(header::COOKIE)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(';'))
        .filter_map(|pair| pair.trim().split_once('='))
        .find_map(|(name, value)| (name == SESSION_COOKIE).then(|| u64::from_str_radix(value, 16).ok())?)
}

/// The number of requests of each session.
struct Sessions {
    counts: HashMap<u64, u64>,
    order: VecDeque<u64>,
    limit: usize,
    names: RandomState,
    begun: u64,
}

impl Sessions {
    fn new(limit: usize) -> Self {
        Self {
            counts: HashMap::new(),
            order: VecDeque::new(),
            limit: limit.max(1),
            names: RandomState::new(),
            begun: 0,
        }
    }

    /// Counts a request of a session. If the session is unknown, the request starts a new session.
    fn count(&mut self, session: Option<u64>) -> (u64, u64) {
        let session = session.unwrap_or_else(|| self.names.hash_one(self.begun));
        if !self.counts.contains_key(&session) {
            if self.order.len() >= self.limit
                && let Some(oldest) = self.order.pop_front()
            {
                self.counts.remove(&oldest);
            }
            self.begun += 1;
            self.order.push_back(session);
        }
        let count = self.counts.entry(session).or_insert(0);
        *count += 1;
        (session, *count)
    }
}

#[cfg(test)]
mod tests {
    use axum::http::{HeaderMap, HeaderValue, header::COOKIE};

    use super::{Sessions, session_cookie};

    #[test]
    fn when_there_are_too_many_sessions_then_the_oldest_is_forgotten() {
        let mut sessions = Sessions::new(2);
        let (first, one) = sessions.count(None);
        assert_eq!(one, 1);
        assert_eq!(sessions.count(Some(first)), (first, 2));
        let (second, _) = sessions.count(None);
        assert_ne!(first, second);
        assert_eq!(sessions.count(Some(77)), (77, 1), "a session of another backend begins again");
        assert_eq!(sessions.count(Some(second)), (second, 2));
        assert_eq!(sessions.count(Some(first)), (first, 1), "forgotten");
        assert_eq!(sessions.counts.len(), 2);
    }

    #[test]
    fn when_a_request_has_several_cookies_then_the_sessions_is_found() {
        let mut headers = HeaderMap::new();
        assert_eq!(session_cookie(&headers), None);
        headers.append(COOKIE, HeaderValue::from_static("a=b; demo_session=00000000000000ff; c=d"));
        assert_eq!(session_cookie(&headers), Some(255));
        headers.insert(COOKIE, HeaderValue::from_static("demo_session=nonsense"));
        assert_eq!(session_cookie(&headers), None);
    }
}
