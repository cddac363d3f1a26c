//! Expresses the difference between the wanted state and the state that was passed to the shell as commands, ordered by
//! stage (`stage.rs`).

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
    time::Instant,
};

use balancer_common::verdict::MoveCause;
use balancer_config::names::BackendName;

use super::{
    Controller, Gone,
    stage::{Stage, Staged},
};
use crate::{
    io::{BackendSpec, CheckNumber, Command, ServiceId, ServiceSpec},
    moves::Moves,
    next_hops::NextHops,
    outage::Turn,
    report,
    service::{Backend, Look, Service},
};

/// The commands for a difference between two states, and the slots that these commands move.
pub(super) struct Reconciled {
    pub(super) commands: Vec<Command>,
    pub(super) moves: HashMap<ServiceId, Moves>,
}

impl Controller {
    /// Makes the commands for the difference between the wanted state and the state that was passed to the shell, for
    /// the `concerned` services; the `removed` backends no longer belong to any service. The commands include no report
    /// about the state of `subject`.
    pub(super) fn reconcile(
        &mut self,
        concerned: impl Fn(&Service) -> bool,
        removed: Vec<Backend>,
        subject: Option<&BackendName>,
        now: Instant,
    ) -> Reconciled {
        self.settle_looking(|service| concerned(service).then_some(Look::Whole), removed, subject, now)
    }

    /// Makes the commands for the services in `look`, which says which part of a service may have changed. Everything
    /// outside these parts is unchanged since it was passed to the shell.
    pub(super) fn settle_looking<'a>(
        &mut self,
        look: impl Fn(&Service) -> Option<Look<'a>>,
        mut removed: Vec<Backend>,
        subject: Option<&BackendName>,
        now: Instant,
    ) -> Reconciled {
        let now = self.role.time(now);
        let judges = !self.role.follows();
        let Self { services, hops, owners, ids, published, gone, last_check, precomputed, .. } = self;
        let remembering: HashSet<ServiceId> =
            services.iter().filter(|service| service.remembers()).map(Service::id).collect();
        let mut commands = Staged::default();
        let mut released = Vec::new();

        let whole = |service: &Service| look(service) == Some(Look::Whole);
        for service in services.those_mut(whole) {
            for backend in service.backends_mut() {
                let address = backend.address().ip();
                if backend.told.watched != Some(address) {
                    if hops.watch(address) {
                        commands.add(Stage::Watch, Command::WatchNextHop(address));
                    }
                    released.extend(backend.told.watched.replace(address));
                }
            }
        }

        let mut all_moves = HashMap::new();
        let is_published =
            |id: ServiceId| published.iter().flat_map(|specs| specs.iter()).any(|spec: &ServiceSpec| spec.id == id);
        for service in services.those_mut(|service| look(service).is_some()) {
            let look = look(service).unwrap_or(Look::Whole);
            let turn = if judges { service.judge_outage(hops, now) } else { Turn::default() };
            // An outage may let any backend keep its clients, so the controller evaluates all backends.
            let look = if turn.changed { Look::Whole } else { look };
            let places = service.places(look, now);
            tell_checks(service, &places, last_check, &mut commands);
            let refreshed = service.refresh(&places, hops, now, precomputed.of(service.id()));
            // The row of each backend says whether the service treats all its backends as up.
            let told = if refreshed.tier.is_some() { service.places(Look::Whole, now) } else { places };
            tell_rows(service, &told, hops, &mut commands);
            if refreshed.swap {
                commands.swap(service, is_published(service.id()));
            }
            if look == Look::Whole {
                let specs = service.rule_specs();
                if service.told_rules != specs {
                    service.told_rules = Arc::clone(&specs);
                    commands.set_rules(service.id(), specs);
                }
            }
            let outage = turn.news.map(|news| service.outage_report(&news));
            debug_assert!(is_told(service, hops, now), "{} differs from what the data path was given", service.name());
            let told = refreshed.transitions.iter().filter(|transition| subject != Some(&transition.name));
            told.map(|transition| transition.report(&refreshed.moves, service.table_size()))
                .chain(refreshed.tier.map(|tier| report::tier_report(service.name(), &service.label(), tier)))
                .chain(outage)
                .for_each(|report| commands.add(Stage::Reports, Command::Report(report)));
            all_moves.insert(service.id(), refreshed.moves);
        }

        // The published data of a service changes only with the service, and there may be thousands of services.
        let is_same = |(spec, service): (&ServiceSpec, &Service)| {
            // Check results may change whether all backends of a service are full.
            let may_differ = whole(service) || look(service).is_some() && service.bounds_clients();
            spec.id == service.id() && (!may_differ || *spec == service.spec())
        };
        let all_same = |published: &Arc<Vec<ServiceSpec>>| {
            published.len() == services.len() && published.iter().zip(&*services).all(is_same)
        };
        if !published.as_ref().is_some_and(all_same) {
            let specs: Vec<ServiceSpec> = services.iter().map(Service::spec).collect();
            let before = published.replace(Arc::new(specs.clone()));
            commands.publish(before.as_deref().map_or(&[], Vec::as_slice), specs);
        }

        for backend in &mut removed {
            let id = backend.id();
            if backend.told.check.take().is_some() {
                commands.add(Stage::Removed, Command::StopChecks(id));
            }
            let row = backend.told.row.take();
            released.extend(backend.told.watched.take());
            owners.remove(&id);
            match row.filter(|row| row.keeps_known || backend.known_clients() > 0 || remembering.contains(&row.service))
            {
                // The row of a removed backend keeps its service id until the last known client has moved or is
                // forgotten. This row also keeps its next hop, for packets in progress and in case the backend is added
                // again.
                Some(row) => {
                    let cause = backend.cause_of_moves().unwrap_or(MoveCause::Removed);
                    let left =
                        BackendSpec { keeps_known: false, takes_pinned: false, cause, ..BackendSpec::clone(&row) };
                    let row = if *row == left {
                        row
                    } else {
                        let left = Arc::new(left);
                        commands.add(Stage::Removed, Command::WriteBackend(Arc::clone(&left)));
                        left
                    };
                    gone.push(Gone {
                        name: backend.name().to_owned(),
                        row,
                        known: backend.known_clients(),
                        empty_sweeps: 0,
                    });
                }
                None => {
                    commands.add(Stage::Removed, Command::RetireBackend(id));
                    ids.give_back(id);
                }
            }
        }
        for address in released {
            if hops.release(address) {
                commands.add(Stage::Unwatch, Command::UnwatchNextHop(address));
            }
        }
        Reconciled { commands: commands.in_order(), moves: all_moves }
    }
}

