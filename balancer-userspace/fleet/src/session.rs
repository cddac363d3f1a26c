//! A session with the engine: a copy of the store, and the pending requests.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
};

use serde::de::DeserializeOwned;

use crate::{
    documents,
    engine::{Answer, Condition, Entry, Request, Revision, Ticket, Write},
    keys,
    store_schema::{self, BadCard, Common, Epoch, Member, StateCard},
};
use balancer_control::{as_far::ReadState, state::SavedState};

/// The purpose of a request to the engine, which decides what the member does with the answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Purpose {
    /// Reading or writing the settings that all members share.
    Common,
    /// Writing the member's own card.
    Card,
    /// Requesting to become the leader.
    Campaign,
    /// Learning that all earlier requests have ended.
    Barrier,
    /// Writing as the leader.
    Lead,
    /// Writing the change request with this number, for a user.
    ChangeRequest(u64),
    /// Deleting keys for which no member waits.
    Orphans,
    /// Writing the batch of records with this number.
    Records(u64),
    /// Deleting the batches of records up to this number.
    Forget(u64),
    /// Writing a part of a dump for another member.
    Dump,
    /// Storing this member's counters.
    Tally,
    /// Making a request whose outcome does not matter.
    Other,
    /// Reading the clients that another member has dumped for this member.
    Clients,
    /// Reading the members' counters, for the request with this number.
    Tallies(u64),
}

/// The state of a session: see the [module](self).
#[derive(Debug, Default)]
pub(crate) struct Session {
    entries: BTreeMap<String, Entry>,
    /// The members whose cards are readable, by name.
    members: Arc<BTreeMap<String, Member>>,
    /// The cards that are used frequently, parsed on arrival.
    common: Option<Result<Common, BadCard>>,
    epoch: Option<Result<StateCard, BadCard>>,
    next: Option<Result<StateCard, BadCard>>,
    revision: Revision,
    asked: HashMap<Ticket, Purpose>,
}

impl Session {
    pub(crate) fn new(revision: Revision, entries: Vec<Entry>) -> Self {
        let mut session = Self::default();
        session.change(revision, entries, &[]);
        session
    }

    /// The revision up to which the session has received all changes.
    pub(crate) const fn revision(&self) -> Revision {
        self.revision
    }

    pub(crate) fn change(&mut self, revision: Revision, put: Vec<Entry>, deleted: &[String]) {
        self.revision = revision;
        for key in deleted {
            self.entries.remove(key);
            self.note_card(key, None);
        }
        for entry in put {
            self.note_card(&entry.key, Some(&entry.value));
            self.entries.insert(entry.key.clone(), entry);
        }
    }

    fn note_card(&mut self, key: &str, card: Option<&[u8]>) {
        match key {
            keys::FLEET => self.common = card.map(store_schema::read),
            keys::EPOCH => self.epoch = card.map(StateCard::read),
            keys::NEXT => self.next = card.map(StateCard::read),
            _ => self.note_member(key, card),
        }
    }

    fn note_member(&mut self, key: &str, card: Option<&[u8]>) {
        let Some(name) = key.strip_prefix(keys::MEMBERS) else { return };
        let members = Arc::make_mut(&mut self.members);
        match card.and_then(|card| store_schema::read(card).ok()) {
            Some(card) => drop(members.insert(name.to_owned(), card)),
            None => drop(members.remove(name)),
        }
    }

    /// Removes and returns the entries below `prefix`, which the member needs only once.
    pub(crate) fn take_below(&mut self, prefix: &str) -> Vec<Entry> {
        let keys: Vec<String> = self.below(prefix).map(|(_, entry)| entry.key.clone()).collect();
        keys.into_iter().filter_map(|key| self.entries.remove(&key)).collect()
    }

    pub(crate) fn get(&self, key: &str) -> Option<&Entry> {
        self.entries.get(key)
    }

    /// Returns the settings that all members must share, if the store contains them.
    pub(crate) const fn common(&self) -> Option<&Result<Common, BadCard>> {
        self.common.as_ref()
    }

    /// The card of the current state, as read from the store; `None` if the store has no such card.
    pub(crate) const fn epoch(&self) -> Option<&Result<StateCard, BadCard>> {
        self.epoch.as_ref()
    }

    /// The current epoch, if the card of the current state is readable.
    pub(crate) fn holding(&self) -> Option<Epoch> {
        Some(self.epoch()?.as_ref().ok()?.epoch)
    }

    /// The card of the state in preparation, if the card is readable.
    pub(crate) fn next(&self) -> Option<&StateCard> {
        self.next.as_ref()?.as_ref().ok()
    }

    /// Returns the content of a card, or the reason why the card is unusable.
    pub(crate) fn card<T: DeserializeOwned>(&self, key: &str) -> Option<Result<T, BadCard>> {
        self.get(key).map(|entry| store_schema::read(&entry.value))
    }

    pub(crate) fn below<'a>(&'a self, prefix: &'a str) -> impl Iterator<Item = (&'a str, &'a Entry)> {
        self.entries
            .range(prefix.to_owned()..)
            .take_while(move |(key, _)| key.starts_with(prefix))
            .map(move |(key, entry)| (key.strip_prefix(prefix).unwrap_or(key), entry))
    }

    /// The members whose cards are readable, by name.
    pub(crate) fn members(&self) -> Arc<BTreeMap<String, Member>> {
        Arc::clone(&self.members)
    }

    /// The state that a card names, read from its document; `None` if parts of the state are missing.
    pub(crate) fn state(&self, card: &StateCard) -> Option<Result<SavedState, String>> {
        self.document(card, |parts| documents::read(parts.into_iter()))
    }

    /// Returns the content of a state's document as far as this member understands it.
    pub(crate) fn state_as_far(&self, card: &StateCard) -> Option<Result<ReadState, String>> {
        self.document(card, |parts| documents::read_as_far(parts.into_iter()))
    }

    /// Reads the parts of a state's document, once all are there.
    fn document<T>(&self, card: &StateCard, read: impl FnOnce(Vec<&[u8]>) -> T) -> Option<T> {
        let prefix = keys::documents(&document_name(card.document));
        let parts: Vec<&[u8]> = self.below(&prefix).map(|(_, entry)| entry.value.as_slice()).collect();
        (parts.len() == card.parts).then(|| read(parts))
    }

    /// Sends a transaction to the engine.
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

    /// Returns the answer together with the purpose of the request that it answers; `None` if the answer belongs to
    /// another session.
    pub(crate) fn answered(&mut self, ticket: Ticket, answer: Answer) -> Option<(Purpose, Answer)> {
        Some((self.asked.remove(&ticket)?, answer))
    }

    /// Returns the numbers of the requests that wait for the members' counters.
    pub(crate) fn who_wait_for_tallies(&self) -> impl Iterator<Item = u64> {
        self.asked.values().filter_map(|purpose| if let Purpose::Tallies(id) = purpose { Some(*id) } else { None })
    }

    /// The number of pending requests whose purpose satisfies `is`.
    pub(crate) fn under_way(&self, is: impl Fn(&Purpose) -> bool) -> usize {
        self.asked.values().filter(|purpose| is(purpose)).count()
    }

    /// Whether a request with this purpose is pending.
    pub(crate) fn waits_for(&self, purpose: &Purpose) -> bool {
        self.asked.values().any(|other| other == purpose)
    }
}

pub(crate) fn document_name(document: u64) -> String {
    format!("{document:016x}")
}
