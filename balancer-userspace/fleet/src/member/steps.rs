//! What every member does.

use std::{mem, sync::Arc, time::Instant};

use balancer_core::state::{Clocks, Moment, SavedState};

use super::{Batch, Clients, Member, Output, Told, lead::Leading};
use crate::{
    cards::{self, Ballot, Common, Dump, Epoch, FORMAT, Line, Member as Card},
    engine::{Answer, Condition, Entry, News, Write},
    keys, records,
    session::{Purpose, Session},
};

/// Records that wait for their epoch at most: some 100 MB.
const MOST_EARLY: usize = if cfg!(test) { 500 } else { 4 << 20 };

impl Member {
    pub(super) fn hear(&mut self, news: News, clocks: Clocks, outputs: &mut Vec<Output>) {
        match news {
            News::Joined { revision, entries } => self.join(Session::new(revision, entries), clocks.now, outputs),
            News::Changed { revision, put, deleted } => self.change(revision, put, &deleted, outputs),
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
        self.tell_again(outputs);
        self.put_tally(outputs);
        outputs.push(Output::Log { warning: false, message: "the fleet's engine is reached".to_owned() });
    }

    fn lose(&mut self, reason: &str, outputs: &mut Vec<Output>) {
        self.fail_tallies(outputs);
        self.forget_session();
        outputs.push(Output::Log { warning: true, message: format!("the fleet's engine is out of reach: {reason}") });
        if !self.alone {
            self.alone = true;
            outputs.push(Output::Alone(true));
        }
        self.wishes.fail_all(outputs);
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
        self.dumping.clear();
        self.written = None;
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

    /// Takes over what others tell, once the epoch that they speak of is applied.
    fn hear_of_clients(&mut self, batches: &[Entry], outputs: &mut Vec<Output>) {
        if !self.settings.share_clients {
            return;
        }
        // Those of a process before of this name are news.
        let own = format!("{}{}/", keys::RECORDS, self.asker());
        for batch in batches.iter().filter(|batch| !batch.key.starts_with(&own)) {
            self.take_over(batch, outputs);
        }
        if self.clients != Clients::Read && self.early.iter().map(|told| told.records.len()).sum::<usize>() > MOST_EARLY
        {
            self.ask_for_clients_again(outputs);
        }
    }

    /// Forgets what was told for an epoch that is not applied here, as nobody knows when it will be.
    fn ask_for_clients_again(&mut self, outputs: &mut Vec<Output>) {
        let Some(session) = &mut self.session else { return };
        let writes = without_dump(&self.settings.name).into();
        outputs.push(Output::Ask(session.ask(&mut self.last_ticket, Purpose::Other, Vec::new(), writes)));
        self.early.clear();
        self.clients = Clients::Wanted;
        self.in_step = false;
        let message = "too much was told of clients while the fleet's epoch is not applied here: \
                       they are asked for again once it is";
        outputs.push(Output::Log { warning: true, message: message.to_owned() });
    }

    fn take_over(&mut self, batch: &Entry, outputs: &mut Vec<Output>) {
        match records::read(&batch.value) {
            Ok(records) => {
                let asker = batch.key.strip_prefix(keys::RECORDS).and_then(|key| key.split('/').next());
                let precedes = asker.is_some_and(|asker| *asker < *self.asker());
                self.early.push(Told { records, precedes });
            }
            Err(err) => {
                let message = format!("clients told at {} are not taken over: {err}", batch.key);
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
        match (purpose, answer) {
            (Purpose::Records(number), Answer::Made(_)) => {
                for batch in self.batches.iter_mut().filter(|batch| batch.number == number) {
                    batch.kept.get_or_insert(now);
                }
            }
            (Purpose::Records(number), Answer::Unknown(_) | Answer::Refused | Answer::Read(_)) => {
                // Told again: to hear of a client twice is harmless.
                if let Some(index) = self.batches.iter().position(|batch| batch.number == number) {
                    self.put_batch(index, outputs);
                }
            }
            (Purpose::Card, Answer::Refused | Answer::Unknown(_)) => self.written = None,
            (Purpose::Campaign | Purpose::Barrier, Answer::Made(revision)) => self.leading.elected(revision),
            (Purpose::Campaign | Purpose::Barrier, Answer::Refused) => self.leading = Leading::No,
            (Purpose::Campaign, Answer::Unknown(_)) => self.leading = Leading::No,
            (Purpose::Barrier, Answer::Unknown(_)) => self.leading = Leading::Doubts,
            (Purpose::Lead, Answer::Made(revision)) => self.leading.has_written(revision),
            (Purpose::Lead, Answer::Refused | Answer::Unknown(_)) => self.leading = Leading::Doubts,
            (Purpose::Wish(id), Answer::Unknown(_)) => self.wish_again(id, outputs),
            (Purpose::Clients, Answer::Read(entries)) => self.read_clients(&entries, outputs),
            (Purpose::Clients, Answer::Refused | Answer::Unknown(_) | Answer::Made(_)) => {
                if self.clients == Clients::Reading {
                    self.clients = Clients::Wanted;
                }
            }
            (Purpose::Tallies(id), answer) => outputs.push(super::tallies::answer(id, answer)),
            (
                Purpose::Common
                | Purpose::Card
                | Purpose::Orphans
                | Purpose::Other
                | Purpose::Campaign
                | Purpose::Barrier
                | Purpose::Lead
                | Purpose::Wish(_),
                _,
            ) => {}
        }
    }

    /// Does what follows from all that is known.
    pub(super) fn step(&mut self, clocks: Clocks, outputs: &mut Vec<Output>) {
        if self.session.is_none() {
            return;
        }
        if self.has_in_common(outputs) {
            self.apply(outputs);
            self.import(outputs);
            self.tell(clocks.now, outputs);
            self.learn_clients(outputs);
            self.dump(clocks.now, outputs);
            self.lead(clocks, outputs);
            self.is_in_step_now(clocks.now, outputs);
            self.compare(outputs);
        }
        self.answer_wishes(clocks.now, outputs);
        self.write_card(outputs);
    }

    /// Whether this member and the fleet have in common what they must; the first member says what that is.
    fn has_in_common(&mut self, outputs: &mut Vec<Output>) -> bool {
        let Some(session) = &mut self.session else { return false };
        let settings = &self.settings;
        let common = match session.common().cloned() {
            None => {
                if !session.waits_for(&Purpose::Common) {
                    let common =
                        Common { format: FORMAT, buckets: settings.buckets, key: self.key.unwrap_or(settings.key) };
                    let put = put(keys::FLEET, cards::write(&common), false);
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
            Ok(common) if common.buckets != settings.buckets => Some(format!(
                "the fleet's client tables have {} buckets, this one's has {}: set client_table.capacity to the fleet's",
                common.buckets, settings.buckets
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

    /// Brings itself to the epoch that holds.
    fn apply(&mut self, outputs: &mut Vec<Output>) {
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
        if self.epoch() == Some(card.epoch) || self.applying.is_some() || tried {
            return;
        }
        let (epoch, at) = (card.epoch, card.at);
        match session.state(card) {
            None => {}
            Some(Err(why)) => self.cannot_apply(epoch, why, outputs),
            Some(Ok(state)) => {
                let lines = card.lines.clone();
                self.follow((epoch, state, at), lines, outputs);
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
                // On one card with the epoch: a ballot from before would say of new backends that they are up.
                self.ballot = ballot;
                self.failed = None;
                self.applied = incoming;
                // What was told before this epoch is known; what came meanwhile is told now.
                self.told = None;
            }
            Err(why) => self.cannot_apply(epoch, why, outputs),
        }
    }

    /// Has clients told of: for a state that is prepared at once, otherwise every second.
    fn tell(&mut self, now: Instant, outputs: &mut Vec<Output>) {
        let Some(session) = &mut self.session else { return };
        if self.telling.is_some() || self.applied.is_none() || self.applying.is_some() {
            return;
        }
        let next = session.next();
        #[cfg(test)]
        if next.is_none() && self.mutation == Some(super::Mutation::TellsNothingByItself) {
            return;
        }
        match next.filter(|next| self.prepared != Some(next.document)) {
            Some(next) => {
                let Some(state) = session.state(next) else { return };
                // One that cannot be read cannot be applied either; nobody waits for it here.
                let state = state.ok().map(|state| (Box::new(state), next.at));
                let document = Some(next.document);
                self.telling = Some(document);
                outputs.push(Output::Tell { document, state });
            }
            None if self.settings.share_clients && self.told.is_none_or(|told| told + Self::TELLS_EVERY <= now) => {
                self.telling = Some(None);
                outputs.push(Output::Tell { document: None, state: None });
            }
            None => {}
        }
        let asker = keys::asker(&self.settings.name, self.settings.instance);
        let is_old = |batch: &Batch| batch.kept.is_some_and(|kept| kept + Self::BATCH_STAYS <= now);
        while self.batches.front().is_some_and(is_old)
            && let Some(batch) = self.batches.pop_front()
        {
            let delete = Write::Delete(keys::records(&asker, batch.number));
            outputs.push(Output::Ask(session.ask(&mut self.last_ticket, Purpose::Other, Vec::new(), vec![delete])));
        }
    }

    pub(super) fn has_told(
        &mut self,
        document: Option<u64>,
        batches: Vec<Vec<u8>>,
        now: Instant,
        outputs: &mut Vec<Output>,
    ) {
        if self.telling.take() != Some(document) {
            return;
        }
        self.told = Some(now);
        for value in batches {
            self.last_batch += 1;
            self.batches.push_back(Batch { number: self.last_batch, value, kept: None });
            self.put_batch(self.batches.len() - 1, outputs);
        }
        if document.is_some() {
            // On the card, which is written after the batches.
            self.prepared = document;
        }
    }

    /// This process of the member, in keys.
    pub(super) fn asker(&self) -> String {
        keys::asker(&self.settings.name, self.settings.instance)
    }

    fn put_batch(&mut self, index: usize, outputs: &mut Vec<Output>) {
        let asker = self.asker();
        let (Some(session), Some(batch)) = (&mut self.session, self.batches.get(index)) else { return };
        let put = put(&keys::records(&asker, batch.number), batch.value.clone(), true);
        let purpose = Purpose::Records(batch.number);
        outputs.push(Output::Ask(session.ask(&mut self.last_ticket, purpose, Vec::new(), vec![put])));
    }

    /// What was told last may have reached nobody before the session ended, and has vanished with it.
    fn tell_again(&mut self, outputs: &mut Vec<Output>) {
        for index in 0..self.batches.len() {
            self.put_batch(index, outputs);
        }
    }

    /// Takes over the clients that were dumped for it.
    fn learn_clients(&mut self, outputs: &mut Vec<Output>) {
        let Some(session) = &mut self.session else { return };
        let asks = self.applied.is_some() && self.applying.is_none() && !session.waits_for(&Purpose::Clients);
        if self.clients != Clients::Wanted || !asks {
            return;
        }
        let dump = session.card::<Dump>(&keys::dump(&self.settings.name)).and_then(Result::ok);
        if dump.is_some_and(|dump| dump.instance == self.settings.instance) {
            self.clients = Clients::Reading;
            let prefix = keys::dump_parts(&self.settings.name);
            outputs.push(Output::Ask(session.read(&mut self.last_ticket, Purpose::Clients, prefix)));
            return;
        }
        // Nobody knows more than the leader, if nobody is in step.
        let somebody = session.members().values().any(|member| member.in_step);
        if !somebody && matches!(self.leading, Leading::Leads(_)) {
            self.clients = Clients::Known;
        }
    }

    fn read_clients(&mut self, entries: &[Entry], outputs: &mut Vec<Output>) {
        let Some(session) = self.session.as_mut().filter(|_| self.clients == Clients::Reading) else { return };
        let name = &self.settings.name;
        let dump = session.card::<Dump>(&keys::dump(name)).and_then(Result::ok);
        if dump.is_none_or(|dump| dump.instance != self.settings.instance || dump.parts != entries.len()) {
            // Another one is made.
            self.clients = Clients::Wanted;
            let delete = vec![Write::Delete(keys::dump(name))];
            outputs.push(Output::Ask(session.ask(&mut self.last_ticket, Purpose::Other, Vec::new(), delete)));
            return;
        }
        // Whoever dumps may have come later than what was told before: only what is in the dump is known to others.
        outputs.push(Output::Doubt);
        for entry in entries {
            self.take_over(entry, outputs);
        }
        let Some(session) = &mut self.session else { return };
        self.clients = Clients::Read;
        let writes = without_dump(&self.settings.name).into();
        outputs.push(Output::Ask(session.ask(&mut self.last_ticket, Purpose::Other, Vec::new(), writes)));
    }

    /// Dumps its clients for members that join, if it is the first in step.
    fn dump(&mut self, now: Instant, outputs: &mut Vec<Output>) {
        let Some(session) = &self.session else { return };
        if !self.in_step {
            return;
        }
        let members = session.members();
        let first = members.iter().find(|(_, member)| member.in_step).map(|(name, _)| name);
        self.dumping.retain(|name, (instance, since)| {
            let wants = |member: &Card| member.instance == *instance && member.wants_clients;
            members.get(name).is_some_and(wants) && *since + Self::DUMP_TAKES > now
        });
        if first != Some(&self.settings.name) {
            return;
        }
        let needless = session.below(keys::DUMPS).filter(|(name, entry)| {
            let member = members.get(*name).filter(|member| !member.in_step);
            let dump = cards::read::<Dump>(&entry.value).ok();
            member.zip(dump).is_none_or(|(member, dump)| member.instance != dump.instance)
        });
        let needless: Vec<Write> = needless.take(10).flat_map(|(name, _)| without_dump(name)).collect();
        for (name, member) in members.iter().filter(|(_, member)| member.wants_clients) {
            let there = session.card::<Dump>(&keys::dump(name)).and_then(Result::ok);
            let is_there = there.is_some_and(|dump| dump.instance == member.instance);
            if !is_there && !self.dumping.contains_key(name) {
                self.dumping.insert(name.clone(), (member.instance, now));
                outputs.push(Output::Dump { to: name.clone(), instance: member.instance });
            }
        }
        let Some(session) = &mut self.session else { return };
        if !needless.is_empty() && !session.waits_for(&Purpose::Orphans) {
            outputs.push(Output::Ask(session.ask(&mut self.last_ticket, Purpose::Orphans, Vec::new(), needless)));
        }
    }

    pub(super) fn has_dumped(&mut self, to: &str, instance: u64, batches: Vec<Vec<u8>>, outputs: &mut Vec<Output>) {
        let Some(session) =
            self.session.as_mut().filter(|_| self.dumping.get(to).is_some_and(|(of, _)| *of == instance))
        else {
            return;
        };
        let parts = batches.len();
        for (part, batch) in batches.into_iter().enumerate() {
            let put = put(&format!("{}{part:06}", keys::dump_parts(to)), batch, true);
            outputs.push(Output::Ask(session.ask(&mut self.last_ticket, Purpose::Other, Vec::new(), vec![put])));
        }
        let put = put(&keys::dump(to), cards::write(&Dump { format: FORMAT, instance, parts }), true);
        outputs.push(Output::Ask(session.ask(&mut self.last_ticket, Purpose::Other, Vec::new(), vec![put])));
    }

    /// Whether it has the epoch that holds and everybody's clients. Once it has, it stays in step while the session
    /// lasts: it is told everything that comes.
    fn is_in_step_now(&mut self, now: Instant, outputs: &mut Vec<Output>) {
        let Some(session) = &self.session else { return };
        let holds = session.holding();
        if holds.is_some() && holds == self.epoch() && self.clients == Clients::Known {
            self.in_step = true;
            self.been_in_step = true;
        }
        if self.in_step && self.alone && self.joined.is_some_and(|joined| joined + Self::HOLDS <= now) {
            self.alone = false;
            outputs.push(Output::Alone(false));
            self.follow_again(outputs);
        }
    }

    /// What it has decided for itself while it was alone is forgotten.
    fn follow_again(&mut self, outputs: &mut Vec<Output>) {
        let (Some(applied), None) = (self.applied.clone(), self.applying) else { return };
        self.follow(applied, Vec::new(), outputs);
    }

    fn follow(&mut self, (epoch, state, at): (Epoch, SavedState, Moment), lines: Vec<Line>, outputs: &mut Vec<Output>) {
        self.applying = Some(epoch);
        self.incoming = Some((epoch, state.clone(), at));
        outputs.push(Output::Follow { epoch, state: Box::new(state), at, lines });
    }

    fn write_card(&mut self, outputs: &mut Vec<Output>) {
        let card = Card {
            format: FORMAT,
            version: self.settings.version.clone(),
            steering: self.settings.steering,
            instance: self.settings.instance,
            epoch: self.epoch(),
            prepared: self.prepared,
            in_step: self.in_step,
            wants_clients: self.clients == Clients::Wanted && self.applied.is_some() && self.applying.is_none(),
            readiness: self.readiness.clone(),
            sweeps: self.sweeps,
            known: self.known.clone(),
            ballot: self.ballot.clone(),
        };
        let Some(session) = self.session.as_mut().filter(|_| self.refused.is_none()) else { return };
        if self.written.as_ref() == Some(&card) || session.waits_for(&Purpose::Card) {
            return;
        }
        #[cfg(not(test))]
        let leased = true;
        #[cfg(test)]
        let leased = self.mutation != Some(super::Mutation::StaysWithoutLease);
        let put = put(&keys::member(&self.settings.name), cards::write(&card), leased);
        outputs.push(Output::Ask(session.ask(&mut self.last_ticket, Purpose::Card, Vec::new(), vec![put])));
        self.written = Some(card);
    }
}

/// Takes away what was dumped for a member.
fn without_dump(name: &str) -> [Write; 2] {
    [Write::DeletePrefix(keys::dump_parts(name)), Write::Delete(keys::dump(name))]
}

pub(super) fn put(key: &str, value: Vec<u8>, leased: bool) -> Write {
    Write::Put { key: key.to_owned(), value, leased }
}
