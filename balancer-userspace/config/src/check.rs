//! Health checks in the configuration.

use std::{
    fmt,
    path::{Path, PathBuf},
    str::FromStr,
    time::Duration,
};

use regex::bytes::Regex;
use serde::{Deserialize, Serialize};

use crate::{
    header::{Header, HeaderText},
    protocol::Protocol,
    question::{DnsCheck, Payload, UdpCheck},
    value::quoted,
};

/// A health check of a backend.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct CheckConfig {
    /// The request of the check, and the answer that the check expects.
    pub kind: CheckKind,
    /// The path of the check's packets.
    #[serde(default)]
    pub via: Via,
    /// The time between the starts of two checks, before jitter; at least 100 ms.
    #[serde(with = "humantime_serde")]
    pub interval: Duration,
    /// The maximum time to wait for an answer; at least 100 ms, at most `interval`.
    #[serde(with = "humantime_serde")]
    pub timeout: Duration,
    /// The interval while the checks have not confirmed another verdict yet; at least 100 ms, at most `interval`.
    pub fast_interval: Duration,
    /// Whether signs in packets that a backend may have failed trigger an immediate check.
    #[serde(default = "CheckConfig::passive_by_default")]
    pub passive: bool,
    /// The number of consecutive failed checks that make a backend down; at least 1.
    pub fall: u32,
    /// The number of consecutive passed checks that make a backend up; at least 1.
    pub rise: u32,
}

impl CheckConfig {
    /// The maximum random deviation of an interval in either direction, as a fraction of the interval.
    pub const JITTER: f64 = 0.1;

    /// The default value of [`Self::passive`].
    #[must_use]
    pub const fn passive_by_default() -> bool {
        true
    }

    /// The maximum duration of one round of checks while verdicts are pending.
    #[must_use]
    pub fn fast_round(&self) -> Duration {
        Self::with_jitter(self.fast_interval).saturating_add(self.timeout)
    }

    /// The maximum time between the check that finds the first of several backends up and the check that finds the last
    /// one up, if the backends came back at the same time.
    #[must_use]
    pub fn return_takes(&self) -> Duration {
        Self::with_jitter(self.interval.saturating_mul(self.rise)).saturating_add(self.timeout)
    }

    /// The longest time between two checks with this interval. The settings of a fleet's other members are not limited.
    fn with_jitter(interval: Duration) -> Duration {
        Duration::try_from_secs_f64(interval.as_secs_f64() * (1.0 + Self::JITTER)).unwrap_or(Duration::MAX)
    }
}

/// The path that a health check's packets take.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Via {
    /// The packets go to the backend's own address, along the kernel's routes.
    #[default]
    Backend,
    /// The packets go to the service's VIP through the backend's forwarding mode, like clients' packets. A check that
    /// runs a program cannot use this path, nor can a check in `nat` mode, which replaces the VIP by the backend's own
    /// address.
    Service,
}

/// The kind of a health check, with its settings.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum CheckKind {
    /// No check: the health of the backend stays `unknown`, which counts as up.
    None,
    /// The backend must accept a TCP connection.
    Tcp {
        /// The port to which the check connects, in place of the backend's port.
        port: Option<u16>,
        /// The bytes that the check sends, and the answer that it expects; `None`: the check only connects.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        talk: Option<Talk>,
    },
    /// The backend must answer an HTTP request with an expected status.
    Http(HttpCheck),
    /// The gRPC health service must report that a service is serving.
    Grpc(GrpcCheck),
    /// The backend must answer a UDP datagram.
    Udp(UdpCheck),
    /// The backend must answer a DNS query with an expected response code.
    Dns(DnsCheck),
    /// A program on this machine must end with exit code 0.
    Exec(ExecCheck),
}

/// A health check by HTTP or HTTPS.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct HttpCheck {
    /// The port to which the check connects, in place of the backend's port.
    pub port: Option<u16>,
    /// The TLS settings of the check; `None`: plain HTTP.
    pub tls: Option<Tls>,
    /// Whether the check uses HTTP/2 (without TLS by prior knowledge) in place of HTTP/1.1.
    #[serde(default, skip_serializing_if = "is_false")]
    pub http2: bool,
    /// The method of the request: `GET`, `HEAD`, `OPTIONS`, …
    pub method: String,
    /// The path and the query, starting with a slash.
    pub path: String,
    /// The `Host` header; without its port, the host is also the server name in TLS; `None`: the backend's address.
    pub host: Option<String>,
    /// Additional headers of the request, by name; each name occurs once.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub headers: Vec<Header>,
    /// The HTTP statuses that the check accepts.
    pub expect_status: StatusRanges,
    /// The test that the first 64 KiB of the answer's body must pass.
    pub expect_body: Option<BodyTest>,
}

