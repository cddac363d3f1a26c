//! The answering end of the control socket: HTTP/JSON, bounded in size, time and number of connections.

use std::{
    fs, io,
    os::unix::fs::{FileTypeExt as _, MetadataExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use anyhow::{Context as _, bail};
use axum::{
    Extension, Json, Router,
    body::Body,
    extract::{
        FromRequestParts, Path as UrlPath, Query, State,
        rejection::{PathRejection, QueryRejection},
    },
    http::{HeaderMap, StatusCode, header, request::Parts},
    response::{IntoResponse, Response},
    routing::{delete, get, post, put},
};
use http_body_util::BodyExt as _;
use hyper::server::conn::http1;
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    service::TowerToHyperService,
};
use serde::{Deserialize, de::DeserializeOwned};
use tokio::{
    net::{UnixListener, UnixSocket, UnixStream},
    sync::{Semaphore, oneshot, watch},
    task::JoinSet,
    time::{sleep, timeout},
};
use tracing::{debug, warn};

use super::call::{Call, Calls};
use crate::{
    api::{
        MAX_REQUEST_BODY,
        model::{
            AddBackend, ApiError, BackendEntry, Changed, ClientQuery, ClientView, ServiceView, SetAdmin, SetWeight,
            StatusView,
        },
    },
    config::value,
    core::io::{Admin, BackendName, Change, Refused},
};

/// Connections served at once; more wait in the backlog.
const MAX_CONNECTIONS: usize = 64;
/// Connections that wait for one of those.
const BACKLOG: u32 = 128;
/// How long the head of a request may take.
const HEAD_TIMEOUT: Duration = Duration::from_secs(5);
/// How long the body of a request may take.
const BODY_TIMEOUT: Duration = Duration::from_secs(5);
/// How long the controller may take to answer.
const CALL_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a connection lives, however busy.
const CONNECTION_TIMEOUT: Duration = Duration::from_secs(60);
/// How long requests under way may take once the server stops.
const STOP_TIMEOUT: Duration = Duration::from_secs(2);
/// How much of a body that is too large is read and thrown away, so that the answer is not lost to a reset.
const MAX_DISCARDED: usize = 16 << 20;

/// A bound control socket. The file is removed when this is dropped.
#[derive(Debug)]
pub struct ControlSocket {
    listener: UnixListener,
    _file: SocketFile,
}

impl ControlSocket {
    /// Binds `path` with mode 0660, making its directory where that is missing. A file left by a controller that is no
    /// more is replaced.
    ///
    /// # Errors
    /// When another controller serves the socket, when `path` is something else than a socket, and what the kernel
    /// refuses.
    pub async fn bind(path: &Path) -> anyhow::Result<Self> {
        clear(path).await?;
        if let Some(directory) = path.parent() {
            fs::create_dir_all(directory)
                .with_context(|| format!("cannot create {} for the control socket", directory.display()))?;
        }
        let cannot = || format!("cannot bind the control socket {}", path.display());
        let socket = UnixSocket::new_stream().with_context(cannot)?;
        socket.bind(path).with_context(cannot)?;
        let file = SocketFile::new(path).with_context(cannot)?;
        // Before listening: until then nobody can connect, whatever the umask.
        fs::set_permissions(path, fs::Permissions::from_mode(0o660)).with_context(cannot)?;
        let listener = socket.listen(BACKLOG).with_context(cannot)?;
        Ok(Self { listener, _file: file })
    }
}

/// Removes what a dead controller left at `path`.
async fn clear(path: &Path) -> anyhow::Result<()> {
    let metadata = match fs::symlink_metadata(path) {
        Ok(metadata) => metadata,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error).with_context(|| format!("cannot look at {}", path.display())),
    };
    if !metadata.file_type().is_socket() {
        bail!("{} is not a socket; remove it, or choose another path for the control socket", path.display());
    }
    match UnixStream::connect(path).await {
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
            fs::remove_file(path).with_context(|| format!("cannot remove the stale socket {}", path.display()))
        }
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
            Err(error).with_context(|| format!("cannot tell whether a controller serves {}", path.display()))
        }
        Ok(_) | Err(_) => bail!(
            "another controller serves {}; stop it first, or give this one another socket and other interfaces",
            path.display()
        ),
    }
}

/// Removes the file it was made for, and no other that took its place.
#[derive(Debug)]
struct SocketFile {
    path: PathBuf,
    id: (u64, u64),
}

