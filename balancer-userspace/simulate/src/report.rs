//! The findings from a log.

use balancer_config::config::ClientPrefix;
use serde::Serialize;

/// The whole report.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Report {
    /// The log.
    pub log: Log,
    /// The clients in the log.
    pub clients: Clients,
    /// The networks with most requests: /24, and /64 of IPv6.
    pub heaviest: Vec<Prefix>,
    /// The simulated service.
    pub service: Simulated,
    /// Where clients go under each rule.
    pub rules: Vec<Shares>,
    /// The clients that changes can move.
    pub active: Active,
    /// The clients that each change moves, under each rule.
    pub changes: Vec<Moves>,
    /// The pauses between a client's requests; `None` if the log has no times.
    pub gaps: Option<Pauses>,
    /// Lines for the configuration, or commands to type.
    pub suggestions: Vec<Suggestion>,
}

/// The size of a log, and its first and last time.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Log {
    /// Lines that are not empty.
    pub lines: u64,
    /// The unreadable lines of the log.
    pub unreadable: u64,
    /// The requests of the readable lines.
    pub requests: u64,
    /// The log's first time, in UTC; `None` if it has no times.
    pub first: Option<String>,
    /// The log's last time.
    pub last: Option<String>,
    /// The seconds between the first and the last time.
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
    /// Addresses with more than one user agent: several people, or several programs of one person. It is a lower limit;
    /// `None` if the log has no user agents.
    pub several_agents: Option<u64>,
}

/// A prefix.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Prefix {
    /// The prefix, such as `203.0.113.0/24`.
    pub prefix: String,
    /// Addresses of the prefix in the log.
    pub addresses: u64,
    /// The number of requests from these addresses.
    pub requests: u64,
    /// The part of these requests in all requests.
    pub share: f64,
}

/// The service that is simulated.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Simulated {
    /// The service's name.
    pub name: String,
    /// The service's servers in the order of the configuration.
    pub servers: Vec<String>,
    /// The prefix lengths of a client.
    pub client_prefix: ClientPrefix,
    /// How long the service remembers a client, in seconds.
    pub remember_seconds: u64,
    /// Whether the configuration has a hash key. Otherwise the simulator uses a fixed key, and the shares differ from
    /// those with the key that a controller would draw.
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
        /// The prefix lengths of a client.
        client_prefix: ClientPrefix,
        /// Whether the balancer spreads the connections of the heaviest clients.
        spread: bool,
    },
}

/// Where clients go under a rule.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Shares {
    /// The rule.
    pub rule: Rule,
    /// Each server's share.
    pub servers: Vec<Share>,
    /// The number of addresses without a fixed server, because the rule spreads their connections or takes turns.
    pub spread: u64,
    /// The requests of these addresses. Servers get them in proportion to their weights, and each server's number of
    /// requests includes its part.
    pub spread_requests: u64,
    /// The largest ratio, over all servers, of the actual to the expected part of the clients.
    pub largest_clients: f64,
    /// The largest ratio, over all servers, of the actual to the expected part of the requests.
    pub largest_requests: f64,
}

/// The share of a server.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Share {
    /// Name of the server.
    pub server: String,
    /// The part of the clients that the server should have by its weight.
    pub expected: f64,
    /// The number of addresses.
    pub clients: u64,
    /// The number of requests.
    pub requests: f64,
    /// The addresses as a part of all addresses that have a server.
    pub client_share: f64,
    /// The requests as a part of all requests.
    pub request_share: f64,
}

/// The clients that changes can move.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Active {
    /// The number of addresses.
    pub clients: u64,
    /// A client counts as active if it was seen within this many seconds before the log's end; `None` if the log has no
    /// times, and all clients count as active.
    pub within_seconds: Option<u64>,
    /// The log's last time, in UTC.
    pub moment: Option<String>,
}

/// The clients that a change moves.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Moves {
    /// The change.
    pub change: String,
    /// The clients that move, under each rule.
    pub rules: Vec<RuleMoves>,
}

/// The clients that a change moves under a rule.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct RuleMoves {
    /// The rule.
    pub rule: Rule,
    /// The number of active addresses that have a server.
    pub of: u64,
    /// The number of addresses that go to another server at once.
    pub moved: u64,
    /// The number of addresses that stay until a drain ends.
    pub draining: u64,
    /// The number of addresses that would go to another server if the service remembered no clients.
    pub by_table: u64,
}

/// The pauses between a client's requests.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Pauses {
    /// The number of pauses of a second or more.
    pub count: u64,
    /// Half of the pauses are shorter than this many seconds.
    pub p50: u64,
    /// 90% of the pauses are shorter than this many seconds.
    pub p90: u64,
    /// 99% of the pauses are shorter than this many seconds.
    pub p99: u64,
    /// 99.5% of the pauses are shorter than this many seconds.
    pub p995: u64,
    /// 99.9% of the pauses are shorter than this many seconds.
    pub p999: u64,
    /// The number of pauses that are longer than the service remembers clients.
    pub forgotten: u64,
}

/// A suggestion for the configuration or for a command.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Suggestion {
    /// A line of the configuration, or a command.
    pub line: String,
    /// The reason for the suggestion.
    pub why: String,
}
