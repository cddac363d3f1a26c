//! Tests of backends as several balancers see them: each balancer's observations, and the agreed result.

use std::time::Instant;

use serde::{Deserialize, Serialize};

use crate::{
    health::{FailureKind, Verdict},
    io::{BackendId, Command, Refused},
};

/// The agreed state of the path to a backend.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Way {
    /// The path is not known yet.
    #[default]
    Unknown,
    /// A path exists.
    Open,
    /// No path exists, for this reason.
    Closed(String),
}

/// The opinion that one balancer has of a backend.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Opinion {
    /// The balancer does not know the path yet.
    Waiting,
    /// The balancer knows the path, and has no verdict yet or does not check.
    Unknown,
    /// The balancer's checks pass.
    Up,
    /// The balancer's checks fail.
    Down {
        /// Whether the backend answers at all.
        kind: FailureKind,
        /// The reason in words (`connect: refused`).
        reason: String,
    },
    /// The balancer knows no path, for this reason.
    NoWay(String),
}

/// An agreed path and verdict for a backend.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Judgement {
    /// The backend.
    pub backend: BackendId,
    /// The path to the backend.
    pub way: Way,
    /// The verdict of the checks.
    pub verdict: Verdict,
}

/// Whether this balancer or another one decides the standing of backends.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) enum Role {
    /// This balancer is alone and decides by its own checks and next hops.
    #[default]
    Single,
    /// This balancer decides for the fleet by the agreed results, without its own checks and next hops.
    Decides,
    /// Another balancer decided as of this moment. Until the next state arrives, nothing that depends on time changes.
    Follows {
        /// The time of the decision on this balancer's clock.
        as_of: Instant,
        /// Whether hard failures that this balancer sees count, because no other balancer can decide.
        alone: bool,
    },
}

impl Role {
    pub(crate) const fn follows(&self) -> bool {
        matches!(self, Self::Follows { .. })
    }

    /// The moment by which backends are judged.
    pub(crate) const fn time(&self, now: Instant) -> Instant {
        match self {
            Self::Single | Self::Decides => now,
            Self::Follows { as_of, .. } => *as_of,
        }
    }
}

/// The message and the commands of a change by a deciding controller, or the reason why it was refused.
pub type Decided = Result<(String, Vec<Command>), Refused>;
