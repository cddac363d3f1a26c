//! Validation: the properties of services that the data path needs. The same rules apply to a file, which has lines,
//! and to changes and saved states, which have none.

mod returns;

use std::{
    fmt,
    iter::repeat_n,
    net::{IpAddr, SocketAddr},
    ops::Deref,
    sync::Arc,
};

use balancer_common::map_types::{Forwarding, LAST_BACKEND, MAX_LISTENERS, MAX_RULES};
use foldhash::{HashMap, HashSet};

use self::returns::Source;
use super::{
    primes::{MAX_TABLE_SIZE, is_prime, next_prime},
    renames,
    table_size::SLOTS_PER_BACKEND,
    value,
};
use crate::{
    listeners::{Family, Listener, MAX_LISTENERS_OF_SERVICE, PortRange},
    protocol::Protocol,
    service::{BackendConfig, ServiceConfig, forwarding_word},
    shared::{alike, by_name, is_one},
    words::grouped,
};

const MAX_SERVICES: usize = u16::MAX as usize;

/// The object of a problem in a list of services. Numbers count from 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Place {
    /// A service's name.
    Name(usize),
    /// A service's listener.
    Listener(usize, usize),
    /// A service's table size.
    TableSize(usize),
    /// The name of a service's backend.
    BackendName(usize, usize),
    /// The address of a service's backend.
    BackendAddress(usize, usize),
}

/// A problem in a list of services.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// The object.
    pub at: Place,
    /// The service's name.
    service: String,
    fault: Box<Fault>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Fault {
    /// An object that is invalid by itself or in its context, or one too many.
    Invalid(String),
    /// A duplicate name.
    NameTaken { what: &'static str, name: String, first: Place },
    /// Two services with the same listener.
    ListenerTaken { listener: Listener, first: Place, by: String },
    /// Two overlapping port ranges of which neither is more specific.
    Overlapping { one: Listener, other: Listener, at: Place, by: String },
    /// Two objects of one kind hashed under the same name.
    HashedAlike(String),
    /// Two `nat` backends whose replies cannot be distinguished.
    Ambiguous { one: String, other: String, address: [SocketAddr; 2], listeners: [Listener; 2], at: Place },
}

impl Problem {
    /// Whether two existing objects contradict each other; otherwise one is invalid by itself.
    #[must_use]
    pub fn is_conflict(&self) -> bool {
        match *self.fault {
            Fault::Invalid(_) => false,
            Fault::NameTaken { .. }
            | Fault::ListenerTaken { .. }
            | Fault::Overlapping { .. }
            | Fault::HashedAlike(_)
            | Fault::Ambiguous { .. } => true,
        }
    }

    /// The problem and what would be right, in one line; `line` returns the line of an object in a file, if there is
    /// one.
    #[must_use]
    pub fn text(&self, line: impl Fn(Place) -> Option<usize>) -> String {
        match &*self.fault {
            Fault::Invalid(text) | Fault::HashedAlike(text) => text.clone(),
            Fault::NameTaken { what, name, first } => {
                let line = line(*first).map(|line| format!(" on line {line}")).unwrap_or_default();
                format!("the {what} name {name:?} is taken{line}; choose another")
            }
            Fault::ListenerTaken { listener, first, by } => {
                let service =
                    line(*first).map_or_else(|| format!("service {by}"), |line| format!("the service on line {line}"));
                let (protocol, place) = (listener.protocol, listener.place());
                format!("{protocol} {place} is {service} already; give another address, port or protocol")
            }
            Fault::Overlapping { one, other, at, by } => {
                let line = line(*at).map_or_else(|| format!(" of service {by}"), |line| format!(" on line {line}"));
                format!("{one} overlaps {other}{line}, and neither is within the other; give other ports")
            }
            Fault::Ambiguous { one, other, listeners: [first, second], .. } if one == other => format!(
                "nat could not tell the replies of {one} for {first} and {second} apart: they come from one address and port; \
                 leave the backend's port out, or give the listeners ports of their own with ports = {{ … }}"
            ),
            Fault::Ambiguous { one, other, address: [address, others], listeners: [listener, _], at } => {
                let line = line(*at).map(|line| format!(", line {line}")).unwrap_or_default();
                let protocol = listener.protocol;
                format!(
                    "nat could not tell the {protocol} replies of {one} ({address}) and {other} ({others}{line}) apart; give one of \
                     them another address or port"
                )
            }
        }
    }
}

/// Formats without lines.
impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let says_where = matches!(self.at, Place::Name(_) | Place::Listener(..));
        if !says_where && !matches!(*self.fault, Fault::Ambiguous { .. }) {
            write!(f, "service {}: ", self.service)?;
        }
        f.write_str(&self.text(|_| None))
    }
}

