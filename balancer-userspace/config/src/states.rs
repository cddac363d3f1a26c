//! The states of a backend: the state that the operator wants, the health that the operator sets, and the state that
//! users see.

use serde::{Deserialize, Serialize};

/// The state that the operator wants for a backend.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Admin {
    /// The backend may take clients.
    Ready,
    /// The backend must take no new clients.
    Drain,
    /// The backend must take no clients, and the balancer does not check it.
    Maint,
}

impl Admin {
    /// The word for this state that users write and see.
    #[must_use]
    pub const fn word(self) -> &'static str {
        match self {
            Self::Ready => "ready",
            Self::Drain => "drain",
            Self::Maint => "maint",
        }
    }

    /// The state that allows less.
    #[must_use]
    pub const fn or_stricter(self, other: Self) -> Self {
        match (self, other) {
            (Self::Maint, _) | (_, Self::Maint) => Self::Maint,
            (Self::Drain, _) | (_, Self::Drain) => Self::Drain,
            (Self::Ready, Self::Ready) => Self::Ready,
        }
    }
}

/// A health that the operator sets, whatever the results of checks are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Forced {
    /// The backend counts as working.
    Up,
    /// The backend counts as not answering, which is a hard failure.
    Down,
}

/// A state of a backend that users see.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum BackendState {
    /// The backend takes new clients.
    Up,
    /// The checks of the backend have given no verdict yet.
    Checking,
    /// The backend has failed, and keeps its known clients for a while.
    DrainingHealth,
    /// The backend keeps its known clients for a while, as the operator wants.
    Draining,
    /// The backend has no clients, as the operator wants.
    Drained,
    /// The backend has failed.
    Down,
    /// The backend is in maintenance.
    Maint,
}

impl BackendState {
    /// Every state; the position of a state is the index of its counter.
    pub const ALL: [Self; 7] =
        [Self::Up, Self::Checking, Self::DrainingHealth, Self::Draining, Self::Drained, Self::Down, Self::Maint];

    /// The word for this state that users see.
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

    /// Whether a failure of the backend causes this state.
    #[must_use]
    pub const fn is_failure(self) -> bool {
        match self {
            Self::Down | Self::DrainingHealth => true,
            Self::Up | Self::Checking | Self::Draining | Self::Drained | Self::Maint => false,
        }
    }
}
