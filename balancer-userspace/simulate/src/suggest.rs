//! Derives suggestions for the configuration from a log.

use balancer_config::{
    config::{ClientPrefix, ServiceConfig},
    words::grouped,
};

use crate::{
    census::Census,
    heavy::{self, Heavy},
    report::Suggestion,
    servers::Servers,
};

/// The maximum number of suggested rules.
const MOST_SPREAD: usize = 10;

/// The fraction of the requests that a server should have from which a client counts as heavy.
const HEAVY: f64 = 0.25;

/// Round times in seconds, as people would write them.
const ROUND: [u64; 20] = [
    300, 600, 900, 1_200, 1_800, 2_400, 3_600, 5_400, 7_200, 10_800, 14_400, 21_600, 28_800, 43_200, 64_800, 86_400,
    172_800, 259_200, 604_800, 1_209_600,
];

/// The maximum of `remember` in seconds: a year.
const LONGEST: u64 = 365 * 86_400;

/// Returns the clients whose connections the balancer should spread.
pub(crate) fn to_spread(census: &Census, prefix: ClientPrefix, servers: &Servers) -> Vec<Heavy> {
    let used: Vec<f64> = servers.expected().into_iter().filter(|&part| part > 0.0).collect();
    // If there is only one server, spreading makes no difference.
    if used.len() < 2 {
        return Vec::new();
    }
    let of_a_server = census.requests as f64 / used.len() as f64;
    let at_least = (HEAVY * of_a_server).ceil().max(2.0) as u64;
    heavy::heaviest(census, (prefix.v4, prefix.v6), at_least, MOST_SPREAD)
}

/// Returns suggestions for a service. `largest` returns the largest ratio of a server's requests to its expected
/// requests with a client prefix.
pub(crate) fn suggestions(
    census: &Census,
    service: &ServiceConfig,
    largest: impl Fn(ClientPrefix) -> f64,
) -> Vec<Suggestion> {
    let mut all: Vec<Suggestion> = client_prefix(census, largest).into_iter().collect();
    all.extend(remember(census));
    let part = |requests: u64| format!("{:.1}%", 100.0 * requests as f64 / census.requests.max(1) as f64);
    all.extend(to_spread(census, service.client_prefix, &Servers::of(service)).into_iter().map(|heavy| Suggestion {
        line: format!("balancer rule add {} {} spread", service.name, heavy.prefix),
        why: format!(
            "it has {} of all requests, and all of them go to one server; the rule ends its sessions: each of its \
             connections goes to another server, so add it only for a client without sessions, such as a crawler",
            part(heavy.requests)
        ),
    }));
    all
}

/// Suggests client prefixes, for each family that occurs in the log.
fn client_prefix(census: &Census, largest: impl Fn(ClientPrefix) -> f64) -> Option<Suggestion> {
    let (v4, v6) = census.addresses();
    let host = ClientPrefix { v4: 32, v6: 64 };
    let by_host = largest(host);
    let networks = census.networks(24, 56);
    let together = |is_v4: bool| {
        let of_family = networks.iter().filter(|(address, _)| address.is_ipv4() == is_v4);
        of_family.map(|(_, network)| network.addresses).filter(|&addresses| addresses > 1).sum()
    };
    let family = |all: u64, is_v4: bool, prefix: ClientPrefix| {
        (all > 0).then(|| {
            let lengths = if is_v4 { (prefix.v4, host.v4) } else { (prefix.v6, host.v6) };
            whole_network((together(is_v4), all), (largest(prefix), by_host), lengths)
        })
    };
    let of_v4 = family(v4, true, ClientPrefix { v4: 24, ..host });
    let of_v6 = family(v6, false, ClientPrefix { v6: 56, ..host });
    let named = [("IPv4", &of_v4), ("IPv6", &of_v6)].into_iter();
    let why: Vec<String> =
        named.filter_map(|(name, family)| family.as_ref().map(|(_, why)| format!("{name}: {why}"))).collect();
    let length = |family: Option<(u8, String)>, usual| family.map_or(usual, |(length, _)| length);
    let (v4, v6) = (length(of_v4, host.v4), length(of_v6, host.v6));
    (!why.is_empty())
        .then(|| Suggestion { line: format!("client_prefix = {{ v4 = {v4}, v6 = {v6} }}"), why: why.join("; ") })
}

/// Returns the length of a prefix that covers whole networks of a family, if many clients share a network and the
/// servers' load would stay almost as even; otherwise the length that covers a single client; and the reason.
fn whole_network(
    (together, all): (u64, u64),
    (by_network, by_host): (f64, f64),
    (network, host): (u8, u8),
) -> (u8, String) {
    let many = together * 10 >= all;
    let is_even = by_network <= by_host * 1.05;
    let sharing = format!("{} of {} addresses share a /{network}", grouped(together), grouped(all));
    let load = format!(
        "the busiest server would have {by_network:.2} times what it should have, with /{host} {by_host:.2} times"
    );
    match (many, is_even) {
        (true, true) => {
            (network, format!("{sharing}: clients stay where they are when their address changes there; {load}"))
        }
        (true, false) => (host, format!("{sharing}, but with /{network} {load}")),
        (false, _) => (host, format!("only {sharing}: larger prefixes would hold hardly any client together")),
    }
}

/// Suggests a time for remembering clients that is longer than all but a few of the pauses.
fn remember(census: &Census) -> Option<Suggestion> {
    let pause = census.gaps.longer_than(995)?;
    let round = ROUND.into_iter().find(|&round| round >= pause);
    let remember = round.unwrap_or_else(|| pause.div_ceil(86_400) * 86_400).min(LONGEST);
    let (first, last) = census.times?;
    let short = if u64::from(last - first) < 4 * remember { "; a longer log would tell more" } else { "" };
    Some(Suggestion {
        line: format!("remember = \"{}\"", span(remember)),
        why: format!("99.5% of gaps between requests of a client are shorter than {}{short}", span(pause)),
    })
}

/// Formats a time for the configuration, such as `2h5m`, which contains no blank.
fn span(seconds: u64) -> String {
    let parts = [(seconds / 86_400, "d"), (seconds / 3_600 % 24, "h"), (seconds / 60 % 60, "m"), (seconds % 60, "s")];
    parts.into_iter().filter(|&(number, _)| number > 0).map(|(number, unit)| format!("{number}{unit}")).collect()
}