/// The TLS settings of a health check.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tls {
    /// Whether the check requires a valid server certificate.
    pub verify: bool,
    /// A PEM file of root certificates for verification; `None`: the root certificates of the system. This setting is
    /// valid only together with `verify`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ca_file: Option<PathBuf>,
    /// The server name in TLS, in place of the name in the `Host` header.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sni: Option<String>,
    /// The certificate that the check presents if the server asks for one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub client: Option<ClientFiles>,
}

/// The PEM files of a client certificate.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClientFiles {
    /// The file with the client certificate, followed by intermediate certificates.
    pub cert: PathBuf,
    /// The file with the private key; `None`: the file of the certificate contains the key.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key: Option<PathBuf>,
}

/// A health check that uses the protocol `grpc.health.v1`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct GrpcCheck {
    /// The port to which the check connects, in place of the backend's port.
    pub port: Option<u16>,
    /// The TLS settings of the check; `None`: plain HTTP/2 by prior knowledge.
    pub tls: Option<Tls>,
    /// The name of the gRPC service to check; empty: the server as a whole.
    pub service: String,
    /// The `:authority` of the request; without its port, it is also the server name in TLS; `None`: the backend's
    /// address.
    pub host: Option<String>,
    /// The metadata of the request, by name; each name occurs once.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub headers: Vec<Header>,
}

/// The purpose of a file that a health check reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum FileUse {
    /// The file contains root certificates for verification.
    Roots,
    /// The file contains the check's own certificate.
    ClientCert,
    /// The file contains the private key of the check's own certificate.
    ClientKey,
    /// The file contains the value of a header.
    Header,
}

impl Tls {
    fn files(&self) -> impl Iterator<Item = (FileUse, &Path)> {
        let client = self.client.as_ref();
        [
            (FileUse::Roots, self.ca_file.as_deref()),
            (FileUse::ClientCert, client.map(|client| &*client.cert)),
            (FileUse::ClientKey, client.and_then(|client| client.key.as_deref())),
        ]
        .into_iter()
        .filter_map(|(purpose, file)| Some((purpose, file?)))
    }
}

fn is_false(value: &bool) -> bool {
    !value
}

/// The bytes that a check over TCP sends, and the answer that it expects.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Talk {
    /// The bytes that the check sends; empty: the backend speaks first.
    pub send: Payload,
    /// The test that the first 64 KiB of the answer must pass; `None`: any answer counts.
    pub expect: Option<BodyTest>,
}

/// The test that the body of an answer must pass.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(try_from = "BodyText", into = "BodyText")]
pub enum BodyTest {
    /// The body must contain this text.
    Contains(String),
    /// The expression must match somewhere in the body.
    Matches(Regex),
}

/// A [`BodyTest`] in serialized form.
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

/// A health check that runs a program.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExecCheck {
    /// The port that the program gets, in place of the backend's port.
    pub port: Option<u16>,
    /// The program and its arguments; the list is not empty.
    pub command: Vec<String>,
    /// The name of the user account under which the program runs.
    #[serde(default = "ExecCheck::default_user")]
    pub user: String,
}

impl ExecCheck {
    /// The default user account, which has the fewest rights.
    #[must_use]
    pub fn default_user() -> String {
        "nobody".to_owned()
    }
}

/// Inclusive ranges of HTTP statuses, e.g. `200-399` or `200,204,301-302`. The list contains at least one range, and
/// each range is within 100–599.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StatusRanges(pub Vec<(u16, u16)>);

impl StatusRanges {
    /// Whether `status` is in one of the ranges.
    #[must_use]
    pub fn contains(&self, status: u16) -> bool {
        self.0.iter().any(|&(low, high)| (low..=high).contains(&status))
    }
}

