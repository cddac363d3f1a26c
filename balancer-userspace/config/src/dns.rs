//! Backends from DNS: turns DNS records into targets. The name of a target identifies it; its position in a DNS answer
//! has no meaning.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    net::{IpAddr, SocketAddr},
};

use serde::{Deserialize, Serialize};

use crate::{
    listeners::Family,
    target::{DEFAULT_WEIGHT, MAX_TARGETS, Target, backend_name, implied_name},
    value,
    words::counted,
};

/// The DNS query whose answer is a list of targets.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct DnsSource {
    /// The kind of DNS records that contain the targets.
    pub records: Records,
    /// The queried name in lower case, without the final dot.
    pub name: String,
    /// The family of the wanted addresses; `None`: the families of the service's listeners.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub family: Option<Family>,
    /// The DNS servers that the balancer queries; if empty: the servers in `/etc/resolv.conf`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub servers: Vec<SocketAddr>,
}

/// The kind of DNS records that contain the targets.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Records {
    /// SRV records, each of which names the host and the port of a target.
    Services,
    /// Address records, each of which is a target.
    Addresses {
        /// The port of all targets; `None`: each listener's port.
        port: Option<u16>,
    },
    /// Address records for a single backend; the name is the backend's configured address.
    Backend {
        /// The name of the backend.
        backend: String,
        /// The port of the backend; `None`: each listener's port.
        port: Option<u16>,
    },
}

impl fmt::Display for DnsSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let key = match &self.records {
            Records::Services => "dns",
            Records::Addresses { .. } => "dns_a",
            Records::Backend { .. } => "address",
        };
        write!(f, "{key} {}", self.name)
    }
}

/// The contents of an SRV record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Srv {
    /// The priority of the record; lower values are better.
    pub priority: u16,
    /// The weight of the record among records with the same priority.
    pub weight: u16,
    /// The port of the target.
    pub port: u16,
    /// The host name of the target; empty if the service does not exist.
    pub host: String,
}

/// The known addresses of a host name.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Resolved {
    /// The addresses of the host, of any address family.
    pub addresses: Vec<IpAddr>,
    /// The reason why addresses of the host are missing.
    pub why: Option<String>,
}

/// A host name in the form for comparison and display: lower case, without the final dot.
#[must_use]
pub fn canonical(name: &str) -> String {
    name.strip_suffix('.').unwrap_or(name).to_ascii_lowercase()
}

/// Parses the name in the key `dns` or `dns_a`.
///
/// # Errors
/// Fails if the name is not valid in a DNS query.
pub fn host_name(text: &str) -> Result<String, String> {
    let name = canonical(text);
    let right = "write a whole name such as \"web.internal\"; no search domain is added";
    if name.parse::<IpAddr>().is_ok() {
        return Err(format!("{} is an address; {right}, or give a backend that address", value::quoted(text)));
    }
    let usual = |c: u8| c.is_ascii_alphanumeric() || c == b'-' || c == b'_';
    let is_label = |label: &str| (1..=63).contains(&label.len()) && label.bytes().all(usual);
    if name.len() > 253 || !name.split('.').all(is_label) {
        return Err(format!("{} is no name of DNS; {right}", value::quoted(text)));
    }
    Ok(name)
}

/// Parses a backend's address if it is a DNS name, with or without a port.
///
/// # Errors
/// Fails if the text is not a DNS name, for example a mistyped IP address.
pub fn host_and_port(text: &str) -> Result<(String, Option<u16>), String> {
    let (host, port) = match text.rsplit_once(':') {
        Some((host, port)) => (host, Some(port.parse().ok().filter(|port| *port != 0).ok_or_else(String::new)?)),
        None => (text, None),
    };
    let name = host_name(host)?;
    let is_name = name.rsplit('.').next().is_some_and(|last| last.bytes().any(|byte| byte.is_ascii_alphabetic()));
    if is_name { Ok((name, port)) } else { Err(String::new()) }
}

/// Parses an entry of `servers`: an address, with a port if the port is not 53.
///
/// # Errors
/// Fails if the text is not an address with an optional port.
pub fn server(text: &str) -> Result<SocketAddr, String> {
    const PORT: u16 = 53;
    let server = text.parse().or_else(|_| text.parse().map(|ip: IpAddr| SocketAddr::new(ip, PORT)));
    server.ok().filter(|server| server.port() != 0 && !server.ip().is_unspecified()).ok_or_else(|| {
        format!(
            "{} is no DNS server; write its address, such as \"192.0.2.53\" or \"127.0.0.1:8600\"",
            value::quoted(text)
        )
    })
}

