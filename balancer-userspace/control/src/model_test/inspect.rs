//! Derives the expected state anew after each step, and compares it with the controller and the data plane.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    time::{Duration, Instant},
};

use balancer_common::{
    map_types::{ALL_DOWN, Forwarding, LAST_BACKEND, NO_BACKEND},
    verdict::MoveCause,
};
use balancer_config::{
    config::{CheckKind, FailureAction, ServiceConfig, WhenAllDown, WhenFull},
    fixture::KEY,
    listeners::Family,
    renames::Named as _,
    states::{Admin, BackendState, Forced},
};

use super::{plain_maglev, plane::DataPlane};
use crate::{
    controller::Controller,
    health::{FailureKind, Verdict},
    io::{BackendId, BackendSpec, CheckSpec, Passive, RuleAction},
    keys,
    maglev::Member,
    next_hops::Hop,
    rules::{Action, Rule},
    service::{Backend, Service},
    table::Tier,
};

/// The expected progress of a backend's drain.
#[derive(Clone, Debug)]
struct Drain {
    admin: Admin,
    timeout: Option<Duration>,
    until: Option<Instant>,
    empty_sweeps: u32,
}

/// Whether a backend fails in a declared or suspected outage, and keeps its clients.
fn held(service: &Service, backend: &Backend) -> bool {
    service.holds(backend.id()) && backend.admin() != Admin::Maint && backend.effective_forced() != Some(Forced::Down)
}

/// Whether some backend that may get new clients has not failed, as far as is known.
fn anybody_stands(service: &Service, plane: &DataPlane) -> bool {
    let config = service.config();
    let primaries = service.backends().iter().any(|backend| may_serve(backend) && !backend.is_backup());
    let counts = |backend: &&Backend| may_serve(backend) && !(primaries && backend.is_backup());
    let fails = |backend: &Backend| failure(&config, backend, &plane.watched[&backend.address().ip()]).is_some();
    service.backends().iter().filter(counts).any(|backend| !fails(backend))
}

fn may_serve(backend: &Backend) -> bool {
    backend.admin() == Admin::Ready
        && backend.effective_weight() > 0
        && backend.effective_forced() != Some(Forced::Down)
}

#[derive(Clone, Debug, Default)]
pub(super) struct Drains(BTreeMap<BackendId, Drain>);

/// The expected treatment of the clients at a backend.
struct Standing {
    takes_new: bool,
    keeps_known: bool,
    cause: MoveCause,
    /// Whether the backend keeps its clients although its drain is over.
    beyond: bool,
}

/// Returns how the failure of a backend affects known clients; `None`: the backend has not failed.
fn failure(config: &ServiceConfig, backend: &Backend, hop: &Hop) -> Option<FailureAction> {
    let check = backend.config().check.as_deref().unwrap_or(&config.check);
    let kind = match (hop, backend.effective_forced(), backend.health().verdict()) {
        (Hop::Failed(_), ..) | (_, Some(Forced::Down), _) => FailureKind::Hard,
        (_, None, Verdict::Down { kind, .. }) if check.kind != CheckKind::None => *kind,
        _ => return None,
    };
    Some(if kind == FailureKind::Hard { config.on_failure.hard } else { config.on_failure.soft })
}

impl Drains {
    /// Restarts a drain on the operator's request.
    pub(super) fn ask(&mut self, id: BackendId, admin: Admin, timeout: Option<Duration>) {
        self.0.insert(id, Drain { admin, timeout, until: None, empty_sweeps: 0 });
    }

    /// Records the result of a complete sweep.
    pub(super) fn swept(&mut self, known: &[(BackendId, u64)]) {
        for (id, drain) in &mut self.0 {
            let empty = drain.until.is_some() && !known.iter().any(|(other, known)| other == id && *known > 0);
            // New clients do not restart a drain that is over.
            let over = drain.until.is_some() && drain.empty_sweeps >= 2;
            drain.empty_sweeps = if empty || over { drain.empty_sweeps + 1 } else { 0 };
        }
    }

    /// Resets the counts of empty sweeps after a restart, except for drains that users already see as over.
    pub(super) fn restarted(&mut self, controller: &Controller) {
        for backend in controller.services().iter().flat_map(Service::backends) {
            let over = backend.state() == BackendState::Drained
                || backend.state() == BackendState::Down && backend.admin() == Admin::Ready;
            if let Some(drain) = self.0.get_mut(&backend.id()).filter(|_| !over) {
                drain.empty_sweeps = 0;
            }
        }
    }

