//! Decides about a backend's clients from everything that is said about the backend. The page `docs/dev/verdicts.md`
//! lists the sources and explains who wins.

use balancer_config::{
    config::OnFailure,
    states::{Admin, BackendState, Forced},
};

use crate::{
    health::FailureKind,
    standing::{HealthFact, Held, Situation, Standing},
};

/// The state of the path to a backend, as far as the backend's clients depend on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Path {
    /// A path exists, or nothing is known that contradicts one.
    Open,
    /// The backend is new, and gets no clients before its path is known.
    Awaited,
    /// No path exists.
    Closed,
}

/// The statements of all sources about a backend.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Sources {
    /// The state that the operator, a list of targets or Kubernetes wants.
    pub(crate) operator: Admin,
    /// The verdict that the operator has set.
    pub(crate) forced: Option<Forced>,
    /// The state that the backend's agent wants.
    pub(crate) agent: Admin,
    /// Whether the backend's agent says `down`.
    pub(crate) agent_says_down: bool,
    /// The verdict of the checks; in a fleet, the agreed verdict.
    pub(crate) checks: HealthFact,
    /// Whether the last check confirmed a hint that the backend has failed, or found its port shut.
    pub(crate) doubted: bool,
    pub(crate) path: Path,
    /// Whether the failure of the backend belongs to an outage.
    pub(crate) outage: Option<Held>,
}

/// The settings and the progress of a drain, on which the effect of the sources depends.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Terms {
    pub(crate) start_down: bool,
    pub(crate) on_failure: OnFailure,
    pub(crate) remembers: bool,
    pub(crate) drained: bool,
}

/// The decision about a backend.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Decision {
    pub(crate) health: HealthFact,
    pub(crate) standing: Standing,
    /// Whether new clients go to other backends that take new clients, if there are any.
    pub(crate) is_avoided: bool,
    /// Whether the backend keeps known clients only until a drain ends.
    pub(crate) drains: bool,
    /// Whether the backend would take new clients if its path was known.
    pub(crate) awaits_path: bool,
}

impl Sources {
    /// The administrative state in effect: the operator's or the agent's state, whichever allows less.
    pub(crate) const fn admin(self) -> Admin {
        self.operator.or_stricter(self.agent)
    }

    /// The verdict that overrides the checks. The operator's verdict takes precedence over the agent's.
    pub(crate) const fn forced(self) -> Option<Forced> {
        match self.forced {
            None if self.agent_says_down => Some(Forced::Down),
            forced => forced,
        }
    }

    /// Whether only checks and the path decide about the backend's clients, because neither the operator nor an agent
    /// has given the backend up.
    pub(crate) fn is_judged_by_checks(self) -> bool {
        self.admin() != Admin::Maint && self.forced() != Some(Forced::Down)
    }

    /// Whether the doubt about the backend counts.
    pub(crate) fn is_doubted(self) -> bool {
        self.doubted && self.forced().is_none() && self.checks != HealthFact::Unchecked
    }

    fn health(self) -> HealthFact {
        match (self.path, self.forced()) {
            (Path::Closed, _) | (_, Some(Forced::Down)) => HealthFact::Down(FailureKind::Hard),
            (Path::Open | Path::Awaited, Some(Forced::Up)) => HealthFact::Up,
            (Path::Open | Path::Awaited, None) => self.checks,
        }
    }

    /// Decides about the backend.
    pub(crate) fn decide(self, Terms { start_down, on_failure, remembers, drained }: Terms) -> Decision {
        let health = self.health();
        let held = self.outage.filter(|_| self.is_judged_by_checks());
        let situation = Situation { admin: self.admin(), health, start_down, on_failure, remembers, drained, held };
        let standing = situation.standing();
        let awaits_path = self.path == Path::Awaited && standing.takes_new;
        let waits = Standing { takes_new: false, state: BackendState::Checking, ..standing };
        Decision {
            health,
            standing: if awaits_path { waits } else { standing },
            is_avoided: remembers && self.is_doubted(),
            drains: situation.drains(),
            awaits_path,
        }
    }
}

#[cfg(test)]
mod tests {
    use balancer_config::config::FailureAction;

    use super::*;

    const PAGE: &str = include_str!("../../../docs/dev/verdicts.md");
    const MOVE: FailureAction = FailureAction::Move;
    const DRAIN: FailureAction = FailureAction::Drain;

    const SILENT: Sources = Sources {
        operator: Admin::Ready,
        forced: None,
        agent: Admin::Ready,
        agent_says_down: false,
        checks: HealthFact::Up,
        doubted: false,
        path: Path::Open,
        outage: None,
    };
    const TERMS: Terms =
        Terms { start_down: false, on_failure: OnFailure { hard: MOVE, soft: DRAIN }, remembers: true, drained: false };