/// Services that are valid, each by itself and all together. Copies are cheap.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Valid(Arc<[Arc<ServiceConfig>]>);

impl Valid {
    /// Checks `services`.
    ///
    /// # Errors
    /// The first problem.
    pub fn new(services: Vec<Arc<ServiceConfig>>) -> Result<Self, Problem> {
        self::services(&services, &Self::default())?;
        Ok(Self(services.into()))
    }

    /// Checks `services`, some of which are `known` to be valid, and returns all problems.
    pub(crate) fn or_problems(services: Vec<Arc<ServiceConfig>>, known: &Self) -> Result<Self, Vec<Problem>> {
        let problems = problems(&services, known);
        if problems.is_empty() { Ok(Self(services.into())) } else { Err(problems) }
    }

    /// Copies of the services, for serialization.
    #[must_use]
    pub fn copies(&self) -> Vec<ServiceConfig> {
        self.iter().map(|service| ServiceConfig::clone(service)).collect()
    }

    /// The same services, sharing memory with equal ones in `others`.
    #[must_use]
    pub fn sharing(self, others: &[Arc<ServiceConfig>]) -> Self {
        if is_one(&self, others) {
            return self;
        }
        let others = by_name(others);
        Self(self.iter().map(|service| Arc::clone(alike(&others, service).unwrap_or(service))).collect())
    }
}

impl Deref for Valid {
    type Target = [Arc<ServiceConfig>];

    fn deref(&self) -> &[Arc<ServiceConfig>] {
        &self.0
    }
}

/// Checks `services` and their backends. Those that are `known` are valid by themselves.
///
/// # Errors
/// The first problem.
pub fn services(services: &[Arc<ServiceConfig>], known: &Valid) -> Result<(), Problem> {
    problems(services, known).into_iter().next().map_or(Ok(()), Err)
}

/// All problems of `services` and their backends.
fn problems(services: &[Arc<ServiceConfig>], known: &Valid) -> Vec<Problem> {
    let pointers = known.iter().map(Arc::as_ptr).collect();
    let mut problems = Problems { services, known, pointers, found: Vec::new() };
    let mut names = HashMap::default();
    for (index, service) in services.iter().enumerate() {
        let at = Place::Name(index);
        problems.name(at, &service.name, service.renamed_from.as_deref());
        if let Some(first) = names.insert(service.name.as_str(), at) {
            problems.add(at, Fault::NameTaken { what: "service", name: service.name.clone(), first });
        }
        if !problems.is_known(service) {
            problems.backends(index, service);
            problems.server_ids(index, service);
            problems.table_size(index, service);
        }
    }
    problems.hashed_alike(services, Place::Name);
    for (index, service) in services.iter().enumerate() {
        if !problems.is_known(service) {
            problems.hashed_alike(&service.backends, |backend| Place::BackendName(index, backend));
        }
    }
    problems.listeners();
    problems.limits();
    problems.returns();
    problems.found
}

struct Problems<'a> {
    services: &'a [Arc<ServiceConfig>],
    known: &'a Valid,
    pointers: HashSet<*const ServiceConfig>,
    found: Vec<Problem>,
}

