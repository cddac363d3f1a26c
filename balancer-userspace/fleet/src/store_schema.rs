//! The documents in the fleet's store, as JSON. All documents are untrusted input: the reader refuses the whole
//! document if it is unreadable or of a later format.

use std::time::Duration;

use balancer_common::client::HashKey;
use balancer_config::config::ServiceConfig;
use balancer_control::{
    agreed::Opinion,
    controller::Controller,
    health::FailureKind,
    io::{BackendId, Change, Refused},
    room::Room,
    state::Moment,
};
use serde::{Deserialize, Serialize, de::DeserializeOwned};

use crate::emptied::Emptied;

/// The document format that this version writes. A reader of this version refuses later formats.
pub const FORMAT: u32 = 1;

/// The maximum number of failures of each kind for which a ballot contains the reasons.
const REASONS: usize = 1000;

/// The reason why a card is unusable.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadCard {
    /// The card is not JSON, or is of another kind.
    #[error("cannot be read: {0}")]
    Unreadable(String),
    /// A later version of the balancer wrote the card.
    #[error("has format {0}; this balancer reads up to {FORMAT}: upgrade it")]
    Later(u32),
    /// The card contains numbers that no fleet can reach.
    #[error("contradicts itself: {0}")]
    Impossible(&'static str),
}

/// The settings that must be equal for all members.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Common {
    /// The format of the document: [`FORMAT`].
    pub format: u32,
    /// The number of buckets of the client table.
    pub buckets: u32,
    pub key: HashKey,
}

/// The card of the leader, which is the member that decides.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Leader {
    /// The format of the card: [`FORMAT`].
    pub format: u32,
    pub member: String,
    /// The random number of the leader's process.
    pub instance: u64,
}

/// The identity of an epoch of the fleet's state. The number of the epoch rises by one with each epoch of a lineage. If
/// the store loses its data, the fleet begins a new lineage.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Epoch {
    /// A unique number of the lineage. The member that wrote the lineage's first epoch derived this number from a
    /// random number.
    pub lineage: u64,
    /// The number of the epoch within the lineage, starting at 1.
    pub number: u64,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StateCard {
    /// The format of the card: [`FORMAT`].
    pub format: u32,
    /// The epoch that the state has, or will have when it becomes the current state.
    pub epoch: Epoch,
    /// The time at which the leader decided on the state.
    pub at: Moment,
    /// The unique number of the document that contains the state.
    pub document: u64,
    /// The name of the member that made the decision. All times in the state are times of this member's clock.
    pub by: String,
    /// The time of the last change that a user made, by the clock of the member that made the decision.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub changed: Option<Moment>,
    /// The time at which a configuration file last changed the services, by the same clock; `None`: the time is not
    /// known, as in earlier versions.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub file: Option<Moment>,
    /// The number of parts of the state's document.
    pub parts: usize,
    /// The backends whose known clients had to leave, with the epoch in which each backend stopped keeping its clients.
    #[serde(default, skip_serializing_if = "Emptied::is_empty")]
    pub emptied: Emptied,
    /// The events of the epoch, as lines for the log.
    pub lines: Vec<Line>,
}

impl StateCard {
    /// The latest time that a card may contain, measured since 1970.
    const LATEST: Duration = Duration::from_secs(1 << 38);

    /// Parses a stored card.
    ///
    /// # Errors
    /// Returns [`BadCard`] if the card is unusable; the caller then uses no field of the card.
    pub fn read(value: &[u8]) -> Result<Self, BadCard> {
        let card: Self = read(value)?;
        // An epoch's number must fit into the 32 bits that client records have for it.
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

/// A line for the log and for the history of events.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Line {
    pub warning: bool,
    /// The service and the backend that the line is about, if there are such.
    pub about: Option<(String, String)>,
    /// The text of the line.
    pub message: String,
}

/// The card of a member, which contains the member's current state and activity.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Member {
    /// The format of the card: [`FORMAT`].
    pub format: u32,
    pub version: String,
    /// The fingerprint of how the member steers clients, see [`balancer_control::fingerprint`]; 0 if the fingerprint is
    /// unknown.
    pub steering: u32,
    /// The random number of the member's process.
    pub instance: u64,
    /// The epoch that the member applies.
    pub epoch: Option<Epoch>,
    /// The document of the state for which the member has sent its clients.
    pub prepared: Option<u64>,
    /// Whether the member applies the current epoch and has received all records.
    pub in_step: bool,
    /// Whether the member needs a dump of all clients.
    pub wants_clients: bool,
    /// The readiness of the member: `ready`, `degraded`, `not_ready` or `withdrawn`.
    pub readiness: String,
    /// The number of complete sweeps of the member's client table.
    pub sweeps: u64,
    /// The numbers of known clients of backends that are draining or being removed, without zeros.
    pub known: Vec<(BackendId, u64)>,
    /// The number of complete counts of the member's `snat` connections; 0 if the member has never counted connections.
    pub flow_counts: u64,
    /// The numbers of connections at draining backends, for drains that wait for connections to end, without zeros. A
    /// backend that has received packets since the previous count has at least 1.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub connections: Vec<(BackendId, u64)>,
    /// The member's verdicts about backends.
    pub ballot: Ballot,
    /// The home in which the process runs: another process in the same home may take over the name. 0 if the home is
    /// unknown.
    pub home: u64,
    /// The address from which the engine receives the member's connections.
    pub address: String,
    /// The time at which the card was written, by the member's own clock.
    pub wall: Option<Moment>,
    /// Whether the services in the member's configuration file differ from the services that the fleet last applied.
    pub file_differs: bool,
    /// The room in the maps of the member's data path; `None`: the room is not known yet.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub room: Option<Room>,
    /// The part of the epoch that the member does not apply, in words; `None`: it applies the whole epoch.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lacks: Option<String>,
}

