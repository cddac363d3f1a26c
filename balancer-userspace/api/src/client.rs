//! The client of the control API: HTTP/1.1 over a unix socket, or over TLS, with a new connection for each request.

use std::{
    fmt, io,
    net::IpAddr,
    path::{Path, PathBuf},
    time::Duration,
};

use balancer_config::{control::readers_socket, listeners::Listener, names::BackendName};
use balancer_control::{readiness::Readiness, top::By};
use bytes::Bytes;
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::{Method, Request, StatusCode, client::conn::http1, header};
use hyper_util::rt::TokioIo;
use ipnet::IpNet;
use serde::{Serialize, de::DeserializeOwned};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::UnixStream,
    time::timeout,
};

use super::{
    IF_GENERATION,
    events::EventsView,
    model::{
        AddBackend, ApiError, Applied, ApplyConfiguration, BackendEntry, Changed, ClientQuery, ClientView, DropInText,
        DropInView, FleetSnapshot, FlowView, Force, ForceHealth, ForgottenView, HealthView, ImportClient,
        ImportClients, ImportedView, KnownClientsView, PlanRequest, PlanView, RuleView, ServiceView, SetAdmin,
        SetDropIn, SetLimits, SetRule, SetSteer, SetWeight, StatusView,
    },
    quic::QuicServerConfig,
    server::Server,
    statistics::{StatsView, TopClient, TopQuery},
    trace::{BeginTrace, TraceBegun, TraceEnded, TraceView},
};

/// The maximum duration of a request, including the connection setup; longer than the server's own limit.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(30);
/// The maximum size of an answer in bytes: enough for a list of as many backends as possible.
const MAX_ANSWER: usize = 64 << 20;

/// The reason why a request failed.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// No process serves the API at the address `at`.
    #[error("no controller reachable at {at}: {reason}")]
    Unreachable {
        /// The path of the socket, or the address of the server.
        at: String,
        /// The text of the operating system's error.
        reason: String,
    },
    /// The controller refused the request.
    #[error("{message}")]
    Refused {
        /// The HTTP status.
        status: StatusCode,
        /// The controller's reason for the refusal.
        message: String,
    },
    /// The controller's answer was incomplete or invalid.
    #[error("the controller at {at} gave no proper answer: {reason}")]
    Broken {
        /// The socket or the URL of the controller that answered.
        at: String,
        /// The fault in the controller's answer.
        reason: String,
    },
}

impl ClientError {
    /// Whether the error is typical of a restarting controller: absent, ended in the middle of an answer, or about to
    /// end.
    #[must_use]
    pub fn is_absence(&self) -> bool {
        match self {
            Self::Unreachable { .. } | Self::Broken { .. } => true,
            Self::Refused { status, .. } => *status == StatusCode::SERVICE_UNAVAILABLE,
        }
    }
}

/// A client of a controller. A user without access to the control socket uses the read-only socket beside the control
/// socket.
#[derive(Clone, Debug)]
pub struct Client {
    place: Place,
    if_generation: Option<u64>,
}

/// The location of a controller: a socket on this machine, or a server on another machine.
#[derive(Clone, Debug)]
enum Place {
    Here(PathBuf),
    There(Server),
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Here(socket) => socket.display().fmt(f),
            Self::There(server) => server.fmt(f),
        }
    }
}

/// The result of a request.
pub type Answer<T> = Result<T, ClientError>;

impl Client {
    /// A client of the controller at `socket`. This function does not open a connection.
    #[must_use]
    pub fn new(socket: &Path) -> Self {
        Self { place: Place::Here(socket.to_owned()), if_generation: None }
    }

    /// A client of the controller on another machine. This function does not open a connection.
    #[must_use]
    pub const fn remote(server: Server) -> Self {
        Self { place: Place::There(server), if_generation: None }
    }

