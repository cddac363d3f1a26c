//! The events that happen to servers, balancers and stores.

use clap::ValueEnum;
use serde::{Deserialize, Serialize};

/// One event, alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Event {
    /// Nothing.
    Nothing,
    /// A backend is added.
    Add,
    /// A backend's weight falls to a tenth.
    Weight,
    /// A backend is drained; clients are seen within its deadline.
    Drain,
    /// The same, beyond its deadline.
    DrainOver,
    /// Every backend is drained, restarted and taken back, one after the other.
    Deploy,
    /// A backend is killed.
    Kill,
    /// A killed backend returns.
    Return,
    /// A backend hangs.
    Hang,
    /// A backend is away twice, long enough to be noticed.
    Flap,
    /// The balancer is stopped and started.
    Restart,
    /// The same, with another program file.
    Upgrade,
    /// Of a pair of balancers the active one is lost.
    Standby,
    /// One of a fleet of three balancers is lost.
    Member,
    /// The store is restarted.
    StoreRestart,
    /// The store is out of reach for two seconds.
    StorePartition,
    /// The store has no room left.
    StoreFull,
    /// The store is killed, and another one has to take over.
    StoreFailover,
}

impl Event {
    /// All, in the order in which they are played: those after which hosts are not as before come last.
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

    /// A few words for the head of a column.
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
    fn every_event_is_played_once() {
        let all: BTreeSet<Event> = Event::ALL.into_iter().collect();
        assert_eq!(all.len(), Event::ALL.len());
        assert_eq!(all.len(), Event::value_variants().len());
    }
}