    /// A statement: its name on the page, the number of the field that it sets, and how it sets the field.
    type Statement = (&'static str, u8, fn(&mut Sources));

    const STATEMENTS: &[Statement] = &[
        ("operator: `maint`", 0, |sources| sources.operator = Admin::Maint),
        ("operator, list, Kubernetes: `drain`", 0, |sources| sources.operator = Admin::Drain),
        ("operator: forced down", 1, |sources| sources.forced = Some(Forced::Down)),
        (FORCED_UP, 1, |sources| sources.forced = Some(Forced::Up)),
        ("agent: `maint`", 2, |sources| sources.agent = Admin::Maint),
        ("agent: `drain`", 2, |sources| sources.agent = Admin::Drain),
        ("agent: `down`", 3, |sources| sources.agent_says_down = true),
        ("path: none", 4, |sources| sources.path = Path::Closed),
        ("path: not known yet", 4, |sources| sources.path = Path::Awaited),
        ("checks: hard failure", 5, |sources| sources.checks = HealthFact::Down(FailureKind::Hard)),
        ("checks: soft failure", 5, |sources| sources.checks = HealthFact::Down(FailureKind::Soft)),
        ("checks: no verdict", 5, |sources| sources.checks = HealthFact::Unknown),
        ("packets: doubt", 6, |sources| sources.doubted = true),
        (OUTAGE, 7, |sources| sources.outage = Some(Held::Outage)),
    ];
    const FORCED_UP: &str = "operator: forced up";
    const OUTAGE: &str = "outage";

    /// Returns whether new clients come and known clients stay.
    fn treated(decision: Decision) -> (bool, bool) {
        (decision.standing.takes_new && !decision.is_avoided, decision.standing.keeps_known)
    }

    fn says(statements: &[fn(&mut Sources)]) -> Decision {
        let mut sources = SILENT;
        statements.iter().for_each(|statement| statement(&mut sources));
        sources.decide(TERMS)
    }

    #[test]
    fn when_one_source_speaks_then_its_row_on_the_page_holds() {
        let word = |is: bool| if is { "yes" } else { "no" };
        for (name, _, statement) in STATEMENTS {
            let decision = says(&[*statement]);
            let (new, known) = treated(decision);
            let row = format!("| {name} | {} | {} | `{}` |", word(new), word(known), decision.standing.state.word());
            assert!(PAGE.lines().any(|line| line == row), "the page lacks the row {row}");
        }
    }

    /// The treatment of clients in those pairs in which the stricter source does not win.
    fn exception(one: &str, other: &str) -> Option<(bool, bool)> {
        let is_overridden =
            |name: &str| name == "agent: `down`" || name.starts_with("checks: ") || name.starts_with("packets: ");
        if one == FORCED_UP && is_overridden(other) {
            return Some((true, true));
        }
        (other == OUTAGE && matches!(one, "path: none" | "checks: hard failure")).then_some((false, true))
    }

    #[test]
    fn when_two_sources_speak_then_the_stricter_one_wins_with_the_exceptions_on_the_page() {
        for (first, (one, field, says_one)) in STATEMENTS.iter().enumerate() {
            for (other, other_field, says_other) in &STATEMENTS[first + 1..] {
                if field == other_field {
                    continue;
                }
                let both = treated(says(&[*says_one, *says_other]));
                let [alone, other_alone] = [*says_one, *says_other].map(|statement| treated(says(&[statement])));
                let strict = (alone.0 && other_alone.0, alone.1 && other_alone.1);
                assert_eq!(both, exception(one, other).unwrap_or(strict), "{one} and {other}");
            }
        }
    }

    /// Calls `check` with all combinations of what sources say.
    fn each(mut check: impl FnMut(Sources, Terms)) {
        let admins = [Admin::Ready, Admin::Drain, Admin::Maint];
        let [hard, soft] = [FailureKind::Hard, FailureKind::Soft].map(HealthFact::Down);
        for operator in admins {
            for forced in [None, Some(Forced::Up), Some(Forced::Down)] {
                for checks in [HealthFact::Unchecked, HealthFact::Unknown, HealthFact::Up, hard, soft] {
                    for path in [Path::Open, Path::Awaited, Path::Closed] {
                        for outage in [None, Some(Held::Suspect), Some(Held::Outage)] {
                            for bits in 0..64 {
                                let bit = |at: u32| bits >> at & 1 == 1;
                                let action = |at| if bit(at) { DRAIN } else { MOVE };
                                let on_failure = OnFailure { hard: action(0), soft: action(1) };
                                let terms =
                                    Terms { start_down: bit(2), on_failure, remembers: bit(3), drained: bit(4) };
                                let doubted = bit(5);
                                check(Sources { operator, forced, checks, doubted, path, outage, ..SILENT }, terms);
                            }
                        }
                    }
                }
            }
        }
    }

    #[test]
    fn when_an_agent_speaks_then_it_takes_away_and_never_gives() {
        each(|without, terms| {
            let before = without.decide(terms).standing;
            for (agent, agent_says_down) in [(Admin::Drain, false), (Admin::Maint, false), (Admin::Ready, true)] {
                let after = Sources { agent, agent_says_down, ..without }.decide(terms).standing;
                assert!(before.takes_new >= after.takes_new, "{without:?} {terms:?}");
                // With `hard = "drain"`, clients that a soft failure would move drain.
                let may_drain = terms.on_failure.hard == DRAIN && agent_says_down;
                assert!(before.keeps_known >= after.keeps_known || may_drain, "{without:?} {terms:?}");
            }
        });
    }

    #[test]
    fn when_an_operator_gives_a_backend_up_then_no_other_source_brings_clients_to_it() {
        each(|sources, terms| {
            let decision = sources.decide(terms);
            if sources.operator == Admin::Maint {
                assert_eq!(treated(decision), (false, false), "{sources:?} {terms:?}");
            }
            let is_given_up = sources.operator == Admin::Drain || sources.forced == Some(Forced::Down);
            assert!(!(is_given_up && decision.standing.takes_new), "{sources:?} {terms:?}");
        });
    }

    #[test]
    fn when_an_outage_or_a_doubt_begins_then_no_known_client_moves() {
        each(|sources, terms| {
            let [calm, trusted] = [Sources { outage: None, ..sources }, Sources { doubted: false, ..sources }];
            let standing = sources.decide(terms).standing;
            assert!(standing.keeps_known >= calm.decide(terms).standing.keeps_known, "{sources:?} {terms:?}");
            assert_eq!(standing, trusted.decide(terms).standing, "{sources:?} {terms:?}");
        });
    }
}
