//! Compares which servers the clients in a log get under each rule, before and after each change.

use std::{collections::BTreeMap, net::IpAddr, time::Duration};

use balancer_config::config::{ClientPrefix, ServiceConfig};

use crate::{
    address::masked,
    census::{Census, Client},
    heavy,
    product::{Impossible, Moved, Product, Table},
    report::{Active, Clients, Log, Moves, Pauses, Prefix, Report, Rule, RuleMoves, Share, Shares, Simulated},
    servers::{Change, Classics, Server, Servers},
    suggest, time,
};

/// The maximum number of prefixes that the report lists.
const LISTED: usize = 10;

/// The time for which a client counts as active if the service remembers no clients: the default of `remember`.
const USUAL_REMEMBER: Duration = Duration::from_secs(3 * 3_600);

/// Makes the report about a log, for a service and for changes of the service.
///
/// # Errors
/// Fails if the controller would refuse a change.
pub fn report(
    (census, log): (&Census, Log),
    (product, service): (&Product, &ServiceConfig),
    changes: &[Change],
) -> Result<Report, Impossible> {
    let servers = Servers::of(service);
    let rules = rules(service.client_prefix);
    let shares: Vec<Shares> =
        rules.iter().map(|&rule| Site::new(rule, census, product, &servers).shares(census)).collect();
    let window = if service.remember.is_zero() { USUAL_REMEMBER } else { service.remember };
    let active = active(census, window);
    let changes = changes
        .iter()
        .map(|change| moves(change, &rules, (census, &active), (product, &servers)))
        .collect::<Result<Vec<Moves>, Impossible>>()?;
    let gaps = pauses(census, service);
    let largest_requests = |client_prefix| {
        let rule = Rule::Balancer { client_prefix, spread: false };
        let known = shares.iter().find(|shares| shares.rule == rule).map(|shares| shares.largest_requests);
        known.unwrap_or_else(|| Site::new(rule, census, product, &servers).shares(census).largest_requests)
    };
    Ok(Report {
        suggestions: suggest::suggestions(census, service, largest_requests),
        log: Log {
            requests: census.requests,
            first: census.times.map(|(first, _)| time::shown(first.into())),
            last: census.times.map(|(_, last)| time::shown(last.into())),
            seconds: census.times.map(|(first, last)| u64::from(last - first)),
            ..log
        },
        clients: clients(census),
        heaviest: heaviest(census),
        service: Simulated {
            name: service.name.clone(),
            servers: service.backends.iter().map(|backend| backend.name.clone()).collect(),
            client_prefix: service.client_prefix,
            remember_seconds: service.remember.as_secs(),
            has_key: product.has_key(),
        },
        rules: shares,
        active: Active {
            clients: active.len() as u64,
            within_seconds: census.times.map(|_| window.as_secs()),
            moment: census.times.map(|(_, last)| time::shown(last.into())),
        },
        changes,
        gaps,
    })
}

/// The rules that the report compares.
fn rules(configured: ClientPrefix) -> Vec<Rule> {
    let mut prefixes = vec![configured];
    for other in [ClientPrefix { v4: 32, v6: 64 }, ClientPrefix { v4: 24, v6: 56 }] {
        if !prefixes.contains(&other) {
            prefixes.push(other);
        }
    }
    let balancer = |spread| move |&client_prefix: &ClientPrefix| Rule::Balancer { client_prefix, spread };
    let spread = prefixes.first().map(balancer(true));
    let others = [Rule::NginxIpHash, Rule::HaproxySource].into_iter();
    others.chain(prefixes.iter().map(balancer(false))).chain(spread).collect()
}

/// The servers that clients get under a rule.
struct Site<'a> {
    rule: Rule,
    servers: &'a Servers,
    classics: Classics<'a>,
    product: &'a Product,
    table: Table,
    /// The clients whose connections the balancer spreads.
    spread: Vec<IpAddr>,
}

impl<'a> Site<'a> {
    fn new(rule: Rule, census: &Census, product: &'a Product, servers: &'a Servers) -> Self {
        let spread = if let Rule::Balancer { client_prefix, spread: true } = rule {
            let heavy = suggest::to_spread(census, client_prefix, servers).into_iter();
            heavy.map(|heavy| heavy.prefix.addr()).collect()
        } else {
            Vec::new()
        };
        Self { rule, servers, classics: servers.classics(), product, table: product.table(), spread }
    }

    /// The server that a client gets under the rule; `None` if the client has no fixed server.
    fn server(&self, client: IpAddr) -> Option<&str> {
        match self.rule {
            Rule::NginxIpHash => self.classics.ip_hash(client),
            Rule::HaproxySource => self.classics.source(client),
            Rule::Balancer { client_prefix, .. } => {
                if self.is_spread(client) {
                    return None;
                }
                self.table.backend(self.product.hash(client, client_prefix))
            }
        }
    }

    fn is_spread(&self, client: IpAddr) -> bool {
        let Rule::Balancer { client_prefix: ClientPrefix { v4, v6 }, .. } = self.rule else { return false };
        !self.spread.is_empty() && self.spread.contains(&masked(client, v4, v6))
    }

