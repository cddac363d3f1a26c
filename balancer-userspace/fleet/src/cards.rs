//! The documents in the store, as JSON. Everything that is read is input from outside: a document that cannot be read,
//! or that has a later format, is refused whole.

use std::time::Duration;

use balancer_common::client::HashKey;
use balancer_core::{
    agreed::Opinion,
    controller::Controller,
    health::FailureKind,
    io::{BackendId, Change, Refused},
    state::Moment,
};
use balancer_model::config::ServiceConfig;
use serde::{Deserialize, Serialize, de::DeserializeOwned};

use crate::emptied::Emptied;

/// The format written. What says a later one is refused.
pub const FORMAT: u32 = 1;

/// Failures of each kind whose reasons a ballot says.
const REASONS: usize = 1000;

/// Why a card cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadCard {
    /// No JSON, or not of this kind.
    #[error("cannot be read: {0}")]
    Unreadable(String),
    /// A later version of the balancer wrote it.
    #[error("has format {0}; this balancer reads up to {FORMAT}: upgrade it")]
    Later(u32),
    /// Numbers that no fleet comes to.
    #[error("says what cannot be: {0}")]
    Impossible(&'static str),
}

/// The settings that all members must have in common.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Common {
    /// [`FORMAT`].
    pub format: u32,
    /// Buckets of the client table.
    pub buckets: u32,
    /// The fleet's hash key.
    pub key: HashKey,
}

/// The card of the leader, which is the member that decides.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Leader {
    /// [`FORMAT`].
    pub format: u32,
    /// The name of the leading member.
    pub member: String,
    /// A number drawn by its process.
    pub instance: u64,
}

/// An epoch's name. Numbers rise by one within a lineage; a new one begins where a fleet's store was lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Epoch {
    /// Made of a number that the member which wrote the first epoch drew; never given twice.
    pub lineage: u64,
    /// From 1.
    pub number: u64,
}

/// A state, in the store's documents.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StateCard {
    /// [`FORMAT`].
    pub format: u32,
    /// Which epoch it is, or is to be.
    pub epoch: Epoch,
    /// When it was decided.
    pub at: Moment,
    /// The document's name, which no other state has.
    pub document: u64,
    /// The member that decided it: the clock of this member tells its moments.
    #[serde(default)]
    pub by: String,
    /// When a user last changed something, on the same clock.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub changed: Option<Moment>,
    /// In how many parts.
    pub parts: usize,
    /// Which backends could not keep their clients, and when.
    #[serde(default, skip_serializing_if = "Emptied::is_empty")]
    pub emptied: Emptied,
    /// Events, as lines for the log.
    #[serde(default)]
    pub lines: Vec<Line>,
}

impl StateCard {
    /// The longest time since 1970 that a card says.
    const LATEST: Duration = Duration::from_secs(1 << 38);

    /// A stored card.
    ///
    /// # Errors
    /// [`BadCard`]; nothing of it is used then.
    pub fn read(value: &[u8]) -> Result<Self, BadCard> {
        let card: Self = read(value)?;
        // Records say epochs in 32 bits.
        if card.epoch.number >= u64::from(u32::MAX) {
            return Err(BadCard::Impossible("the epoch's number"));
        }
        if card.at.0 > Self::LATEST {
            return Err(BadCard::Impossible("when it was decided"));
        }
        if card.document == u64::MAX {
            return Err(BadCard::Impossible("the document's number"));
        }
        Ok(card)
    }
}

/// A line for the log and the events.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Line {
    /// Whether something is wrong.
    pub warning: bool,
    /// The service and the backend that it is about, where it is about one.
    pub about: Option<(String, String)>,
    /// In words.
    pub message: String,
}

/// The card of a member: its present state and activity.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Member {
    /// [`FORMAT`].
    pub format: u32,
    /// The balancer's version.
    pub version: String,
    /// [`balancer_core::fingerprint`]; 0: it does not say.
    #[serde(default)]
    pub steering: u32,
    /// A number drawn by its process.
    pub instance: u64,
    /// The epoch that it applies.
    pub epoch: Option<Epoch>,
    /// The document of the state whose clients it has told.
    pub prepared: Option<u64>,
    /// Whether it has epoch and records.
    pub in_step: bool,
    /// Whether it needs to be told all clients.
    pub wants_clients: bool,
    /// `ready`, `degraded`, `not_ready`, `withdrawn`.
    pub readiness: String,
    /// Complete sweeps of its client table.
    pub sweeps: u64,
    /// Known clients of backends that are drained or removed, where there are any.
    pub known: Vec<(BackendId, u64)>,
    /// Complete counts of its connections; 0: it has not counted them, as an earlier version does not.
    #[serde(default)]
    pub flow_counts: u64,
    /// Connections of backends whose drains wait for them, where there are any.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub connections: Vec<(BackendId, u64)>,
    /// The member's opinions of backends.
    pub ballot: Ballot,
    /// Where the process runs: another process of the same place takes this one's place. 0: it does not say.
    #[serde(default)]
    pub home: u64,
    /// The member's address as the engine sees it.
    #[serde(default)]
    pub address: String,
    /// When it was written, on its own clock.
    #[serde(default)]
    pub wall: Option<Moment>,
    /// Whether its configuration file says other services than the fleet's last one.
    #[serde(default)]
    pub file_differs: bool,
}

