//! What a backend is wanted to be, is said to be, and is shown as.

use serde::{Deserialize, Serialize};

/// What the operator wants of a backend.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Admin {
    /// In use.
    Ready,
    /// No new clients.
    Drain,
    /// No clients at all, and no checks.
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

/// The health that the operator says a backend has, whatever its checks find.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Forced {
    /// It works.
    Up,
    /// Nobody answers: a hard failure.
    Down,
}

/// The states a backend is shown in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum BackendState {
    /// Takes new clients.
    Up,
    /// No verdict yet.
    Checking,
    /// Failed, and keeps its known clients for a while.
    DrainingHealth,
    /// Keeps its known clients for a while, as the operator wants.
    Draining,
    /// Has no clients, as the operator wants.
    Drained,
    /// Failed.
    Down,
    /// In maintenance.
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

    /// Whether it comes of a failure.
    #[must_use]
    pub const fn is_failure(self) -> bool {
        match self {
            Self::Down | Self::DrainingHealth => true,
            Self::Up | Self::Checking | Self::Draining | Self::Drained | Self::Maint => false,
        }
    }
}
