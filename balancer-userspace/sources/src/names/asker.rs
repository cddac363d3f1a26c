//! A DNS query for the records of a name, and for the addresses of the hosts in these records.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    net::IpAddr,
    sync::Arc,
    time::Duration,
};

use balancer_config::{
    discover::Target,
    dns::{self, DnsSource, Records, Resolved, Srv},
    listeners::Family,
    value,
};
use hickory_resolver::{
    net::{DnsError, NetError},
    proto::{
        op::ResponseCode,
        rr::{Name, RData, RecordType},
    },
};
use tokio::{
    sync::Semaphore,
    task::JoinSet,
    time::{Instant, timeout_at},
};

use super::servers::{Resolver, Servers};

/// The maximum time for a complete answer, including the addresses of all hosts.
const PATIENCE: Duration = Duration::from_secs(10);
/// The maximum number of CNAME records between a name and its SRV records.
const MAX_ALIASES: usize = 8;
/// The maximum number of hosts whose addresses are queried at a time.
const HOSTS_AT_ONCE: usize = 16;

/// Performs one DNS query repeatedly.
pub(super) struct Asker {
    dns: DnsSource,
    families: BTreeSet<Family>,
    servers: Servers,
    /// The addresses of hosts, which are kept as long as they are valid.
    hosts: HashMap<(String, Family), Held>,
}

/// Addresses of a host, and the time until which they are valid.
struct Held {
    addresses: Vec<IpAddr>,
    until: Instant,
}

/// The targets in an answer.
pub(super) struct Answer {
    pub(super) targets: Vec<Target>,
    /// The duration for which the whole answer is valid.
    pub(super) valid: Duration,
}

/// The DNS records of one type in an answer.
struct Found {
    data: Vec<RData>,
    valid: Duration,
}

impl Asker {
    pub(super) fn new(dns: DnsSource, families: BTreeSet<Family>) -> Self {
        let servers = Servers::new(dns.servers.clone());
        Self { dns, families, servers, hosts: HashMap::new() }
    }

    pub(super) const fn dns(&self) -> &DnsSource {
        &self.dns
    }

    /// Performs the DNS query.
    ///
    /// # Errors
    /// Fails with one line that says why no answer arrived, or why the answer contains no target.
    pub(super) async fn ask(&mut self) -> Result<Answer, String> {
        let told = |error| format!("{}: {error}", self.dns);
        let resolver = self.servers.resolver().map_err(told)?;
        let deadline = Instant::now() + PATIENCE;
        let name = name(&self.dns.name).map_err(told)?;
        let answer = match self.dns.records.clone() {
            Records::Services => self.ask_services(&resolver, name, deadline).await,
            Records::Addresses { port } => self.ask_addresses(&resolver, name, port, deadline).await,
            Records::Backend { backend, port } => {
                let names = BTreeMap::from([(self.dns.name.clone(), name)]);
                let (mut hosts, valid) = self.resolve(&resolver, names, deadline).await;
                match hosts.remove(&self.dns.name).unwrap_or_default() {
                    Resolved { addresses, why } if addresses.is_empty() => Err(why.unwrap_or_default()),
                    resolved => Ok(Answer { targets: vec![dns::of_backend(&backend, port, resolved)], valid }),
                }
            }
        };
        answer.map_err(|error| format!("{}: {error}", self.dns))
    }

    /// Queries the addresses of a name; each address is a target.
    async fn ask_addresses(
        &self,
        resolver: &Resolver,
        name: Name,
        port: Option<u16>,
        deadline: Instant,
    ) -> Result<Answer, String> {
        let (mut addresses, mut valid, mut none) = (Vec::new(), Duration::MAX, None);
        for family in &self.families {
            match lookup(resolver, name.clone(), record_type(*family), deadline).await {
                Ok(found) => {
                    valid = valid.min(found.valid);
                    addresses.extend(found.data.iter().filter_map(address));
                }
                Err(Missing::NoRecords(text)) => none = Some(text),
                Err(Missing::NoAnswer(text)) => return Err(text),
            }
        }
        if let Some(text) = none.filter(|_| addresses.is_empty()) {
            return Err(text);
        }
        Ok(Answer { targets: dns::of_addresses(&addresses, port)?, valid })
    }

