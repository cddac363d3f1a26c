//! Derives from a backend's administrative state and health whether the backend takes and keeps clients (its standing).
//! The controller never stores this standing, but derives it each time.
//!
//! ```text
//!                                 first pass
//!                   ┌──────────┐ ──────────► ┌────┐
//!   ready, checks ► │ checking │             │ up │ ◄───────────────────────┐
//!                   └──────────┘             └────┘                         │ rise passes,
//!                        │ fall failures        │ fall failures,            │ next hop found
//!                        │                      │ no next hop               │
//!                        ▼                      ▼                           │
//!        on_failure = "drain", with memory ► ┌───────────────────┐ ─────────┤
//!                                            │ draining (health) │          │
//!                                            └───────────────────┘          │
//!        otherwise ────────────────────────► ┌──────┐ ──────────────────────┘
//!                                            │ down │ ◄── a drained one that fails with on_failure = "move"
//!                                            └──────┘
//!   from every state, and back by `ready` (to what the health says):
//!   `drain` ► ┌──────────┐  (deadline, nobody ► ┌─────────┐     `maint` ► ┌───────┐
//!             │ draining │   left, no memory)   │ drained │               │ maint │  not checked
//!             └──────────┘                      └─────────┘               └───────┘
//!   A drain for health ends the same ways, in `down`.
//! ```

use balancer_common::verdict::MoveCause;
use balancer_config::{
    config::{FailureAction, OnFailure},
    states::{Admin, BackendState},
};

use crate::health::FailureKind;

/// The health of a backend, as far as its standing depends on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum HealthFact {
    /// The backend has no check.
    Unchecked,
    /// The checks of the backend have given no verdict yet.
    Unknown,
    /// The checks of the backend pass.
    Up,
    /// The checks of the backend fail, or (as a hard failure) the backend has no next hop.
    Down(FailureKind),
}

impl HealthFact {
    /// The name of the health that users see.
    #[must_use]
    pub const fn word(self) -> &'static str {
        match self {
            Self::Unchecked | Self::Unknown => "unknown",
            Self::Up => "up",
            Self::Down(_) => "down",
        }
    }
}

/// The facts that determine a backend's standing.
#[derive(Clone, Copy, Debug)]
pub struct Situation {
    /// The administrative state that the operator wants for the backend.
    pub admin: Admin,
    /// The health of the backend according to its checks.
    pub health: HealthFact,
    /// Whether the backend counts as down until its checks give the first verdict.
    pub start_down: bool,
    /// How a failure of the backend affects its known clients.
    pub on_failure: OnFailure,
    /// Whether the service remembers clients. Without client memory, a backend has no clients to keep.
    pub remembers: bool,
    /// Whether the drain of the backend is over: its deadline has passed, or the backend has no known clients any more.
    pub drained: bool,
    /// The reason why the backend keeps its clients although it has failed; `None`: there is no such reason.
    pub held: Option<Held>,
}

/// The reason why a backend that has failed keeps its clients.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Held {
    /// So many backends fail that the whole service may have an outage.
    Suspect,
    /// The failure of the backend belongs to an outage.
    Outage,
}

/// How the balancer treats the clients of a backend, and the state that users see.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Standing {
    /// Whether the backend takes new clients (provided that its weight is not 0 and, for a backup, that it is needed).
    pub takes_new: bool,
    /// Whether known clients stay at the backend; always false without client memory.
    pub keeps_known: bool,
    /// The cause of moves, if known clients do not stay at the backend.
    pub cause: MoveCause,
    /// The state of the backend that users see.
    pub state: BackendState,
}

