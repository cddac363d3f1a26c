//! Removes from a conversion everything that `balancer check` would refuse.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    path::Path,
};

use balancer_config::{file, value};

use crate::{
    address::Host,
    dialect::Dialect,
    error::NotUnderstood,
    notes::Conversion,
    service::{Backend, Forwarding, Listener, Records, Service},
    writer,
};

const MOST_SERVICES: usize = 65_535;
const MOST_BACKENDS: usize = 65_534;
const MOST_LISTENERS: usize = 64;
/// The port of FTP's control connections.
const FTP: u16 = 21;

/// Documentation addresses, which stand for a missing address while the importer checks the rest of the service.
const STAND_IN: [IpAddr; 2] = [
    IpAddr::V4(Ipv4Addr::new(203, 0, 113, 254)),
    IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 0xffff, 0xffff, 0, 0, 0, 0xffff)),
];

/// The listeners that are in use, and the addresses of the backends that are in use.
#[derive(Default)]
struct Taken {
    names: Names,
    listeners: Ports,
    replies: Ports,
}

impl Conversion {
    /// Removes everything that `balancer check` would refuse, and adds notes about it.
    pub(crate) fn make_valid(&mut self) -> Result<(), NotUnderstood> {
        let backends: usize = self.services.iter().map(|service| service.backends.len()).sum();
        if self.services.len() > MOST_SERVICES || backends > MOST_BACKENDS {
            let what = format!(
                "{} services and {backends} backends; a balancer has up to {MOST_SERVICES} and {MOST_BACKENDS}: give it a part",
                self.services.len()
            );
            return Err(NotUnderstood::whole(what));
        }
        let mut taken = Taken::default();
        for service in std::mem::take(&mut self.services) {
            self.keep_valid(service, &mut taken);
        }
        self.share_snat();
        self.sort_notes();
        match verdict(&self.toml()) {
            Err(why) if !self.services.is_empty() => {
                Err(NotUnderstood::whole(format!("the converted configuration would not be valid: {why}")))
            }
            _ => Ok(()),
        }
    }

    /// Sorts the notes by line and removes duplicates, which arise because every section reads the lines that it
    /// inherits from `defaults`.
    fn sort_notes(&mut self) {
        let mut seen = BTreeSet::new();
        self.notes.retain(|note| {
            seen.insert((note.place.file.clone(), note.place.line, note.directive.clone(), note.why.clone()))
        });
        self.notes.sort_by(|a, b| (&a.place.file, a.place.line).cmp(&(&b.place.file, b.place.line)));
    }

    fn keep_valid(&mut self, mut service: Service, taken: &mut Taken) {
        let lacking = lacking(&mut service);
        if service.listeners.is_empty() && !lacking.is_empty() {
            self.keep_waiting(service, &lacking, taken);
            return;
        }
        self.choose_forwarding(&mut service);
        self.keep_fitting_listeners(&mut service);
        self.keep_free_listeners(&mut service, &mut taken.listeners);
        if service.listeners.is_empty() {
            return;
        }
        service.name = taken.names.unique(&service.name);
        self.keep_fitting_backends(&mut service);
        self.keep_free_backends(&mut service, &mut taken.replies);
        if service.has_no_server() {
            self.needs_you(&service.place, service.name.clone(), "none of its servers could be converted; add them");
            self.waiting.push(service);
        } else if self.make_acceptable(&mut service) {
            self.note_other_checks(&service);
            self.note_peculiarities(&service);
            self.services.push(service);
        }
    }

