//! Limits of backends: a backend that has reached its limit of clients or connections, or whose connections hold nearly
//! all ports of its address pool, takes no new clients, and no known client moves.

use std::{fmt, time::Duration};

use balancer_common::map_types::Forwarding;
use serde::{Deserialize, Serialize};

use crate::words::grouped;

/// The limits on clients and connections of a backend.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Limits {
    /// The maximum number of known clients; `None`: the number is not limited.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub clients: Option<u32>,
    /// `snat`: the maximum number of connections; `None`: the number is not limited.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub connections: Option<u32>,
}

impl Limits {
    /// Whether the backend has neither of these limits.
    #[must_use]
    pub const fn is_none(&self) -> bool {
        self.clients.is_none() && self.connections.is_none()
    }

    /// Returns the reason why a backend cannot have these limits in a service with this client memory and mode; `None`:
    /// the limits are valid.
    #[must_use]
    pub fn fault(&self, remember: Duration, forwarding: Forwarding) -> Option<String> {
        if [self.clients, self.connections].contains(&Some(0)) {
            return Some("a limit of 0 is not possible; for no new clients, use weight = 0".to_owned());
        }
        if self.clients.is_some() && remember.is_zero() {
            let text = "max_clients needs memory: with remember = \"0s\", no client is known; set remember, or remove \
                        max_clients";
            return Some(text.to_owned());
        }
        (self.connections.is_some() && forwarding != Forwarding::Snat).then(|| {
            "max_connections needs forwarding = \"snat\", the only mode that counts connections; use max_clients"
                .to_owned()
        })
    }
}

/// Formats the limits as `max_clients 1,000, max_connections 5,000` or `no limit`.
impl fmt::Display for Limits {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let of = |word: &str, limit: Option<u32>| limit.map(|most| format!("{word} {}", grouped(most)));
        let limits = [of("max_clients", self.clients), of("max_connections", self.connections)];
        let limits: Vec<String> = limits.into_iter().flatten().collect();
        f.write_str(&if limits.is_empty() { "no limit".to_owned() } else { limits.join(", ") })
    }
}

/// The kind of things of which a full backend has as many as it may.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Enough {
    /// Known clients.
    Clients,
    /// Connections of a `snat` backend.
    Connections,
    /// Ports of the address pool that connections of a `snat` backend hold.
    Ports,
}

impl Enough {
    /// All variants, in the order of their numbers.
    pub const ALL: [Self; 3] = [Self::Clients, Self::Connections, Self::Ports];

    /// The word for the variant in messages, and in the label `reason` of metrics.
    #[must_use]
    pub const fn word(self) -> &'static str {
        match self {
            Self::Clients => "clients",
            Self::Connections => "connections",
            Self::Ports => "ports",
        }
    }
}

/// The state of a backend when it reached its limit, or when its connections held nearly all ports.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Full {
    /// The kind of things that the two numbers count.
    pub of: Enough,
    /// The number when the balancer found the backend full.
    pub had: u64,
    /// The maximum number.
    pub most: u32,
}

/// Formats the state as `had 1,003 of at most 1,000 clients`.
impl fmt::Display for Full {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "had {} of at most {} {}", grouped(self.had), grouped(self.most), self.of.word())
    }
}

/// How the service treats new clients when all backends that could take them are at their limits.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum WhenFull {
    /// The balancer steers the clients as if backends had no limits.
    #[default]
    Open,
    /// The program drops and counts the packets of the clients.
    Drop,
    /// The program drops the packets of the clients, and answers with a reset or an ICMP error.
    Reject,
}

impl WhenFull {
    /// The choices, each with its word in the configuration.
    pub const WORDS: [(&'static str, Self); 3] = [("open", Self::Open), ("drop", Self::Drop), ("reject", Self::Reject)];
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn when_nothing_is_counted_then_there_is_no_limit_of_it() {
        let (hour, none) = (Duration::from_secs(3600), Duration::ZERO);
        let clients = Limits { clients: Some(1000), connections: None };
        let connections = Limits { clients: None, connections: Some(5000) };
        assert_eq!(clients.fault(hour, Forwarding::Nat), None);
        assert_eq!(connections.fault(none, Forwarding::Snat), None);
        assert!(clients.fault(none, Forwarding::Snat).unwrap().starts_with("max_clients needs memory"));
        assert!(connections.fault(hour, Forwarding::Nat).unwrap().contains("needs forwarding = \"snat\""));
        assert!(
            Limits { clients: Some(0), ..connections }.fault(hour, Forwarding::Snat).unwrap().contains("a limit of 0")
        );
        assert_eq!(Limits::default().fault(none, Forwarding::Dsr), None);
    }

    #[test]
    fn when_limits_are_told_then_in_the_words_of_the_configuration() {
        let both = Limits { clients: Some(1000), connections: Some(5000) };
        assert_eq!(
            [both, Limits::default()].map(|of| of.to_string()),
            ["max_clients 1,000, max_connections 5,000", "no limit"]
        );
        let full = Enough::ALL.map(|of| Full { of, had: 5003, most: 5000 }.to_string());
        assert_eq!(full, ["clients", "connections", "ports"].map(|of| format!("had 5,003 of at most 5,000 {of}")));
    }
}