/// Parses `200-399` or `200,204,301-302`.
impl FromStr for StatusRanges {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let status = |text: &str| text.trim().parse().ok().filter(|status| (100..=599).contains(status));
        let range = |part: &str| {
            let (low, high) = part.split_once('-').unwrap_or((part, part));
            Some((status(low)?, status(high)?)).filter(|(low, high): &(u16, u16)| low <= high)
        };
        text.split(',').map(range).collect::<Option<Vec<_>>>().map(Self).ok_or_else(|| {
            format!(
                "{} is not a set of HTTP statuses; write codes and ranges within 100-599, such as \"200-399\" or \"200,204\"",
                quoted(text)
            )
        })
    }
}

impl CheckKind {
    /// The port to which the check connects, in place of the backend's port.
    #[must_use]
    pub const fn port(&self) -> Option<u16> {
        match self {
            Self::None => None,
            Self::Tcp { port, .. } => *port,
            Self::Http(http) => http.port,
            Self::Grpc(grpc) => grpc.port,
            Self::Udp(udp) => udp.port,
            Self::Dns(dns) => dns.port,
            Self::Exec(exec) => exec.port,
        }
    }

    /// The protocol of the listener whose port the check uses if neither the check nor the backend has a port.
    #[must_use]
    pub const fn protocol(&self) -> Protocol {
        match self {
            Self::None | Self::Tcp { .. } | Self::Http(_) | Self::Grpc(_) | Self::Exec(_) => Protocol::Tcp,
            Self::Udp(_) | Self::Dns(_) => Protocol::Udp,
        }
    }

    /// Whether this machine itself sends packets to the port of the check.
    #[must_use]
    pub const fn needs_port(&self) -> bool {
        match self {
            Self::None | Self::Exec(_) => false,
            Self::Tcp { .. } | Self::Http(_) | Self::Grpc(_) | Self::Udp(_) | Self::Dns(_) => true,
        }
    }

    /// The files that the health check reads.
    pub fn files(&self) -> impl Iterator<Item = (FileUse, &Path)> {
        let (tls, headers) = match self {
            Self::Http(http) => (http.tls.as_ref(), &*http.headers),
            Self::Grpc(grpc) => (grpc.tls.as_ref(), &*grpc.headers),
            Self::None | Self::Tcp { .. } | Self::Udp(_) | Self::Dns(_) | Self::Exec(_) => (None, &[][..]),
        };
        let headers = headers.iter().filter_map(|header| match &header.value {
            HeaderText::File(file) => Some((FileUse::Header, &**file)),
            HeaderText::Text(_) => None,
        });
        tls.into_iter().flat_map(Tls::files).chain(headers)
    }
}

/// Formats the purpose as `the ca_file`, `the client_cert` or `the header whose value is in`, to be followed by the
/// path.
impl fmt::Display for FileUse {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Roots => "the ca_file",
            Self::ClientCert => "the client_cert",
            Self::ClientKey => "the client_key",
            Self::Header => "the header whose value is in",
        })
    }
}

/// Formats the kind of check as `http GET /healthz`, `grpc shop.Cart` or `dns example.com SOA`.
impl fmt::Display for CheckKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::None => f.write_str("none"),
            Self::Tcp { talk: None, .. } => f.write_str("tcp"),
            Self::Tcp { talk: Some(_), .. } => f.write_str("tcp with an answer"),
            Self::Http(http) => {
                let scheme = if http.tls.is_some() { "https" } else { "http" };
                let version = if http.http2 { " HTTP/2" } else { "" };
                write!(f, "{scheme} {} {}{version}", http.method, http.path)
            }
            Self::Grpc(grpc) => {
                let scheme = if grpc.tls.is_some() { "grpcs" } else { "grpc" };
                let space = if grpc.service.is_empty() { "" } else { " " };
                write!(f, "{scheme}{space}{}", grpc.service)
            }
            Self::Udp(_) => f.write_str("udp"),
            Self::Dns(dns) => write!(f, "dns {} {}", dns.name, dns.record),
            Self::Exec(exec) => write!(f, "exec {}", exec.command.join(" ")),
        }
    }
}

/// Formats the check as `http GET /healthz every 2s, timeout 1s, fall 3, rise 2`.
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn when_statuses_are_written_then_they_are_ranges_within_100_to_599() {
        assert_eq!("200-399".parse(), Ok(StatusRanges(vec![(200, 399)])));
        assert_eq!("200, 204,301-302".parse(), Ok(StatusRanges(vec![(200, 200), (204, 204), (301, 302)])));
        for wrong in ["", "200,", "399-200", "99", "600", "2xx", "200-300-400", "-200"] {
            assert!(wrong.parse::<StatusRanges>().is_err(), "{wrong}");
        }
    }
}
