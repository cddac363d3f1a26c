//! Derives suggestions for the configuration from a log.

use balancer_config::{
    config::{ClientPrefix, ServiceConfig},
    words::grouped,
};

use crate::{
    census::Census,
    heavy::{self, Heavy},
    report::{Rule, Shares, Suggestion},
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

pub(crate) fn suggestions(census: &Census, service: &ServiceConfig, shares: &[Shares]) -> Vec<Suggestion> {
    let mut all = vec![client_prefix(census, shares)];
    all.extend(remember(census));
    let part = |requests: u64| format!("{:.1}%", 100.0 * requests as f64 / census.requests.max(1) as f64);
    all.extend(to_spread(census, service.client_prefix, &Servers::of(service)).into_iter().map(|heavy| Suggestion {
        line: format!("balancer rule add {} {} spread", service.name, heavy.prefix),
        why: format!("it has {} of all requests, and all of them go to one server", part(heavy.requests)),
    }));
    all
}

/// Suggests a client prefix that covers whole networks, if many clients share a network and the servers' load would
/// stay almost as even.
fn client_prefix(census: &Census, shares: &[Shares]) -> Suggestion {
    let largest = |wanted: ClientPrefix| {
        let is_wanted = |shares: &&Shares| matches!(shares.rule, Rule::Balancer { client_prefix, spread: false } if client_prefix == wanted);
        shares.iter().find(is_wanted).map_or(0.0, |shares| shares.largest_requests)
    };
    let (host, network) = (ClientPrefix { v4: 32, v6: 64 }, ClientPrefix { v4: 24, v6: 56 });
    let (by_host, by_network) = (largest(host), largest(network));
    let networks = census.networks(24, 56);
    let together: u64 = networks.values().map(|network| network.addresses).filter(|&addresses| addresses > 1).sum();
    let (v4, v6) = census.addresses();
    let all = (v4 + v6).max(1);
    let many = together * 10 >= all;
    let is_even = by_network <= by_host * 1.05;
    let sharing = format!("{} of {} addresses share a /24 (IPv6: /56)", grouped(together), grouped(all));
    let load =
        format!("the busiest server would have {by_network:.2} times what it should have, with /32 {by_host:.2} times");
    let (prefix, why) = match (many, is_even) {
        (true, true) => {
            (network, format!("{sharing}: clients stay where they are when their address changes there; {load}"))
        }
        (true, false) => (host, format!("{sharing}, but with /24 {load}")),
        (false, _) => (host, format!("only {sharing}: larger prefixes would hold hardly any client together")),
    };
    Suggestion { line: format!("client_prefix = {{ v4 = {}, v6 = {} }}", prefix.v4, prefix.v6), why }
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
