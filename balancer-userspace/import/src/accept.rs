//! Makes the balancer accept a service: finds the details that the balancer would refuse, and leaves out only these.

use crate::{
    notes::Conversion,
    place::Place,
    service::{Backend, Check, CheckKind, Discover, Service},
    valid::verdict,
    writer,
};

/// The reason that the balancer has for refusing a service; `None` if the balancer accepts the service.
fn refusal(service: &Service) -> Option<String> {
    verdict(&writer::alone(service)).err()
}

/// The service with only one backend or one list of targets.
fn with_only(service: &Service, backend: Option<&Backend>, list: Option<&Discover>) -> Service {
    let (backends, discover) = (backend.cloned().into_iter().collect(), list.cloned().into_iter().collect());
    Service { backends, discover, ..shell(service) }
}

/// The service without its servers.
fn shell(service: &Service) -> Service {
    Service {
        listeners: service.listeners.clone(),
        forwarding: service.forwarding,
        remember: service.remember,
        prefix: service.prefix,
        start_down: service.start_down,
        idle_ms: service.idle_ms,
        seen_as: service.seen_as.clone(),
        agent: service.agent,
        keeps_clients_of_failed: service.keeps_clients_of_failed,
        ..Service::new(&service.place, &service.name)
    }
}

/// A setting of a service that it can do without, with the function that removes it.
type Setting = (&'static str, fn(&mut Service));

const SETTINGS: [Setting; 5] = [
    ("the times of silent connections of", |service| service.idle_ms = None),
    ("the addresses of", |service| service.seen_as.clear()),
    ("the agents of", |service| service.agent = None),
    ("the time for which clients are remembered by", |service| service.remember = None),
    ("the clients' prefix of", |service| service.prefix = None),
];

impl Conversion {
    /// Removes from a service what the balancer would refuse, with a note for each detail. Returns `false` if nothing
    /// helps.
    pub(crate) fn make_acceptable(&mut self, service: &mut Service) -> bool {
        let Some(first) = refusal(service) else { return true };
        self.keep_accepted_settings(service);
        self.keep_accepted_checks(service);
        if refusal(service).is_none() {
            return true;
        }
        self.share_one_check(service);
        if refusal(service).is_none() {
            return true;
        }
        self.keep_accepted_servers(service);
        let refused = refusal(service);
        if refused.is_some() {
            self.needs_you(&service.place, service.name.clone(), first);
        }
        refused.is_none()
    }

    /// Removes each setting without which the balancer would accept a service that has no servers.
    fn keep_accepted_settings(&mut self, service: &mut Service) {
        for (what, remove) in SETTINGS {
            let Some(why) = refusal(&shell(service)) else { return };
            let mut without = shell(service);
            remove(&mut without);
            if refusal(&without).is_none() {
                remove(service);
                self.needs_you(&service.place, format!("{what} {}", service.name), why);
            }
        }
    }

    /// Replaces each check that the balancer refuses by one that only connects.
    fn keep_accepted_checks(&mut self, service: &mut Service) {
        let mut replaced: Vec<(Place, String, String)> = Vec::new();
        let mut backends = std::mem::take(&mut service.backends);
        for backend in &mut backends {
            let alone = |backend: &Backend| refusal(&with_only(service, Some(backend), None));
            let Some(why) = backend.check.as_ref().and_then(|_| alone(backend)) else { continue };
            let simpler = simpler(backend.check.as_ref());
            let fits = simpler.into_iter().find(|check| {
                let check = Some(check.clone());
                alone(&Backend { check, ..backend.clone() }).is_none()
            });
            if fits.is_some() {
                backend.check = fits;
                replaced.push((backend.place.clone(), backend.name.clone(), why));
            }
        }
        let mut lists = std::mem::take(&mut service.discover);
        for list in &mut lists {
            let alone = |list: &Discover| refusal(&with_only(service, None, Some(list)));
            let Some(why) = list.check.as_ref().and_then(|_| alone(list)) else { continue };
            let simpler = simpler(list.check.as_ref());
            let fits = simpler.into_iter().find(|check| {
                let check = Some(check.clone());
                alone(&Discover { check, ..list.clone() }).is_none()
            });
            if fits.is_some() {
                list.check = fits;
                replaced.push((list.place.clone(), list.name.clone(), why));
            }
        }
        (service.backends, service.discover) = (backends, lists);
        for (place, name, why) in replaced {
            let why = format!("{why}; until then, only whether the port opens is checked");
            self.needs_you(&place, format!("the check of {name} in {}", service.name), why);
        }
    }

    /// Gives all servers the check that most of them have, if they cannot have checks of their own.
    fn share_one_check(&mut self, service: &mut Service) {
        let Some(why) = refusal(service) else { return };
        let common = service.check().cloned();
        let name = service.name.clone();
        let mut replaced = Vec::new();
        for (place, server, check) in service.checks_mut() {
            if Some(&*check) != common.as_ref() {
                replaced.push((place.clone(), server.to_owned()));
                *check = common.clone().unwrap_or_default();
            }
        }
        for (place, server) in replaced {
            let why = format!("{why}; until then, it is checked like most servers of the service");
            self.needs_you(&place, format!("the check of {server} in {name}"), why);
        }
    }

    /// Removes the servers that the balancer refuses even without a check.
    fn keep_accepted_servers(&mut self, service: &mut Service) {
        for backend in std::mem::take(&mut service.backends) {
            match refusal(&with_only(service, Some(&backend), None)) {
                Some(why) => self.needs_you(&backend.place, format!("{} in {}", backend.name, service.name), why),
                None => service.backends.push(backend),
            }
        }
        for list in std::mem::take(&mut service.discover) {
            match refusal(&with_only(service, None, Some(&list))) {
                Some(why) => self.needs_you(&list.place, format!("{} in {}", list.name, service.name), why),
                None => service.discover.push(list),
            }
        }
    }

    /// Adds a note about each server whose check is not that of most servers.
    pub(crate) fn note_other_checks(&mut self, service: &Service) {
        let Some(common) = service.check() else { return };
        let of_backends = service.backends.iter().map(|one| (&one.place, &one.name, &one.check, one.backup));
        let of_lists = service.discover.iter().map(|one| (&one.place, &one.name, &one.check, false));
        for (place, name, check, is_backup) in of_backends.chain(of_lists) {
            let why = match check {
                Some(check) if check == common => continue,
                Some(_) => "its check differs from that of most servers of the service, and stays its own",
                None if is_backup => continue,
                None => "it has no check, unlike most servers of the service, and always counts as up",
            };
            self.not_needed(place, format!("{name} in {}", service.name), why);
        }
    }
}

/// Simpler forms of a check: one that only connects, with the same times and without.
fn simpler(check: Option<&Check>) -> [Check; 2] {
    let times = check.cloned().unwrap_or_default();
    [Check { kind: CheckKind::Tcp, ..times }, Check::default()]
}
