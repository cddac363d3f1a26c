//! Keeps of a conversion what `balancer check` accepts.

use std::{collections::BTreeSet, path::Path};

use balancer_model::{file, value};

use crate::{
    address,
    service::{Conversion, Forwarding, Listener, Service},
    writer,
};

impl Conversion {
    /// Takes away what `balancer check` would refuse, and says so.
    pub(crate) fn make_valid(&mut self) {
        let (mut names, mut listeners, mut replies) = (BTreeSet::new(), BTreeSet::new(), Vec::new());
        for mut service in std::mem::take(&mut self.services) {
            service.name = unique(&name(&service.name), &mut names);
            self.keep_fitting_listeners(&mut service);
            self.keep_free_listeners(&mut service, &mut listeners);
            if service.listeners.is_empty() {
                names.remove(&service.name);
                continue;
            }
            self.keep_fitting_backends(&mut service);
            self.keep_free_backends(&mut service, &mut replies);
            if self.is_accepted(&mut service) {
                self.services.push(service);
            }
        }
        self.notes.sort_by(|a, b| (&a.place.file, a.place.line).cmp(&(&b.place.file, b.place.line)));
    }

    /// Takes away a check that the balancer refuses; `false`: it refuses the service for another reason.
    fn is_accepted(&mut self, service: &mut Service) -> bool {
        let Err(why) = verdict(service) else { return true };
        let check = service.check.take();
        let accepted = verdict(service).is_ok();
        let what = if check.is_some() && accepted { "the check of " } else { "" };
        self.needs_you(&service.place, format!("{what}{}", service.name), why);
        accepted
    }

    /// Backends have one address, and with a port of their own one listener.
    fn keep_fitting_listeners(&mut self, service: &mut Service) {
        let Some(first) = service.backends.first() else { return };
        let tunnels = matches!(service.forwarding, Forwarding::Ipip | Forwarding::Gue);
        let is_v4 = first.address.is_ipv4();
        let have_ports = service.backends.iter().any(|backend| backend.port.is_some());
        let place = service.place.clone();
        for listener in std::mem::take(&mut service.listeners) {
            let directive = format!("{} on {}", service.name, writer::listener(&listener));
            if listener.address.is_unspecified() {
                let why = "it listens on every address of this machine, and the balancer steers named ones; add \
                           the address that clients use to `listen`";
                self.needs_you(&place, directive, why);
            } else if listener.address.is_ipv4() != is_v4 && !tunnels {
                let why = "the backends have addresses of the other family; add the listener to `listen`, and `address6` to each backend";
                self.needs_you(&place, directive, why);
            } else if have_ports && !service.listeners.is_empty() {
                let why = "with nat, a backend has a port for each listener; let the servers listen on another port for \
                           this one, and add it to `listen` and `ports`";
                self.needs_you(&place, directive, why);
            } else {
                service.listeners.push(listener);
            }
        }
    }

    /// With nat, a reply has to tell its listener.
    fn keep_free_backends(&mut self, service: &mut Service, replies: &mut Vec<Listener>) {
        if service.forwarding != Forwarding::Nat {
            return;
        }
        for backend in std::mem::take(&mut service.backends) {
            let from = |listener: &Listener| Listener {
                address: backend.address,
                first: backend.port.unwrap_or(listener.first),
                last: backend.port.unwrap_or(listener.last),
                udp: listener.udp,
            };
            let mut own: Vec<_> = service.listeners.iter().map(from).collect();
            if own
                .iter()
                .enumerate()
                .any(|(at, one)| own.iter().take(at).chain(replies.iter()).any(|other| meet(one, other)))
            {
                let why = "with nat, an address and port behind one listener cannot be behind another; let the server \
                           listen on another port for this one";
                self.needs_you(&backend.place, format!("{} in {}", backend.name, service.name), why);
                continue;
            }
            replies.append(&mut own);
            service.backends.push(backend);
        }
    }

    fn keep_free_listeners(&mut self, service: &mut Service, taken: &mut BTreeSet<Listener>) {
        let place = service.place.clone();
        for listener in std::mem::take(&mut service.listeners) {
            let shown = writer::listener(&listener);
            if let Err(why) = value::address(&listener.address.to_string()) {
                self.needs_you(&place, format!("{} on {shown}", service.name), why);
            } else if taken.iter().any(|other| meet(other, &listener)) {
                let why = "another service has this address and port; the choice between them by the content of requests \
                           is layer 7, which this balancer does not do: keep the proxy as the backend of that service";
                self.needs_you(&place, format!("{} on {shown}", service.name), why);
            } else if service.listeners.len() == 64 {
                self.needs_you(&place, shown, "a service has up to 64 listeners; make another service for it");
            } else {
                taken.insert(listener);
                service.listeners.push(listener);
            }
        }
    }

    fn keep_fitting_backends(&mut self, service: &mut Service) {
        let mut names = BTreeSet::new();
        let tunnels = matches!(service.forwarding, Forwarding::Ipip | Forwarding::Gue);
        let port = match service.listeners.as_slice() {
            [one] if one.first == one.last => Some(one.first),
            _ => None,
        };
        for mut backend in std::mem::take(&mut service.backends) {
            let directive = format!("{} {}", backend.name, address::shown(backend.address, backend.port));
            let mut refuse = |why: &str| self.needs_you(&backend.place, directive.as_str(), why);
            let families = service.listeners.iter().all(|one| one.address.is_ipv4() == backend.address.is_ipv4());
            if service.listeners.iter().any(|listener| listener.address == backend.address) {
                refuse("a backend cannot have the service's own address; give the server another one");
                continue;
            }
            if let Err(why) = value::address(&backend.address.to_string()) {
                refuse(&why);
                continue;
            }
            if !families && !tunnels {
                refuse("it is of another address family than the service; give it an address of that family");
                continue;
            }
            if backend.port == Some(0) {
                backend.port = None;
            }
            if backend.port.is_some()
                && backend.port != port
                && (service.forwarding != Forwarding::Nat || port.is_none())
            {
                refuse("its port differs from the listener's; use `forwarding = \"nat\"` and a service for each port");
                continue;
            }
            backend.weight = backend.weight.map(|weight| weight.min(65_535));
            backend.name = unique(&name(&backend.name), &mut names);
            service.backends.push(backend);
        }
    }
}

fn meet(one: &Listener, other: &Listener) -> bool {
    let every_port = |listener: &Listener| listener.first == 0;
    let share = one.first <= other.last && other.first <= one.last;
    (one.address, one.udp) == (other.address, other.udp) && (share || every_port(one) || every_port(other))
}

/// What the balancer's own check says of a service by itself.
fn verdict(service: &Service) -> Result<(), String> {
    let text = writer::alone(service);
    let parsed = file::parse(Path::new("balancer.toml"), text.as_bytes());
    parsed
        .map(drop)
        .map_err(|errors| errors.findings().first().map_or_else(String::new, |finding| finding.text.clone()))
}

/// A name of the characters that names may have.
fn name(text: &str) -> String {
    let kept = text.chars().map(|c| if c.is_ascii_alphanumeric() || "._-".contains(c) { c } else { '-' });
    let name: String = kept.take(56).collect();
    if name.is_empty() { "unnamed".to_owned() } else { name }
}

fn unique(name: &str, taken: &mut BTreeSet<String>) -> String {
    let numbered = (2_usize..).map(|number| format!("{name}-{number}"));
    let free = std::iter::once(name.to_owned()).chain(numbered).find(|name| !taken.contains(name));
    let free = free.unwrap_or_default();
    taken.insert(free.clone());
    free
}
