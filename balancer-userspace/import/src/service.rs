//! The form of services that is common to all dialects.

use std::net::IpAddr;

use crate::{address::Host, place::Place};

/// The maximum number of different checks that compete for being the check of a service.
const MOST_COMPARED: usize = 64;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Listener {
    /// The address of the listener; the unspecified address stands for an unknown address.
    pub(crate) address: IpAddr,
    pub(crate) first: u16,
    pub(crate) last: u16,
    pub(crate) udp: bool,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Forwarding {
    #[default]
    Nat,
    Snat,
    Dsr,
    Ipip,
    Gue,
}

impl Forwarding {
    /// Whether clients and backends may have different address families.
    pub(crate) fn crosses_families(self) -> bool {
        matches!(self, Self::Snat | Self::Ipip | Self::Gue)
    }
}

/// The TLS settings of a check.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Tls {
    pub(crate) verify: Option<bool>,
    /// The file of trusted root certificates, for verifying certificates; `None` for the system's root certificates.
    pub(crate) ca_file: Option<String>,
    pub(crate) sni: Option<String>,
    /// The file that contains the client certificate and its key.
    pub(crate) client_cert: Option<String>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Http {
    pub(crate) tls: Option<Tls>,
    pub(crate) http2: Option<bool>,
    pub(crate) method: Option<String>,
    pub(crate) path: Option<String>,
    pub(crate) host: Option<String>,
    pub(crate) headers: Option<Vec<(String, String)>>,
    pub(crate) status: Option<String>,
    pub(crate) body_regex: Option<String>,
}

/// What the answer to a check must contain, in the notation of the configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Expect {
    Text(String),
    Regex(String),
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) enum CheckKind {
    #[default]
    Tcp,
    /// A check that sends bytes over a TCP connection (none, if the server speaks first) and reads the answer.
    Talk {
        send: Option<String>,
        expect: Expect,
    },
    Udp {
        send: String,
        expect: Option<String>,
    },
    /// A check that sends a DNS query for the records of a name.
    Dns {
        name: Option<String>,
        record: Option<String>,
    },
    Http(Http),
    Exec {
        command: Vec<String>,
        user: Option<String>,
    },
}

/// A health check. For each setting, `None` stands for the balancer's default.
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
    /// The health check of the backend; `None` if there is no check.
    pub(crate) check: Option<Check>,
}

/// Backends that the records of a DNS name list.
#[derive(Clone, Debug)]
pub(crate) struct Discover {
    pub(crate) place: Place,
    /// The name of the servers in the converted configuration.
    pub(crate) name: String,
    pub(crate) records: Records,
    /// The health check of these backends; `None` if there is no check.
    pub(crate) check: Option<Check>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Records {
    /// The SRV records of this name list the servers.
    Services(String),
    /// The address records of this name list the servers, which use this port; `None` for the port of the listener.
    Addresses(String, Option<u16>),
}

#[derive(Clone, Debug)]
pub(crate) struct Service {
    pub(crate) place: Place,
    pub(crate) name: String,
    pub(crate) listeners: Vec<Listener>,
    pub(crate) forwarding: Forwarding,
    /// The time in seconds for which the service remembers clients.
    pub(crate) remember: Option<u64>,
    /// The lengths of client prefixes for IPv4 and IPv6.
    pub(crate) prefix: Option<(u8, u8)>,
    pub(crate) start_down: bool,
    /// The time in milliseconds after which the other program closes a silent connection.
    pub(crate) idle_ms: Option<u64>,
    /// The addresses of this machine that servers see with `snat`.
    pub(crate) seen_as: Vec<IpAddr>,
    /// The port of the servers' agents, and the time in milliseconds between two questions.
    pub(crate) agent: Option<(u16, u64)>,
    /// Whether known clients stay at a server whose check fails.
    pub(crate) keeps_clients_of_failed: bool,
    /// A comment about the check of the service.
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
            idle_ms: None,
            seen_as: Vec::new(),
            agent: None,
            keeps_clients_of_failed: false,
            about_check: None,
            backends: Vec::new(),
            discover: Vec::new(),
        }
    }

    fn checks(&self) -> impl Iterator<Item = &Check> {
        let of_backends = self.backends.iter().map(|backend| &backend.check);
        of_backends.chain(self.discover.iter().map(|list| &list.check)).flatten()
    }

    /// The check of most backends of the service; of several such checks the first.
    pub(crate) fn check(&self) -> Option<&Check> {
        let mut counts: Vec<(&Check, usize)> = Vec::new();
        for check in self.checks() {
            if let Some((_, count)) = counts.iter_mut().find(|(other, _)| *other == check) {
                *count += 1;
            } else if counts.len() < MOST_COMPARED {
                counts.push((check, 1));
            }
        }
        // A check that only connects cannot differ from one that reads an answer, because it would inherit the answer.
        let connects = counts.iter().any(|(check, _)| check.kind == CheckKind::Tcp);
        let counts = counts.into_iter().filter(|(check, _)| !connects || !matches!(check.kind, CheckKind::Talk { .. }));
        counts.reduce(|most, next| if next.1 > most.1 { next } else { most }).map(|(check, _)| check)
    }

    /// Whether known clients leave a server that answers its check, but not as it should. A check that only connects
    /// reads no answer.
    pub(crate) fn moves_after_wrong_answers(&self) -> bool {
        !self.keeps_clients_of_failed && self.checks().any(|check| check.kind != CheckKind::Tcp)
    }

    /// All checks, each with its line in the file and the name of the checked servers.
    pub(crate) fn checks_mut(&mut self) -> impl Iterator<Item = (&Place, &str, &mut Check)> {
        let of_backends = self.backends.iter_mut().map(|one| (&one.place, &*one.name, &mut one.check));
        let of_lists = self.discover.iter_mut().map(|one| (&one.place, &*one.name, &mut one.check));
        of_backends.chain(of_lists).filter_map(|(place, name, check)| Some((place, name, check.as_mut()?)))
    }

    pub(crate) fn has_no_server(&self) -> bool {
        self.backends.is_empty() && self.discover.is_empty()
    }
}