/// The targets in SRV records. A host that is not in `hosts`, or that has no address in `hosts`, becomes a target
/// without addresses. Records with the best priority become normal backends, and all other records become backups.
///
/// # Errors
/// Fails if the records contain too many targets.
pub fn of_services(records: &[Srv], hosts: &BTreeMap<String, Resolved>) -> Result<Vec<Target>, String> {
    let mut places: BTreeMap<(&str, u16), (u16, u16)> = BTreeMap::new();
    for record in records.iter().filter(|record| !record.host.is_empty()) {
        let weight = record.weight.max(1);
        let place = places.entry((&record.host, record.port)).or_insert((record.priority, weight));
        // If a target occurs more than once, it gets its best priority, and the greatest weight among its records of
        // this priority.
        if (record.priority, u16::MAX - weight) < (place.0, u16::MAX - place.1) {
            *place = (record.priority, weight);
        }
    }
    check_count(places.len())?;
    let best = places.values().map(|(priority, _)| *priority).min();
    let target = |((host, port), (priority, weight)): ((&str, u16), (u16, u16))| {
        let Resolved { addresses, why } = hosts.get(host).cloned().unwrap_or_default();
        let backup = Some(priority) != best;
        Target { name: host.to_owned(), addresses, why, fault: None, port: Some(port), weight, backup }
    };
    Ok(places.into_iter().map(target).collect())
}

/// The targets that the addresses of a DNS name make. An address that no host can have becomes a faulty target.
///
/// # Errors
/// Fails if there are too many addresses.
pub fn of_addresses(addresses: &[IpAddr], port: Option<u16>) -> Result<Vec<Target>, String> {
    let addresses: BTreeSet<IpAddr> = addresses.iter().copied().collect();
    check_count(addresses.len())?;
    let target = |address| {
        let name = implied_name(address, port);
        if let Err(fault) = value::usable(address) {
            return Target::faulty(name, port, fault);
        }
        let addresses = vec![address];
        Target { name, addresses, why: None, fault: None, port, weight: DEFAULT_WEIGHT, backup: false }
    };
    Ok(addresses.into_iter().map(target).collect())
}

/// The target for a backend whose configured address is a DNS name.
#[must_use]
pub fn of_backend(backend: &str, port: Option<u16>, resolved: Resolved) -> Target {
    let Resolved { addresses, why } = resolved;
    Target { name: backend.to_owned(), addresses, why, fault: None, port, weight: DEFAULT_WEIGHT, backup: false }
}

fn check_count(count: usize) -> Result<(), String> {
    if count <= MAX_TARGETS {
        return Ok(());
    }
    Err(format!("has {}; at most {MAX_TARGETS} are possible", counted(count, "target")))
}