/// A member's opinions of the backends of its epoch. Backends that are not listed are up.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ballot {
    /// It does not know the way to them yet.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub waiting: Vec<BackendId>,
    /// It has no verdict yet.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub unknown: Vec<BackendId>,
    /// Down.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub down: Vec<(BackendId, FailureKind, String)>,
    /// It knows no way to them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub no_way: Vec<(BackendId, String)>,
    /// Their latest checks failed, with those of so many others of their service that it looks like an outage.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub failing: Vec<BackendId>,
    /// Packets suspect them, or their latest check failed, and it has no verdict of that yet: others should look at once. No
    /// vote.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub suspected: Vec<BackendId>,
}

impl Ballot {
    /// Builds the ballot from all of a member's opinions and the backends that it suspects.
    #[must_use]
    pub fn of(controller: &Controller, suspected: Vec<BackendId>) -> Self {
        let opinions = controller.opinions().map(|(_, backend, opinion)| (backend.id(), opinion));
        let failing = controller.failing_in_numbers();
        Self { failing, suspected, ..Self::of_opinions(opinions) }
    }

    /// Backends that it has doubts of, for whatever reason.
    pub fn doubted(&self) -> impl Iterator<Item = BackendId> {
        let down = self.down.iter().map(|(id, ..)| *id).chain(self.no_way.iter().map(|(id, _)| *id));
        down.chain(self.failing.iter().copied()).chain(self.suspected.iter().copied())
    }

    fn of_opinions(opinions: impl Iterator<Item = (BackendId, Opinion)>) -> Self {
        let mut ballot = Self::default();
        for (id, opinion) in opinions {
            match opinion {
                Opinion::Waiting => ballot.waiting.push(id),
                Opinion::Unknown => ballot.unknown.push(id),
                Opinion::Up => {}
                Opinion::Down { kind, reason } => ballot.down.push((id, kind, reason)),
                Opinion::NoWay(why) => ballot.no_way.push((id, why)),
            }
        }
        // Where thousands are down, the first ones' reasons tell enough, and the card stays small.
        ballot.down.iter_mut().skip(REASONS).for_each(|(.., reason)| reason.clear());
        ballot.no_way.iter_mut().skip(REASONS).for_each(|(_, why)| why.clear());
        ballot
    }

    /// Whether it says that a backend's latest check failed.
    #[must_use]
    pub fn fails(&self, id: BackendId) -> bool {
        self.failing.contains(&id)
            || self.down.iter().any(|(of, ..)| *of == id)
            || self.no_way.iter().any(|(of, _)| *of == id)
    }

    /// Returns the opinion of a backend.
    #[must_use]
    pub fn opinion(&self, id: BackendId) -> Opinion {
        if let Some((_, kind, reason)) = self.down.iter().find(|(of, ..)| *of == id) {
            return Opinion::Down { kind: *kind, reason: reason.clone() };
        }
        if let Some((_, why)) = self.no_way.iter().find(|(of, _)| *of == id) {
            return Opinion::NoWay(why.clone());
        }
        if self.unknown.contains(&id) {
            Opinion::Unknown
        } else if self.waiting.contains(&id) {
            Opinion::Waiting
        } else {
            Opinion::Up
        }
    }
}

/// A change that a user wants.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Wish {
    /// A change. Never [`Change::Reload`] or [`Change::Reset`].
    Change(Change),
    /// The services of a member's configuration file.
    Services(Vec<ServiceConfig>),
    /// The same, and that what was changed at run time is undone.
    Reset(Vec<ServiceConfig>),
}

/// A change that is asked for.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Request {
    /// [`FORMAT`].
    pub format: u32,
    /// The wish; `None`: it is packed, under a key of its own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub wish: Option<Wish>,
    /// The generation that it was made for.
    pub if_generation: Option<u64>,
}

