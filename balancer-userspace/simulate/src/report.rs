//! The report about a log.

use balancer_config::config::ClientPrefix;
use serde::Serialize;

/// The whole report about a log.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Report {
    /// Facts about the log that the simulator has read.
    pub log: Log,
    pub clients: Clients,
    /// The networks with the most requests: /24 for IPv4, and /64 for IPv6.
    pub heaviest: Vec<Prefix>,
    pub service: Simulated,
    /// The shares of the servers under each rule.
    pub rules: Vec<Shares>,
    /// The clients that changes could move.
    pub active: Active,
    /// The clients that each change moves, under each rule.
    pub changes: Vec<Moves>,
    /// The pauses between successive requests of the same client; `None` if the log contains no times.
    pub gaps: Option<Pauses>,
    /// Suggested lines for the configuration, and suggested commands.
    pub suggestions: Vec<Suggestion>,
}

/// The size of a log, and the first and last time in it.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Log {
    /// The number of lines that are not empty.
    pub lines: u64,
    /// The number of unreadable lines.
    pub unreadable: u64,
    /// The number of requests in the readable lines.
    pub requests: u64,
    /// The first time in the log, in UTC; `None` if the log contains no times.
    pub first: Option<String>,
    /// The last time in the log, in UTC.
    pub last: Option<String>,
    /// The number of seconds between the first and the last time.
    pub seconds: Option<u64>,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Clients {
    /// The number of IPv4 addresses.
    pub ipv4: u64,
    /// The number of IPv6 addresses.
    pub ipv6: u64,
    /// The number of addresses that share their /24 (IPv6: /64) with other addresses in the log.
    pub sharing_a_network: u64,
    /// The number of such networks that contain more than one address in the log.
    pub shared_networks: u64,
    /// The number of addresses with more than one user agent: several people use such an address, or one person uses
    /// several programs. The number is a lower bound; `None` if the log contains no user agents.
    pub several_agents: Option<u64>,
    /// The number of requests that came through another proxy, which told the client's address. Packets carry the
    /// addresses of that proxy.
    pub forwarded_requests: u64,
}

/// A prefix of client addresses, with its requests.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Prefix {
    /// The prefix, such as `203.0.113.0/24`.
    pub prefix: String,
    /// The number of addresses in the prefix that occur in the log.
    pub addresses: u64,
    /// The number of requests from addresses in the prefix.
    pub requests: u64,
    /// The prefix's share of all requests.
    pub share: f64,
}

/// The simulated service and its settings.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Simulated {
    pub name: String,
    /// The servers of the service, in the order of the configuration.
    pub servers: Vec<String>,
    /// The lengths of the service's client prefixes.
    pub client_prefix: ClientPrefix,
    /// The time in seconds for which the service remembers clients.
    pub remember_seconds: u64,
    /// Whether the configuration contains a hash key. If it does not, the simulator uses a fixed key, but a controller
    /// draws a random key and gets other shares.
    pub has_key: bool,
}

/// A rule by which a balancer chooses a server.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Rule {
    /// In nginx, the directive `ip_hash`.
    NginxIpHash,
    /// In `HAProxy`, the directive `balance source`.
    HaproxySource,
    Balancer {
        /// The lengths of client prefixes.
        client_prefix: ClientPrefix,
        /// Whether the balancer spreads the connections of the heaviest clients.
        spread: bool,
    },
}

/// The shares of the servers under a rule.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Shares {
    /// The rule under which the servers have these shares.
    pub rule: Rule,
    /// The share of each server.
    pub servers: Vec<Share>,
    /// The number of addresses without a fixed server, because the rule spreads their connections or assigns them to
    /// the servers in rotation.
    pub spread: u64,
    /// The number of requests from addresses without a fixed server. The servers get these requests in proportion to
    /// their weights, and the servers' numbers of requests include them.
    pub spread_requests: u64,
    /// The largest ratio of actual to expected share of clients among the servers.
    pub largest_clients: f64,
    /// The largest ratio of actual to expected share of requests among the servers.
    pub largest_requests: f64,
}

/// The share of a server under a rule.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Share {
    pub server: String,
    /// The share of clients that the server should have because of its weight.
    pub expected: f64,
    /// The number of addresses whose fixed server is this server.
    pub clients: u64,
    pub requests: f64,
    /// The server's share of all addresses that have a fixed server.
    pub client_share: f64,
    pub request_share: f64,
}

/// The active clients, which changes could move.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Active {
    /// The number of addresses of active clients.
    pub clients: u64,
    /// The number of seconds before the end of the log within which a client must have been seen to count as active;
    /// `None` if the log contains no times, so that all clients are active.
    pub within_seconds: Option<u64>,
    /// The last time in the log, in UTC.
    pub moment: Option<String>,
}

/// The numbers of clients that a change moves.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Moves {
    pub change: String,
    /// The numbers of clients that the change moves, for each rule.
    pub rules: Vec<RuleMoves>,
}

/// The numbers of clients that a change moves under one rule.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct RuleMoves {
    /// The rule under which the clients move.
    pub rule: Rule,
    /// The number of active addresses that have a fixed server.
    pub of: u64,
    /// The number of addresses that go to another server at once.
    pub moved: u64,
    /// The number of addresses that stay with a draining server until the drain ends.
    pub draining: u64,
    /// The number of addresses that would go to another server if the service remembered no clients.
    pub by_table: u64,
}

/// The pauses between successive requests of the same client.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Pauses {
    /// The number of pauses of at least one second.
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
    /// The number of pauses that are longer than the time for which the service remembers clients.
    pub forgotten: u64,
}

/// A suggested line for the configuration, or a suggested command.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Suggestion {
    /// A line of the configuration, or a command.
    pub line: String,
    /// The reason why the report suggests the line or command.
    pub why: String,
}
