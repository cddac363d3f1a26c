//! The findings from a log.

use balancer_model::config::ClientPrefix;
use serde::Serialize;

/// All of it.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Report {
    /// The log that was read.
    pub log: Log,
    /// The clients in the log.
    pub clients: Clients,
    /// The networks with most requests: /24, and /64 of IPv6.
    pub heaviest: Vec<Prefix>,
    /// The service that is simulated.
    pub service: Simulated,
    /// Where clients go, by rule.
    pub rules: Vec<Shares>,
    /// Whom changes concern.
    pub active: Active,
    /// Whom each change moves, by rule.
    pub changes: Vec<Moves>,
    /// How long clients pause between two requests. `None`: the log has no times.
    pub gaps: Option<Pauses>,
    /// Lines for the configuration, or commands to type.
    pub suggestions: Vec<Suggestion>,
}

/// The size of a log, and the time that it covers.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Log {
    /// Lines that are not empty.
    pub lines: u64,
    /// Those among them of which nothing could be made.
    pub unreadable: u64,
    /// Requests that the other lines stand for.
    pub requests: u64,
    /// When the log begins, in UTC. `None`: it has no times.
    pub first: Option<String>,
    /// When it ends.
    pub last: Option<String>,
    /// Seconds between the two.
    pub seconds: Option<u64>,
}

/// The clients in a log.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Clients {
    /// IPv4 addresses.
    pub ipv4: u64,
    /// IPv6 addresses.
    pub ipv6: u64,
    /// Addresses whose /24 (IPv6: /64) has other addresses of the log.
    pub sharing_a_network: u64,
    /// Networks of that length with more than one address.
    pub shared_networks: u64,
    /// Addresses with more than one user agent, at least: several people, or several programs of one. `None`: the log has
    /// no user agents.
    pub several_agents: Option<u64>,
}

/// A prefix.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Prefix {
    /// Such as `203.0.113.0/24`.
    pub prefix: String,
    /// Addresses of the prefix in the log.
    pub addresses: u64,
    /// Their requests.
    pub requests: u64,
    /// These as a part of all requests.
    pub share: f64,
}

/// The service that is simulated.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Simulated {
    /// The service's name.
    pub name: String,
    /// The service's servers in the order of the configuration.
    pub servers: Vec<String>,
    /// The prefix lengths that make a client.
    pub client_prefix: ClientPrefix,
    /// Seconds for which it is remembered.
    pub remember_seconds: u64,
    /// Whether the configuration has a hash key; otherwise it is one that a controller would not draw, and shares are others
    /// of the same kind.
    pub has_key: bool,
}

/// A rule of a balancer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Rule {
    /// nginx: `ip_hash`.
    NginxIpHash,
    /// `HAProxy`: `balance source`.
    HaproxySource,
    /// This balancer.
    Balancer {
        /// The prefix lengths that make a client.
        client_prefix: ClientPrefix,
        /// Whether connections of the heaviest clients are spread.
        spread: bool,
    },
}

/// Where clients go under a rule.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Shares {
    /// The rule.
    pub rule: Rule,
    /// The share of each server.
    pub servers: Vec<Share>,
    /// Addresses that have no server of their own: their connections are spread, or the rule takes turns.
    pub spread: u64,
    /// Requests of these, which servers get in proportion to their weights. They are part of what each server gets.
    pub spread_requests: u64,
    /// The largest ratio, over all servers, of the part of clients to the part expected.
    pub largest_clients: f64,
    /// The same of requests.
    pub largest_requests: f64,
}

/// The share of a server.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Share {
    /// Name of the server.
    pub server: String,
    /// The part that its weight entitles it to.
    pub expected: f64,
    /// Addresses.
    pub clients: u64,
    /// Requests.
    pub requests: f64,
    /// Addresses as a part of all that have a server.
    pub client_share: f64,
    /// Requests as a part of all.
    pub request_share: f64,
}

/// Whom changes concern.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Active {
    /// Addresses.
    pub clients: u64,
    /// They were seen in so many seconds before the log's end. `None`: the log has no times, and all are taken to be active.
    pub within_seconds: Option<u64>,
    /// The log's end, in UTC.
    pub moment: Option<String>,
}

/// Whom a change moves.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Moves {
    /// The change.
    pub change: String,
    /// By rule.
    pub rules: Vec<RuleMoves>,
}

/// Whom a change moves under a rule.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct RuleMoves {
    /// The rule.
    pub rule: Rule,
    /// Active addresses that have a server.
    pub of: u64,
    /// Those that go elsewhere at once.
    pub moved: u64,
    /// Those that stay until a drain ends.
    pub draining: u64,
    /// Those that would go elsewhere if no client were remembered.
    pub by_table: u64,
}

/// How long clients pause.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Pauses {
    /// Pauses of a second or more.
    pub count: u64,
    /// Seconds that half of them are shorter than.
    pub p50: u64,
    /// The same of 90%.
    pub p90: u64,
    /// The same of 99%.
    pub p99: u64,
    /// The same of 99.5%.
    pub p995: u64,
    /// The same of 99.9%.
    pub p999: u64,
    /// Pauses that are longer than clients are remembered.
    pub forgotten: u64,
}

/// A suggestion for the configuration or for a command.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Suggestion {
    /// A line of the configuration, or a command.
    pub line: String,
    /// Why.
    pub why: String,
}