    fn shares(&self, census: &Census) -> Shares {
        let mut counts: BTreeMap<&str, (u64, u64)> = BTreeMap::new();
        let (mut spread, mut spread_requests) = (0, 0u64);
        for (address, client) in census.clients() {
            let requests = u64::from(client.requests);
            if let Some(server) = self.server(address) {
                let count = counts.entry(server).or_default();
                *count = (count.0 + 1, count.1 + requests);
            } else {
                (spread, spread_requests) = (spread + 1, spread_requests + requests);
            }
        }
        let clients: u64 = counts.values().map(|count| count.0).sum();
        let part = |some: f64, all: u64| if all == 0 { 0.0 } else { some / all as f64 };
        let share = |(server, expected): (&Server, f64)| {
            let (own, requests) = counts.get(server.name.as_str()).copied().unwrap_or_default();
            let requests = requests as f64 + expected * spread_requests as f64;
            Share {
                server: server.name.clone(),
                expected,
                clients: own,
                requests,
                client_share: part(own as f64, clients),
                request_share: part(requests, census.requests),
            }
        };
        let servers: Vec<Share> = self.servers.0.iter().zip(self.servers.expected()).map(share).collect();
        let largest = |part: fn(&Share) -> f64| {
            let over = servers.iter().filter(|share| share.expected > 0.0).map(|share| part(share) / share.expected);
            over.fold(0.0, f64::max)
        };
        Shares {
            rule: self.rule,
            spread,
            spread_requests,
            largest_clients: largest(|share| share.client_share),
            largest_requests: largest(|share| share.request_share),
            servers,
        }
    }
}

/// The clients that were last seen within `window` before the end of the log, each with the time since then.
fn active(census: &Census, window: Duration) -> Vec<(IpAddr, Duration)> {
    let Some((_, end)) = census.times else {
        return census.clients().map(|(address, _)| (address, Duration::ZERO)).collect();
    };
    let seen = |(address, client): (IpAddr, Client)| {
        let ago = Duration::from_secs(u64::from(end - client.last));
        (client.last > 0 && ago <= window).then_some((address, ago))
    };
    census.clients().filter_map(seen).collect()
}

fn moves(
    change: &Change,
    rules: &[Rule],
    (census, active): (&Census, &[(IpAddr, Duration)]),
    (product, servers): (&Product, &Servers),
) -> Result<Moves, Impossible> {
    let changed = product.change(change)?;
    let servers_after = servers.after(change);
    let of_rule = |&rule: &Rule| {
        let before = Site::new(rule, census, product, servers);
        let after = Site { spread: before.spread.clone(), ..Site::new(rule, census, &changed.after, &servers_after) };
        let is_elsewhere = |client| before.server(client) != after.server(client);
        let own = || active.iter().filter(|(client, _)| !before.is_spread(*client));
        let by_table = own().filter(|(client, _)| is_elsewhere(*client)).count() as u64;
        let moved = if let Rule::Balancer { client_prefix, .. } = rule
            && product.remembers()
        {
            let hash = |&(client, seen): &(IpAddr, Duration)| (product.hash(client, client_prefix), seen);
            changed.known(product, own().map(hash))
        } else {
            Moved { moved: by_table, draining: 0 }
        };
        RuleMoves { rule, of: own().count() as u64, moved: moved.moved, draining: moved.draining, by_table }
    };
    Ok(Moves { change: change.to_string(), rules: rules.iter().map(of_rule).collect() })
}

fn clients(census: &Census) -> Clients {
    let (ipv4, ipv6) = census.addresses();
    let networks = census.networks(24, 64);
    let shared = networks.values().filter(|network| network.addresses > 1);
    let agents = || census.clients().filter(|(_, client)| client.has_several_agents()).count() as u64;
    Clients {
        ipv4,
        ipv6,
        sharing_a_network: shared.clone().map(|network| network.addresses).sum(),
        shared_networks: shared.count() as u64,
        several_agents: census.has_agents.then(agents),
        forwarded_requests: census.forwarded,
    }
}

fn heaviest(census: &Census) -> Vec<Prefix> {
    let all = heavy::heaviest(census, (24, 64), 1, LISTED).into_iter();
    all.map(|heavy| Prefix {
        prefix: heavy.prefix.to_string(),
        addresses: heavy.addresses,
        requests: heavy.requests,
        share: heavy.requests as f64 / census.requests.max(1) as f64,
    })
    .collect()
}

fn pauses(census: &Census, service: &ServiceConfig) -> Option<Pauses> {
    let gaps = &census.gaps;
    let [p50, p90, p99, p995, p999] = [500, 900, 990, 995, 999].map(|of_thousand| gaps.longer_than(of_thousand));
    Some(Pauses {
        count: gaps.total(),
        p50: p50?,
        p90: p90?,
        p99: p99?,
        p995: p995?,
        p999: p999?,
        forgotten: gaps.at_least(service.remember.as_secs() + 1),
    })
}