    /// Starts and ends drains that follow from the state of the backends.
    pub(super) fn follow(&mut self, controller: &Controller, plane: &DataPlane, now: Instant) {
        let mut present = BTreeSet::new();
        for service in controller.services() {
            let config = service.config();
            for backend in service.backends() {
                present.insert(backend.id());
                let admin = backend.admin();
                let fresh = Drain { admin, timeout: None, until: None, empty_sweeps: 0 };
                // A backend that is new in one part of a service has the same drain as in the other part.
                let name = service.name_of(backend);
                let mut twins = controller.parts(&name);
                let twin = twins.find(|twin| twin.id() != backend.id() && twin.admin() == Admin::Drain);
                let twin = twin.and_then(|twin| self.0.get(&twin.id())).filter(|twin| twin.admin == admin);
                let first = twin.map_or_else(|| fresh.clone(), |twin| Drain { empty_sweeps: 0, ..twin.clone() });
                let drain = self.0.entry(backend.id()).or_insert(first);
                if drain.admin != admin {
                    *drain = fresh;
                }
                let failed = failure(&config, backend, &plane.watched[&backend.address().ip()]);
                let drains = match admin {
                    Admin::Maint => false,
                    Admin::Drain => true,
                    Admin::Ready => failed == Some(FailureAction::Drain),
                };
                if drains && !config.remember.is_zero() {
                    drain.until.get_or_insert(now + drain.timeout.unwrap_or(config.drain_timeout));
                } else {
                    (drain.until, drain.empty_sweeps) = (None, 0);
                }
            }
        }
        self.0.retain(|id, _| present.contains(id));
    }

    /// The treatment of a backend's clients according to the table in the manual: administrative state × health ×
    /// memory.
    fn standing(&self, service: &Service, backend: &Backend, plane: &DataPlane, waits: bool, now: Instant) -> Standing {
        let hop = &plane.watched[&backend.address().ip()];
        let config = &service.config();
        let remembers = !config.remember.is_zero();
        let drain = &self.0[&backend.id()];
        let over = drain.until.is_none_or(|until| until <= now) || drain.empty_sweeps >= 2;
        let check = backend.config().check.as_deref().unwrap_or(&config.check);
        let unknown = *backend.health().verdict() == Verdict::Unknown
            && backend.effective_forced().is_none()
            && check.kind != CheckKind::None;
        let failed = failure(config, backend, hop);
        // Without client memory, a backend in an outage keeps its slots, as long as some backend is not down.
        let keeps_slots = !remembers && anybody_stands(service, plane);
        let held = held(service, backend) && failed.is_some() && (remembers || keeps_slots);
        let (takes_new, keeps_known, cause) = match (backend.admin(), failed) {
            (Admin::Maint, _) => (false, false, MoveCause::Maint),
            (Admin::Ready, Some(action)) if held => {
                let moves = action == FailureAction::Move;
                (!remembers && !waits, true, if moves { MoveCause::Down } else { MoveCause::Drain })
            }
            (Admin::Drain, Some(FailureAction::Move)) if held => (false, !over, MoveCause::Drain),
            (_, Some(FailureAction::Move)) => (false, false, MoveCause::Down),
            (Admin::Drain, _) | (_, Some(FailureAction::Drain)) => (false, !over, MoveCause::Drain),
            (Admin::Ready, None) => (!(waits || unknown && config.start_down), true, MoveCause::Down),
        };
        let cause = if remembers { cause } else { MoveCause::Down };
        Standing { takes_new, keeps_known: keeps_known && remembers, cause, beyond: held && over }
    }
}

/// Compares the whole visible state of the controller with the data plane and with the expected state.
pub(super) fn inspect(controller: &Controller, plane: &DataPlane, drains: &Drains, now: Instant) {
    let ids: Vec<BackendId> = controller
        .services()
        .iter()
        .flat_map(Service::backends)
        .map(Backend::id)
        .chain(controller.gone().iter().map(|gone| gone.row.id))
        .collect();
    assert_eq!(ids.iter().collect::<BTreeSet<_>>().len(), ids.len(), "an id is given out twice");
    assert_eq!(plane.rows.keys().copied().collect::<BTreeSet<_>>(), ids.iter().copied().collect());
    assert_eq!(ids.len() + controller.free_ids(), usize::from(LAST_BACKEND), "ids are lost or given back twice");
    for gone in controller.gone() {
        assert_eq!(plane.rows[&gone.row.id], gone.row);
        assert!(!gone.row.keeps_known && !gone.row.takes_pinned);
    }
    assert_eq!(plane.services.len(), controller.services().len());
    let addresses = controller.services().iter().flat_map(Service::backends).map(|backend| backend.address().ip());
    assert_eq!(plane.watched.keys().copied().collect::<BTreeSet<_>>(), addresses.collect());
    let checked = controller.services().iter().flat_map(|service| {
        service.backends().iter().filter(|backend| backend.admin() != Admin::Maint).filter_map(move |backend| {
            let (target, check, restart_grace) = service.check(backend)?;
            let (number, name) = (plane.checked.get(&backend.id())?.number, service.name_of(backend));
            let health = backend.health().clone();
            Some((
                backend.id(),
                CheckSpec { backend: backend.id(), number, name, target, check: check.clone(), restart_grace, health },
            ))
        })
    });
    assert_eq!(plane.checked, checked.collect(), "the checks that run, and those that should");
    assert!(controller.next_deadline().is_none_or(|deadline| deadline > now), "something is due and was not done");
    for (service, spec) in controller.services().iter().zip(&plane.services) {
        assert_eq!(*spec, service.spec());
        inspect_rules(service, plane);
        inspect_backends(controller, service, plane, drains, now);
    }
}