    /// Returns the client, with one difference: the controller makes a change only if the configuration has this
    /// generation.
    #[must_use]
    pub fn if_generation(self, generation: Option<u64>) -> Self {
        Self { if_generation: generation, ..self }
    }

    /// The path of the controller's socket; `None` if the controller is on another machine.
    #[must_use]
    pub fn socket(&self) -> Option<&Path> {
        match &self.place {
            Place::Here(socket) => Some(socket),
            Place::There(_) => None,
        }
    }

    /// Returns the status of the balancer with interfaces and services.
    ///
    /// # Errors
    /// Fails with a [`ClientError`], like every request.
    pub async fn status(&self) -> Answer<StatusView> {
        self.get("/v1/status").await
    }

    /// Returns whether the balancer is fit to receive clients; with `announced`, a balancer with withdrawn VIPs is not
    /// fit.
    ///
    /// # Errors
    /// See [`Client::status`].
    pub async fn ready(&self, announced: bool) -> Answer<Readiness> {
        self.get(&format!("/v1/ready?announced={announced}")).await
    }

    /// Returns the fleet that the balancer belongs to.
    ///
    /// # Errors
    /// See [`Client::status`]; the controller also refuses the request if the controller belongs to no fleet.
    pub async fn fleet(&self) -> Answer<FleetSnapshot> {
        self.get("/v1/fleet").await
    }

    /// Withdraws or restores the VIPs.
    ///
    /// # Errors
    /// See [`Client::status`].
    pub async fn set_withdrawn(&self, withdrawn: bool) -> Answer<Changed> {
        let method = if withdrawn { Method::PUT } else { Method::DELETE };
        self.send(method, "/v1/withdrawn", None::<&()>).await
    }

    /// Returns all services of the balancer.
    ///
    /// # Errors
    /// See [`Client::status`].
    pub async fn services(&self) -> Answer<Vec<ServiceView>> {
        self.get("/v1/services").await
    }

    /// Returns the service with this name.
    ///
    /// # Errors
    /// See [`Client::status`].
    pub async fn service(&self, service: &str) -> Answer<ServiceView> {
        self.get(&format!("/v1/services/{service}")).await
    }

    /// Returns the backends of one service, or of all services.
    ///
    /// # Errors
    /// See [`Client::status`].
    pub async fn backends(&self, service: Option<&str>) -> Answer<Vec<BackendEntry>> {
        self.get(&format!("/v1/backends{}", service_query(service))).await
    }

    /// Returns the backend of a client, with one view for each service that matches the query.
    ///
    /// # Errors
    /// See [`Client::status`].
    pub async fn client(&self, query: &ClientQuery) -> Answer<Vec<ClientView>> {
        self.get(&format!("/v1/clients/{}{}", query.address, service_query(query.service.as_deref()))).await
    }

    /// Forgets a client in one service, or in every service that remembers clients.
    ///
    /// # Errors
    /// See [`Client::status`].
    pub async fn forget(&self, query: &ClientQuery) -> Answer<ForgottenView> {
        let path = format!("/v1/clients/{}{}", query.address, service_query(query.service.as_deref()));
        self.send(Method::DELETE, &path, None::<&()>).await
    }

    /// Forgets every client of a backend.
    ///
    /// # Errors
    /// See [`Client::status`].
    pub async fn forget_all(&self, name: &BackendName) -> Answer<ForgottenView> {
        self.send(Method::DELETE, &format!("{}/clients", backend_path(name)), None::<&()>).await
    }

    /// Returns the events after `since` (`since=NUMBER`, `since=AGE` or `last=COUNT`). If no such event exists, the
    /// controller waits up to `wait` for an event.
    ///
    /// # Errors
    /// See [`Client::status`].
    pub async fn events(&self, since: &str, wait: Duration) -> Answer<EventsView> {
        self.get(&format!("/v1/events?{since}&wait={}s", wait.as_secs())).await
    }