impl SocketFile {
    fn new(path: &Path) -> io::Result<Self> {
        Ok(Self { path: path.to_owned(), id: file_id(path)? })
    }
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        if file_id(&self.path).is_ok_and(|id| id == self.id)
            && let Err(error) = fs::remove_file(&self.path)
        {
            warn!("cannot remove the control socket {}: {error}", self.path.display());
        }
    }
}

fn file_id(path: &Path) -> io::Result<(u64, u64)> {
    fs::symlink_metadata(path).map(|metadata| (metadata.dev(), metadata.ino()))
}

/// Serves the control API until `shutdown` completes and requests under way are answered, or had their time.
pub async fn serve(socket: ControlSocket, calls: Calls, shutdown: impl Future) {
    let router = router(calls);
    let slots = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    let (stop, stopped) = watch::channel(());
    let mut connections = JoinSet::new();
    let mut shutdown = std::pin::pin!(shutdown);
    loop {
        let next = async {
            let slot = Arc::clone(&slots).acquire_owned().await.ok();
            (socket.listener.accept().await, slot)
        };
        let (accepted, slot) = tokio::select! {
            accepted = next => accepted,
            Some(_) = connections.join_next() => continue,
            _ = &mut shutdown => break,
        };
        match accepted {
            Ok((stream, _)) => {
                let connection = connection(stream, router.clone(), stopped.clone());
                connections.spawn(async move {
                    let _slot = slot;
                    if timeout(CONNECTION_TIMEOUT, connection).await.is_err() {
                        debug!("control connection closed after {} s", CONNECTION_TIMEOUT.as_secs());
                    }
                });
            }
            Err(error) => {
                warn!("control socket: {error}");
                sleep(Duration::from_millis(100)).await;
            }
        }
    }
    drop(socket);
    drop(stop);
    let finish = async { while connections.join_next().await.is_some() {} };
    if timeout(STOP_TIMEOUT, finish).await.is_err() {
        debug!("control connections closed unanswered");
    }
}

async fn connection(stream: UnixStream, router: Router, mut stopped: watch::Receiver<()>) {
    let peer = Peer { uid: stream.peer_cred().ok().map(|credentials| credentials.uid()) };
    let service = TowerToHyperService::new(router.layer(Extension(peer)));
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIMEOUT)
        .serve_connection(TokioIo::new(stream), service);
    let mut connection = std::pin::pin!(connection);
    let ended = tokio::select! {
        ended = &mut connection => ended,
        _ = stopped.changed() => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = ended {
        debug!("control connection: {error}");
    }
}

fn router(calls: Calls) -> Router {
    Router::new()
        .route("/v1/status", get(status))
        .route("/v1/services", get(services))
        .route("/v1/services/{service}", get(service))
        .route("/v1/services/{service}/backends", post(add_backend))
        .route("/v1/services/{service}/backends/{backend}", delete(remove_backend))
        .route("/v1/services/{service}/backends/{backend}/admin", put(set_admin))
        .route("/v1/services/{service}/backends/{backend}/weight", put(set_weight))
        .route("/v1/backends", get(backends))
        .route("/v1/clients/{ip}", get(clients))
        .fallback(async |parts: Parts| {
            let path = value::quoted(parts.uri.path());
            Failure::new(StatusCode::NOT_FOUND, format!("there is nothing at {path}; start from /v1/status"))
        })
        .method_not_allowed_fallback(async |parts: Parts| {
            let path = value::quoted(parts.uri.path());
            let text = format!("{path} does not take {}; the Allow header says what it takes", parts.method);
            Failure::new(StatusCode::METHOD_NOT_ALLOWED, text)
        })
        .with_state(calls)
}

/// Who asks.
#[derive(Clone, Copy, Debug)]
struct Peer {
    uid: Option<u32>,
}

/// A refusal on its way out.
#[derive(Debug)]
struct Failure {
    status: StatusCode,
    error: String,
}

type Outcome<T> = Result<Json<T>, Failure>;

impl Failure {
    fn new(status: StatusCode, error: impl Into<String>) -> Self {
        Self { status, error: error.into() }
    }

    fn bad_request(error: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, error)
    }

    fn stopping() -> Self {
        Self::new(StatusCode::SERVICE_UNAVAILABLE, "the controller is shutting down; nothing was changed")
    }
}

impl IntoResponse for Failure {
    fn into_response(self) -> Response {
        (self.status, Json(ApiError { error: self.error })).into_response()
    }
}

impl From<Refused> for Failure {
    fn from(refused: Refused) -> Self {
        let status = match refused {
            Refused::NotFound(_) => StatusCode::NOT_FOUND,
            Refused::Conflict(_) => StatusCode::CONFLICT,
            Refused::Invalid(_) => StatusCode::BAD_REQUEST,
        };
        Self::new(status, refused.to_string())
    }
}

