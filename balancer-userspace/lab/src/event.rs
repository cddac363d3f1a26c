//! The events that the lab causes at servers, balancers and stores.

use clap::ValueEnum;
use serde::{Deserialize, Serialize};

/// An event that the lab causes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Event {
    /// Nothing happens during the observation.
    Nothing,
    /// An operator adds a backend.
    Add,
    /// An operator lowers a backend's weight to a tenth.
    Weight,
    /// An operator drains a backend, and the lab observes clients until the deadline of the drain.
    Drain,
    /// An operator drains a backend, and the lab observes clients after the deadline of the drain.
    DrainOver,
    /// An operator drains one backend after the other, restarts it, and makes it ready again.
    Deploy,
    /// The process of a backend is killed.
    Kill,
    /// A backend that was killed returns.
    Return,
    /// A backend hangs.
    Hang,
    /// A backend fails twice, each time for long enough that health checks notice.
    Flap,
    /// The balancer is stopped and started again.
    Restart,
    /// The balancer is restarted with another program file.
    Upgrade,
    /// The active balancer of a pair fails.
    Standby,
    /// One balancer of a fleet of three fails.
    Member,
    /// The store is restarted.
    StoreRestart,
    /// The store is unreachable for a period of two seconds.
    StorePartition,
    /// The store has no space for further data.
    StoreFull,
    /// The store is killed, so another store has to take over.
    StoreFailover,
}

impl Event {
    /// All events, in the order in which the lab causes them. Events that change hosts permanently come last.
    pub const ALL: [Self; 18] = [
        Self::Nothing,
        Self::Add,
        Self::Weight,
        Self::Drain,
        Self::DrainOver,
        Self::Kill,
        Self::Return,
        Self::Hang,
        Self::Flap,
        Self::Deploy,
        Self::Restart,
        Self::Upgrade,
        Self::Standby,
        Self::Member,
        Self::StorePartition,
        Self::StoreFull,
        Self::StoreRestart,
        Self::StoreFailover,
    ];

    /// Returns the name of the event on the command line.
    #[must_use]
    pub fn id(self) -> String {
        self.to_possible_value().map_or_else(String::new, |value| value.get_name().to_owned())
    }

    /// A short title of the event for the heading of a column.
    #[must_use]
    pub const fn title(self) -> &'static str {
        match self {
            Self::Nothing => "nothing",
            Self::Add => "backend added",
            Self::Weight => "weight changed",
            Self::Drain => "drained, within deadline",
            Self::DrainOver => "drained, beyond deadline",
            Self::Deploy => "deployed one by one",
            Self::Kill => "backend killed",
            Self::Return => "backend returns",
            Self::Hang => "backend hangs",
            Self::Flap => "backend flaps",
            Self::Restart => "balancer restarted",
            Self::Upgrade => "balancer upgraded",
            Self::Standby => "standby takes over",
            Self::Member => "one of three balancers lost",
            Self::StoreRestart => "store restarted",
            Self::StoreFailover => "store fails over",
            Self::StorePartition => "store cut off 2 s",
            Self::StoreFull => "store full",
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use clap::ValueEnum as _;

    use super::Event;

    #[test]
    fn when_the_events_are_listed_then_each_is_there_once() {
        let all: BTreeSet<Event> = Event::ALL.into_iter().collect();
        assert_eq!(all.len(), Event::ALL.len());
        assert_eq!(all.len(), Event::value_variants().len());
    }
}
