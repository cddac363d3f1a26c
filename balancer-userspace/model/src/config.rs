//! The valid configuration. Only `config::load` makes one, from a file that passed every check.

use std::{collections::BTreeMap, fmt, net::SocketAddr, path::PathBuf, time::Duration};

use balancer_common::{
    client::HashKey,
    map_types::{Forwarding, SAMPLE_INTERVAL},
};
use regex::bytes::Regex;
use serde::{Deserialize, Serialize};

pub use crate::{
    fleet::{Fleet, LINGER, WhenAlone},
    vip::AssignVip,
};
use crate::{
    listeners::{Family, Listener},
    table_size::TableSize,
    validate::Valid,
};

/// A whole configuration.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// Interfaces to attach to, without duplicates. May be empty where the command line names them.
    pub interfaces: Vec<String>,
    /// How to attach.
    pub xdp_mode: XdpMode,
    /// What a clean exit leaves behind.
    pub on_exit: OnExit,
    /// Where runtime changes are kept.
    pub state_file: PathBuf,
    /// The control socket.
    pub socket: PathBuf,
    /// Whose the control socket is besides root: a group's name or number.
    pub socket_group: Option<String>,
    /// Where `/metrics` is served; `None` when switched off.
    pub metrics_listen: Option<SocketAddr>,
    /// Whether there is a page for people at `/` beside it.
    pub metrics_page: bool,
    /// Known clients over all services.
    pub client_table_capacity: u32,
    /// The fleet's hash key; `None`: the controller makes one.
    pub hash_key: Option<HashKey>,
    /// What is watched, and when it is told.
    pub statistics: StatisticsConfig,
    /// The balancers that this one is of; `None`: it is alone.
    pub fleet: Option<Fleet>,
    /// Services in file order; names and listeners are unique.
    pub services: Valid,
}

/// `[statistics]`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct StatisticsConfig {
    /// The part of a backend's bytes, 0 to 1, from which on a single client is warned of; 0: never.
    pub heavy_client_share: f64,
    /// One forwarded packet in so many is sampled, on average.
    pub sample_interval: u32,
}

impl Default for StatisticsConfig {
    fn default() -> Self {
        Self { heavy_client_share: 0.5, sample_interval: SAMPLE_INTERVAL }
    }
}

/// Which XDP modes may be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum XdpMode {
    /// Native, or generic where the driver has no native mode.
    Auto,
    /// Native or nothing.
    Native,
    /// Generic.
    Generic,
}

/// What a clean exit leaves behind.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OnExit {
    /// Nothing.
    Detach,
    /// The pinned data path, which goes on forwarding.
    Keep,
}

/// One `[[service]]`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ServiceConfig {
    /// Unique name, 1–63 of `[A-Za-z0-9._-]`.
    pub name: String,
    /// The name that it is hashed under, where that is an earlier one.
    #[serde(default)]
    pub renamed_from: Option<String>,
    /// Where it is reached: at least one, none twice, none another service's.
    pub listen: Vec<Listener>,
    /// `nat`: the ports of backends by those of listeners, where they differ.
    #[serde(default)]
    pub ports: BTreeMap<u16, u16>,
    /// How packets reach the backends.
    pub forwarding: Forwarding,
    /// Slots of the lookup table.
    pub table_size: TableSize,
    /// What of a source address makes a client.
    pub client_prefix: ClientPrefix,
    /// How long a client is remembered; zero: the table alone decides.
    #[serde(with = "humantime_serde")]
    pub remember: Duration,
    /// Where moved clients go when their home returns.
    pub failback: Failback,
    /// What happens when no backend is eligible.
    pub when_all_down: WhenAllDown,
    /// How long a returning backend takes to reach its full share of new clients.
    #[serde(with = "humantime_serde")]
    pub slow_start: Duration,
    /// How long a draining backend keeps its known clients.
    #[serde(with = "humantime_serde")]
    pub drain_timeout: Duration,
    /// What a failed health check does.
    pub on_failure: OnFailure,
    /// Whether a backend counts as down until its first verdict.
    pub start_down: bool,
    /// Whether clients that nobody takes are told so.
    #[serde(default)]
    pub reject: bool,
    /// Whether this machine is given the VIPs, and where.
    #[serde(default)]
    pub assign_vip: AssignVip,
    /// The health check of backends without one of their own.
    pub check: CheckConfig,
    /// Backends in file order; names are unique in the service.
    pub backends: Vec<BackendConfig>,
}

impl ServiceConfig {
    /// Slots of its lookup table, once all of its backends are reachable.
    #[must_use]
    pub fn slots(&self) -> u32 {
        self.table_size.slots(self.backends.len())
    }