impl Problems<'_> {
    fn is_known(&self, service: &Arc<ServiceConfig>) -> bool {
        self.pointers.contains(&Arc::as_ptr(service))
    }

    fn add(&mut self, at: Place, fault: Fault) {
        let (Place::Name(index)
        | Place::Listener(index, _)
        | Place::TableSize(index)
        | Place::BackendName(index, _)
        | Place::BackendAddress(index, _)) = at;
        let service = self.services.get(index).map(|service| service.name.clone()).unwrap_or_default();
        self.found.push(Problem { at, service, fault: Box::new(fault) });
    }

    fn name(&mut self, at: Place, name: &str, renamed_from: Option<&str>) {
        for name in [Some(name), renamed_from].into_iter().flatten() {
            if let Err(text) = value::name(name) {
                self.add(at, Fault::Invalid(text));
            }
        }
    }

    fn backends(&mut self, index: usize, service: &ServiceConfig) {
        let mut names = HashMap::default();
        for (number, backend) in service.backends.iter().enumerate() {
            let at = Place::BackendName(index, number);
            self.name(at, &backend.name, backend.renamed_from.as_deref());
            if let Some(first) = names.insert(backend.name.as_str(), at) {
                self.add(at, Fault::NameTaken { what: "backend", name: backend.name.clone(), first });
            }
            if let Err(text) = fits(service, backend) {
                self.add(Place::BackendAddress(index, number), Fault::Invalid(text));
            }
        }
    }

    /// Checks listeners: each by itself, conflicts between services, and their number.
    fn listeners(&mut self) {
        let services = self.services;
        let mut taken: HashMap<Listener, (Place, &str)> = HashMap::default();
        let mut ranges: HashMap<(IpAddr, Protocol), Ranges<'_>> = HashMap::default();
        for (index, service) in services.iter().enumerate() {
            if service.listen.is_empty() {
                self.add(
                    Place::Name(index),
                    Fault::Invalid("it has no listener; give listen = [\"ADDR:PORT\"]".to_owned()),
                );
            }
            for (number, &listener) in service.listen.iter().enumerate() {
                let at = Place::Listener(index, number);
                if number == MAX_LISTENERS_OF_SERVICE {
                    let text = format!("more than {MAX_LISTENERS_OF_SERVICE} listeners of one service; remove some");
                    self.add(at, Fault::Invalid(text));
                }
                if let Err(text) = value::usable(listener.address) {
                    self.add(at, Fault::Invalid(text));
                }
                if let Some((first, by)) = taken.insert(listener.taken(), (at, &service.name)) {
                    self.add(at, Fault::ListenerTaken { listener, first, by: by.to_owned() });
                } else if listener.ports.single().is_none() {
                    let same = ranges.entry((listener.address, listener.protocol.transport())).or_default();
                    if let Some(&(other, place, by)) =
                        same.iter().find(|(other, ..)| overlap(other.ports, listener.ports))
                    {
                        self.add(at, Fault::Overlapping { one: listener, other, at: place, by: by.to_owned() });
                    }
                    same.push((listener, at, &service.name));
                }
            }
            self.ports(index, service);
            self.steer(index, service);
            self.quic(index, service);
        }
        let mut all = services
            .iter()
            .enumerate()
            .flat_map(|(index, service)| (0..service.listen.len()).map(move |number| Place::Listener(index, number)));
        if let Some(excess) = all.nth(MAX_LISTENERS as usize - 1) {
            let text = format!("more than {} listeners over all services; remove some", MAX_LISTENERS - 1);
            self.add(excess, Fault::Invalid(text));
        }
    }

    /// Checks the share of a service whose connections only the balancer knows.
    fn steer(&mut self, index: usize, service: &ServiceConfig) {
        if service.steer != ServiceConfig::steer_by_default() && service.forwarding == Forwarding::Snat {
            let text = format!(
                "steer = {} is not for forwarding = \"snat\"; steer a share with \"nat\" or \"dsr\", or all clients",
                service.steer
            );
            self.add(Place::Name(index), Fault::Invalid(text));
        }
    }

    /// Checks that QUIC listeners and QUIC settings occur together.
    fn quic(&mut self, index: usize, service: &ServiceConfig) {
        let listener = service.listen.iter().position(|listener| listener.protocol == Protocol::Quic);
        let (at, text) = match (&service.quic, listener) {
            (Some(_), None) => (
                Place::Name(index),
                "quic is for listeners of the protocol quic, and there is none; add one such as \"198.51.100.10:443/quic\", or \
                 remove quic",
            ),
            (None, Some(listener)) => (
                Place::Listener(index, listener),
                "a listener of the protocol quic needs quic = { format = \"nlb\" } or { format = \"draft\" }, which says how \
                 connection IDs name backends; add it, or write udp",
            ),
            _ => return,
        };
        self.add(at, Fault::Invalid(text.to_owned()));
    }

    /// Checks that server IDs are unique.
    fn server_ids(&mut self, index: usize, service: &ServiceConfig) {
        let mut ids = HashMap::default();
        for (number, backend) in service.backends.iter().enumerate() {
            let at = Place::BackendName(index, number);
            let Some(quic) = &service.quic else {
                if backend.quic_server_id.is_some() {
                    let text = "quic_server_id is for a service with quic; add that, or remove it".to_owned();
                    self.add(at, Fault::Invalid(text));
                }
                continue;
            };
            let id = backend.server_id(quic);
            if id.bytes().len() != usize::from(quic.server_id_length) {
                let length = quic.server_id_length;
                let text = format!(
                    "quic_server_id = \"{id}\" is not of {length} bytes, the service's server_id_length; write \"0x\" and {} \
                     hexadecimal digits",
                    2 * length
                );
                self.add(at, Fault::Invalid(text));
            }
            if let Some(first) = ids.insert(id, backend.name.as_str()) {
                let text = format!(
                    "{} has the server ID {id}, which is {first}'s; give one of them another with quic_server_id, or make \
                     server_id_length larger",
                    backend.name
                );
                self.add(at, Fault::Invalid(text));
            }
        }
    }

    /// Checks `ports`, which is invalid for modes that keep ports.
    fn ports(&mut self, index: usize, service: &ServiceConfig) {
        let at = Place::Name(index);
        if !service.ports.is_empty() && !matches!(service.forwarding, Forwarding::Nat | Forwarding::Snat) {
            let mode = forwarding_word(service.forwarding);
            self.add(
                at,
                Fault::Invalid(format!("{mode} cannot change ports; remove ports, or use forwarding = \"nat\"")),
            );
        }
        for (port, backend_port) in &service.ports {
            if *backend_port == 0 {
                self.add(at, Fault::Invalid(format!("ports has {port} = 0; give 1 to 65535")));
            }
        }
    }

    fn table_size(&mut self, index: usize, service: &ServiceConfig) {
        let (size, backends) = (service.slots(), service.backends.len());
        let text = if !is_prime(size) {
            format!("table_size = {size} is not prime; the next prime is {}", next_prime(size))
        } else if size as usize <= backends {
            format!(
                "table_size = {size} is too small for {backends} backends; give at least {}",
                enough_slots(backends)
            )
        } else {
            return;
        };
        self.add(Place::TableSize(index), Fault::Invalid(text));
    }

    fn hashed_alike<N: renames::Named>(&mut self, all: &[N], place: impl Fn(usize) -> Place) {
        if let Some((index, first, second)) = renames::hashed_alike(all)
            && first.name() != second.name()
        {
            self.add(place(index), Fault::HashedAlike(renames::text(first, second)));
        }
    }

    fn limits(&mut self) {
        let services = self.services;
        if services.len() > MAX_SERVICES {
            let text = format!("more than {MAX_SERVICES} services; remove some");
            self.add(Place::Name(MAX_SERVICES), Fault::Invalid(text));
        }
        let mut room = MAX_RULES as usize;
        let full = services.iter().position(|service| {
            let left = room.checked_sub(service.rules.len());
            room = left.unwrap_or(0);
            left.is_none()
        });
        if let Some(index) = full {
            let text = format!("more than {} rules over all services; remove some", grouped(MAX_RULES));
            self.add(Place::Name(index), Fault::Invalid(text));
        }
        let room = usize::from(LAST_BACKEND);
        if services.iter().map(|service| service.backend_ids()).sum::<usize>() <= room {
            return;
        }
        let mut backends = services.iter().enumerate().flat_map(|(index, service)| {
            let families = service.families().len();
            (0..service.backends.len()).flat_map(move |number| repeat_n(Place::BackendAddress(index, number), families))
        });
        if let Some(excess) = backends.nth(room) {
            let twice = services.iter().any(|service| service.families().len() > 1);
            let each = if twice { ", those of services of both address families counted twice" } else { "" };
            let text = format!("more than {room} backends over all services{each}; remove some");
            self.add(excess, Fault::Invalid(text));
        }
    }

    /// Checks for `nat` backends whose replies the return path could not distinguish.
    fn returns(&mut self) {
        // Two services with the same name may both have come from a known one.
        let is_known = |service: &Arc<ServiceConfig>| self.is_known(service);
        if self.found.is_empty() && !returns::may_be_confused(self.services, self.known, is_known) {
            return;
        }
        for (source, other) in returns::confused(self.services) {
            self.ambiguous(&source, &other);
        }
    }

    fn ambiguous(&mut self, source: &Source<'_>, other: &Source<'_>) {
        let (one, two) = (source.name(), other.name());
        self.add(
            source.at,
            Fault::Ambiguous {
                one,
                other: two,
                address: [source.from, other.from],
                listeners: [source.listener, other.listener],
                at: other.at,
            },
        );
    }
}

