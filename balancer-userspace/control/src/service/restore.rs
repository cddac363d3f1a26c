//! Saves services and backends, and restores them.

use std::{net::SocketAddr, time::Instant};

use balancer_common::client::HashKey;
use balancer_config::states::{Admin, BackendState};

use super::{
    Service, SharedClients,
    backend::{Backend, Drain, SlowStart},
};
use crate::{
    next_hops::NextHops,
    outage::Outage,
    rules::Rule,
    state::{Clocks, SavedBackend, SavedRule, SavedService, SavedSlowStart},
};

impl Service {
    pub(crate) fn export(&self, clocks: Clocks) -> SavedService {
        SavedService {
            id: self.id,
            family: Some(self.family),
            listeners: self.listeners.clone(),
            settings: self.settings.clone(),
            table_generation: self.generation,
            slots_moved_required: self.required,
            slots_moved_needless: self.needless,
            tick_seconds: self.tick_seconds,
            rules: self
                .rules
                .iter()
                .map(|rule| SavedRule {
                    prefix: rule.prefix,
                    action: rule.action.clone(),
                    ttl: rule.ttl,
                    ends: rule.ends.map(|ends| clocks.moment(ends)),
                })
                .collect(),
            ended_rules: self.rules.ended().collect(),
            outage: self.outage.export(clocks),
            share: self.share.export(clocks),
            backends: self.backends.iter().map(|backend| backend.export(clocks)).collect(),
        }
    }

    /// Whether a restart would find the service in the same state as `before`, except for counters of checks and
    /// sweeps.
    pub(crate) fn is_saved_as(&self, before: &Self) -> bool {
        self.id == before.id
            && self.family == before.family
            && self.listeners == before.listeners
            && self.settings == before.settings
            && self.generation == before.generation
            && (self.required, self.needless) == (before.required, before.needless)
            && self.tick_seconds == before.tick_seconds
            && self.rules == before.rules
            && self.outage.is_saved_as(&before.outage)
            && self.share == before.share
            && self.backends.len() == before.backends.len()
            && self.backends.iter().zip(&before.backends).all(|(now, before)| now.is_saved_as(before))
    }

    /// Restores a service from its saved state. A later refresh builds the service's table, which follows from the rest
    /// of the saved state.
    pub(crate) fn restored(state: SavedService, fleet: HashKey, hops: &NextHops, clocks: Clocks) -> Self {
        let family = state.family.unwrap_or(state.settings.first().family());
        let mut this = Self::new(state.id, family, state.settings, fleet);
        this.listeners = state.listeners;
        this.share = SharedClients::restored(this.settings.steer, state.share, clocks);
        // This count is one too low, because the refresh counts the table again.
        this.generation = state.table_generation.saturating_sub(1);
        if state.tick_seconds > 0 {
            this.tick_seconds = state.tick_seconds;
        }
        for SavedRule { prefix, action, ttl, ends } in state.rules {
            this.rules.set(Rule { prefix, action, ttl, ends: ends.map(|ends| clocks.instant(ends)) });
        }
        state.ended_rules.into_iter().for_each(|prefix| this.rules.note_ended(prefix));
        this.required = state.slots_moved_required;
        this.needless = state.slots_moved_needless;
        let shown: Vec<BackendState> = state.backends.iter().map(|backend| backend.state).collect();
        let restored = |backend: SavedBackend| {
            let reached = this.reached(&backend.config);
            Backend::restored(backend, reached, clocks)
        };
        this.backends = state.backends.into_iter().map(restored).collect();
        this.outage = Outage::restored(state.outage, clocks);
        this.outage.take_for_granted(&this.facts(hops));
        this.has_leaving = this.backends.iter().any(Backend::is_leaving);
        for (index, shown) in shown.into_iter().enumerate() {
            this.reassess(index, shown, hops, clocks.now);
        }
        this
    }

    /// Assesses a restored backend; users last saw it in the state `shown`. Changes since this last state, such as the
    /// end of a drain, count as transitions.
    fn reassess(&mut self, index: usize, shown: BackendState, hops: &NextHops, now: Instant) {
        let Some(backend) = self.backends.get(index) else { return };
        let mut assessment = self.assess(backend, hops, now);
        backend.explain(&mut assessment);
        let state = assessment.standing.state;
        let Some(backend) = self.backends.get_mut(index) else { return };
        backend.assessment = Some(assessment);
        if state != shown {
            backend.since = now;
            if let Some(count) = backend.transitions.get_mut(state as usize) {
                *count += 1;
            }
        }
    }
}

impl Backend {
    /// The corresponding function for the whole service is [`Service::is_saved_as`].
    fn is_saved_as(&self, before: &Self) -> bool {
        self.id == before.id
            && self.config == before.config
            && self.admin == before.admin
            && self.health.verdict() == before.health.verdict()
            && self.state() == before.state()
            && self.since == before.since
            && (self.drain.timeout, self.drain.until) == (before.drain.timeout, before.drain.until)
            && self.leaving == before.leaving
            && self.forced == before.forced
            && self.agent == before.agent
            && self.bound == before.bound
            && self.full == before.full
            && self.slow_start == before.slow_start
            && self.late == before.late
            && self.transitions == before.transitions
            && self.agreed_way() == before.agreed_way()
    }

    fn export(&self, clocks: Clocks) -> SavedBackend {
        SavedBackend {
            id: self.id,
            config: self.config.clone(),
            admin: self.admin,
            health: self.health.clone(),
            state: self.state(),
            since: clocks.moment(self.since),
            drain_timeout: self.drain.timeout,
            drain_until: self.drain.until.map(|until| clocks.moment(until)),
            leaving: self.leaving,
            forced: self.forced,
            agent: self.agent.clone(),
            bound: self.bound,
            full: self.full,
            slow_start: self.slow_start.as_ref().map(|slow_start| SavedSlowStart {
                since: clocks.moment(slow_start.since),
                lasts: slow_start.lasts,
                step: slow_start.step,
            }),
            late: self.late,
            known: self.known,
            checks: self.checks,
            transitions: self.transitions.to_vec(),
            way: self.agreed_way().cloned(),
        }
    }

    fn restored(state: SavedBackend, reached: SocketAddr, clocks: Clocks) -> Self {
        let mut this = Self::new(state.id, state.config, reached, state.late, clocks.now);
        this.admin = state.admin;
        this.health = state.health;
        this.since = clocks.instant(state.since);
        // A backend that has drained stays drained. The count of sweeps without a client starts again, because an
        // earlier sweep may have missed a client that came in between.
        let drained = match state.state {
            BackendState::Drained => true,
            BackendState::Down => state.admin == Admin::Ready,
            BackendState::Up
            | BackendState::Checking
            | BackendState::DrainingHealth
            | BackendState::Draining
            | BackendState::Maint => false,
        };
        this.drain = Drain {
            timeout: state.drain_timeout,
            until: state.drain_until.map(|until| clocks.instant(until)),
            empty_sweeps: if drained { Drain::ENOUGH_SWEEPS } else { 0 },
            silent_since: None,
        };
        this.leaving = state.leaving;
        this.forced = state.forced;
        this.agent = state.agent;
        this.bound = state.bound;
        this.full = state.full;
        this.slow_start = state.slow_start.map(|SavedSlowStart { since, lasts, step }| {
            Box::new(SlowStart { since: clocks.instant(since), lasts, step })
        });
        this.known = state.known;
        if let Some(way) = state.way {
            this.in_fleet().agreed_way = Some(way);
        }
        this.checks = state.checks;
        for (count, before) in this.transitions.iter_mut().zip(state.transitions) {
            *count = before;
        }
        this
    }
}