    /// Whether it says what `other` says, but for backends.
    #[must_use]
    pub fn has_settings_of(&self, other: &Self) -> bool {
        let Self {
            name,
            renamed_from,
            listen,
            ports,
            forwarding,
            table_size,
            client_prefix,
            remember,
            failback,
            when_all_down,
            slow_start,
            drain_timeout,
            on_failure,
            start_down,
            reject,
            assign_vip,
            check,
            backends: _,
        } = self;
        *name == other.name
            && *renamed_from == other.renamed_from
            && *listen == other.listen
            && *ports == other.ports
            && *forwarding == other.forwarding
            && *table_size == other.table_size
            && *client_prefix == other.client_prefix
            && *remember == other.remember
            && *failback == other.failback
            && *when_all_down == other.when_all_down
            && *slow_start == other.slow_start
            && *drain_timeout == other.drain_timeout
            && *on_failure == other.on_failure
            && *start_down == other.start_down
            && *reject == other.reject
            && *assign_vip == other.assign_vip
            && *check == other.check
    }
}

/// One `[[service.backend]]`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct BackendConfig {
    /// Unique in its service, 1–63 of `[A-Za-z0-9._-]`.
    pub name: String,
    /// The name that it is hashed under, where that is an earlier one.
    #[serde(default)]
    pub renamed_from: Option<String>,
    /// Its address. Port 0: the listener's.
    pub address: SocketAddr,
    /// Its address for listeners of the other family, IPv6; the port as above.
    #[serde(default)]
    pub address6: Option<SocketAddr>,
    /// Share of new clients; 0 takes none.
    pub weight: u16,
    /// Used only when no primary backend is eligible.
    pub backup: bool,
    /// Overrides the service's check.
    pub check: Option<Box<CheckConfig>>,
}

/// Layer-4 protocol of a service.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Protocol {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
}

impl Protocol {
    /// The IANA number.
    #[must_use]
    pub const fn number(self) -> u8 {
        match self {
            Self::Tcp => 6,
            Self::Udp => 17,
        }
    }
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
        })
    }
}

/// Prefix lengths that make a client of a source address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClientPrefix {
    /// 0–32.
    pub v4: u8,
    /// 0–128.
    pub v6: u8,
}

/// Where moved clients go when their home backend returns.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Failback {
    /// They stay where they are.
    Stay,
    /// They go home.
    Return,
}

/// What happens when no backend is eligible.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum WhenAllDown {
    /// Steer as if every backend that is not in maintenance were up.
    Open,
    /// Drop, counted.
    Drop,
}

/// What a failed health check does with known clients.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct OnFailure {
    /// Nobody answers.
    pub hard: FailureAction,
    /// It answers, and the answer says no.
    pub soft: FailureAction,
}

/// What becomes of the known clients of a failed backend.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FailureAction {
    /// Moved at once.
    Move,
    /// Kept until the drain deadline.
    Drain,
}

/// A health check.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct CheckConfig {
    /// What is asked.
    pub kind: CheckKind,
    /// Which way.
    #[serde(default)]
    pub via: Via,
    /// Time from the start of one check to the start of the next, before jitter; at least 100 ms.
    #[serde(with = "humantime_serde")]
    pub interval: Duration,
    /// How long an answer may take; at least 100 ms, at most `interval`.
    #[serde(with = "humantime_serde")]
    pub timeout: Duration,
    /// Instead of `interval` while a verdict is pending; at least 100 ms, at most `interval`.
    pub fast_interval: Duration,
    /// Consecutive failures that make a backend down; at least 1.
    pub fall: u32,
    /// Consecutive successes that make a backend up; at least 1.
    pub rise: u32,
}

/// Which way a health check goes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Via {
    /// To the backend's own address, as the kernel routes it.
    #[default]
    Backend,
    /// To the service's VIP, by the backend's forwarding, as clients' packets go. Neither with `nat`, which makes the
    /// backend's own address of the VIP, nor for programs.
    Service,
}

/// What a health check asks.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum CheckKind {
    /// No check: health stays `unknown`, which counts as up.
    None,
    /// A TCP connection is accepted.
    Tcp {
        /// Instead of the backend's port.
        port: Option<u16>,
    },
    /// An HTTP/1.1 request is answered with an expected status.
    Http(HttpCheck),
    /// A program ends with exit code 0.
    Exec(ExecCheck),
}

/// An HTTP health check.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct HttpCheck {
    /// Instead of the backend's port.
    pub port: Option<u16>,
    /// Over TLS.
    pub tls: Option<Tls>,
    /// `GET`, `HEAD`, `OPTIONS`, …
    pub method: String,
    /// Path and query, starting with a slash.
    pub path: String,
    /// The `Host` header, and without its port the server name in TLS; `None`: the backend's address.
    pub host: Option<String>,
    /// Accepted statuses.
    pub expect_status: StatusRanges,
    /// What the first 64 KiB of the body are tested for.
    pub expect_body: Option<BodyTest>,
}

