//! The steps that every member of a fleet takes.

use std::{mem, sync::Arc, time::Instant};

use balancer_common::client_table::BUCKET_ENTRIES;
use balancer_config::words::grouped;
use balancer_control::state::{Clocks, Moment, SavedState};

use super::{
    Clients, LastChanges, Member, Output, Told, card::OwnCard, dumps::without_dump, lead::Leading, pauses::Errand,
};
use crate::{
    engine::{Answer, Condition, Entry, News, Write},
    keys, records,
    session::{Purpose, Session},
    store_schema::{self, Ballot, Common, Epoch, FORMAT, Line},
};

/// The number of clients for which a client table with this number of buckets is sized.
fn clients(buckets: u32) -> u64 {
    u64::from(buckets) * BUCKET_ENTRIES as u64
}

/// The maximum number of records that wait until the member applies their epoch, about 100 MB.
const MOST_EARLY: usize = if cfg!(test) { 500 } else { 4 << 20 };

impl Member {
    pub(super) fn hear(&mut self, news: News, clocks: Clocks, outputs: &mut Vec<Output>) {
        match news {
            News::Joined { revision, entries } => {
                self.join(Session::new(revision, entries), clocks.now, outputs);
                self.note_epoch(false, clocks);
                // The member ignores doubts at its start, because it checks all backends then anyway.
                let _ = self.new_doubts();
            }
            News::Changed { revision, put, deleted } => {
                self.note_time(&put, clocks);
                self.change(revision, put, &deleted, outputs);
                self.note_epoch(true, clocks);
                self.see_to_doubts(outputs);
            }
            News::Answered(ticket, answer) => {
                let answered = self.session.as_mut().and_then(|session| session.answered(ticket, answer));
                if let Some((purpose, answer)) = answered {
                    self.answered(purpose, answer, clocks.now, outputs);
                }
            }
            News::Lost { reason } => self.lose(&reason, outputs),
        }
    }

    fn join(&mut self, mut session: Session, now: Instant, outputs: &mut Vec<Output>) {
        self.fail_tallies(outputs);
        self.forget_session();
        self.joined = Some(now);
        let batches = session.take_below(keys::RECORDS);
        self.session = Some(session);
        self.hear_of_clients(&batches, outputs);
        self.tell_again();
        self.put_tally(outputs);
        outputs.push(Output::Log { warning: false, message: "etcd is reachable".to_owned() });
    }

    fn lose(&mut self, reason: &str, outputs: &mut Vec<Output>) {
        self.fail_tallies(outputs);
        self.forget_session();
        outputs.push(Output::Log { warning: true, message: format!("etcd is out of reach: {reason}") });
        if !self.alone {
            self.alone = true;
            outputs.push(Output::Alone(true));
        }
        self.change_requests.fail_all(outputs);
    }

    fn forget_session(&mut self) {
        self.session = None;
        self.refused = None;
        self.applying = None;
        self.failed = None;
        self.others.clear();
        self.prepared = None;
        self.telling = None;
        self.early.clear();
        self.clients = if self.settings.share_clients { Clients::Wanted } else { Clients::Known };
        #[cfg(test)]
        if self.makes(super::Mutation::JoinsWithoutClients) {
            self.clients = Clients::Known;
        }
        self.in_step = false;
        self.preparing = None;
        self.dumping.clear();
        self.dumps.clear();
        self.card = OwnCard::default();
        self.lead_denial = None;
        self.pauses.clear();
        self.leading = Leading::No;
    }

    fn change(
        &mut self,
        revision: crate::engine::Revision,
        put: Vec<Entry>,
        deleted: &[String],
        outputs: &mut Vec<Output>,
    ) {
        let Some(session) = &mut self.session else { return };
        let (batches, put): (Vec<Entry>, Vec<Entry>) =
            put.into_iter().partition(|entry| entry.key.starts_with(keys::RECORDS));
        session.change(revision, put, deleted);
        self.hear_of_clients(&batches, outputs);
    }

    /// Imports the clients that other members have sent, once this member has applied the epoch of those records.
    fn hear_of_clients(&mut self, batches: &[Entry], outputs: &mut Vec<Output>) {
        if !self.settings.share_clients {
            return;
        }
        // Records that an earlier process with this member's name sent are imported like records of other members.
        let own = format!("{}{}/", keys::RECORDS, self.asker());
        for batch in batches.iter().filter(|batch| !batch.key.starts_with(&own)) {
            self.take_over(batch, outputs);
        }
        if self.clients != Clients::Read && self.early.iter().map(|told| told.records.len()).sum::<usize>() > MOST_EARLY
        {
            self.ask_for_clients_again(outputs);
        }
    }

