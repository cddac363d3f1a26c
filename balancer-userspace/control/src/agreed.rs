//! The fleet's view of backends: each balancer's observations, and the result on which the balancers agree.

use std::time::Instant;

use serde::{Deserialize, Serialize};

use crate::{
    health::{FailureKind, Verdict},
    io::{BackendId, Command, Refused},
};

/// The state of the path to a backend, on which the balancers agree.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Way {
    /// The path to the backend is not known yet.
    #[default]
    Unknown,
    /// A path to the backend exists.
    Open,
    /// No path to the backend exists, for this reason.
    Closed(String),
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Opinion {
    /// The balancer does not know the path to the backend yet.
    Waiting,
    /// The balancer knows the path, but it has no verdict on the backend yet or does not check the backend.
    Unknown,
    /// The balancer's checks of the backend pass.
    Up,
    /// The balancer's checks of the backend fail.
    Down {
        /// Whether the failing backend answers at all.
        kind: FailureKind,
        /// The reason of the failure in words (`connect: refused`).
        reason: String,
    },
    /// The balancer knows no path to the backend, for this reason.
    NoWay(String),
}

/// The path and the verdict for a backend, on which the balancers agree.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Judgement {
    /// The backend that the result is about.
    pub backend: BackendId,
    /// The path to the backend.
    pub way: Way,
    /// The verdict of the checks on the backend.
    pub verdict: Verdict,
}

/// Whether this balancer or another balancer decides which backends take and keep clients.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) enum Role {
    /// This balancer is alone and decides by its own checks and next hops.
    #[default]
    Single,
    /// This balancer decides for the fleet by the agreed results, and does not use its own checks and next hops.
    Decides,
    /// Another balancer decides, and this is the time of its last decision. Until the state of the next decision
    /// arrives, nothing changes that depends on time.
    Follows {
        /// The time of the decision on this balancer's clock.
        as_of: Instant,
        /// Whether hard failures that this balancer sees take effect, because no balancer of the fleet can decide.
        alone: bool,
    },
}

impl Role {
    pub(crate) const fn follows(&self) -> bool {
        matches!(self, Self::Follows { .. })
    }

    /// The time for which the controller evaluates backends.
    pub(crate) const fn time(&self, now: Instant) -> Instant {
        match self {
            Self::Single | Self::Decides => now,
            Self::Follows { as_of, .. } => *as_of,
        }
    }
}

/// The message and the commands of a change that a deciding controller has made, or the reason why the controller
/// refused the change.
pub type Decided = Result<(String, Vec<Command>), Refused>;