/// Port ranges with their objects and service names.
type Ranges<'a> = Vec<(Listener, Place, &'a str)>;

/// Whether ranges overlap without one containing the other.
const fn overlap(one: PortRange, other: PortRange) -> bool {
    let apart = one.last < other.first || other.last < one.first;
    let within = one.first >= other.first && one.last <= other.last;
    let around = one.first <= other.first && one.last >= other.last;
    !apart && !within && !around
}

/// The number of slots for even shares of this many backends.
pub(super) fn enough_slots(backends: usize) -> u32 {
    u32::try_from(backends.saturating_mul(SLOTS_PER_BACKEND)).map_or(MAX_TABLE_SIZE, next_prime)
}

/// Whether the service's packets can be forwarded to `backend`.
fn fits(service: &ServiceConfig, backend: &BackendConfig) -> Result<(), String> {
    let name = &backend.name;
    for address in [Some(backend.address), backend.address6].into_iter().flatten() {
        value::usable(address.ip())?;
        if service.listen.iter().any(|listener| listener.address == address.ip()) {
            return Err(format!(
                "the address of backend {name:?} is the service's own {}; give the server's own",
                address.ip()
            ));
        }
        port_fits(service, name, address.port())?;
    }
    if let Some(address6) = backend.address6
        && (address6.is_ipv4() || backend.address.is_ipv6())
    {
        return Err(format!(
            "backend {name:?} has address = {} and address6 = {}; give an IPv4 address and an IPv6 address",
            backend.address.ip(),
            address6.ip()
        ));
    }
    let missing =
        service.families().into_iter().find(|&family| backend.address_for(family, service.forwarding).is_none());
    missing.map_or(Ok(()), |family| Err(family_missing(service, backend, family)))
}

