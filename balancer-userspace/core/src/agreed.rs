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

/// What one balancer says of a backend.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Opinion {
    /// It does not know the way yet.
    Waiting,
    /// It knows the way, and has no verdict yet, or does not check.
    Unknown,
    /// Its checks pass.
    Up,
    /// Its checks fail.
    Down {
        /// In which way.
        kind: FailureKind,
        /// In words (`connect: refused`).
        reason: String,
    },
    /// Why it knows no way.
    NoWay(String),
}

/// What is to be agreed on of a backend from now on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Judgement {
    /// Which.
    pub backend: BackendId,
    /// The way to it.
    pub way: Way,
    /// What the checks found.
    pub verdict: Verdict,
}

/// Who decides what the backends' standing is.
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

/// What a change at one that decides has come to.
pub type Decided = Result<(String, Vec<Command>), Refused>;