    /// Keeps a service that has no address, if all its other settings are valid.
    fn keep_waiting(&mut self, mut service: Service, lacking: &[Listener], taken: &mut Taken) {
        // A listener of the backends' address family comes first.
        let family = service.backends.iter().find_map(|backend| backend.host.address()).is_none_or(|one| one.is_ipv4());
        let fits = |listener: &&Listener| listener.address.is_ipv4() == family || service.forwarding.crosses_families();
        let Some(first) = lacking.iter().find(fits).or(lacking.first()) else { return };
        let [v4, v6] = STAND_IN;
        let stand_in = if first.address.is_ipv4() { v4 } else { v6 };
        // If a mark selects the packets of the service, the port of the service is unknown as well.
        let (start, end) = if first.first == 0 { (80, 80) } else { (first.first, first.last) };
        service.listeners = vec![Listener { address: stand_in, first: start, last: end, udp: first.udp }];
        self.choose_forwarding(&mut service);
        service.name = taken.names.unique(&service.name);
        self.keep_fitting_backends(&mut service);
        let mut none = Ports::default();
        let replies = if self.of_proxy { &mut taken.replies } else { &mut none };
        self.keep_free_backends(&mut service, replies);
        if self.make_acceptable(&mut service) {
            self.note_other_checks(&service);
            self.note_peculiarities(&service);
            service.listeners = vec![*first];
            self.waiting.push(service);
        }
    }

    /// Keeps only the listeners that fit the backends. A backend in the result has only one address, and a backend with
    /// its own port has only one listener.
    fn keep_fitting_listeners(&mut self, service: &mut Service) {
        let Some(first) = service.backends.iter().find_map(|backend| backend.host.address()) else { return };
        let is_v4 = first.is_ipv4();
        let have_ports = service.backends.iter().any(|backend| backend.port.is_some());
        let place = service.place.clone();
        for listener in std::mem::take(&mut service.listeners) {
            let directive = format!("{} on {}", service.name, writer::listener(&listener));
            if listener.address.is_ipv4() != is_v4 && !service.forwarding.crosses_families() {
                let why = "the backends have addresses of the other family; add the listener to `listen`, and `address6` to \
                           each backend, or use `forwarding = \"snat\"`";
                self.needs_you(&place, directive, why);
            } else if have_ports && service.forwarding == Forwarding::Nat && !service.listeners.is_empty() {
                let why = "with nat, a backend has a port for each listener; let the servers listen on another port for \
                           this one, and add it to `listen` and `ports`, or use `forwarding = \"snat\"`";
                self.needs_you(&place, directive, why);
            } else {
                service.listeners.push(listener);
            }
        }
    }

    /// Keeps only the backends whose address is not in use: with nat, the source of a reply must identify the listener.
    /// If an address is in use by another service, a proxy's service uses `snat` instead.
    fn keep_free_backends(&mut self, service: &mut Service, replies: &mut Ports) {
        if service.forwarding != Forwarding::Nat {
            return;
        }
        let mut all = service.backends.iter().flat_map(|backend| sources(backend, &service.listeners));
        if self.of_proxy && all.any(|one| replies.has(&one, meet)) {
            service.forwarding = Forwarding::Snat;
            return;
        }
        for backend in std::mem::take(&mut service.backends) {
            let sources = sources(&backend, &service.listeners);
            let mut own = Ports::default();
            let is_free = sources.iter().all(|one| {
                let is_free = !own.has(one, meet) && !replies.has(one, meet);
                own.take(one);
                is_free
            });
            if is_free {
                sources.iter().for_each(|one| replies.take(one));
                service.backends.push(backend);
            } else {
                let why = "with nat, an address and port behind one listener cannot be behind another; let the server \
                           listen on another port for this one, or use `forwarding = \"snat\"`";
                self.needs_you(&backend.place, format!("{} in {}", backend.name, service.name), why);
            }
        }
    }