/// Whether the shell has the complete state of an affected service.
fn is_told(service: &Service, hops: &NextHops, now: Instant) -> bool {
    service.is_assessed(hops, now)
        && service.told_rules == service.rule_specs()
        && service.backends().iter().all(|backend| {
            backend.told.watched == Some(backend.address().ip())
                && backend.told.row.as_deref() == Some(&service.row(backend, hops))
                && backend.is_checked_as(service.check(backend))
        })
}

/// Adds commands for those rows of a service's backends at these positions that differ from the rows passed to the
/// shell.
fn tell_rows(service: &mut Service, places: &[usize], hops: &NextHops, commands: &mut Staged) {
    for &index in places {
        let Some(backend) = service.backends().get(index) else { continue };
        let row = service.row(backend, hops);
        let Some(backend) = service.backends_mut().get_mut(index) else { continue };
        if backend.told.row.as_deref() != Some(&row) {
            let row = Arc::new(row);
            let before = backend.told.row.replace(Arc::clone(&row));
            let moves = before.is_some_and(|before| before.address != row.address);
            commands.add(if moves { Stage::MovedRows } else { Stage::Rows }, Command::WriteBackend(row));
        }
    }
}

/// Adds commands for those checks of a service's backends at these positions that differ from the checks passed to the
/// shell.
fn tell_checks(service: &mut Service, places: &[usize], last: &mut CheckNumber, commands: &mut Staged) {
    for &index in places {
        let Some(backend) = service.backends().get(index) else { continue };
        let wanted = service.check(backend);
        if backend.is_checked_as(wanted) {
            continue;
        }
        let wanted = wanted.map(|(target, config, restart_grace)| (target, config.clone(), restart_grace));
        let Some(backend) = service.backends_mut().get_mut(index) else { continue };
        match wanted {
            Some(wanted) => {
                last.0 += 1;
                backend.check_as(*last, wanted);
            }
            None => {
                // A check that starts later begins without a verdict.
                backend.forget_verdict();
                backend.told.check = None;
                commands.add(Stage::Checks, Command::StopChecks(backend.id()));
            }
        }
        let Some(backend) = service.backends().get(index) else { continue };
        if let Some(told) = &backend.told.check {
            commands.add(Stage::Checks, Command::StartChecks(Box::new(service.check_spec(backend, told))));
        }
    }
}