/// The outcome of a request.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Answer {
    /// [`FORMAT`].
    pub format: u32,
    /// The change that was made, or the reason why none was.
    pub done: Result<String, Denied>,
    /// The epoch that it is done in.
    pub epoch: Epoch,
}

/// [`Refused`], to be sent.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Denied {
    /// [`Refused::NotFound`].
    NotFound(String),
    /// [`Refused::Conflict`].
    Conflict(String),
    /// [`Refused::Invalid`].
    Invalid(String),
    /// [`Refused::Stale`].
    Stale(u64),
    /// [`Refused::Unsaved`].
    Unsaved(String),
}

impl From<Refused> for Denied {
    fn from(refused: Refused) -> Self {
        match refused {
            Refused::NotFound(why) => Self::NotFound(why),
            Refused::Conflict(why) => Self::Conflict(why),
            Refused::Invalid(why) => Self::Invalid(why),
            Refused::Stale(generation) => Self::Stale(generation),
            Refused::Unsaved(why) => Self::Unsaved(why),
        }
    }
}

impl From<Denied> for Refused {
    fn from(denied: Denied) -> Self {
        match denied {
            Denied::NotFound(why) => Self::NotFound(why),
            Denied::Conflict(why) => Self::Conflict(why),
            Denied::Invalid(why) => Self::Invalid(why),
            Denied::Stale(generation) => Self::Stale(generation),
            Denied::Unsaved(why) => Self::Unsaved(why),
        }
    }
}

/// Where the dump for a member that joins is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Dump {
    /// [`FORMAT`].
    pub format: u32,
    /// The joining process that the dump is for.
    pub instance: u64,
    /// In how many parts.
    pub parts: usize,
}

/// A card as it is stored.
#[must_use]
pub fn write(card: &impl Serialize) -> Vec<u8> {
    // Plain data with string keys: it cannot fail, and an empty value is refused by every reader.
    serde_json::to_vec(card).unwrap_or_default()
}

/// A stored card.
///
/// # Errors
/// [`BadCard`]; nothing of it is used then.
pub fn read<T: DeserializeOwned>(value: &[u8]) -> Result<T, BadCard> {
    #[derive(Deserialize)]
    struct Format {
        format: u32,
    }
    let unreadable = |err: serde_json::Error| BadCard::Unreadable(err.to_string());
    let Format { format } = serde_json::from_slice(value).map_err(unreadable)?;
    if format > FORMAT {
        return Err(BadCard::Later(format));
    }
    serde_json::from_slice(value).map_err(unreadable)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn card(change: impl FnOnce(&mut serde_json::Value)) -> Result<StateCard, BadCard> {
        let mut card = serde_json::json!({
            "format": 1, "epoch": { "lineage": 1, "number": 2 }, "at": { "secs": 1_000_000, "nanos": 0 },
            "document": 3, "parts": 1,
        });
        change(&mut card);
        StateCard::read(&write(&card))
    }

    #[test]
    fn fields_of_a_later_version_are_passed_over_and_its_format_is_refused() {
        assert!(card(|card| card["colour"] = "red".into()).is_ok());
        assert_eq!(card(|card| card["format"] = 2.into()), Err(BadCard::Later(2)));
        assert!(matches!(card(|card| card["at"] = "now".into()), Err(BadCard::Unreadable(_))));
    }

    #[test]
    fn when_fifty_thousand_backends_are_down_then_the_ballot_fits_into_one_value() {
        let reason = "connect: no answer within 2,000 ms from 10.0.0.1:8080";
        let down = |id| (BackendId(id), Opinion::Down { kind: FailureKind::Hard, reason: reason.to_owned() });
        let ballot = Ballot::of_opinions((1..=50_000).map(down));
        let size = write(&ballot).len();
        assert!(size < crate::engine::LONGEST_VALUE, "{size} bytes");
        assert!(matches!(ballot.opinion(BackendId(49_000)), Opinion::Down { kind: FailureKind::Hard, .. }));
        assert_eq!(ballot.opinion(BackendId(1)), down(1).1);
    }

    #[test]
    fn numbers_that_no_fleet_comes_to_are_refused() {
        assert!(matches!(card(|card| card["epoch"]["number"] = u64::MAX.into()), Err(BadCard::Impossible(_))));
        assert!(matches!(card(|card| card["at"]["secs"] = u64::MAX.into()), Err(BadCard::Impossible(_))));
        assert!(matches!(card(|card| card["document"] = u64::MAX.into()), Err(BadCard::Impossible(_))));
    }
}