fn inspect_rules(service: &Service, plane: &DataPlane) {
    let rules = plane.rules.get(&service.id()).cloned().unwrap_or_default();
    let ours: Vec<_> =
        service.rules().iter().filter(|rule| Family::of(rule.prefix.addr()) == service.family()).collect();
    let is_part = |rule: &&&Rule| {
        let (config, pins) = (service.config(), matches!(rule.action, Action::Pin { .. }));
        let length = if service.family() == Family::V4 { config.client_prefix.v4 } else { config.client_prefix.v6 };
        pins && !config.remember.is_zero() && rule.prefix.prefix_len() > length
    };
    let ours: Vec<&Rule> = ours.iter().filter(|rule| !is_part(rule)).copied().collect();
    assert_eq!(rules.len(), ours.len());
    for (rule, told) in ours.into_iter().zip(&*rules) {
        let action = match &rule.action {
            Action::Pin { backend: name } => {
                let id = service.backends().iter().find(|backend| backend.name() == name).map(Backend::id);
                let active = id.is_some_and(|id| plane.rows[&id].takes_pinned);
                assert_eq!(
                    service.inactive(rule).is_none(),
                    active,
                    "what is shown of a pin differs from what it does"
                );
                RuleAction::Pin(id)
            }
            Action::Spread => RuleAction::Spread,
            Action::Deny => RuleAction::Deny,
        };
        assert_eq!((told.prefix, told.action), (rule.prefix, action));
    }
}

