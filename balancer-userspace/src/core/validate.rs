//! What services must be like so that the data path can serve them: the rules that a configuration file and a change at
//! run time share.

use std::{
    collections::{HashMap, HashSet},
    net::{IpAddr, SocketAddr},
};

use balancer_common::map_types::Forwarding;

use crate::{
    config::{
        model::{BackendConfig, Protocol, ServiceConfig},
        names::BackendName,
        renames,
    },
    core::{ids::Ids, io::Refused},
    words::grouped,
};

/// Longest name of a service or a backend, in bytes.
pub const NAME_LENGTH: usize = 63;

/// Whether `name` can name a service or a backend: 1–63 of `[A-Za-z0-9._-]`.
#[must_use]
pub fn is_name(name: &str) -> bool {
    (1..=NAME_LENGTH).contains(&name.len())
        && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-'))
}

/// Checks everything that must hold between services and their backends.
///
/// # Errors
/// [`Refused::Invalid`] or [`Refused::Conflict`] with the first thing that is wrong, in one line.
pub fn services(services: &[ServiceConfig]) -> Result<(), Refused> {
    let mut names = HashSet::new();
    let mut addresses = HashMap::new();
    for service in services {
        let name = &service.name;
        if !is_name(name) {
            return Err(Refused::Invalid(bad_name("service", name)));
        }
        if let Some(from) = service.renamed_from.as_deref().filter(|from| !is_name(from)) {
            return Err(Refused::Invalid(bad_name("service", from)));
        }
        if !names.insert(name) {
            return Err(Refused::Conflict(format!("service {name} is there twice: names must differ")));
        }
        if let Some(other) = addresses.insert((service.address, service.protocol), name) {
            let (address, protocol) = (service.address, service.protocol);
            return Err(Refused::Conflict(format!(
                "services {other} and {name} are both at {address}/{protocol}: address, port or protocol must differ"
            )));
        }
        let mut backends = HashSet::new();
        for config in &service.backends {
            backend(service, config)?;
            if !backends.insert(&config.name) {
                let backend = &config.name;
                return Err(Refused::Conflict(format!("backend {name}/{backend} is there twice: names must differ")));
            }
        }
        if service.table_size <= service.backends.len() as u32 {
            return Err(Refused::Invalid(format!(
                "service {name} has {} backends for {} slots: raise table_size to a prime above 100 × backends",
                grouped(service.backends.len() as u64),
                grouped(service.table_size)
            )));
        }
    }
    let alike = renames::hashed_alike(services).map(|(first, second)| renames::text(first, second));
    let within = services.iter().find_map(|service| renames::hashed_alike(&service.backends));
    if let Some(text) = alike.or_else(|| within.map(|(first, second)| renames::text(first, second))) {
        return Err(Refused::Conflict(text));
    }
    let backends: usize = services.iter().map(|service| service.backends.len()).sum();
    if backends > Ids::TOTAL {
        return Err(Refused::Invalid(format!(
            "{} backends over all services: at most {} are possible",
            grouped(backends as u64),
            grouped(Ids::TOTAL as u64)
        )));
    }
    match ambiguous_return(services) {
        None => Ok(()),
        Some((first, second)) => Err(Refused::Conflict(format!(
            "nat backends {first} and {second} have the same address, port and protocol: \
             the way back of their replies would be ambiguous; use different ports, or forwarding = \"dsr\""
        ))),
    }
}

/// Checks one backend against its service.
///
/// # Errors
/// [`Refused::Invalid`] with what is wrong, in one line.
pub fn backend(service: &ServiceConfig, backend: &BackendConfig) -> Result<(), Refused> {
    let (vip, address) = (service.address, backend.address);
    let name = format!("{}/{}", service.name, backend.name);
    let mode = match service.forwarding {
        Forwarding::Dsr => "dsr",
        Forwarding::Nat => "nat",
        Forwarding::Ipip => "ipip",
        Forwarding::Gue => "gue",
    };
    let tunnel = matches!(service.forwarding, Forwarding::Ipip | Forwarding::Gue);
    if !is_name(&backend.name) {
        return Err(Refused::Invalid(bad_name("backend", &backend.name)));
    }
    let wrong = if address.is_ipv4() != vip.is_ipv4() && !tunnel {
        let family = if vip.is_ipv4() { "an IPv4" } else { "an IPv6" };
        format!("{} is of another family than the service's {vip}: {mode} needs {family} address", address.ip())
    } else if address.ip().is_unspecified() || address.ip().is_multicast() || is_broadcast(address.ip()) {
        format!("{} is not the address of one host", address.ip())
    } else if address.ip() == vip.ip() {
        format!("{} is the service's own address: a backend needs one of its own", address.ip())
    } else if address.port() == vip.port() {
        return Ok(());
    } else if service.forwarding != Forwarding::Nat {
        format!(
            "{mode} cannot change port {} to {}: leave the port out, or use forwarding = \"nat\"",
            vip.port(),
            address.port()
        )
    } else if vip.port() == 0 {
        format!("the service has every port, so port {} cannot be set: leave it out", address.port())
    } else if address.port() == 0 {
        format!("port 0 is not a port: leave it out for the service's {}", vip.port())
    } else {
        return Ok(());
    };
    Err(Refused::Invalid(format!("backend {name}: {wrong}")))
}

