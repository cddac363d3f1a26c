//! Backends as several balancers see them: what one of them has found out, and what all have agreed on.

use std::time::Instant;

use serde::{Deserialize, Serialize};

use crate::{
    health::{FailureKind, Verdict},
    io::{BackendId, Command, Refused},
};

/// The way to a backend, as agreed on.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Way {
    /// Nobody knows it yet.
    #[default]
    Unknown,
    /// There is one.
    Open,
    /// Why there is none.
    Closed(String),
}

/// The opinion that one balancer has of a backend.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Opinion {
    /// The balancer does not know the way yet.
    Waiting,
    /// The balancer knows the way, and has no verdict yet, or does not check.
    Unknown,
    /// The balancer's checks pass.
    Up,
    /// The balancer's checks fail.
    Down {
        /// In which way.
        kind: FailureKind,
        /// In words (`connect: refused`).
        reason: String,
    },
    /// Why the balancer knows no way.
    NoWay(String),
}

/// The way and the verdict that are agreed on for a backend from now on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Judgement {
    /// Which.
    pub backend: BackendId,
    /// The way to it.
    pub way: Way,
    /// The verdict of the checks.
    pub verdict: Verdict,
}

/// Whether this balancer decides the backends' standing, or another one does.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) enum Role {
    /// It does itself, by its own checks and next hops.
    #[default]
    Single,
    /// It does, by what is agreed on: its own checks and next hops are nobody's.
    Decides,
    /// Somebody else has, as of this moment; until the next state comes, nothing that depends on time changes.
    Follows {
        /// When that was decided, on the own clock.
        as_of: Instant,
        /// Whether hard failures that it sees itself count: nobody else decides.
        alone: bool,
    },
}

impl Role {
    pub(crate) const fn follows(&self) -> bool {
        matches!(self, Self::Follows { .. })
    }

    /// The moment that backends are judged at.
    pub(crate) const fn time(&self, now: Instant) -> Instant {
        match self {
            Self::Single | Self::Decides => now,
            Self::Follows { as_of, .. } => *as_of,
        }
    }
}

/// The message and the commands of a change made by a controller that decides, or why it was refused.
pub type Decided = Result<(String, Vec<Command>), Refused>;