    /// Starts a trace, which the controller ends unless [`traced`](Self::traced) is called every few seconds.
    ///
    /// # Errors
    /// See [`Client::status`]; the controller also refuses the request while another trace runs.
    pub async fn trace(&self, wanted: &BeginTrace) -> Answer<TraceBegun> {
        self.send(Method::POST, "/v1/trace", Some(wanted)).await
    }

    /// Returns the packets of a trace since the last call. If no packet has arrived, the controller waits up to `wait`
    /// for a packet.
    ///
    /// # Errors
    /// See [`Client::status`]; the request also fails after the trace has ended.
    pub async fn traced(&self, trace: u64, wait: Duration) -> Answer<TraceView> {
        self.get(&format!("/v1/trace/{trace}?wait={}s", wait.as_secs())).await
    }

    /// Ends a trace.
    ///
    /// # Errors
    /// See [`Client::status`].
    pub async fn end_trace(&self, trace: u64) -> Answer<TraceEnded> {
        self.send(Method::DELETE, &format!("/v1/trace/{trace}"), None::<&()>).await
    }

    /// Returns the statistics of stickiness and balance for one service, or for all services.
    ///
    /// # Errors
    /// See [`Client::status`].
    pub async fn stats(&self, service: Option<&str>) -> Answer<Vec<StatsView>> {
        self.get(&format!("/v1/stats{}", service_query(service))).await
    }

    /// Returns the statistics of stickiness and balance, summed over all members of the fleet.
    ///
    /// # Errors
    /// See [`Client::status`]; the request also fails without a fleet, or if the fleet's engine is unreachable.
    pub async fn fleet_stats(&self, service: Option<&str>) -> Answer<Vec<StatsView>> {
        let service = service.map(|service| format!("&service={service}")).unwrap_or_default();
        self.get(&format!("/v1/stats?fleet=true{service}")).await
    }

    /// Returns the clients that cause the most load.
    ///
    /// # Errors
    /// See [`Client::status`].
    pub async fn top(&self, query: &TopQuery) -> Answer<Vec<TopClient>> {
        let by = match query.by {
            By::Bytes => "bytes",
            By::Packets => "packets",
        };
        let mut path = format!("/v1/top?by={by}");
        let parts = [
            ("service", query.service.clone()),
            ("backend", query.backend.clone()),
            ("n", query.n.map(|n| n.to_string())),
        ];
        for (name, value) in parts {
            if let Some(value) = value {
                path += &format!("&{name}={value}");
            }
        }
        self.get(&path).await
    }

    /// Adds a backend to a service.
    ///
    /// # Errors
    /// See [`Client::status`].
    pub async fn add_backend(&self, service: &str, backend: &AddBackend) -> Answer<Changed> {
        self.send(Method::POST, &format!("/v1/services/{service}/backends"), Some(backend)).await
    }

    /// Removes a backend; unless `force` is set, the controller drains the backend first.
    ///
    /// # Errors
    /// See [`Client::status`].
    pub async fn remove_backend(&self, name: &BackendName, force: bool) -> Answer<Changed> {
        self.send(Method::DELETE, &format!("{}?force={force}", backend_path(name)), None::<&()>).await
    }

    /// Sets the administrative state of a backend.
    ///
    /// # Errors
    /// See [`Client::status`].
    pub async fn set_admin(&self, name: &BackendName, admin: &SetAdmin) -> Answer<Changed> {
        self.send(Method::PUT, &format!("{}/admin", backend_path(name)), Some(admin)).await
    }

    /// Sets the limits of a backend.
    ///
    /// # Errors
    /// See [`Client::status`].
    pub async fn set_limits(&self, name: &BackendName, limits: &SetLimits) -> Answer<Changed> {
        self.send(Method::PUT, &format!("{}/limits", backend_path(name)), Some(limits)).await
    }