    /// Discards the records of an epoch that this member does not apply, because the member may never apply this epoch.
    fn ask_for_clients_again(&mut self, outputs: &mut Vec<Output>) {
        let Some(session) = &mut self.session else { return };
        let writes = without_dump(&self.settings.name).into();
        outputs.push(Output::Ask(session.ask(&mut self.last_ticket, Purpose::Other, Vec::new(), writes)));
        self.early.clear();
        self.clients = Clients::Wanted;
        self.in_step = false;
        let message = "too many client records came before this member could apply the fleet's epoch: it asks for \
                       them again afterwards";
        outputs.push(Output::Log { warning: true, message: message.to_owned() });
    }

    pub(super) fn take_over(&mut self, batch: &Entry, outputs: &mut Vec<Output>) {
        match records::read(&batch.value) {
            Ok(records) => {
                let asker = batch.key.strip_prefix(keys::RECORDS).and_then(|key| key.split('/').next());
                let precedes = asker.is_some_and(|asker| *asker < *self.asker());
                self.early.push(Told { records, precedes });
            }
            Err(err) => {
                let message = format!("client records in {} are ignored: {err}", batch.key);
                outputs.push(Output::Log { warning: true, message });
            }
        }
    }

    fn import(&mut self, outputs: &mut Vec<Output>) {
        let Some(session) = &self.session else { return };
        let holds = session.holding();
        if !self.early.is_empty() && holds.is_some() && holds == self.epoch() {
            let import = |told| Output::Import { told, emptied: Arc::clone(&self.emptied) };
            outputs.extend(mem::take(&mut self.early).into_iter().map(import));
        }
        if self.clients == Clients::Read && self.early.is_empty() {
            outputs.push(Output::Confirm);
            self.clients = Clients::Known;
        }
    }

    fn answered(&mut self, purpose: Purpose, answer: Answer, now: Instant, outputs: &mut Vec<Output>) {
        if matches!((&purpose, &answer), (Purpose::Records(_) | Purpose::Dump | Purpose::Tally, Answer::Denied(_))) {
            // The card is written again to find out whether the engine refuses all further writes of this member.
            self.card.probe();
        }
        if let (Purpose::Lead, Answer::Denied(why)) = (&purpose, &answer) {
            self.lead_is_denied(why, outputs);
        }
        let is_made = matches!(answer, Answer::Made(_));
        match (purpose, answer) {
            (Purpose::Records(number), _) => self.batch_answered(number, is_made, now),
            (Purpose::Forget(last), _) => self.batches_forgotten(last, is_made, now),
            (Purpose::Tally, Answer::Denied(_) | Answer::Unknown(_)) => self.tally_is_told = false,
            (Purpose::Card, answer) => self.card_answered(answer, now, outputs),
            (Purpose::Campaign | Purpose::Barrier, Answer::Made(revision)) => self.leading.elected(revision),
            (Purpose::Campaign | Purpose::Barrier, Answer::Refused) => self.leading = Leading::No,
            (Purpose::Campaign, Answer::Denied(_) | Answer::Unknown(_)) => {
                self.pauses.failed(Errand::Lead, now);
                self.leading = Leading::No;
            }
            (Purpose::Lead, Answer::Made(revision)) => {
                self.pauses.succeeded(Errand::Lead);
                self.lead_denial = None;
                self.leading.has_written(revision);
            }
            (Purpose::Barrier, Answer::Denied(_) | Answer::Unknown(_))
            | (Purpose::Lead, Answer::Refused | Answer::Denied(_) | Answer::Unknown(_)) => {
                self.pauses.failed(Errand::Lead, now);
                self.leading = Leading::Doubts;
            }
            (Purpose::ChangeRequest(id), answer) => self.wish_answered(id, answer, now, outputs),
            (Purpose::Clients, Answer::Read(entries)) => self.read_clients(&entries, now, outputs),
            (Purpose::Clients, Answer::Refused | Answer::Denied(_) | Answer::Unknown(_) | Answer::Made(_)) => {
                self.pauses.failed(Errand::Clients, now);
                if self.clients == Clients::Reading {
                    self.clients = Clients::Wanted;
                }
            }
            (Purpose::Tallies(id), answer) => outputs.push(super::tallies::answer(id, answer)),
            (Purpose::Common, Answer::Denied(_) | Answer::Unknown(_)) => self.pauses.failed(Errand::Common, now),
            (Purpose::Orphans, Answer::Denied(_) | Answer::Unknown(_)) => self.pauses.failed(Errand::Orphans, now),
            (Purpose::Orphans, Answer::Made(_)) => self.pauses.succeeded(Errand::Orphans),
            (
                Purpose::Common
                | Purpose::Orphans
                | Purpose::Tally
                | Purpose::Dump
                | Purpose::Other
                | Purpose::Campaign
                | Purpose::Barrier
                | Purpose::Lead,
                _,
            ) => {}
        }
    }

