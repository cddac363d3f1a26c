//! The states of a backend: wanted, forced, and displayed.

use serde::{Deserialize, Serialize};

/// The state that the operator wants for a backend.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Admin {
    /// In use.
    Ready,
    /// It takes no new clients.
    Drain,
    /// It takes no clients, and is not checked.
    Maint,
}

impl Admin {
    /// The word that users write and see.
    #[must_use]
    pub const fn word(self) -> &'static str {
        match self {
            Self::Ready => "ready",
            Self::Drain => "drain",
            Self::Maint => "maint",
        }
    }
}

/// A health that the operator sets, regardless of checks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Forced {
    /// The backend works.
    Up,
    /// The backend does not answer: a hard failure.
    Down,
}

/// The states a backend is shown in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum BackendState {
    /// It takes new clients.
    Up,
    /// It has no verdict yet.
    Checking,
    /// It has failed, and keeps its known clients for a while.
    DrainingHealth,
    /// It keeps its known clients for a while, as the operator wants.
    Draining,
    /// It has no clients, as the operator wants.
    Drained,
    /// It has failed.
    Down,
    /// It is in maintenance.
    Maint,
}

impl BackendState {
    /// Every state; the position is the index of its counter.
    pub const ALL: [Self; 7] =
        [Self::Up, Self::Checking, Self::DrainingHealth, Self::Draining, Self::Drained, Self::Down, Self::Maint];

    /// The word that users see.
    #[must_use]
    pub const fn word(self) -> &'static str {
        match self {
            Self::Up => "up",
            Self::Checking => "checking",
            Self::DrainingHealth => "draining (health)",
            Self::Draining => "draining",
            Self::Drained => "drained",
            Self::Down => "down",
            Self::Maint => "maint",
        }
    }

    /// Whether it results from a failure.
    #[must_use]
    pub const fn is_failure(self) -> bool {
        match self {
            Self::Down | Self::DrainingHealth => true,
            Self::Up | Self::Checking | Self::Draining | Self::Drained | Self::Maint => false,
        }
    }
}