    /// Sets the weight of a backend.
    ///
    /// # Errors
    /// See [`Client::status`].
    pub async fn set_weight(&self, name: &BackendName, weight: u16) -> Answer<Changed> {
        self.send(Method::PUT, &format!("{}/weight", backend_path(name)), Some(&SetWeight { weight })).await
    }

    /// Returns the effects of a change without making the change.
    ///
    /// # Errors
    /// See [`Client::status`].
    pub async fn plan(&self, change: &PlanRequest) -> Answer<PlanView> {
        self.send(Method::POST, "/v1/plan", Some(change)).await
    }

    /// Returns the health checks of the backends of one service, or of all services.
    ///
    /// # Errors
    /// See [`Client::status`].
    pub async fn health(&self, service: Option<&str>) -> Answer<Vec<HealthView>> {
        self.get(&format!("/v1/health{}", service_query(service))).await
    }

    /// Overrides the verdict of a backend's checks.
    ///
    /// # Errors
    /// See [`Client::status`].
    pub async fn force_health(&self, name: &BackendName, force: Force) -> Answer<Changed> {
        self.send(Method::PUT, &format!("{}/health", backend_path(name)), Some(&ForceHealth { force })).await
    }

    /// Returns the rules of one service, or of all services.
    ///
    /// # Errors
    /// See [`Client::status`].
    pub async fn rules(&self, service: Option<&str>) -> Answer<Vec<RuleView>> {
        self.get(&format!("/v1/rules{}", service_query(service))).await
    }

    /// Returns at most 100,000 connections of `snat` services. `service` and `client` restrict the answer to
    /// connections of this service or client.
    ///
    /// # Errors
    /// See [`Client::status`].
    pub async fn flows(&self, service: Option<&str>, client: Option<IpAddr>) -> Answer<Vec<FlowView>> {
        let asked = service.map(|name| format!("service={name}")).into_iter();
        let asked: Vec<_> = asked.chain(client.map(|address| format!("client={address}"))).collect();
        let query = if asked.is_empty() { String::new() } else { format!("?{}", asked.join("&")) };
        self.get(&format!("/v1/flows{query}")).await
    }

    /// Makes the service remember each of these clients at the given backend.
    ///
    /// # Errors
    /// See [`Client::status`].
    pub async fn import_clients(
        &self,
        service: &str,
        clients: Vec<ImportClient>,
        overwrite: bool,
    ) -> Answer<ImportedView> {
        self.send(Method::POST, &format!("/v1/services/{service}/clients"), Some(&ImportClients { clients, overwrite }))
            .await
    }

    /// Returns the known clients of a service whose addresses are in these prefixes.
    ///
    /// # Errors
    /// See [`Client::status`].
    pub async fn export_clients(&self, service: &str, within: &[IpNet]) -> Answer<KnownClientsView> {
        let within: Vec<String> = within.iter().map(ToString::to_string).collect();
        let query = if within.is_empty() { String::new() } else { format!("?within={}", within.join(",")) };
        self.get(&format!("/v1/services/{service}/clients{query}")).await
    }

    /// Sets the percentage of the service's clients that the balancer steers. Unless `force` is set, the balancer refuses
    /// to steer more clients if it knows that they would not be served.
    ///
    /// # Errors
    /// See [`Client::status`].
    pub async fn set_steer(&self, service: &str, steer: u8, force: bool) -> Answer<Changed> {
        self.send(Method::PUT, &format!("/v1/services/{service}/steer"), Some(&SetSteer { steer, force })).await
    }

    /// Returns the settings that a backend's server needs for its QUIC connection IDs.
    ///
    /// # Errors
    /// See [`Client::status`].
    pub async fn quic_server(&self, backend: &BackendName) -> Answer<QuicServerConfig> {
        self.get(&format!("/v1/services/{}/quic/{}", backend.service, backend.backend)).await
    }