    /// Handles the case that the engine does not write this leader's decisions, although it may still write the
    /// leader's card.
    fn lead_is_denied(&mut self, why: &str, outputs: &mut Vec<Output>) {
        if self.lead_denial.as_deref() != Some(why) {
            let message = format!("the decisions of this balancer for the fleet are not written: {why}");
            outputs.push(Output::Log { warning: true, message });
        }
        self.lead_denial = Some(why.to_owned());
    }

    /// Takes every step that follows from the known facts.
    pub(super) fn step(&mut self, clocks: Clocks, outputs: &mut Vec<Output>) {
        if self.session.is_none() {
            return;
        }
        self.see_to_denial(clocks.now, outputs);
        if self.has_in_common(clocks.now, outputs) {
            self.apply(clocks, outputs);
            self.import(outputs);
            self.tell(clocks.now, outputs);
            self.put_batches(clocks.now, outputs);
            self.learn_clients(clocks.now, outputs);
            self.dump(clocks.now, outputs);
            self.put_dumps(outputs);
            self.lead(clocks, outputs);
            self.is_in_step_now(clocks, outputs);
            self.compare(outputs);
            self.compare_clocks(outputs);
        }
        self.answer_wishes(clocks.now, outputs);
        self.write_card(clocks, outputs);
    }

    /// Whether this member has the settings that all members must share, and which the first member defines.
    fn has_in_common(&mut self, now: Instant, outputs: &mut Vec<Output>) -> bool {
        let taken = self.name_is_taken();
        let Some(session) = &mut self.session else { return false };
        let settings = &self.settings;
        let common = match session.common().cloned() {
            None => {
                if !session.waits_for(&Purpose::Common) && !self.pauses.hold(Errand::Common, now) {
                    let common =
                        Common { format: FORMAT, buckets: settings.buckets, key: self.key.unwrap_or(settings.key) };
                    let put = Write::put(keys::FLEET, store_schema::write(&common), false);
                    let absent = Condition::Absent(keys::FLEET.to_owned());
                    outputs.push(Output::Ask(session.ask(
                        &mut self.last_ticket,
                        Purpose::Common,
                        vec![absent],
                        vec![put],
                    )));
                }
                return false;
            }
            Some(common) => common,
        };
        let why_not = match common {
            Err(err) => Some(format!("{} in the store {err}", keys::FLEET)),
            Ok(_) if taken.is_some() => taken,
            Ok(common) if common.buckets != settings.buckets => Some(format!(
                "the fleet's client tables have room for {} clients, this one's for {}: set client_table.capacity to {}",
                grouped(clients(common.buckets)),
                grouped(clients(settings.buckets)),
                clients(common.buckets)
            )),
            Ok(common) if settings.key_is_configured && common.key != settings.key => {
                Some("the fleet has another hash key: set hash.key to the fleet's, or leave it out".to_owned())
            }
            Ok(common) if self.key.is_some_and(|key| key != common.key) => {
                Some("the fleet's hash key has changed: restart this balancer".to_owned())
            }
            Ok(common) => {
                if self.key.replace(common.key).is_none() {
                    outputs.push(Output::Key(common.key));
                }
                None
            }
        };
        if let Some(why) = &why_not
            && self.refused.as_ref() != Some(why)
        {
            outputs.push(Output::Log { warning: true, message: format!("not a member of the fleet: {why}") });
        }
        self.refused = why_not;
        self.refused.is_none()
    }