    /// Queries SRV records, and also the addresses of those hosts whose addresses are unknown or no longer valid.
    async fn ask_services(&mut self, resolver: &Resolver, name: Name, deadline: Instant) -> Result<Answer, String> {
        let found = services(resolver, name, deadline).await.map_err(Missing::text)?;
        let (mut records, mut names) = (Vec::with_capacity(found.data.len()), BTreeMap::new());
        for data in &found.data {
            let RData::SRV(srv) = data else { continue };
            let host = dns::canonical(&srv.target.to_ascii());
            if !host.is_empty() {
                names.insert(host.clone(), srv.target.clone());
            }
            records.push(Srv { priority: srv.priority, weight: srv.weight, port: srv.port, host });
        }
        let (hosts, valid) = self.resolve(resolver, names, deadline).await;
        Ok(Answer { targets: dns::of_services(&records, &hosts)?, valid: valid.min(found.valid) })
    }

    /// Resolves the addresses of hosts, and returns the time for which all these addresses are valid.
    async fn resolve(
        &mut self,
        resolver: &Resolver,
        names: BTreeMap<String, Name>,
        deadline: Instant,
    ) -> (BTreeMap<String, Resolved>, Duration) {
        let start = Instant::now();
        self.hosts.retain(|(host, family), held| {
            held.until > start && names.contains_key(host) && self.families.contains(family)
        });
        let mut hosts: BTreeMap<String, Resolved> = BTreeMap::new();
        let (mut asking, permits) = (JoinSet::new(), Arc::new(Semaphore::new(HOSTS_AT_ONCE)));
        for (host, name) in names {
            hosts.insert(host.clone(), Resolved::default());
            for family in self.families.iter().copied().filter(|of| !self.hosts.contains_key(&(host.clone(), *of))) {
                let (resolver, permits, host, name) = (resolver.clone(), permits.clone(), host.clone(), name.clone());
                asking.spawn(async move {
                    let _permit = permits.acquire_owned().await;
                    ((host, family), addresses(&resolver, name, family, deadline).await)
                });
            }
        }
        while let Some(done) = asking.join_next().await {
            match done {
                Ok((of, Ok(held))) => drop(self.hosts.insert(of, held)),
                Ok(((host, _), Err(why))) => {
                    hosts.entry(host).or_default().why.get_or_insert(why);
                }
                Err(_) => {}
            }
        }
        let mut until = None;
        for ((host, _), held) in &self.hosts {
            hosts.entry(host.clone()).or_default().addresses.extend(&held.addresses);
            until = Some(until.map_or(held.until, |until: Instant| until.min(held.until)));
        }
        hosts.values_mut().for_each(|host| host.addresses.sort_unstable());
        (hosts, until.map_or(Duration::MAX, |until| until.saturating_duration_since(Instant::now())))
    }
}

/// Queries SRV records. The resolver follows CNAME records to addresses, but not to SRV records.
async fn services(resolver: &Resolver, mut name: Name, deadline: Instant) -> Result<Found, Missing> {
    let mut valid = Duration::MAX;
    for _ in 0..=MAX_ALIASES {
        let missing = match lookup(resolver, name.clone(), RecordType::SRV, deadline).await {
            Ok(found) => return Ok(Found { valid: found.valid.min(valid), ..found }),
            Err(missing) => missing,
        };
        let Ok(alias) = lookup(resolver, name, RecordType::CNAME, deadline).await else { return Err(missing) };
        let Some(RData::CNAME(to)) = alias.data.first() else { return Err(missing) };
        name = to.0.clone();
        valid = valid.min(alias.valid);
    }
    Err(Missing::NoRecords(format!("more than {MAX_ALIASES} CNAME records follow each other")))
}