impl Situation {
    /// Derives the standing of a backend from these facts.
    #[must_use]
    pub const fn standing(self) -> Standing {
        let failure = match self.health {
            HealthFact::Unchecked | HealthFact::Unknown | HealthFact::Up => None,
            HealthFact::Down(FailureKind::Soft) => Some(self.on_failure.soft),
            HealthFact::Down(FailureKind::Hard) => Some(self.on_failure.hard),
        };
        let drains = self.remembers && !self.drained;
        let (takes_new, keeps_known, cause, state) = match (self.admin, failure) {
            (Admin::Maint, _) => (false, false, MoveCause::Maint, BackendState::Maint),
            (Admin::Ready, Some(action)) if let Some(held) = self.held => return self.held(held, action),
            (Admin::Drain, Some(FailureAction::Move)) if self.held.is_some() => {
                (false, drains, MoveCause::Drain, if drains { BackendState::Draining } else { BackendState::Drained })
            }
            (Admin::Ready | Admin::Drain, Some(FailureAction::Move)) => {
                (false, false, MoveCause::Down, BackendState::Down)
            }
            (Admin::Ready, Some(FailureAction::Drain)) => (
                false,
                drains,
                MoveCause::Drain,
                if drains { BackendState::DrainingHealth } else { BackendState::Down },
            ),
            (Admin::Drain, Some(FailureAction::Drain) | None) => {
                (false, drains, MoveCause::Drain, if drains { BackendState::Draining } else { BackendState::Drained })
            }
            (Admin::Ready, None) => match self.health {
                HealthFact::Unknown => (!self.start_down, true, MoveCause::Down, BackendState::Checking),
                HealthFact::Unchecked | HealthFact::Up | HealthFact::Down(_) => {
                    (true, true, MoveCause::Down, BackendState::Up)
                }
            },
        };
        Standing { takes_new, keeps_known: keeps_known && self.remembers, cause, state }
    }

    /// The standing of a backend that has failed together with so many others that its clients should stay. Without
    /// client memory, clients stay only if the backend's slots stay.
    const fn held(self, held: Held, action: FailureAction) -> Standing {
        let (cause, drains) = match action {
            FailureAction::Move => (MoveCause::Down, false),
            FailureAction::Drain => (MoveCause::Drain, self.remembers && !self.drained),
        };
        let state = match held {
            Held::Suspect if self.remembers => BackendState::DrainingHealth,
            Held::Outage if drains => BackendState::DrainingHealth,
            Held::Suspect | Held::Outage => BackendState::Down,
        };
        Standing { takes_new: !self.remembers, keeps_known: self.remembers, cause, state }
    }

