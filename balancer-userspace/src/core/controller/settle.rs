//! What should be, compared with what the shell was told: the difference becomes commands, in an order that is safe at
//! every step:
//!
//! 1. next hops to watch, rows of backends,
//! 2. tables of services that are not published yet,
//! 3. the directory of services, if something came to it: the way back of replies is there before the way to it,
//! 4. tables of the other services,
//! 5. the directory of services, if something only left it,
//! 6. rules (those of a service that keeps none before its directory says so, 3 and 5),
//! 7. checks and rows of removed backends, next hops that nobody needs,
//! 8. health checks of the others, reports.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
    time::Instant,
};

use balancer_common::verdict::MoveCause;

use super::{Controller, Gone};
use crate::{
    config::names::BackendName,
    core::{
        io::{BackendSpec, CheckNumber, Command, ServiceId, ServiceSpec},
        next_hops::NextHops,
        report,
        service::{Backend, Service},
        table::Moves,
    },
};

/// What became different.
pub(super) struct Settled {
    pub(super) commands: Vec<Command>,
    /// What moved, by service.
    pub(super) moves: HashMap<ServiceId, Moves>,
}

impl Controller {
    /// Turns the difference between what should be and what the shell was told into commands, for the services that
    /// are `concerned`; `removed` are backends that are no longer in any service. The state of `subject` needs no report.
    pub(super) fn settle(
        &mut self,
        concerned: impl Fn(&Service) -> bool,
        mut removed: Vec<Backend>,
        subject: Option<&BackendName>,
        now: Instant,
    ) -> Settled {
        let Self { services, hops, owners, ids, published, gone, last_check, .. } = self;
        let remembering: HashSet<ServiceId> =
            services.iter().filter(|service| service.remembers()).map(Service::id).collect();
        let mut commands = Vec::new();
        let mut checks = Vec::new();
        let mut released = Vec::new();

        for service in services.iter_mut().filter(|service| concerned(service)) {
            for backend in service.backends_mut() {
                let address = backend.address().ip();
                if backend.told.watched != Some(address) {
                    if hops.watch(address) {
                        commands.push(Command::WatchNextHop(address));
                    }
                    released.extend(backend.told.watched.replace(address));
                }
            }
        }

        let (mut first_swaps, mut swaps) = (Vec::new(), Vec::new());
        let (mut last_rules_go, mut rules) = (Vec::new(), Vec::new());
        let mut reports = Vec::new();
        let mut all_moves = HashMap::new();
        let is_published = |id: ServiceId| published.iter().flatten().any(|spec: &ServiceSpec| spec.id == id);
        for service in services.iter_mut().filter(|service| concerned(service)) {
            tell_checks(service, last_check, &mut checks);
            let refreshed = service.refresh(hops, now);
            tell_rows(service, hops, &mut commands);
            if refreshed.swap {
                let swaps = if is_published(service.id()) { &mut swaps } else { &mut first_swaps };
                let (table, home) = service.tables();
                swaps.push(Command::SwapTable { service: service.id(), table, home });
            }
            let specs = service.rule_specs();
            if service.told_rules != specs {
                service.told_rules = Arc::clone(&specs);
                let list = if specs.is_empty() { &mut last_rules_go } else { &mut rules };
                list.push(Command::SetRules { service: service.id(), rules: specs });
            }
            let told = refreshed.transitions.iter().filter(|transition| subject != Some(&transition.name));
            reports.extend(told.map(|transition| transition.report(&refreshed.moves, service.table_size())));
            reports.extend(refreshed.footing.map(|footing| report::footing_report(service.name(), footing)));
            all_moves.insert(service.id(), refreshed.moves);
        }

        let specs: Vec<ServiceSpec> = services.iter().map(Service::spec).collect();
        let publish = published.as_ref() != Some(&specs);
        let grows = publish && grows(published.as_deref().unwrap_or_default(), &specs);
        commands.extend(last_rules_go);
        commands.extend(first_swaps);
        if grows {
            commands.push(Command::PublishServices(specs.clone()));
        }
        commands.extend(swaps);
        if publish && !grows {
            commands.push(Command::PublishServices(specs.clone()));
        }
        *published = Some(specs);
        commands.extend(rules);

        for backend in &mut removed {
            let id = backend.id();
            if backend.told.check.take().is_some() {
                commands.push(Command::StopChecks(id));
            }
            let row = backend.told.row.take();
            released.extend(backend.told.watched.take());
            owners.remove(&id);
            match row.filter(|row| row.keeps_known || backend.known_clients() > 0 || remembering.contains(&row.service))
            {
                // Its known clients are told apart by its id until the last of them has moved or is forgotten.
                Some(row) => {
                    let cause = backend.cause_of_moves().unwrap_or(MoveCause::Removed);
                    let row = BackendSpec { next_hop: None, keeps_known: false, takes_pinned: false, cause, ..row };
                    commands.push(Command::WriteBackend(row.clone()));
                    gone.push(Gone {
                        name: backend.name().to_owned(),
                        row,
                        known: backend.known_clients(),
                        empty_sweeps: 0,
                    });
                }
                None => {
                    commands.push(Command::RetireBackend(id));
                    ids.give_back(id);
                }
            }
        }
        for address in released {
            if hops.release(address) {
                commands.push(Command::UnwatchNextHop(address));
            }
        }
        commands.extend(checks);
        commands.extend(reports.into_iter().map(Command::Report));
        Settled { commands, moves: all_moves }
    }
}

/// The rows of a service's backends that differ from what the shell was told.
fn tell_rows(service: &mut Service, hops: &NextHops, commands: &mut Vec<Command>) {
    for index in 0..service.backends().len() {
        let Some(backend) = service.backends().get(index) else { continue };
        let row = service.row(backend, hops);
        let Some(backend) = service.backends_mut().get_mut(index) else { continue };
        if backend.told.row.as_ref() != Some(&row) {
            backend.told.row = Some(row.clone());
            commands.push(Command::WriteBackend(row));
        }
    }
}

/// The checks of a service's backends that differ from what the shell was told.
fn tell_checks(service: &mut Service, last: &mut CheckNumber, checks: &mut Vec<Command>) {
    for index in 0..service.backends().len() {
        let Some(backend) = service.backends().get(index) else { continue };
        let wanted = service.check(backend);
        if backend.is_checked_as(wanted.as_ref()) {
            continue;
        }
        let Some(backend) = service.backends_mut().get_mut(index) else { continue };
        match wanted {
            Some(wanted) => {
                last.0 += 1;
                backend.check_as(*last, wanted);
            }
            None => {
                // A check that begins later finds nothing.
                backend.forget_verdict();
                backend.told.check = None;
                checks.push(Command::StopChecks(backend.id()));
            }
        }
        let Some(backend) = service.backends().get(index) else { continue };
        let started = backend.told.check.as_ref().map(|told| service.check_spec(backend, told));
        checks.extend(started.map(Box::new).map(Command::StartChecks));
    }
}

/// Whether a service or a backend is in `new` that is not, or not at that address, in `old`.
pub(super) fn grows(old: &[ServiceSpec], new: &[ServiceSpec]) -> bool {
    let old: HashMap<ServiceId, &ServiceSpec> = old.iter().map(|spec| (spec.id, spec)).collect();
    new.iter().any(|spec| {
        old.get(&spec.id).is_none_or(|old| {
            let known: HashSet<_> = old.backends.iter().collect();
            spec.backends.iter().any(|backend| !known.contains(backend))
        })
    })
}