fn inspect_backends(controller: &Controller, service: &Service, plane: &DataPlane, drains: &Drains, now: Instant) {
    let config = service.config();
    let (table, home) = &plane.tables[&service.id()];
    assert_eq!(&**table, service.live_table());
    assert_eq!(table.len() as u32, service.table_size());
    assert_eq!(service.table_generation(), plane.swaps[&service.id()]);
    let mut counts: HashMap<u16, u32> = HashMap::new();
    for entry in &**table {
        *counts.entry(*entry).or_default() += 1;
    }
    let backends = service.backends();
    let without = counts.get(&NO_BACKEND).or(counts.get(&ALL_DOWN)).copied().unwrap_or(0);
    let with: u32 = backends.iter().map(Backend::slots).sum();
    assert_eq!(with + without, service.table_size(), "the slots do not add up");

    let waits = |backend: &Backend| controller.waits(backend);
    let hop = |backend: &Backend| &plane.watched[&backend.address().ip()];
    let standing = |backend: &Backend| drains.standing(service, backend, plane, waits(backend), now);
    let all_wait = backends.iter().all(waits);
    let usable = |backup: bool, usable: &dyn Fn(&Backend) -> bool| -> BTreeSet<u16> {
        let of = backends.iter().filter(|backend| backend.is_backup() == backup && backend.effective_weight() > 0);
        of.filter(|backend| (all_wait || !waits(backend)) && usable(backend)).map(|backend| backend.id().0).collect()
    };
    let all_full = {
        let counts = |of: &Backend| (all_wait || !waits(of)) && standing(of).takes_new && of.effective_weight() > 0;
        let mut takers = backends.iter().filter(|backend| counts(backend)).peekable();
        takers.peek().is_some() && takers.all(|backend| backend.full().is_some())
    };
    let turned_away = all_full && config.when_full != WhenFull::Open;
    let has_room = |backend: &Backend| backend.full().is_none() || all_full && !turned_away;
    let may_take = |backend: &Backend| standing(backend).takes_new && has_room(backend);
    let is_doubted = |backend: &Backend| {
        let check = backend.config().check.as_deref().unwrap_or(&config.check);
        let counts =
            check.kind != CheckKind::None && backend.effective_forced().is_none() && !config.remember.is_zero();
        counts && backend.health().is_doubted()
    };
    // While checks doubt a backend, unknown clients go to others, if there are others.
    let trusted =
        [false, true].map(|backup| !usable(backup, &|backend| may_take(backend) && !is_doubted(backend)).is_empty());
    let takes_new =
        |backend: &Backend| may_take(backend) && !(is_doubted(backend) && trusted[usize::from(backend.is_backup())]);
    let mut grounds =
        vec![(usable(false, &takes_new), Tier::Primaries, false), (usable(true, &takes_new), Tier::Backups, true)];
    if config.when_all_down == WhenAllDown::Open && !turned_away {
        for backup in [false, true] {
            let as_if_up = |backend: &Backend| backend.admin() != Admin::Maint;
            grounds.push((usable(backup, &as_if_up), Tier::AsIfUp, backup));
        }
    }
    let found = grounds.into_iter().find(|(ground, ..)| !ground.is_empty());
    let (eligible, tier, backup) = found.unwrap_or_else(|| {
        let tier = if backends.is_empty() { Tier::NoBackend } else { Tier::AllDown };
        (BTreeSet::new(), tier, false)
    });
    assert_eq!(service.tier(), tier);
    let pinned = service.rules().iter().any(|rule| matches!(rule.action, Action::Pin { .. }))
        || config.forwarding == Forwarding::Snat && config.quic.is_some();

    for backend in backends {
        let id = backend.id();
        assert_eq!(backend.takes_new_clients(), eligible.contains(&id.0), "{backend:?}");
        assert_eq!(backend.slots(), counts.get(&id.0).copied().unwrap_or(0));
        let standing = standing(backend);
        let as_if_up = tier == Tier::AsIfUp && backend.admin() != Admin::Maint && !config.remember.is_zero();
        let next_hop = if let Hop::Resolved(next_hop) = hop(backend) { Some(*next_hop) } else { None };
        let check = backend.config().check.as_deref().unwrap_or(&config.check);
        let row = BackendSpec {
            id,
            forwarding: config.forwarding,
            address: backend.config().address_for(service.family(), config.forwarding).unwrap(),
            next_hop,
            service: service.id(),
            keeps_known: standing.keeps_known || as_if_up,
            cause: standing.cause,
            takes_pinned: pinned && standing.takes_new,
            tunnel_source: None,
            passive: (check.kind != CheckKind::None)
                .then(|| Passive { withhold: config.withhold + config.restart_grace(check) }),
        };
        assert_eq!(*plane.rows[&id], row, "{backend:?}");
        let drains = drains.0[&id].until.filter(|_| standing.keeps_known && !standing.beyond);
        assert_eq!(backend.drain_deadline(), drains, "{backend:?}");
    }

    let members = |of: &dyn Fn(&Backend) -> bool| -> Vec<Member<'_>> {
        let of = backends.iter().filter(|backend| of(backend));
        of.map(|backend| Member {
            id: backend.id().0,
            name: backend.config().identity(),
            weight: backend.effective_weight(),
        })
        .collect()
    };
    // A backend with a deadline but without a drain is in a slow start.
    let starts = |backend: &Backend| backend.drain_deadline().is_none() && backend.deadline().is_some();
    // A backend with a bound gives slots away as well.
    let slow = |backend: &Backend| starts(backend) || backend.bound().is_some();
    let configured = members(&|backend| {
        backend.is_backup() == backup && backend.effective_weight() > 0 && (all_wait || !waits(backend))
    });
    let key = keys::table_key(KEY, service.config().identity());
    let Some(base) = plain_maglev::table(&configured, service.table_size(), key).filter(|_| !eligible.is_empty())
    else {
        let entry = if tier == Tier::NoBackend { NO_BACKEND } else { ALL_DOWN };
        assert!(table.iter().all(|&other| other == entry), "{tier:?}: {counts:?}");
        assert!(home.is_none() || config.remember.is_zero());
        return;
    };
    let told = home.as_deref() == Some(&*base.slots).filter(|_| !backup);
    assert!(told || config.remember.is_zero(), "not the base table: {home:?}");
    let total: u64 = configured.iter().map(|member| u64::from(member.weight)).sum();
    let mut shares: HashMap<u16, u64> = HashMap::new();
    base.slots.iter().for_each(|&id| *shares.entry(id).or_default() += 1);
    for member in &configured {
        let slots = shares.get(&member.id).copied().unwrap_or(0);
        let due = u64::from(service.table_size()) * u64::from(member.weight);
        assert!((slots * total).abs_diff(due) <= total, "{slots} slots for {member:?} of {total}");
    }
    if backends.iter().any(|backend| eligible.contains(&backend.id().0) && slow(backend)) {
        assert!(table.iter().all(|id| eligible.contains(id)), "{counts:?}, not {eligible:?}");
        let stays =
            |id: u16| backends.iter().any(|backend| backend.id().0 == id && eligible.contains(&id) && !slow(backend));
        assert!(base.slots.iter().zip(&**table).all(|(base, live)| base == live || !stays(*base)));
        return;
    }
    let left = members(&|backend| eligible.contains(&backend.id().0));
    assert_eq!(&**table, plain_maglev::left(&base, &left, key));
}
