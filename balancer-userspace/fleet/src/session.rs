//! A session with the engine: what it says, and what was asked of it.

use std::collections::{BTreeMap, HashMap};

use serde::de::DeserializeOwned;

use crate::{
    cards::{self, BadCard, Member, StateCard},
    documents,
    engine::{Answer, Condition, Entry, Request, Revision, Ticket, Write},
    keys,
};
use balancer_core::state::SavedState;

/// What is asked of the engine, by what its answer is for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Purpose {
    /// What all have in common.
    Common,
    /// The member's own card.
    Card,
    /// To be the leader.
    Campaign,
    /// To know how everything that was asked for before has ended.
    Barrier,
    /// The leader's own writes.
    Lead,
    /// A change that a user wants, by the user's number.
    Wish(u64),
    /// That what nobody waits for any more is gone.
    Orphans,
    /// That these records are told.
    Records(u64),
    /// Nobody waits for it.
    Other,
    /// The clients that were dumped for this member.
    Clients,
}

/// See the [module](self).
#[derive(Debug, Default)]
pub(crate) struct Session {
    entries: BTreeMap<String, Entry>,
    revision: Revision,
    asked: HashMap<Ticket, Purpose>,
}

impl Session {
    pub(crate) fn new(revision: Revision, entries: Vec<Entry>) -> Self {
        let entries = entries.into_iter().map(|entry| (entry.key.clone(), entry)).collect();
        Self { entries, revision, asked: HashMap::new() }
    }

    /// Up to where everything is known.
    pub(crate) const fn revision(&self) -> Revision {
        self.revision
    }

    pub(crate) fn change(&mut self, revision: Revision, put: Vec<Entry>, deleted: &[String]) {
        self.revision = revision;
        for key in deleted {
            self.entries.remove(key);
        }
        self.entries.extend(put.into_iter().map(|entry| (entry.key.clone(), entry)));
    }

    /// Records are used once, when they come.
    pub(crate) fn take_below(&mut self, prefix: &str) -> Vec<Entry> {
        let keys: Vec<String> = self.below(prefix).map(|(_, entry)| entry.key.clone()).collect();
        keys.into_iter().filter_map(|key| self.entries.remove(&key)).collect()
    }

    pub(crate) fn get(&self, key: &str) -> Option<&Entry> {
        self.entries.get(key)
    }

    /// What can be read of a card; what cannot counts as absent.
    pub(crate) fn card<T: DeserializeOwned>(&self, key: &str) -> Option<Result<T, BadCard>> {
        self.get(key).map(|entry| cards::read(&entry.value))
    }

    pub(crate) fn below<'a>(&'a self, prefix: &'a str) -> impl Iterator<Item = (&'a str, &'a Entry)> {
        self.entries
            .range(prefix.to_owned()..)
            .take_while(move |(key, _)| key.starts_with(prefix))
            .map(move |(key, entry)| (key.strip_prefix(prefix).unwrap_or(key), entry))
    }

    /// The members whose cards can be read, by name.
    pub(crate) fn members(&self) -> BTreeMap<String, Member> {
        let read = |(name, entry): (&str, &Entry)| Some((name.to_owned(), cards::read(&entry.value).ok()?));
        self.below(keys::MEMBERS).filter_map(read).collect()
    }

    /// The state that a card names; `None`: parts of it are not there.
    pub(crate) fn state(&self, card: &StateCard) -> Option<Result<SavedState, String>> {
        let prefix = keys::documents(&document_name(card.document));
        let parts: Vec<&[u8]> = self.below(&prefix).map(|(_, entry)| entry.value.as_slice()).collect();
        (parts.len() == card.parts).then(|| documents::read(parts.into_iter()))
    }

    /// A transaction.
    pub(crate) fn ask(
        &mut self,
        last: &mut Ticket,
        purpose: Purpose,
        conditions: Vec<Condition>,
        writes: Vec<Write>,
    ) -> Request {
        let ticket = self.ticket(last, purpose);
        Request::Transaction { ticket, conditions, writes }
    }

    pub(crate) fn read(&mut self, last: &mut Ticket, purpose: Purpose, prefix: String) -> Request {
        let ticket = self.ticket(last, purpose);
        Request::Read { ticket, prefix }
    }

    fn ticket(&mut self, last: &mut Ticket, purpose: Purpose) -> Ticket {
        last.0 += 1;
        self.asked.insert(*last, purpose);
        *last
    }

    /// What an answer is for. Answers to what was asked in another session are nobody's.
    pub(crate) fn answered(&mut self, ticket: Ticket, answer: Answer) -> Option<(Purpose, Answer)> {
        Some((self.asked.remove(&ticket)?, answer))
    }

    /// Whether something is asked for this, and not answered.
    pub(crate) fn waits_for(&self, purpose: &Purpose) -> bool {
        self.asked.values().any(|other| other == purpose)
    }
}

pub(crate) fn document_name(document: u64) -> String {
    format!("{document:016x}")
}