    /// Adds notes about a valid service that may work differently than the reader expects.
    fn note_peculiarities(&mut self, service: &Service) {
        if service.listeners.iter().all(|one| !one.udp && (one.first, one.last) == (FTP, FTP)) {
            let why = "FTP's data connections go to other ports, which this service does not have; add the passive ports \
                       of the servers to `listen`, the same client reaches the same server by all of them";
            self.needs_you(&service.place, format!("{} on port {FTP}", service.name), why);
        }
        let is_unchecked = service.check().is_none() && service.listeners.iter().all(|one| one.udp);
        if self.dialect == Some(Dialect::Nginx) && is_unchecked {
            let why = "nginx notices by itself when a server fails, and this service has no check, because a server over \
                       UDP answers only what it understands; write a check of type `dns` or `udp`";
            self.needs_you(&service.place, service.name.clone(), why);
        }
        let is_short = |host: &Host| matches!(host, Host::Named(name) if !name.contains('.'));
        let of_backends = service.backends.iter().filter(|one| is_short(&one.host));
        let of_backends = of_backends.map(|one| (one.place.clone(), one.host.shown(one.port)));
        let of_lists = service.discover.iter().filter_map(|one| match &one.records {
            Records::Addresses(name, _) if !name.contains('.') => Some((one.place.clone(), name.clone())),
            Records::Addresses(..) | Records::Services(_) => None,
        });
        for (place, name) in of_backends.chain(of_lists).collect::<Vec<_>>() {
            let why = "the balancer asks DNS for exactly this name, and uses neither /etc/hosts nor search domains; \
                       write the address, or the whole name, unless your DNS server knows this one";
            self.needs_you(&place, name, why);
        }
    }

    fn keep_free_listeners(&mut self, service: &mut Service, taken: &mut Ports) {
        let place = service.place.clone();
        for listener in std::mem::take(&mut service.listeners) {
            let shown = writer::listener(&listener);
            if let Err(why) = value::address(&listener.address.to_string()) {
                self.needs_you(&place, format!("{} on {shown}", service.name), why);
            } else if taken.has(&listener, clash) {
                let why = "another service has this address and port; the choice between them by the content of requests \
                           is layer 7, which this balancer does not do: keep the proxy as the backend of that service";
                self.needs_you(&place, format!("{} on {shown}", service.name), why);
            } else if service.listeners.len() == MOST_LISTENERS {
                self.needs_you(&place, shown, "a service has up to 64 listeners; make another service for it");
            } else {
                taken.take(&listener);
                service.listeners.push(listener);
            }
        }
    }

    fn keep_fitting_backends(&mut self, service: &mut Service) {
        let mut names = Names::default();
        let mut ports = service.listeners.iter().map(|one| (one.first == one.last).then_some(one.first));
        let first = ports.next().flatten();
        // The port that all listeners share; `None` if the listeners have different ports.
        let port = first.filter(|_| ports.all(|port| port == first));
        let several = service.listeners.len() > 1;
        let single = service.listeners.iter().all(|one| one.first == one.last);
        for mut backend in std::mem::take(&mut service.backends) {
            let directive = format!("{} {}", backend.name, backend.host.shown(backend.port));
            let mut refuse = |why: &str| self.needs_you(&backend.place, directive.as_str(), why);
            if let Some(address) = backend.host.address()
                && let Err(why) = fits(address, service)
            {
                refuse(&why);
                continue;
            }
            if backend.port == Some(0) {
                backend.port = None;
            }
            let may_differ = match service.forwarding {
                Forwarding::Nat => port.is_some(),
                Forwarding::Snat => single,
                Forwarding::Dsr | Forwarding::Ipip | Forwarding::Gue => false,
            };
            if several && backend.port == port && !may_differ {
                backend.port = None;
            }
            if backend.port.is_some() && backend.port != port && !may_differ {
                refuse("its port differs from the listener's; use `forwarding = \"nat\"` and a service for each port");
                continue;
            }
            backend.weight = backend.weight.map(|weight| weight.min(65_535));
            backend.name = names.unique(&backend.name);
            service.backends.push(backend);
        }
    }
}

/// The addresses and ports from which a backend sends its replies for each listener; none for a backend with a name.
fn sources(backend: &Backend, listeners: &[Listener]) -> Vec<Listener> {
    let Some(address) = backend.host.address() else { return Vec::new() };
    let from = |listener: &Listener| Listener {
        address,
        first: backend.port.unwrap_or(listener.first),
        last: backend.port.unwrap_or(listener.last),
        udp: listener.udp,
    };
    listeners.iter().map(from).collect()
}