    /// Whether the backend keeps known clients only until a drain ends.
    #[must_use]
    pub const fn drains(self) -> bool {
        let beginning = Self { drained: false, held: None, ..self };
        match beginning.standing().state {
            BackendState::Draining | BackendState::DrainingHealth => true,
            BackendState::Up
            | BackendState::Checking
            | BackendState::Drained
            | BackendState::Down
            | BackendState::Maint => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    const DRAIN: FailureAction = FailureAction::Drain;
    const MOVE: FailureAction = FailureAction::Move;

    type Row = (Admin, &'static [HealthFact], Option<FailureAction>, bool, bool, &'static str);

    /// The rows of the documented table, for services with client memory: operator's state, health, effect of a failure
    /// (`None`: any) -> takes new clients, keeps known clients, displayed state.
    const TABLE: &[Row] = {
        use Admin::{Drain, Maint, Ready};
        use FailureKind::{Hard, Soft};
        use HealthFact::{Down, Unchecked, Unknown, Up};
        &[
            (Ready, &[Up, Unchecked], None, true, true, "up"),
            (Ready, &[Unknown], None, true, true, "checking"),
            (Ready, &[Down(Soft), Down(Hard)], Some(DRAIN), false, true, "draining (health)"),
            (Ready, &[Down(Soft), Down(Hard)], Some(MOVE), false, false, "down"),
            (Drain, &[Up, Unchecked, Unknown], None, false, true, "draining"),
            (Drain, &[Down(Soft), Down(Hard)], Some(DRAIN), false, true, "draining"),
            (Drain, &[Down(Soft), Down(Hard)], Some(MOVE), false, false, "down"),
            (Maint, &[Up, Unchecked, Unknown, Down(Soft), Down(Hard)], None, false, false, "maint"),
        ]
    };

    fn action(health: HealthFact, on_failure: OnFailure) -> Option<FailureAction> {
        match health {
            HealthFact::Down(FailureKind::Soft) => Some(on_failure.soft),
            HealthFact::Down(FailureKind::Hard) => Some(on_failure.hard),
            HealthFact::Unchecked | HealthFact::Unknown | HealthFact::Up => None,
        }
    }

    #[test]
    fn when_facts_are_combined_then_the_result_is_a_row_of_the_table() {
        let mut seen = HashSet::new();
        let healths = [
            HealthFact::Unchecked,
            HealthFact::Unknown,
            HealthFact::Up,
            HealthFact::Down(FailureKind::Soft),
            HealthFact::Down(FailureKind::Hard),
        ];
        for admin in [Admin::Ready, Admin::Drain, Admin::Maint] {
            for health in healths {
                for (hard, soft) in [(MOVE, DRAIN), (MOVE, MOVE), (DRAIN, DRAIN), (DRAIN, MOVE)] {
                    for start_down in [false, true] {
                        for (remembers, drained) in [(false, false), (false, true), (true, false), (true, true)] {
                            let on_failure = OnFailure { hard, soft };
                            let situation =
                                Situation { admin, health, start_down, on_failure, remembers, drained, held: None };
                            let rows: Vec<_> = TABLE
                                .iter()
                                .filter(|row| row.0 == admin && row.1.contains(&health))
                                .filter(|row| row.2.is_none() || row.2 == action(health, on_failure))
                                .collect();
                            let &[&(_, _, _, takes_new, keeps_known, word)] = rows.as_slice() else {
                                panic!("{situation:?} is in rows {rows:?}")
                            };
                            let word = match word {
                                "draining" if !remembers || drained => "drained",
                                "draining (health)" if !remembers || drained => "down",
                                word => word,
                            };
                            let waits = start_down && word == "checking";
                            let standing = situation.standing();
                            assert_eq!(standing.takes_new, takes_new && !waits, "{situation:?}");
                            let over = matches!(word, "drained" | "down");
                            assert_eq!(standing.keeps_known, keeps_known && remembers && !over, "{situation:?}");
                            let cause = match (word, admin, action(health, on_failure)) {
                                ("maint", ..) => MoveCause::Maint,
                                ("drained", ..) | ("down", _, Some(DRAIN)) => MoveCause::Drain,
                                _ => MoveCause::Down,
                            };
                            if !standing.keeps_known && remembers {
                                assert_eq!(standing.cause, cause, "{situation:?}");
                            }
                            assert_eq!(standing.state.word(), word, "{situation:?}");
                            seen.insert(standing.state);
                        }
                    }
                }
            }
        }
        assert_eq!(seen.len(), BackendState::ALL.len(), "every state can be reached");
    }

    #[test]
    fn when_failures_are_an_outage_then_known_clients_stay_and_without_memory_the_slots() {
        let shown = |admin, (action, drained), held, remembers| {
            let on_failure = OnFailure { hard: action, soft: action };
            let health = HealthFact::Down(FailureKind::Hard);
            let situation =
                Situation { admin, health, start_down: false, on_failure, remembers, drained, held: Some(held) };
            let standing = situation.standing();
            (standing.takes_new, standing.keeps_known, standing.state.word())
        };
        for (admin, action, drained, held, word) in [
            (Admin::Ready, MOVE, false, Held::Suspect, "draining (health)"),
            (Admin::Ready, MOVE, false, Held::Outage, "down"),
            (Admin::Ready, DRAIN, false, Held::Outage, "draining (health)"),
            (Admin::Ready, DRAIN, true, Held::Outage, "down"),
            (Admin::Drain, MOVE, false, Held::Outage, "draining"),
        ] {
            assert_eq!(shown(admin, (action, drained), held, true), (false, true, word), "{admin:?} {action:?}");
        }
        assert_eq!(shown(Admin::Drain, (MOVE, true), Held::Outage, true), (false, false, "drained"));
        assert_eq!(shown(Admin::Maint, (MOVE, false), Held::Outage, true), (false, false, "maint"));
        assert_eq!(shown(Admin::Ready, (MOVE, false), Held::Outage, false), (true, false, "down"));
    }

    #[test]
    fn when_states_are_listed_then_their_order_is_that_of_their_numbers() {
        for (index, state) in BackendState::ALL.into_iter().enumerate() {
            assert_eq!(state as usize, index);
        }
    }
}