/// TLS under a health check.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tls {
    /// Whether the certificate must be valid, by the system's roots.
    pub verify: bool,
}

/// What is wanted of a body.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(try_from = "BodyText", into = "BodyText")]
pub enum BodyTest {
    /// The text occurs in it.
    Contains(String),
    /// The expression matches somewhere in it.
    Matches(Regex),
}

/// A [`BodyTest`] as text.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum BodyText {
    Contains(String),
    Matches(String),
}

impl From<BodyTest> for BodyText {
    fn from(test: BodyTest) -> Self {
        match test {
            BodyTest::Contains(text) => Self::Contains(text),
            BodyTest::Matches(expression) => Self::Matches(expression.as_str().to_owned()),
        }
    }
}

impl TryFrom<BodyText> for BodyTest {
    type Error = regex::Error;

    fn try_from(text: BodyText) -> Result<Self, regex::Error> {
        Ok(match text {
            BodyText::Contains(text) => Self::Contains(text),
            BodyText::Matches(expression) => Self::Matches(Regex::new(&expression)?),
        })
    }
}

impl PartialEq for BodyTest {
    fn eq(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Contains(one), Self::Contains(other)) => one == other,
            (Self::Matches(one), Self::Matches(other)) => one.as_str() == other.as_str(),
            (Self::Contains(_) | Self::Matches(_), _) => false,
        }
    }
}

/// A health check by a program.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExecCheck {
    /// What the program is told instead of the backend's port.
    pub port: Option<u16>,
    /// The program and its arguments; not empty.
    pub command: Vec<String>,
    /// The name of the user that it runs as.
    #[serde(default = "ExecCheck::default_user")]
    pub user: String,
}

impl ExecCheck {
    /// Who may do least.
    #[must_use]
    pub fn default_user() -> String {
        "nobody".to_owned()
    }
}

/// Inclusive ranges of HTTP statuses, e.g. `200-399` or `200,204,301-302`. Not empty, each within 100–599.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StatusRanges(pub Vec<(u16, u16)>);

impl StatusRanges {
    /// Whether `status` lies in a range.
    #[must_use]
    pub fn contains(&self, status: u16) -> bool {
        self.0.iter().any(|&(low, high)| (low..=high).contains(&status))
    }
}

impl ServiceConfig {
    /// Where `check` (the backend's own or the service's) of a backend connects to, for clients of `family`; port 0: the
    /// check has none, and nor has the service one that answers connections.
    #[must_use]
    pub fn check_target(&self, backend: &BackendConfig, check: &CheckConfig, family: Family) -> Option<SocketAddr> {
        let address = backend.address_for(family, self.forwarding)?;
        let vip = self.listeners(family).next()?.address;
        let host = match check.via {
            Via::Backend => address.ip(),
            Via::Service => vip,
        };
        let port = check.kind.port().or((address.port() != 0).then_some(address.port()));
        Some(SocketAddr::new(host, port.unwrap_or_else(|| self.implied_check_port(family))))
    }
}

impl CheckKind {
    /// The port checked instead of the backend's.
    #[must_use]
    pub const fn port(&self) -> Option<u16> {
        match self {
            Self::None => None,
            Self::Tcp { port } => *port,
            Self::Http(http) => http.port,
            Self::Exec(exec) => exec.port,
        }
    }
}

/// `http GET /healthz`.
impl fmt::Display for CheckKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::None => f.write_str("none"),
            Self::Tcp { .. } => f.write_str("tcp"),
            Self::Http(http) => {
                let scheme = if http.tls.is_some() { "https" } else { "http" };
                write!(f, "{scheme} {} {}", http.method, http.path)
            }
            Self::Exec(exec) => write!(f, "exec {}", exec.command.join(" ")),
        }
    }
}

/// `http GET /healthz every 2s, timeout 1s, fall 3, rise 2`.
impl fmt::Display for CheckConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.kind.fmt(f)?;
        if self.kind == CheckKind::None {
            return Ok(());
        }
        let [interval, timeout] = [self.interval, self.timeout].map(humantime::format_duration);
        let via = match self.via {
            Via::Backend => "",
            Via::Service => " via service",
        };
        write!(f, "{via} every {interval}, timeout {timeout}, fall {}, rise {}", self.fall, self.rise)
    }
}

/// The configuration's word for a forwarding mode.
#[must_use]
pub const fn forwarding_word(forwarding: Forwarding) -> &'static str {
    match forwarding {
        Forwarding::Dsr => "dsr",
        Forwarding::Nat => "nat",
        Forwarding::Ipip => "ipip",
        Forwarding::Gue => "gue",
    }
}