    /// Gives a service a new key for QUIC connection IDs.
    ///
    /// # Errors
    /// See [`Client::status`].
    pub async fn rotate_quic_key(&self, service: &str) -> Answer<Changed> {
        self.send(Method::POST, &format!("/v1/services/{service}/quic/key"), None::<&()>).await
    }

    /// Adds a listener to a service.
    ///
    /// # Errors
    /// See [`Client::status`].
    pub async fn add_listener(&self, service: &str, listener: Listener) -> Answer<Changed> {
        self.send(Method::PUT, &listener_path(service, listener), None::<&()>).await
    }

    /// Removes a listener from a service.
    ///
    /// # Errors
    /// See [`Client::status`].
    pub async fn remove_listener(&self, service: &str, listener: Listener) -> Answer<Changed> {
        self.send(Method::DELETE, &listener_path(service, listener), None::<&()>).await
    }

    /// Adds a rule, or replaces the existing rule for the same prefix.
    ///
    /// # Errors
    /// See [`Client::status`].
    pub async fn set_rule(&self, service: &str, prefix: IpNet, rule: &SetRule) -> Answer<Changed> {
        self.send(Method::PUT, &rule_path(service, prefix), Some(rule)).await
    }

    /// Removes a rule.
    ///
    /// # Errors
    /// See [`Client::status`].
    pub async fn remove_rule(&self, service: &str, prefix: IpNet) -> Answer<Changed> {
        self.send(Method::DELETE, &rule_path(service, prefix), None::<&()>).await
    }

    /// Makes the balancer reread its own configuration file.
    ///
    /// # Errors
    /// See [`Client::status`].
    pub async fn reread(&self) -> Answer<Changed> {
        self.send(Method::POST, "/v1/configuration/reread", None::<&()>).await
    }

    /// Applies the contents of a configuration file.
    ///
    /// # Errors
    /// See [`Client::status`].
    pub async fn apply(&self, configuration: &ApplyConfiguration) -> Answer<Applied> {
        self.send(Method::POST, "/v1/configuration", Some(configuration)).await
    }

    /// Returns the drop-ins without their texts.
    ///
    /// # Errors
    /// See [`Client::status`].
    pub async fn drop_ins(&self) -> Answer<Vec<DropInView>> {
        self.get("/v1/drop-ins").await
    }

    /// Returns the contents of a drop-in.
    ///
    /// # Errors
    /// See [`Client::status`].
    pub async fn drop_in(&self, name: &str) -> Answer<DropInText> {
        self.get(&format!("/v1/drop-ins/{name}")).await
    }

    /// Replaces a drop-in.
    ///
    /// # Errors
    /// See [`Client::status`].
    pub async fn set_drop_in(&self, name: &str, drop_in: &SetDropIn) -> Answer<Applied> {
        self.send(Method::PUT, &format!("/v1/drop-ins/{name}"), Some(drop_in)).await
    }

    /// Removes a drop-in with its services.
    ///
    /// # Errors
    /// See [`Client::status`].
    pub async fn remove_drop_in(&self, name: &str) -> Answer<Changed> {
        self.send(Method::DELETE, &format!("/v1/drop-ins/{name}"), None::<&()>).await
    }

    async fn get<T: DeserializeOwned>(&self, path: &str) -> Answer<T> {
        self.send(Method::GET, path, None::<&()>).await
    }