/// Queries the addresses of a host.
async fn addresses(resolver: &Resolver, name: Name, family: Family, deadline: Instant) -> Result<Held, String> {
    let start = Instant::now();
    let found = lookup(resolver, name, record_type(family), deadline).await.map_err(Missing::text)?;
    let (usable, wrong): (Vec<_>, Vec<_>) =
        found.data.iter().filter_map(address).map(|ip| value::usable(ip).map(|()| ip)).partition(Result::is_ok);
    let addresses: Vec<IpAddr> = usable.into_iter().flatten().collect();
    match wrong.into_iter().find_map(Result::err) {
        Some(error) if addresses.is_empty() => Err(error),
        _ => Ok(Held { addresses, until: start + found.valid }),
    }
}

const NO_SUCH_NAME: &str = "the name does not exist (NXDOMAIN)";

/// The reason why the query found no records.
enum Missing {
    /// A DNS server reports that no records exist.
    NoRecords(String),
    /// No DNS server answers the query.
    NoAnswer(String),
}

impl Missing {
    fn text(self) -> String {
        match self {
            Self::NoRecords(text) | Self::NoAnswer(text) => text,
        }
    }
}

async fn lookup(resolver: &Resolver, name: Name, kind: RecordType, deadline: Instant) -> Result<Found, Missing> {
    let Resolver { asks, servers } = resolver;
    let answer = match timeout_at(deadline, asks.lookup(name, kind)).await {
        Ok(Ok(answer)) => answer,
        Ok(Err(error)) => return Err(missing(&error, kind, servers)),
        Err(_) => return Err(Missing::NoAnswer(format!("no answer ({servers} asked)"))),
    };
    if answer.message().response_code == ResponseCode::NXDomain {
        return Err(Missing::NoRecords(format!("{NO_SUCH_NAME} ({servers} asked)")));
    }
    let valid = answer.answers().iter().map(|record| record.ttl).min().unwrap_or_default();
    let of_kind = answer.answers().iter().filter(|record| record.record_type() == kind);
    let data: Vec<RData> = of_kind.map(|record| record.data.clone()).collect();
    if data.is_empty() {
        return Err(Missing::NoRecords(format!("there is no {kind} record ({servers} asked)")));
    }
    Ok(Found { data, valid: Duration::from_secs(valid.into()) })
}

fn missing(error: &NetError, kind: RecordType, servers: &str) -> Missing {
    let asked = |text: &str| format!("{text} ({servers} asked)");
    if let NetError::Dns(DnsError::NoRecordsFound(none)) = error {
        let is_name = none.response_code != ResponseCode::NXDomain;
        let no_record = format!("there is no {kind} record");
        return Missing::NoRecords(asked(if is_name { &no_record } else { NO_SUCH_NAME }));
    }
    Missing::NoAnswer(asked(&if let NetError::Dns(DnsError::ResponseCode(code)) = error {
        refusal(*code).to_owned()
    } else if matches!(error, NetError::Timeout | NetError::NoConnections) {
        "no answer".to_owned()
    } else {
        format!("no answer: {error}")
    }))
}

/// The usual term for a DNS refusal with this code.
fn refusal(code: ResponseCode) -> &'static str {
    if code == ResponseCode::ServFail {
        "SERVFAIL"
    } else if code == ResponseCode::Refused {
        "REFUSED"
    } else {
        code.to_str()
    }
}

/// A fully qualified DNS name, to which the resolver adds no search domain.
fn name(text: &str) -> Result<Name, String> {
    Name::from_ascii(format!("{text}.")).map_err(|error| format!("not a DNS name: {error}"))
}

const fn record_type(family: Family) -> RecordType {
    match family {
        Family::V4 => RecordType::A,
        Family::V6 => RecordType::AAAA,
    }
}

fn address(data: &RData) -> Option<IpAddr> {
    if let RData::A(address) = data {
        Some(address.0.into())
    } else if let RData::AAAA(address) = data {
        Some(address.0.into())
    } else {
        None
    }
}

#[cfg(test)]
#[path = "asker_test.rs"]
mod tests;