/// Gives targets of SRV records unique backend names: the host, or the host and the port if a host has several ports.
/// Existing backends keep their names: `is_at` returns whether the backend with a name has the given port, or `None` if
/// no backend has this name.
#[must_use]
pub fn named(targets: &[Target], is_at: impl Fn(&str, u16) -> Option<bool>) -> Vec<Target> {
    let mut hosts: BTreeMap<&str, Vec<&Target>> = BTreeMap::new();
    for target in targets {
        hosts.entry(&target.name).or_default().push(target);
    }
    let mut named = Vec::with_capacity(targets.len());
    for (host, of_host) in hosts {
        let (short, only) = (backend_name(host), of_host.len() == 1);
        for target in of_host {
            let port = target.port.unwrap_or_default();
            let long = backend_name(&format!("{host}-{port}"));
            let is_short = is_at(&long, port).is_none() && (only || is_at(&short, port) == Some(true));
            named.push(Target { name: if is_short { short.clone() } else { long }, ..target.clone() });
        }
    }
    named
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::target::hash;

    fn srv(priority: u16, weight: u16, port: u16, host: &str) -> Srv {
        Srv { priority, weight, port, host: host.to_owned() }
    }

    fn hosts(of: &[(&str, &str)]) -> BTreeMap<String, Resolved> {
        let mut hosts: BTreeMap<String, Resolved> = BTreeMap::new();
        for (host, address) in of {
            hosts.entry((*host).to_owned()).or_default().addresses.push(address.parse().unwrap());
        }
        hosts
    }

    fn names(targets: &[Target]) -> Vec<&str> {
        targets.iter().map(|target| target.name.as_str()).collect()
    }

    /// Simulates existing backends that have these ports.
    fn at(present: &[(&'static str, u16)]) -> impl Fn(&str, u16) -> Option<bool> {
        move |name, port| present.iter().find(|(known, _)| *known == name).map(|(_, of)| *of == port)
    }

    #[test]
    fn when_records_have_weights_and_priorities_then_targets_have_them() {
        let records =
            [srv(10, 0, 80, "web2.internal"), srv(10, 7, 80, "web1.internal"), srv(20, 65535, 81, "old.internal")];
        let targets = of_services(&records, &hosts(&[("web1.internal", "10.0.0.1"), ("web1.internal", "fd00::1")]));
        let shown: Vec<_> = targets
            .unwrap()
            .into_iter()
            .map(|target| (target.name, target.addresses.len(), target.port, target.weight, target.backup))
            .collect();
        assert_eq!(
            shown,
            [
                ("old.internal".to_owned(), 0, Some(81), 65535, true),
                ("web1.internal".to_owned(), 2, Some(80), 7, false),
                ("web2.internal".to_owned(), 0, Some(80), 1, false),
            ]
        );
    }

    #[test]
    fn when_there_is_no_such_service_then_there_are_no_targets() {
        assert_eq!(of_services(&[srv(0, 0, 0, "")], &BTreeMap::new()), Ok(Vec::new()));
        assert_eq!(of_services(&[], &BTreeMap::new()), Ok(Vec::new()));
    }

    #[test]
    fn when_a_record_comes_twice_then_the_best_priority_and_the_greatest_weight_count() {
        let records = [srv(20, 9, 80, "a"), srv(10, 3, 80, "a"), srv(10, 5, 80, "a")];
        let targets = of_services(&records, &BTreeMap::new()).unwrap();
        assert_eq!((targets.len(), targets[0].weight, targets[0].backup), (1, 5, false));
    }

    #[test]
    fn when_a_name_has_addresses_then_each_is_a_target_called_after_it() {
        let addresses = ["10.0.0.2", "fd00::1", "10.0.0.1", "10.0.0.2"].map(|text| text.parse().unwrap());
        let targets = of_addresses(&addresses, Some(8080)).unwrap();
        assert_eq!(names(&targets), ["10.0.0.1-8080", "10.0.0.2-8080", "fd00--1-8080"]);
        assert_eq!(names(&of_addresses(&addresses[..1], None).unwrap()), ["10.0.0.2"]);
        let sinkhole = of_addresses(&["0.0.0.0".parse().unwrap()], Some(80)).unwrap().remove(0).fault.unwrap();
        assert!(sinkhole.starts_with("the address 0.0.0.0 is the wildcard"), "{sinkhole}");
    }

    #[test]
    fn when_a_host_has_several_ports_then_no_backend_that_there_is_gets_another_name() {
        let of = |ports: &[u16], present: &[(&'static str, u16)]| {
            let records: Vec<Srv> = ports.iter().map(|port| srv(0, 1, *port, "web")).collect();
            let targets = of_services(&records, &BTreeMap::new()).unwrap();
            names(&named(&targets, at(present))).join(" ")
        };
        assert_eq!(of(&[80], &[]), "web");
        assert_eq!(of(&[80, 81], &[]), "web-80 web-81");
        // A second port of the host is added; then the first port is removed and added again.
        assert_eq!(of(&[80, 81], &[("web", 80)]), "web web-81");
        assert_eq!(of(&[81], &[("web", 80), ("web-81", 81)]), "web-81");
        assert_eq!(of(&[80, 81], &[("web", 80), ("web-81", 81)]), "web web-81");
        assert_eq!(of(&[80, 81], &[("web-81", 81)]), "web-80 web-81");
        // If only the port changes, it is the same backend at another address.
        assert_eq!(of(&[90], &[("web", 80)]), "web");
        assert_eq!(of(&[90, 91], &[("web", 80)]), "web-90 web-91");
        assert_eq!(of(&[80], &[("web-80", 80)]), "web-80");
    }

    #[test]
    fn when_a_host_name_is_no_name_of_a_backend_then_it_is_made_one_and_stays_another_than_others() {
        let long = format!("{}.svc.cluster.local", "a".repeat(60));
        let name = backend_name(&long);
        assert!(name.len() == 63 && value::name(&name).is_ok() && name.starts_with("aaaa"), "{name}");
        assert_ne!(backend_name(&format!("{long}.")), name);
        assert_eq!(backend_name("web\\032one"), "web-032one-334e52730a753f74".to_owned());
    }

    #[test]
    fn when_a_name_or_server_is_written_then_it_is_read_or_refused() {
        assert_eq!(host_name("_HTTP._tcp.Web.internal."), Ok("_http._tcp.web.internal".to_owned()));
        for wrong in ["", ".", "a..b", "10.0.0.1", "fd00::1", "we b", &"a.".repeat(200), &"a".repeat(64)] {
            assert!(host_name(wrong).is_err(), "{wrong}");
        }
        let servers = ["192.0.2.53", "fd00::53", "127.0.0.1:8600", "[fd00::53]:5353"].map(|text| server(text).unwrap());
        let shown = servers.map(|server| server.to_string());
        assert_eq!(shown, ["192.0.2.53:53", "[fd00::53]:53", "127.0.0.1:8600", "[fd00::53]:5353"]);
        for wrong in ["", "ns1", "192.0.2.53:0", "0.0.0.0", "192.0.2.53:x"] {
            assert!(server(wrong).is_err(), "{wrong}");
        }
        assert_eq!(host_and_port("Web1.internal:8080"), Ok(("web1.internal".to_owned(), Some(8080))));
        assert_eq!(host_and_port("web1"), Ok(("web1".to_owned(), None)));
        for wrong in ["10.0.0.256", "10.0.0.1:80", "web1:0", "web1:", "web1:http", "fd00::1", ":80", "10.0.0.1.5"] {
            assert!(host_and_port(wrong).is_err(), "{wrong}");
        }
    }

    proptest! {
        #[test]
        fn when_an_answer_is_shuffled_then_the_targets_and_their_names_are_the_same(
            records in prop::collection::vec((0..3_u16, 0..4_u16, 80..83_u16, 0..5_usize), 0..12),
            present in prop::collection::vec((0..5_usize, 80..83_u16), 0..4),
            seed in any::<u64>(),
        ) {
            let host = |number: usize| ["a", "b", "c", "d", ""][number];
            let records: Vec<Srv> = records
                .into_iter()
                .map(|(priority, weight, port, number)| srv(priority, weight, port, host(number)))
                .collect();
            let mut shuffled = records.clone();
            shuffled.sort_by_key(|record| hash(&format!("{seed}{record:?}")));
            let present: BTreeMap<&str, u16> = present.into_iter().map(|(number, port)| (host(number), port)).collect();
            let is_at = |name: &str, port: u16| present.get(name).map(|at| *at == port);
            let of = |records: &[Srv]| named(&of_services(records, &BTreeMap::new()).unwrap(), is_at);
            prop_assert_eq!(of(&records), of(&shuffled));
        }

        #[test]
        fn when_ports_of_a_host_come_and_go_then_a_backend_keeps_its_name_and_no_two_have_one(
            answers in prop::collection::vec(prop::collection::btree_set(80..84_u16, 0..4), 1..12),
        ) {
            let mut present: BTreeMap<String, u16> = BTreeMap::new();
            for ports in answers {
                let records: Vec<Srv> = ports.iter().map(|port| srv(0, 1, *port, "web")).collect();
                let targets = of_services(&records, &BTreeMap::new()).unwrap();
                let now = named(&targets, |name, port| present.get(name).map(|at| *at == port));
                let names: BTreeSet<&str> = names(&now).into_iter().collect();
                prop_assert_eq!(names.len(), ports.len());
                for target in &now {
                    let port = target.port.unwrap();
                    let before = present.iter().find(|(_, at)| **at == port).map(|(name, _)| name.clone());
                    prop_assert!(before.is_none_or(|name| name == target.name), "{:?} {:?}", present, now);
                    present.insert(target.name.clone(), port);
                }
            }
        }
    }
}
