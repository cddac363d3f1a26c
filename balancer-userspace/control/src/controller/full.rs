//! Applies the limits on clients and connections of backends.

use std::{collections::BTreeMap, time::Instant};

use balancer_config::{
    limits::{Full, Limits, WhenFull},
    names::BackendName,
};

use super::Controller;
use crate::{
    io::{Command, Refused},
    moves::Moves,
    report,
    service::Service,
};

impl Controller {
    pub(super) fn set_limits(
        &mut self,
        name: &BackendName,
        limits: Limits,
        now: Instant,
    ) -> Result<(String, Vec<Command>), Refused> {
        let old = self.backend(name)?.config().limits;
        if old == limits {
            return Ok((format!("backend {name} has {limits} already: nothing changed"), Vec::new()));
        }
        let settings = self.service(&name.service)?.config();
        if let Some(fault) = limits.fault(settings.remember, settings.forwarding) {
            return Err(Refused::Invalid(fault));
        }
        let (mut services, index) = self.edit(&name.service)?;
        if let Some(service) = services.get_mut(index).map(std::sync::Arc::make_mut) {
            let mut named = service.backends.iter_mut().filter(|backend| backend.name == name.backend);
            named.by_ref().for_each(|backend| backend.limits = limits);
        }
        self.reconfigure(services, name, &format!("{old} → {limits}"), now)
    }

    /// Sets which backends of a service are full and take no new clients; all other backends have room.
    pub(super) fn fill(
        &mut self,
        name: &str,
        full: &BTreeMap<String, Full>,
        now: Instant,
    ) -> Result<(String, Vec<Command>), Refused> {
        if !self.service(name)?.bounds_clients() {
            return Err(Refused::Conflict(format!("service {name} has no backend with a limit")));
        }
        let before: Vec<(String, bool)> =
            self.service(name)?.backends().iter().map(|of| (of.name().to_owned(), of.full().is_some())).collect();
        self.services.those_mut(|service| service.name() == name).for_each(|service| service.set_full(full));
        let reconciled = self.reconcile(|service| service.name() == name, Vec::new(), None, now);
        let changed = |(backend, before): &(String, bool)| match (before, full.get(backend)) {
            (false, Some(full)) => Some(format!("{backend} {full} and takes no new clients")),
            (true, None) => Some(format!("{backend} has room again")),
            (false, None) | (true, Some(_)) => None,
        };
        let mut what = before.iter().filter_map(changed).collect::<Vec<_>>().join(", ");
        if what.is_empty() {
            "nothing is full".clone_into(&mut what);
        }
        let none = Moves::default();
        let moved = |service: &Service| {
            let moves = reconciled.moves.get(&service.id()).unwrap_or(&none);
            format!("{}{}", service.prefix(), report::moved(moves, service.table_size()))
        };
        let moved = self.legs(name).map(moved).collect::<Vec<_>>().join(", ");
        let all_full = self.legs(name).any(Service::is_full_up);
        let open = self.service(name)?.when_full() == WhenFull::Open;
        let all = match (all_full, open) {
            (false, _) => "",
            (true, true) => "; all backends are full, and take new clients all the same (when_full = \"open\")",
            (true, false) => "; all backends are full: new clients are turned away",
        };
        Ok((format!("service {name}: {what}: {moved}{all}"), reconciled.commands))
    }
}