/// The first two `nat` backends, of any services, whose replies cannot be told apart: same address, port and protocol.
///
/// A backend of a service with every port (port 0) overlaps with every other one of the same address and protocol,
/// unless both belong to the same VIP and the other one's port is not changed: then it does not matter which of the two
/// a reply is taken for.
#[must_use]
pub fn ambiguous_return(services: &[ServiceConfig]) -> Option<(BackendName, BackendName)> {
    let mut seen: HashMap<(IpAddr, Protocol), Vec<Origin<'_>>> = HashMap::new();
    for service in services.iter().filter(|service| service.forwarding == Forwarding::Nat) {
        for backend in &service.backends {
            let origin = Origin {
                service: &service.name,
                backend: &backend.name,
                vip: service.address,
                port: backend.address.port(),
            };
            let others = seen.entry((backend.address.ip(), service.protocol)).or_default();
            if let Some(other) = others.iter().find(|other| origin.may_be(other)) {
                return Some((other.name(), origin.name()));
            }
            others.push(origin);
        }
    }
    None
}

/// Where replies come from.
struct Origin<'a> {
    service: &'a str,
    backend: &'a str,
    vip: SocketAddr,
    port: u16,
}

impl Origin<'_> {
    fn may_be(&self, other: &Self) -> bool {
        let unchanged = |origin: &Self| origin.port == origin.vip.port();
        let same_vip = self.vip.ip() == other.vip.ip();
        match (self.port, other.port) {
            (mine, theirs) if mine == theirs => true,
            (0, _) => !(same_vip && unchanged(other)),
            (_, 0) => !(same_vip && unchanged(self)),
            (_, _) => false,
        }
    }

    fn name(&self) -> BackendName {
        BackendName { service: self.service.to_owned(), backend: self.backend.to_owned() }
    }
}

fn is_broadcast(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => address.is_broadcast(),
        IpAddr::V6(_) => false,
    }
}

fn bad_name(what: &str, name: &str) -> String {
    format!("{what} name {name:?}: use 1 to {NAME_LENGTH} letters, digits, dots, underscores and hyphens")
}