impl From<PathRejection> for Failure {
    fn from(rejection: PathRejection) -> Self {
        Self::bad_request(rejection.body_text())
    }
}

impl From<QueryRejection> for Failure {
    fn from(rejection: QueryRejection) -> Self {
        Self::bad_request(rejection.body_text())
    }
}

/// The part of the URL that is not the body, checked; a rejection becomes JSON.
struct Names<T>(T);

impl<T: DeserializeOwned + Send> FromRequestParts<Calls> for Names<T> {
    type Rejection = Failure;

    async fn from_request_parts(parts: &mut Parts, state: &Calls) -> Result<Self, Failure> {
        let UrlPath(names) = UrlPath::from_request_parts(parts, state).await?;
        Ok(Self(names))
    }
}

/// The query string, checked; a rejection becomes JSON.
struct Asked<T>(T);

impl<T: DeserializeOwned> FromRequestParts<Calls> for Asked<T> {
    type Rejection = Failure;

    async fn from_request_parts(parts: &mut Parts, state: &Calls) -> Result<Self, Failure> {
        let Query(asked) = Query::from_request_parts(parts, state).await?;
        Ok(Self(asked))
    }
}

/// Sends a call and waits for its answer.
async fn ask<T>(calls: &Calls, call: impl FnOnce(oneshot::Sender<T>) -> Call) -> Result<T, Failure> {
    let (reply, answer) = oneshot::channel();
    let exchange = async {
        calls.send(call(reply)).await.map_err(|_| Failure::stopping())?;
        answer.await.map_err(|_| {
            Failure::new(StatusCode::SERVICE_UNAVAILABLE, "the controller is shutting down and gave no answer")
        })
    };
    timeout(CALL_TIMEOUT, exchange).await.unwrap_or_else(|_| {
        let text = format!(
            "the controller gave no answer within {} s; a change may have happened, look at the status",
            CALL_TIMEOUT.as_secs()
        );
        Err(Failure::new(StatusCode::SERVICE_UNAVAILABLE, text))
    })
}

async fn view(calls: &Calls) -> Result<StatusView, Failure> {
    match ask(calls, |reply| Call::Snapshot { reply }).await? {
        Ok(snapshot) => Ok(snapshot.into()),
        Err(error) => Err(Failure::new(StatusCode::INTERNAL_SERVER_ERROR, format!("{error:#}"))),
    }
}

async fn change(calls: &Calls, peer: Peer, change: Change) -> Outcome<Changed> {
    Ok(Json(ask(calls, |reply| Call::Change { change, uid: peer.uid, reply }).await??))
}

/// Reads a JSON body; `shape` shows a right one.
async fn read<T: DeserializeOwned>(headers: &HeaderMap, body: Body, shape: &str) -> Result<T, Failure> {
    let bytes = timeout(BODY_TIMEOUT, read_bytes(headers, body)).await.unwrap_or_else(|_| {
        let text = format!("the body did not arrive within {} s; nothing was changed", BODY_TIMEOUT.as_secs());
        Err(Failure::new(StatusCode::REQUEST_TIMEOUT, text))
    })?;
    // A list would pass for the fields in their order.
    if bytes.trim_ascii_start().first() != Some(&b'{') {
        return Err(Failure::bad_request(format!("the body is not a JSON object; give {shape}")));
    }
    serde_json::from_slice(&bytes)
        .map_err(|error| Failure::bad_request(format!("the body is not right: {error}; give {shape}")))
}

