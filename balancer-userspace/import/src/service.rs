//! The common form of services for all dialects.

use std::net::IpAddr;

use crate::{address::Host, place::Place};

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Listener {
    /// The address; the unspecified address means that it is unknown.
    pub(crate) address: IpAddr,
    pub(crate) first: u16,
    pub(crate) last: u16,
    pub(crate) udp: bool,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Forwarding {
    #[default]
    Nat,
    Dsr,
    Ipip,
    Gue,
}

impl Forwarding {
    pub(crate) fn tunnels(self) -> bool {
        matches!(self, Self::Ipip | Self::Gue)
    }
}

/// The TLS settings of a check.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Tls {
    pub(crate) verify: Option<bool>,
    /// The file of trusted roots, used only if certificates are verified; `None`: the system's roots.
    pub(crate) ca_file: Option<String>,
    pub(crate) sni: Option<String>,
    /// The file of a certificate and its key.
    pub(crate) client_cert: Option<String>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Http {
    pub(crate) tls: Option<Tls>,
    pub(crate) http2: Option<bool>,
    pub(crate) method: Option<String>,
    pub(crate) path: Option<String>,
    pub(crate) host: Option<String>,
    /// The names and values of headers.
    pub(crate) headers: Option<Vec<(String, String)>>,
    pub(crate) status: Option<String>,
    pub(crate) body_regex: Option<String>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) enum CheckKind {
    #[default]
    Tcp,
    Http(Http),
    Exec {
        command: Vec<String>,
        user: Option<String>,
    },
}

/// A health check. `None` stands for the balancer's default.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Check {
    pub(crate) kind: CheckKind,
    pub(crate) interval_ms: Option<u64>,
    pub(crate) timeout_ms: Option<u64>,
    pub(crate) fast_ms: Option<u64>,
    pub(crate) fall: Option<u32>,
    pub(crate) rise: Option<u32>,
    pub(crate) port: Option<u16>,
}

#[derive(Clone, Debug)]
pub(crate) struct Backend {
    pub(crate) place: Place,
    pub(crate) name: String,
    pub(crate) host: Host,
    pub(crate) port: Option<u16>,
    pub(crate) weight: Option<u32>,
    pub(crate) backup: bool,
    pub(crate) disabled: bool,
    /// The check; `None`: no check.
    pub(crate) check: Option<Check>,
}

/// Backends that a DNS name lists.
#[derive(Clone, Debug)]
pub(crate) struct Discover {
    pub(crate) place: Place,
    /// The name of the servers in the converted configuration.
    pub(crate) name: String,
    pub(crate) records: Records,
    /// The check; `None`: no check.
    pub(crate) check: Option<Check>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Records {
    /// The servers are in the SRV records of this name.
    Services(String),
    /// The servers are the addresses of this name; without a port, they use the listener's.
    Addresses(String, Option<u16>),
}

#[derive(Clone, Debug)]
pub(crate) struct Service {
    pub(crate) place: Place,
    pub(crate) name: String,
    pub(crate) listeners: Vec<Listener>,
    pub(crate) forwarding: Forwarding,
    /// How long to remember clients, in seconds.
    pub(crate) remember: Option<u64>,
    /// The lengths of a client's prefix, for IPv4 and IPv6.
    pub(crate) prefix: Option<(u8, u8)>,
    pub(crate) start_down: bool,
    /// A comment on the service's check.
    pub(crate) about_check: Option<&'static str>,
    pub(crate) backends: Vec<Backend>,
    pub(crate) discover: Vec<Discover>,
}

impl Service {
    pub(crate) fn new(place: &Place, name: impl Into<String>) -> Self {
        Self {
            place: place.clone(),
            name: name.into(),
            listeners: Vec::new(),
            forwarding: Forwarding::Nat,
            remember: None,
            prefix: None,
            start_down: false,
            about_check: None,
            backends: Vec::new(),
            discover: Vec::new(),
        }
    }

    /// The default check of the service's backends.
    pub(crate) fn check(&self) -> Option<&Check> {
        let of_backends = self.backends.iter().map(|backend| &backend.check);
        of_backends.chain(self.discover.iter().map(|list| &list.check)).find_map(Option::as_ref)
    }

    /// All checks, each with its line and the name of its servers.
    pub(crate) fn checks_mut(&mut self) -> impl Iterator<Item = (&Place, &str, &mut Check)> {
        let of_backends = self.backends.iter_mut().map(|one| (&one.place, &*one.name, &mut one.check));
        let of_lists = self.discover.iter_mut().map(|one| (&one.place, &*one.name, &mut one.check));
        of_backends.chain(of_lists).filter_map(|(place, name, check)| Some((place, name, check.as_mut()?)))
    }

    /// Whether the service has no server.
    pub(crate) fn has_no_server(&self) -> bool {
        self.backends.is_empty() && self.discover.is_empty()
    }
}