/// [`Refused::NotFound`] for `name`, with the nearest of the names there are.
#[must_use]
pub fn not_found<'a>(what: &str, name: &str, known: impl IntoIterator<Item = &'a str>) -> Refused {
    let nearest = known
        .into_iter()
        .map(|candidate| (strsim::normalized_damerau_levenshtein(name, candidate), candidate))
        .max_by(|a, b| a.0.total_cmp(&b.0));
    Refused::NotFound(match nearest {
        None => format!("no {what} {name:?}: there are none"),
        Some((likeness, candidate)) if likeness >= 0.5 => format!("no {what} {name:?}: did you mean {candidate:?}?"),
        Some((_, candidate)) => format!("no {what} {name:?}: there is {candidate:?}, for example"),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::fixture::{service, web};

    fn nat(name: &str, at: &str, backend: &str) -> ServiceConfig {
        service(name, at, Forwarding::Nat, &[&format!("b {backend}")])
    }

    fn dsr(name: &str, at: &str, backend: &str) -> ServiceConfig {
        service(name, at, Forwarding::Dsr, &[&format!("b {backend}")])
    }

    fn refusal(list: &[ServiceConfig]) -> String {
        services(list).map_or_else(|refused| refused.to_string(), |()| String::new())
    }

    #[test]
    fn names_are_short_and_plain() {
        for good in ["a", "web-1", "Web_1.example", &"x".repeat(63)] {
            assert!(is_name(good), "{good:?}");
        }
        for bad in ["", "a/b", "a b", "ä", "a\n", &"x".repeat(64)] {
            assert!(!is_name(bad), "{bad:?}");
        }
    }

    #[test]
    fn each_rule_refuses_with_its_own_line() {
        let mut named_twice = web();
        named_twice.backends[1].name = "web1".to_owned();
        let mut badly_named = web();
        badly_named.backends[1].name = "web 2".to_owned();
        let mut small = web();
        small.table_size = 3;
        let v4 = "198.51.100.10:80";
        for (list, expected) in [
            (vec![named_twice], "backend web/web1 is there twice"),
            (vec![badly_named], "backend name \"web 2\""),
            (vec![small], "service web has 4 backends for 3 slots"),
            (vec![web(), web()], "service web is there twice"),
            (vec![web(), nat("api", v4, "10.0.0.1:80")], "services web and api are both at 198.51.100.10:80/tcp"),
            (vec![nat("a b", v4, "10.0.0.1:80")], "service name \"a b\""),
            (vec![dsr("a", v4, "10.0.0.1:81")], "dsr cannot change port 80 to 81"),
            (vec![dsr("a", v4, "[2001:db8::1]:80")], "dsr needs an IPv4 address"),
            (vec![nat("a", "[2001:db8::2]:80", "10.0.0.1:80")], "nat needs an IPv6 address"),
            (vec![nat("a", v4, "0.0.0.0:80")], "not the address of one host"),
            (vec![nat("a", v4, "224.0.0.1:80")], "not the address of one host"),
            (vec![nat("a", v4, "198.51.100.10:81")], "the service's own address"),
            (vec![nat("a", v4, "10.0.0.1:0")], "port 0 is not a port"),
            (vec![nat("a", "198.51.100.10:0", "10.0.0.1:80")], "the service has every port"),
        ] {
            let refusal = refusal(&list);
            assert!(refusal.contains(expected) && !refusal.contains('\n'), "{refusal:?} should say {expected:?}");
        }
        assert_eq!(refusal(&[web(), dsr("a", "198.51.100.11:80", "10.0.0.11:80")]), "");
    }

    #[test]
    fn too_many_backends_are_refused() {
        let mut many = nat("a", "198.51.100.10:0", "10.0.0.1:0");
        let backend = many.backends[0].clone();
        many.backends = (0..16_384u32)
            .map(|n| BackendConfig {
                name: format!("b{n}"),
                address: (IpAddr::from((0x0a00_0001 + n).to_be_bytes()), 0).into(),
                ..backend.clone()
            })
            .collect();
        assert_eq!(refusal(&[many.clone()]), "16,384 backends over all services: at most 16,383 are possible");
        many.backends.pop();
        assert_eq!(refusal(&[many]), "");
    }

    #[test]
    fn replies_must_tell_their_service() {
        let a = |backend: &str| nat("a", "198.51.100.10:80", backend);
        let every = |vip: &str| nat("every", &format!("{vip}:0"), "10.0.0.1:0");
        let clash = |first: ServiceConfig, second: ServiceConfig| ambiguous_return(&[first, second]).is_some();
        assert!(clash(a("10.0.0.1:80"), nat("b", "198.51.100.11:80", "10.0.0.1:80")));
        assert!(clash(a("10.0.0.1:8080"), nat("b", "198.51.100.10:81", "10.0.0.1:8080")));
        assert!(!clash(a("10.0.0.1:80"), nat("b", "198.51.100.11:80", "10.0.0.1:81")));
        assert!(!clash(a("10.0.0.1:80"), nat("b", "198.51.100.11:80", "10.0.0.2:80")));
        assert!(!clash(a("10.0.0.1:80"), dsr("b", "198.51.100.11:80", "10.0.0.1:80")));
        let mut udp = nat("b", "198.51.100.11:80", "10.0.0.1:80");
        udp.protocol = Protocol::Udp;
        assert!(!clash(a("10.0.0.1:80"), udp));

        assert!(!clash(a("10.0.0.1:80"), every("198.51.100.10")));
        assert!(!clash(every("198.51.100.10"), a("10.0.0.1:80")));
        assert!(clash(a("10.0.0.1:8080"), every("198.51.100.10")));
        assert!(clash(every("198.51.100.11"), a("10.0.0.1:80")));
        let first = ambiguous_return(&[a("10.0.0.1:80"), every("198.51.100.11")]).unwrap();
        assert_eq!((first.0.to_string(), first.1.to_string()), ("a/b".to_owned(), "every/b".to_owned()));
    }

    #[test]
    fn the_nearest_name_is_suggested() {
        let hint = |name, known: &[&'static str]| not_found("service", name, known.iter().copied()).to_string();
        assert_eq!(hint("wbe", &["api", "web"]), "no service \"wbe\": did you mean \"web\"?");
        assert_eq!(hint("mail", &["web"]), "no service \"mail\": there is \"web\", for example");
        assert_eq!(hint("mail", &[]), "no service \"mail\": there are none");
    }
}