/// A member's opinions about the backends in the epoch that it applies. Backends that the ballot does not list are up.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ballot {
    /// The backends to which the member does not know a path yet.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub waiting: Vec<BackendId>,
    /// The backends about which the member has no verdict yet.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub unknown: Vec<BackendId>,
    /// The backends that are down according to the member.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub down: Vec<(BackendId, FailureKind, String)>,
    /// The backends to which the member has no path.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub no_way: Vec<(BackendId, String)>,
    /// The backends whose latest check failed, if so many backends of the service fail that the failures look like an
    /// outage.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub failing: Vec<BackendId>,
    /// The backends that the member suspects because of packets, or because their latest check failed without leading
    /// to a verdict yet. Other members should check these backends at once. A suspicion does not count as a vote.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub suspected: Vec<BackendId>,
}

impl Ballot {
    /// Makes the ballot from all opinions of a member, and from the backends that the member suspects.
    #[must_use]
    pub fn of(controller: &Controller, suspected: Vec<BackendId>) -> Self {
        let opinions = controller.opinions().map(|(_, backend, opinion)| (backend.id(), opinion));
        let failing = controller.failing_in_numbers();
        Self { failing, suspected, ..Self::of_opinions(opinions) }
    }

    /// The backends that the member doubts for any reason.
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
        // If thousands of backends are down, the ballot contains only the first reasons, so that the card stays small.
        ballot.down.iter_mut().skip(REASONS).for_each(|(.., reason)| reason.clear());
        ballot.no_way.iter_mut().skip(REASONS).for_each(|(_, why)| why.clear());
        ballot
    }

    /// Whether the ballot reports that the backend's latest check failed.
    #[must_use]
    pub fn fails(&self, id: BackendId) -> bool {
        self.failing.contains(&id)
            || self.down.iter().any(|(of, ..)| *of == id)
            || self.no_way.iter().any(|(of, _)| *of == id)
    }

    /// Returns the member's opinion about a backend.
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

/// A change requested by a user.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ChangeRequest {
    /// A single change, which is never [`Change::Reload`] or [`Change::Reset`].
    Change(Change),
    /// Applying the services of a member's configuration file.
    Services(Vec<ServiceConfig>),
    /// Applying the services of a member's configuration file, and undoing run-time changes.
    Reset(Vec<ServiceConfig>),
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Request {
    /// The format of the request: [`FORMAT`].
    pub format: u32,
    /// The requested change; `None` if the change is packed under a separate key.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub change_request: Option<ChangeRequest>,
    /// The generation that the configuration must have for the change to be made.
    pub if_generation: Option<u64>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Answer {
    /// The format of the answer: [`FORMAT`].
    pub format: u32,
    /// The change that was made, or the reason why no change was made.
    pub done: Result<String, Denied>,
    /// The epoch that contains the change.
    pub epoch: Epoch,
}

/// The same refusals as in [`Refused`], in a serializable form.
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

/// The card that tells a joining member where its dump is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Dump {
    /// The format of this card: [`FORMAT`].
    pub format: u32,
    /// The random number of the joining process for which the dump was made.
    pub instance: u64,
    pub parts: usize,
}

#[must_use]
pub fn write(card: &impl Serialize) -> Vec<u8> {
    // Serializing plain data with string keys cannot fail, and if it did, every reader would refuse the empty value.
    serde_json::to_vec(card).unwrap_or_default()
}

/// Parses a stored card.
///
/// # Errors
/// Returns [`BadCard`] if the card is unusable; the caller then uses no field of the card.
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
            "document": 3, "by": "lb-a", "parts": 1, "lines": [],
        });
        change(&mut card);
        StateCard::read(&write(&card))
    }

    #[test]
    fn when_a_card_has_unknown_fields_then_they_are_ignored_and_a_later_format_is_refused() {
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
    fn when_a_card_has_impossible_numbers_then_it_is_refused() {
        assert!(matches!(card(|card| card["epoch"]["number"] = u64::MAX.into()), Err(BadCard::Impossible(_))));
        assert!(matches!(card(|card| card["at"]["secs"] = u64::MAX.into()), Err(BadCard::Impossible(_))));
        assert!(matches!(card(|card| card["document"] = u64::MAX.into()), Err(BadCard::Impossible(_))));
    }
}