/// Checks that a backend of the service may have this address; the error contains the reason why it may not.
fn fits(address: IpAddr, service: &Service) -> Result<(), String> {
    if service.listeners.iter().any(|listener| listener.address == address) {
        return Err("a backend cannot have the service's own address; give the server another one".to_owned());
    }
    value::address(&address.to_string())?;
    let is_other = service.listeners.iter().any(|one| one.address.is_ipv4() != address.is_ipv4());
    if is_other && !service.forwarding.crosses_families() {
        let why = "it is of another address family than the service; give it an address of that family, or use \
                   `forwarding = \"snat\"`";
        return Err(why.to_owned());
    }
    Ok(())
}

/// Removes from a service the listeners that have no address, and returns them.
fn lacking(service: &mut Service) -> Vec<Listener> {
    let (lacking, listeners) =
        std::mem::take(&mut service.listeners).into_iter().partition(|listener| listener.address.is_unspecified());
    service.listeners = listeners;
    lacking
}

/// The ports that are in use, by address and protocol.
#[derive(Default)]
struct Ports(BTreeMap<(IpAddr, bool), Occupied>);

/// The port ranges that are in use. Most listeners have a single port, and there may be as many listeners as there are
/// ports.
#[derive(Default)]
struct Occupied {
    single: BTreeSet<u16>,
    wide: Vec<(u16, u16)>,
}

impl Ports {
    fn range(listener: &Listener) -> (u16, u16) {
        if listener.first == 0 { (0, u16::MAX) } else { (listener.first, listener.last) }
    }

    fn take(&mut self, listener: &Listener) {
        let occupied = self.0.entry((listener.address, listener.udp)).or_default();
        match Self::range(listener) {
            (first, last) if first == last => drop(occupied.single.insert(first)),
            range => occupied.wide.push(range),
        }
    }

    fn has(&self, listener: &Listener, is_in_the_way: fn((u16, u16), (u16, u16)) -> bool) -> bool {
        let range @ (first, last) = Self::range(listener);
        let Some(Occupied { single, wide }) = self.0.get(&(listener.address, listener.udp)) else { return false };
        first <= last && single.range(first..=last).any(|&port| is_in_the_way((port, port), range))
            || wide.iter().any(|&other| is_in_the_way(other, range))
    }
}

/// Whether two port ranges overlap.
fn meet(one: (u16, u16), other: (u16, u16)) -> bool {
    one.0 <= other.1 && other.0 <= one.1
}

/// Whether two port ranges are equal, or overlap without one of them containing the other.
fn clash(one: (u16, u16), other: (u16, u16)) -> bool {
    let within = |inner: (u16, u16), outer: (u16, u16)| outer.0 <= inner.0 && inner.1 <= outer.1;
    one == other || meet(one, other) && !within(one, other) && !within(other, one)
}

/// Returns the result of the balancer's own validation of a file.
pub(crate) fn verdict(text: &str) -> Result<(), String> {
    let parsed = file::parse(Path::new("balancer.toml"), text.as_bytes());
    parsed
        .map(drop)
        .map_err(|errors| errors.findings().first().map_or_else(String::new, |finding| finding.text.clone()))
}

/// The names that are in use, each with the next number to try as a suffix.
#[derive(Default)]
struct Names(BTreeMap<String, usize>);

impl Names {
    /// Returns an unused name that contains only the characters allowed in names.
    fn unique(&mut self, text: &str) -> String {
        let kept = text.chars().map(|c| if c.is_ascii_alphanumeric() || "._-".contains(c) { c } else { '-' });
        let name: String = kept.take(56).collect();
        let name = if name.is_empty() { "unnamed".to_owned() } else { name };
        let mut free = name.clone();
        while self.0.contains_key(&free) {
            let next = self.0.entry(name.clone()).or_insert(2);
            free = format!("{name}-{next}");
            *next += 1;
        }
        self.0.insert(free.clone(), 2);
        free
    }
}