async fn read_bytes(headers: &HeaderMap, mut body: Body) -> Result<Vec<u8>, Failure> {
    let mut bytes = Vec::new();
    let mut discarded = 0;
    let declared = headers.get(header::CONTENT_LENGTH).and_then(|length| length.to_str().ok()?.parse::<u64>().ok());
    let mut too_large = declared.is_some_and(|length| length > MAX_REQUEST_BODY as u64);
    // A peer that waits for leave to send the body is answered at once.
    while !(too_large && (headers.contains_key(header::EXPECT) || discarded > MAX_DISCARDED)) {
        let Some(frame) = body.frame().await else { break };
        let frame = frame.map_err(|error| Failure::bad_request(format!("the body broke off: {error}")))?;
        let Some(data) = frame.data_ref() else { continue };
        too_large |= bytes.len() + data.len() > MAX_REQUEST_BODY;
        if too_large {
            bytes = Vec::new();
            discarded += data.len();
        } else {
            bytes.extend_from_slice(data);
        }
    }
    if too_large {
        let text = format!("the body is larger than {} KiB; nothing was changed", MAX_REQUEST_BODY >> 10);
        return Err(Failure::new(StatusCode::PAYLOAD_TOO_LARGE, text));
    }
    Ok(bytes)
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ServiceQuery {
    service: Option<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RemoveQuery {
    #[serde(default)]
    force: bool,
}

async fn status(State(calls): State<Calls>) -> Outcome<StatusView> {
    view(&calls).await.map(Json)
}

async fn services(State(calls): State<Calls>) -> Outcome<Vec<ServiceView>> {
    view(&calls).await.map(|status| Json(status.services))
}

async fn service(State(calls): State<Calls>, Names(name): Names<String>) -> Outcome<ServiceView> {
    find(view(&calls).await?.services, &name).map(Json)
}

fn find(services: Vec<ServiceView>, name: &str) -> Result<ServiceView, Failure> {
    let names: Vec<_> = services.iter().map(|service| service.name.clone()).collect();
    services.into_iter().find(|service| service.name == name).ok_or_else(|| {
        let names: Vec<_> = names.iter().map(String::as_str).collect();
        let hint = value::hint(name, &names, "services");
        Failure::new(StatusCode::NOT_FOUND, format!("there is no service {}; {hint}", value::quoted(name)))
    })
}

async fn backends(State(calls): State<Calls>, Asked(query): Asked<ServiceQuery>) -> Outcome<Vec<BackendEntry>> {
    let mut services = view(&calls).await?.services;
    if let Some(name) = query.service {
        services = vec![find(services, &name)?];
    }
    let entries = services.into_iter().flat_map(|service| {
        let name = service.name;
        service.backends.into_iter().map(move |backend| BackendEntry { service: name.clone(), backend })
    });
    Ok(Json(entries.collect()))
}

async fn clients(
    State(calls): State<Calls>,
    Names(address): Names<String>,
    Asked(query): Asked<ServiceQuery>,
) -> Outcome<Vec<ClientView>> {
    let address = address
        .parse()
        .map_err(|_| Failure::bad_request(format!("{} is not an IP address", value::quoted(&address))))?;
    let query = ClientQuery { address, service: query.service };
    Ok(Json(ask(&calls, |reply| Call::Clients { query, reply }).await??))
}

async fn add_backend(
    State(calls): State<Calls>,
    Extension(peer): Extension<Peer>,
    Names(service): Names<String>,
    headers: HeaderMap,
    body: Body,
) -> Outcome<Changed> {
    let shape = r#"{"name": "web4", "address": "192.0.2.4:8080", "weight": 100, "backup": false}"#;
    let AddBackend { name, address, weight, backup } = read(&headers, body, shape).await?;
    let name = BackendName { service, backend: value::name(&name).map_err(Failure::bad_request)? };
    let (address, port) = value::address(&address).map_err(Failure::bad_request)?;
    change(&calls, peer, Change::Add { name, address, port, weight, backup }).await
}

async fn remove_backend(
    State(calls): State<Calls>,
    Extension(peer): Extension<Peer>,
    Names((service, backend)): Names<(String, String)>,
    Asked(RemoveQuery { force }): Asked<RemoveQuery>,
) -> Outcome<Changed> {
    change(&calls, peer, Change::Remove { name: BackendName { service, backend }, force }).await
}

async fn set_admin(
    State(calls): State<Calls>,
    Extension(peer): Extension<Peer>,
    Names((service, backend)): Names<(String, String)>,
    headers: HeaderMap,
    body: Body,
) -> Outcome<Changed> {
    let shape = r#"{"admin": "ready"}, {"admin": "drain", "timeout": "5m"} or {"admin": "maint"}"#;
    let SetAdmin { admin, timeout } = read(&headers, body, shape).await?;
    if timeout.is_some() && admin != Admin::Drain {
        return Err(Failure::bad_request(format!("a timeout means nothing without drain; give {shape}")));
    }
    let timeout = timeout.as_deref().map(value::duration).transpose().map_err(Failure::bad_request)?;
    change(&calls, peer, Change::SetAdmin { name: BackendName { service, backend }, admin, timeout }).await
}

async fn set_weight(
    State(calls): State<Calls>,
    Extension(peer): Extension<Peer>,
    Names((service, backend)): Names<(String, String)>,
    headers: HeaderMap,
    body: Body,
) -> Outcome<Changed> {
    let SetWeight { weight } = read(&headers, body, r#"{"weight": 100}, 0 to 65535"#).await?;
    change(&calls, peer, Change::SetWeight { name: BackendName { service, backend }, weight }).await
}
