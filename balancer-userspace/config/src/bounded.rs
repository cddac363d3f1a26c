//! Bounded load: a backend whose load exceeds its share gets fewer new clients, and no known client moves.

use std::fmt;

use serde::{Deserialize, Serialize};

/// The valid range of `factor`. With a lower factor, the rule would react to every fluctuation.
pub const FACTORS: (f64, f64) = (1.05, 10.0);

/// The rule that determines the backends with too much load.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct BoundedLoad {
    /// The multiple of the expected share above which the load of a backend is too high.
    pub factor: f64,
    /// The kind of load that the rule compares between backends.
    pub by: Load,
}

/// A kind of load that a backend can have.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Load {
    /// The number of known clients of the backend.
    Clients,
    /// The number of new connections to the backend in a minute.
    Connections,
    /// The number of bytes to the backend in a minute.
    Bytes,
    /// The median duration of the backend's health checks in a minute, compared with the median of other backends.
    Latency,
}

impl Load {
    /// The kinds of load, each with its word in the configuration.
    pub const WORDS: [(&'static str, Self); 4] = [
        ("clients", Self::Clients),
        ("connections", Self::Connections),
        ("bytes", Self::Bytes),
        ("latency", Self::Latency),
    ];

    /// Returns the word for this kind of load in the configuration.
    #[must_use]
    pub const fn word(self) -> &'static str {
        match self {
            Self::Clients => "clients",
            Self::Connections => "connections",
            Self::Bytes => "bytes",
            Self::Latency => "latency",
        }
    }
}

/// The bound of a backend that has or had too much load.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Bound {
    /// The percentage of its own slots that the backend keeps: a multiple of 10, from 10 to 90 while the bound is in
    /// effect. The backend gives the rest of its slots to other backends.
    pub keeps: u8,
    /// The load of the backend when the bound was decided, in percent of the expected load.
    pub load: u32,
}

impl Bound {
    /// The bound of a backend that keeps all its slots.
    pub const NONE: Self = Self { keeps: 100, load: 0 };

    /// Returns the number of slots that the backend gives away if it keeps `slots` slots.
    #[must_use]
    pub fn given(&self, slots: u32) -> u32 {
        let (keeps, slots) = (u64::from(self.keeps.clamp(1, 100)), u64::from(slots));
        u32::try_from((slots * (100 - keeps) + keeps / 2) / keeps).unwrap_or(u32::MAX)
    }
}

/// Formats the bound as `keeps 70% of its slots, had 1.62 times its share`.
impl fmt::Display for Bound {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "keeps {}% of its slots, had {:.2} times its share", self.keeps, f64::from(self.load) / 100.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn when_a_backend_keeps_a_part_of_its_slots_then_the_rest_of_them_is_given_away() {
        let given = |keeps, slots| Bound { keeps, load: 150 }.given(slots);
        assert_eq!([given(50, 100), given(10, 10), given(90, 900), given(70, 0)], [100, 90, 100, 0]);
        assert_eq!(Bound { keeps: 70, load: 162 }.to_string(), "keeps 70% of its slots, had 1.62 times its share");
    }
}
