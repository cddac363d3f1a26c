//! Derives the assessment of a backend from its configuration, its health and its next hop.

use std::time::Instant;

use balancer_config::{
    config::CheckKind,
    states::{Admin, BackendState, Forced},
};

use super::{
    Service,
    backend::{Assessment, Backend, SlowStart},
};
use crate::{
    agreed::Way,
    health::Verdict,
    next_hops::NextHops,
    sources::{Decision, Path, Sources, Terms},
    standing::{HealthFact, Held},
    table::STEPS,
};

impl Service {
    /// Assesses a backend by all facts except its slow start.
    pub(super) fn assess(&self, backend: &Backend, hops: &NextHops, now: Instant) -> Assessment {
        let check = self.check_config(backend);
        let outage = self.outage.holds(backend.id).filter(|_| self.may_be_held(backend));
        let way = backend.overruled().map(str::to_owned).map_or_else(|| self.judged_way(backend, hops), Way::Closed);
        let path = match way {
            Way::Closed(_) => Path::Closed,
            Way::Unknown | Way::Open if backend.waits_for_next_hop(hops) => Path::Awaited,
            Way::Unknown | Way::Open => Path::Open,
        };
        let drained = backend.drain.is_over(now);
        let terms = Terms {
            start_down: self.settings.start_down,
            on_failure: self.settings.on_failure,
            remembers: self.keeps_clients(),
            drained,
        };
        let sources = Sources { path, outage, ..self.sources(backend) };
        let Decision { health, standing, drains, awaits_path, is_avoided: _ } = sources.decide(terms);
        let failed = match (sources.checks, backend.health.verdict()) {
            (HealthFact::Down(_), Verdict::Down { reason, .. }) => reason.as_str(),
            (
                HealthFact::Unchecked | HealthFact::Unknown | HealthFact::Up | HealthFact::Down(_),
                Verdict::Unknown | Verdict::Up | Verdict::Down { .. },
            ) => "",
        };
        let mut reason = match (way, sources.forced()) {
            (Way::Closed(why), _) => format!("no next hop: {why}"),
            (Way::Unknown | Way::Open, None) => failed.to_owned(),
            (Way::Unknown | Way::Open, Some(Forced::Down)) => backend.forced_down_by(),
            (Way::Unknown | Way::Open, Some(Forced::Up)) if failed.is_empty() => "forced up by operator".to_owned(),
            (Way::Unknown | Way::Open, Some(Forced::Up)) => format!("forced up by operator, checks: {failed}"),
        };
        if awaits_path {
            reason = "its next hop is not known yet".to_owned();
        }
        if let (Some(held), HealthFact::Down(_)) = (outage, health) {
            reason = match held {
                Held::Suspect => format!("suspect, too many others fail as well: {reason}"),
                Held::Outage if self.remembers() => format!("outage, known clients stay: {reason}"),
                Held::Outage => format!("outage, clients stay: {reason}"),
            };
        }
        if backend.effective_admin() == Admin::Maint {
            reason = backend.lowered();
        } else if reason.is_empty() {
            if let Some((failures, why)) = backend.health().failing() {
                let doubted = if self.is_doubted(backend) { "doubted: " } else { "" };
                reason = format!("{doubted}{why}, {failures} of {} failures", check.fall);
            } else if standing.state == BackendState::Checking && !standing.takes_new {
                reason = "no verdict yet, start_down = true".to_owned();
            } else if backend.config.discovered.as_ref().is_some_and(|of| of.gone.is_some()) {
                reason = "no longer listed".to_owned();
            } else if standing.takes_new && backend.config.weight == 0 {
                reason = "weight 0".to_owned();
            } else {
                reason = backend.lowered();
            }
        }
        if !reason.is_empty() {
            reason = format!("{}{reason}", self.prefix());
        }
        let beyond = outage.is_some() && drained;
        Assessment { health, standing, drains, beyond, reason }
    }

    /// Returns what operator, agent and checks say about a backend, for a path that exists and without an outage.
    pub(super) fn sources(&self, backend: &Backend) -> Sources {
        let checks = match backend.health.verdict() {
            _ if self.check_config(backend).kind == CheckKind::None => HealthFact::Unchecked,
            Verdict::Unknown => HealthFact::Unknown,
            Verdict::Up => HealthFact::Up,
            Verdict::Down { kind, .. } => HealthFact::Down(*kind),
        };
        let agent = backend.agent();
        Sources {
            operator: backend.admin,
            forced: backend.forced,
            agent: agent.map_or(Admin::Ready, |said| said.admin),
            agent_says_down: agent.is_some_and(|said| said.down.is_some()),
            checks,
            doubted: backend.health.is_doubted(),
            path: Path::Open,
            outage: None,
        }
    }

    /// Whether the recorded assessment of every backend is up to date.
    pub(crate) fn is_assessed(&self, hops: &NextHops, now: Instant) -> bool {
        self.backends.iter().all(|backend| {
            let mut assessment = self.assess(backend, hops, now);
            backend.explain(&mut assessment);
            backend.assessment.as_ref() == Some(&assessment)
        })
    }

    /// Begins slow starts of backends, advances them and ends them.
    pub(super) fn start_slowly(&mut self, assessments: &[Assessment], now: Instant) {
        let lasts = self.settings.slow_start;
        if lasts.is_zero() && self.backends.iter().all(|backend| backend.slow_start.is_none()) {
            return;
        }
        for (backend, assessment) in self.backends.iter_mut().zip(assessments) {
            let may = !lasts.is_zero() && assessment.standing.takes_new && backend.effective_weight() > 0;
            // A following controller receives slow starts from the deciding controller.
            let begins = backend.witness().is_none() && backend.begins(assessment);
            // After an outage, all backends return at the same time, so none of them gets a slow start.
            let begins = begins && !self.outage.has_returned(backend.id);
            let begins = begins.then_some(SlowStart { since: now, lasts, step: 1 });
            let slow_start = backend.slow_start.as_deref().copied().or(begins).filter(|_| may);
            let advanced = slow_start.map(|slow_start| SlowStart { lasts, ..slow_start }.advance(now));
            backend.slow_start = advanced.map(Box::new);
        }
        for backup in [false, true] {
            let together = || {
                let all = self.backends.iter().zip(assessments);
                all.filter(|(backend, assessment)| {
                    backend.config.backup == backup && backend.effective_weight() > 0 && assessment.standing.takes_new
                })
            };
            // A slow start needs other backends that can take the clients; without such backends no slow start begins,
            // and the slow starts of all backends end at the same time.
            let all_start = together().all(|(backend, _)| backend.slow_start.is_some());
            let through =
                together().all(|(backend, _)| backend.slow_start.as_ref().is_none_or(|start| start.step == STEPS));
            if all_start || through {
                for backend in self.backends.iter_mut().filter(|backend| backend.config.backup == backup) {
                    backend.slow_start = None;
                }
            }
        }
    }
}