    /// Applies the current epoch.
    fn apply(&mut self, clocks: Clocks, outputs: &mut Vec<Output>) {
        let Some(session) = &self.session else { return };
        let Some(card) = session.epoch() else { return };
        let card = match card {
            Ok(card) => card,
            Err(err) => {
                let nowhere = Epoch { lineage: 0, number: 0 };
                let why = err.to_string();
                return self.cannot_apply(nowhere, why, outputs);
            }
        };
        if *self.emptied != card.emptied {
            self.emptied = Arc::new(card.emptied.clone());
        }
        let tried = self.failed.as_ref().is_some_and(|(epoch, _)| *epoch == card.epoch);
        let again = self.partial.is_to_be_tried_again(clocks.now);
        if self.epoch() == Some(card.epoch) && !again || self.applying.is_some() || tried {
            return;
        }
        let (epoch, at) = (card.epoch, card.at);
        match session.state_as_far(card) {
            None => {}
            Some(Err(why)) => self.cannot_apply(epoch, why, outputs),
            Some(Ok(read)) => {
                let before = self.applied.as_ref().map(|(_, state, _)| state);
                let state = self.partial.begin(epoch, read, before, self.room.as_ref(), clocks.now);
                let lines = if self.epoch() == Some(epoch) { Vec::new() } else { card.lines.clone() };
                let as_of = self.as_of(epoch, at, &card.by, clocks);
                let since = |moment: Moment| at.0.saturating_sub(moment.0);
                let changed = LastChanges { any: card.changed.map(since), file: card.file.or(card.changed).map(since) };
                self.follow((epoch, state, at), (as_of, changed, lines), clocks, outputs);
            }
        }
    }

    fn cannot_apply(&mut self, epoch: Epoch, why: String, outputs: &mut Vec<Output>) {
        let news = Some((epoch, why.clone()));
        if self.failed != news {
            let message = format!("epoch {} of the fleet is not applied: {why}", epoch.number);
            outputs.push(Output::Log { warning: true, message });
        }
        self.failed = news;
    }

    pub(super) fn has_applied(&mut self, epoch: Epoch, result: Result<Ballot, String>, outputs: &mut Vec<Output>) {
        if self.applying != Some(epoch) {
            return;
        }
        self.applying = None;
        let incoming = self.incoming.take();
        match result {
            Ok(ballot) => {
                // The ballot belongs to this epoch: with an earlier ballot, the card would report new backends as up.
                self.ballot = ballot;
                self.failed = None;
                self.applied = incoming;
                outputs.extend(self.partial.has_applied());
                // The other members know the records sent before this epoch, so this member sends only newer records
                // from now on.
                self.told = None;
            }
            // The next step applies everything that has not changed.
            Err(why) if self.partial.is_refused(epoch, &why) => {}
            Err(why) => self.cannot_apply(epoch, why, outputs),
        }
    }

    /// Whether the member applies the current epoch and knows all clients. The member then stays in step until the
    /// session ends, because the session delivers all later changes.
    fn is_in_step_now(&mut self, clocks: Clocks, outputs: &mut Vec<Output>) {
        let Some(session) = &self.session else { return };
        let holds = session.holding();
        if holds.is_some() && holds == self.epoch() && self.clients == Clients::Known {
            self.in_step = true;
            self.been_in_step = true;
        }
        if self.in_step && self.alone && self.card.since().is_some_and(|since| since + Self::HOLDS <= clocks.now) {
            self.alone = false;
            outputs.push(Output::Alone(false));
            self.follow_again(clocks, outputs);
        }
    }

    /// Discards the decisions that the member made while it was alone.
    fn follow_again(&mut self, clocks: Clocks, outputs: &mut Vec<Output>) {
        let (Some(applied), None) = (self.applied.clone(), self.applying) else { return };
        let by = self.session.as_ref().and_then(|session| session.epoch()?.as_ref().ok()).map(|card| card.by.clone());
        let as_of = self.as_of(applied.0, applied.2, &by.unwrap_or_default(), clocks);
        self.partial.begin_again();
        self.follow(applied, (as_of, LastChanges::default(), Vec::new()), clocks, outputs);
    }

    fn follow(
        &mut self,
        (epoch, state, at): (Epoch, SavedState, Moment),
        (as_of, changed, lines): (Clocks, LastChanges, Vec<Line>),
        clocks: Clocks,
        outputs: &mut Vec<Output>,
    ) {
        self.applying = Some(epoch);
        self.incoming = Some((epoch, state.clone(), at));
        let age = clocks.now.saturating_duration_since(as_of.now);
        let changed = changed.later(age);
        let whole = self.partial.begins_whole();
        outputs.push(Output::Follow { epoch, state: Box::new(state), at, age, changed, whole, lines });
    }
}
