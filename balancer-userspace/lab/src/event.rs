//! The events that happen to servers, balancers and stores.

use clap::ValueEnum;
use serde::{Deserialize, Serialize};

/// A single event.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Event {
    /// No event.
    Nothing,
    /// A backend is added.
    Add,
    /// A backend's weight falls to a tenth.
    Weight,
    /// A backend is drained; the lab observes clients until its deadline.
    Drain,
    /// A backend is drained; the lab observes clients after its deadline.
    DrainOver,
    /// Every backend is drained, restarted and made ready again, one after the other.
    Deploy,
    /// A backend is killed.
    Kill,
    /// A killed backend returns.
    Return,
    /// A backend hangs.
    Hang,
    /// A backend fails twice, each time long enough to be noticed.
    Flap,
    /// The balancer is stopped and started.
    Restart,
    /// The balancer is restarted with another program file.
    Upgrade,
    /// The active one of a pair of balancers is lost.
    Standby,
    /// One of a fleet of three balancers is lost.
    Member,
    /// The store is restarted.
    StoreRestart,
    /// The store is unreachable for two seconds.
    StorePartition,
    /// The store is full.
    StoreFull,
    /// The store is killed, and another store has to take over.
    StoreFailover,
}

impl Event {
    /// All events in their order. Events that change hosts permanently come last.
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

    /// Returns the event's name, as on the command line.
    #[must_use]
    pub fn id(self) -> String {
        self.to_possible_value().map_or_else(String::new, |value| value.get_name().to_owned())
    }

    /// A short title for the head of a column.
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