    async fn send<T: DeserializeOwned>(&self, method: Method, path: &str, body: Option<&impl Serialize>) -> Answer<T> {
        let body = match body.map(serde_json::to_vec).transpose() {
            Ok(body) => Full::new(Bytes::from(body.unwrap_or_default())),
            Err(error) => return Err(self.broken(format!("cannot write the request: {error}"))),
        };
        let mut request = Request::builder()
            .method(method)
            .uri(path)
            .header(header::HOST, "balancer")
            .header(header::CONTENT_TYPE, "application/json")
            .header(header::CONNECTION, "close");
        if let Some(generation) = self.if_generation {
            request = request.header(IF_GENERATION, generation);
        }
        let request = request.body(body).map_err(|error| self.broken(format!("cannot write the request: {error}")))?;
        let (status, body) = timeout(REQUEST_TIMEOUT, self.exchange(request))
            .await
            .unwrap_or_else(|_| Err(self.broken(format!("none within {} s", REQUEST_TIMEOUT.as_secs()))))?;
        if status.is_success() {
            return serde_json::from_slice(&body)
                .map_err(|error| self.broken(format!("{error}; is it of the same version?")));
        }
        match serde_json::from_slice::<ApiError>(&body) {
            Ok(ApiError { error: message }) => Err(ClientError::Refused { status, message }),
            Err(_) => Err(self.broken(format!("status {status} without a reason"))),
        }
    }

    async fn exchange(&self, request: Request<Full<Bytes>>) -> Answer<(StatusCode, Bytes)> {
        match &self.place {
            Place::Here(socket) => {
                let stream = connect(socket).await.map_err(|error| self.unreachable(reason(&error)))?;
                self.exchange_over(stream, request).await
            }
            Place::There(server) => {
                let stream = server.connect().await.map_err(|reason| self.unreachable(reason))?;
                self.exchange_over(stream, request).await
            }
        }
    }

    async fn exchange_over(
        &self,
        stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
        request: Request<Full<Bytes>>,
    ) -> Answer<(StatusCode, Bytes)> {
        let broken = |error: hyper::Error| self.broken(chain(&error));
        let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(broken)?;
        // The task ends after the response, or when the caller drops this future, which owns the sender.
        let driver = tokio::spawn(connection);
        let response = sender.send_request(request).await.map_err(broken)?;
        let status = response.status();
        let body = Limited::new(response.into_body(), MAX_ANSWER)
            .collect()
            .await
            .map_err(|error| self.broken(chain(error.as_ref())))?
            .to_bytes();
        driver.abort();
        Ok((status, body))
    }

    fn unreachable(&self, reason: String) -> ClientError {
        ClientError::Unreachable { at: self.place.to_string(), reason }
    }

    fn broken(&self, reason: String) -> ClientError {
        ClientError::Broken { at: self.place.to_string(), reason }
    }
}

/// Connects to the socket at `socket`, or, if access is denied, to the read-only socket beside it.
async fn connect(socket: &Path) -> io::Result<UnixStream> {
    match UnixStream::connect(socket).await {
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
            UnixStream::connect(readers_socket(socket)).await.map_err(|_| error)
        }
        connected => connected,
    }
}

/// Describes why a connection to the controller's socket failed.
fn reason(error: &io::Error) -> String {
    let words = [
        (io::ErrorKind::NotFound, "the socket does not exist"),
        (io::ErrorKind::ConnectionRefused, "nobody listens on it"),
        (io::ErrorKind::PermissionDenied, "permission denied, run as root or as a member of its group"),
    ];
    let known = words.iter().find(|(kind, _)| *kind == error.kind());
    let reason = known.map_or_else(|| error.to_string(), |(_, words)| (*words).to_owned());
    format!("{reason}; start one with \"balancer run --config FILE\"")
}

fn backend_path(name: &BackendName) -> String {
    format!("/v1/services/{}/backends/{}", name.service, name.backend)
}

fn listener_path(service: &str, listener: Listener) -> String {
    let Listener { address, ports, protocol } = listener;
    format!("/v1/services/{service}/listeners/{protocol}/{address}/{ports}")
}

fn rule_path(service: &str, prefix: IpNet) -> String {
    format!("/v1/services/{service}/rules/{prefix}")
}

fn service_query(service: Option<&str>) -> String {
    service.map(|service| format!("?service={service}")).unwrap_or_default()
}

fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        text.push_str(": ");
        text.push_str(&error.to_string());
        source = error.source();
    }
    text
}