fn family_missing(service: &ServiceConfig, backend: &BackendConfig, family: Family) -> String {
    let (name, mode) = (&backend.name, forwarding_word(service.forwarding));
    let vip = service.listeners(family).next().unwrap_or(service.first()).address;
    let give = if service.families().len() > 1 && family == Family::V6 {
        "give an IPv6 address as well, address6 = \"…\"".to_owned()
    } else {
        format!("give an {family} address")
    };
    format!("backend {name:?} has the address {}, which {mode} cannot reach from {vip}; {give}", backend.address.ip())
}

/// Whether a backend may have `port` for all listeners; 0: it has none.
fn port_fits(service: &ServiceConfig, name: &str, port: u16) -> Result<(), String> {
    let mode = forwarding_word(service.forwarding);
    let every = service.listen.iter().any(|listener| listener.ports.single().is_none());
    match (service.forwarding, service.listen.as_slice()) {
        _ if port == 0 => Ok(()),
        (Forwarding::Nat | Forwarding::Snat, _) if every => Err(format!(
            "backend {name:?} has port {port}, and a service with every port cannot change it; leave the port out"
        )),
        (Forwarding::Nat | Forwarding::Snat, _) => Ok(()),
        (_, [only]) if only.ports == PortRange::EVERY => Err(format!(
            "backend {name:?} has port {port}, and {mode} cannot change the client's port; leave the port out"
        )),
        (_, listen) => {
            let ports = match listen {
                [only] => only.ports.to_string(),
                _ => "ports".to_owned(),
            };
            Err(format!(
                "backend {name:?} has port {port}, and {mode} cannot change the service's {ports}; leave the port out, or use \
                 forwarding = \"nat\""
            ))
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::{
        fixture::{backend, service, web},
        shared::shared,
    };

    fn nat(name: &str, at: &str, backend: &str) -> ServiceConfig {
        service(name, at, Forwarding::Nat, &[&format!("b {backend}")])
    }

    fn dsr(name: &str, at: &str, backend: &str) -> ServiceConfig {
        service(name, at, Forwarding::Dsr, &[&format!("b {backend}")])
    }

    fn refusal(list: &[ServiceConfig]) -> String {
        services(&shared(list.to_vec()), &Valid::default())
            .map_or_else(|problem| problem.to_string(), |()| String::new())
    }

    #[test]
    fn when_a_rule_is_violated_then_it_refuses_with_its_own_line() {
        let mut named_twice = web();
        named_twice.backends[1].name = "web1".to_owned();
        let mut badly_named = web();
        badly_named.backends[1].name = "web 2".to_owned();
        let mut small = web();
        small.table_size = 3.into();
        let mut even = web();
        even.table_size = 65_536.into();
        let v4 = "198.51.100.10:80";
        for (list, expected) in [
            (vec![named_twice], "the backend name \"web1\" is taken; choose another"),
            (vec![badly_named], "the name \"web 2\" contains ' '"),
            (vec![small], "table_size = 3 is too small for 4 backends"),
            (vec![even], "table_size = 65536 is not prime"),
            (vec![web(), web()], "the service name \"web\" is taken"),
            (vec![web(), nat("api", v4, "10.0.0.1:80")], "tcp 198.51.100.10:80 is service web already"),
            (vec![nat("a b", v4, "10.0.0.1:80")], "the name \"a b\" contains ' '"),
            (vec![dsr("a", v4, "10.0.0.1:81")], "dsr cannot change the service's 80"),
            (vec![dsr("a", v4, "[2001:db8::1]:80")], "give an IPv4 address"),
            (vec![nat("a", "[2001:db8::2]:80", "10.0.0.1:80")], "give an IPv6 address"),
            (vec![nat("a", v4, "0.0.0.0:80")], "give the unicast address of one host"),
            (vec![nat("a", v4, "224.0.0.1:80")], "give the unicast address of one host"),
            (vec![nat("a", v4, "198.51.100.10:81")], "the service's own"),
            (vec![nat("a", "198.51.100.10:0", "10.0.0.1:80")], "a service with every port cannot change it"),
        ] {
            let refusal = refusal(&list);
            assert!(refusal.contains(expected) && !refusal.contains('\n'), "{refusal:?} should say {expected:?}");
        }
        assert_eq!(refusal(&[web(), dsr("a", "198.51.100.11:80", "10.0.0.11:80")]), "");
    }

    #[test]
    fn when_listeners_are_too_many_then_they_are_refused() {
        let with_ports = |index: u8, count: u16| {
            let mut one =
                service(&format!("s{index}"), &format!("198.51.{index}.10:1"), Forwarding::Dsr, &["b 10.0.0.1:1"]);
            let first = one.listen[0];
            one.listen = (1..=count).map(|port| Listener { ports: PortRange::of(port), ..first }).collect();
            one
        };
        assert_eq!(refusal(&[with_ports(0, 64)]), "");
        assert_eq!(refusal(&[with_ports(0, 65)]), "more than 64 listeners of one service; remove some");
        // 64 × 1,024 are one too many.
        let mut all: Vec<ServiceConfig> = (0..1024u16)
            .map(|index| {
                let mut one = with_ports(index as u8, 64);
                one.name = format!("s{index}");
                for listener in &mut one.listen {
                    listener.address = IpAddr::from([198, 51, (index >> 8) as u8, index as u8]);
                }
                one
            })
            .collect();
        assert_eq!(refusal(&all), "more than 65535 listeners over all services; remove some");
        all.last_mut().unwrap().listen.pop();
        assert_eq!(refusal(&all), "");
    }

    #[test]
    fn when_backends_are_too_many_then_they_are_refused() {
        let mut many = nat("a", "198.51.100.10:0", "10.0.0.1:0");
        let backend = many.backends[0].clone();
        many.backends = (0..65_535u32)
            .map(|n| BackendConfig {
                name: format!("b{n}"),
                address: (IpAddr::from((0x0a00_0001 + n).to_be_bytes()), 0).into(),
                ..backend.clone()
            })
            .collect();
        assert_eq!(refusal(&[many.clone()]), "service a: more than 65534 backends over all services; remove some");
        many.backends.pop();
        assert_eq!(refusal(&[many.clone()]), "");
        // Each of them needs an id for each family.
        let second = Listener { address: "2001:db8::1".parse().unwrap(), ..many.listen[0] };
        many.listen.push(second);
        many.backends.iter_mut().zip(1u128..).for_each(|(backend, n)| {
            backend.address6 = Some((IpAddr::from(((0x2001_0db8 << 96) + (1 << 64) + n).to_be_bytes()), 0).into());
        });
        many.backends.truncate(32_768);
        assert_eq!(
            refusal(&[many.clone()]),
            "service a: more than 65534 backends over all services, those of services of both address families counted \
             twice; remove some"
        );
        many.backends.pop();
        assert_eq!(refusal(&[many]), "");
    }

    #[test]
    fn when_replies_could_belong_to_two_services_then_the_second_is_refused() {
        let a = |backend: &str| nat("a", "198.51.100.10:80", backend);
        let every = |vip: &str| nat("every", &format!("{vip}:0"), "10.0.0.1:0");
        let clash = |first: ServiceConfig, second: ServiceConfig| !refusal(&[first, second]).is_empty();
        assert!(clash(a("10.0.0.1:80"), nat("b", "198.51.100.11:80", "10.0.0.1:80")));
        assert!(clash(a("10.0.0.1:8080"), nat("b", "198.51.100.10:81", "10.0.0.1:8080")));
        assert!(!clash(a("10.0.0.1:80"), nat("b", "198.51.100.11:80", "10.0.0.1:81")));
        assert!(!clash(a("10.0.0.1:80"), nat("b", "198.51.100.11:80", "10.0.0.2:80")));
        assert!(!clash(a("10.0.0.1:80"), dsr("b", "198.51.100.11:80", "10.0.0.1:80")));
        let mut udp = nat("b", "198.51.100.11:80", "10.0.0.1:80");
        udp.listen[0].protocol = Protocol::Udp;
        assert!(!clash(a("10.0.0.1:80"), udp));

        assert!(!clash(a("10.0.0.1:80"), every("198.51.100.10")));
        assert!(!clash(every("198.51.100.10"), a("10.0.0.1:80")));
        assert!(clash(a("10.0.0.1:8080"), every("198.51.100.10")));
        assert!(clash(every("198.51.100.11"), a("10.0.0.1:80")));
        let text = "nat could not tell the tcp replies of a/b (10.0.0.1:80) and every/b (10.0.0.1:0) apart; give one of them \
                    another address or port";
        assert_eq!(refusal(&[a("10.0.0.1:80"), every("198.51.100.11")]), text);

        // Either of the two may be known to be valid.
        for known in [a("10.0.0.1:80"), every("198.51.100.11")] {
            let known = Valid::new(shared(vec![known])).unwrap();
            let both = [a("10.0.0.1:80"), every("198.51.100.11")].map(Arc::new);
            assert_eq!(services(&both, &known).unwrap_err().to_string(), text);
        }
    }

    prop_compose! {
        /// A service that easily conflicts with others.
        fn crowded()(
            name in 0..6_u8,
            nat in prop::bool::weighted(0.9),
            listen in prop::collection::vec((0..2_u8, prop::sample::select(vec![(0_u16, 0_u16), (80, 80), (81, 81), (80, 90)])), 1..3),
            backends in prop::collection::vec((1..4_u8, prop::sample::select(vec![0_u16, 80, 81])), 0..3),
        ) -> Arc<ServiceConfig> {
            let mode = if nat { Forwarding::Nat } else { Forwarding::Dsr };
            let mut of = service(&format!("s{name}"), "198.51.100.10:80", mode, &[]);
            let first = of.listen[0];
            let listener = |(vip, (first_port, last)): (u8, (u16, u16))| Listener {
                address: IpAddr::from([198, 51, 100, 10 + vip]),
                ports: PortRange { first: first_port, last: if last == 0 { u16::MAX } else { last } },
                ..first
            };
            of.listen = listen.into_iter().map(listener).collect();
            let backends = backends.into_iter().zip('a'..);
            of.backends = backends
                .map(|((host, port), name)| backend(&name.to_string(), &format!("10.0.0.{host}:{port}")))
                .collect();
            Arc::new(of)
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(4000))]

        #[test]
        fn when_some_services_are_known_to_be_valid_then_no_problem_is_hidden(
            candidates in prop::collection::vec(crowded(), 1..8),
            others in prop::collection::vec((any::<prop::sample::Index>(), crowded()), 0..4),
            edits in prop::collection::vec((any::<prop::sample::Index>(), 0..4_u8, 0..2_u16), 0..4),
            removed in any::<bool>(),
        ) {
            let mut list: Vec<Arc<ServiceConfig>> = Vec::new();
            for candidate in candidates {
                list.push(candidate);
                if services(&list, &Valid::default()).is_err() {
                    list.pop();
                }
            }
            let known = Valid::new(list.clone()).unwrap();
            if removed && !list.is_empty() {
                list.remove(0);
            }
            for (place, host, port) in edits {
                if !list.is_empty() {
                    let service = Arc::make_mut(place.get_mut(&mut list));
                    if host == 0 {
                        let first = service.listen[0];
                        service.listen.push(Listener { ports: PortRange::of(80 + port), ..first });
                    } else {
                        let name = format!("n{host}");
                        service.backends.push(backend(&name, &format!("10.0.0.{host}:{}", 80 * port)));
                    }
                }
            }
            for (place, other) in others {
                list.insert(place.index(list.len() + 1), other);
            }
            let said = |known: &Valid| problems(&list, known).iter().map(Problem::to_string).collect::<Vec<_>>();
            prop_assert_eq!(said(&known), said(&Valid::default()));
        }
    }
}
