//! What the leader does: one at a time decides what holds for all.
//!
//! The leader has two controllers: what is *committed*, and what is *decided*. What takes (a backend that most see down)
//! goes into both and is written at once. Everything else goes into the second alone; where that gives, it is prepared
//! first, and nothing more is decided until it is committed.

use std::{
    collections::{BTreeMap, HashMap, HashSet, VecDeque},
    mem,
    net::SocketAddr,
    time::Instant,
};

use balancer_core::{
    agreed::{Judgement, Opinion, Way},
    controller::Controller,
    health::Verdict,
    io::{BackendId, Command, Event, ReportLevel},
    service::{Backend, Service},
    state::{Clocks, Moment, SavedState},
};

use super::{Member, Output, steps::put};
use crate::{
    cards::{self, Answer, Epoch, FORMAT, Leader, Line, Member as Card, Request, StateCard, Wish},
    documents,
    emptied::Emptied,
    engine::{Condition, Entry, LONGEST_VALUE, Revision, Write},
    keys,
    session::{Purpose, Session, document_name},
    votes,
};

/// How far a member has come in leading.
#[derive(Debug, Default)]
pub(super) enum Leading {
    /// Somebody else leads, or nobody.
    #[default]
    No,
    /// It may have become the leader.
    Stands,
    /// It is the leader, and does not know how what was written before has ended.
    Doubts,
    /// It asks to be the leader still: whatever was asked before has ended, or is refused, when that is answered.
    Asks,
    /// It is, as of this revision, and waits until it has seen everything up to there.
    Elected(Revision),
    /// It leads.
    Leads(Box<Lead>),
}

/// What the leader knows.
#[derive(Debug)]
pub(super) struct Lead {
    /// When the leader's key was last put: it is the condition of everything that is written. A leader that does not know
    /// how something has ended puts the key once more, after which whatever is still on its way is refused.
    fence: Revision,
    /// The epoch that holds, and when it was written.
    epoch: Option<(Epoch, Revision)>,
    lineage: u64,
    /// The number of the first epoch that it writes.
    first: u64,
    committed: Controller,
    decided: Controller,
    /// Of every id whether its backend keeps its clients in the epoch that holds; and those that could not.
    keeping: Vec<bool>,
    emptied: Emptied,
    /// Whether what is committed has been taken from since it was written.
    taken: bool,
    /// What is being prepared.
    prepared: Option<StateCard>,
    /// What is being written.
    writing: Option<Writing>,
    /// What has become of requests, to be written with what is decided.
    answers: Vec<(String, Result<String, cards::Denied>)>,
    /// Requests that were seen to.
    seen: HashSet<String>,
    lines: Vec<Line>,
    /// Documents that nobody needs any more, and the last one made.
    garbage: Vec<u64>,
    document: u64,
    /// From which epoch on ballots are about the backend as it is now.
    since: HashMap<BackendId, u64>,
    since_all: u64,
    /// Sweeps that were counted, by member.
    sweeps: BTreeMap<String, u64>,
    deadline: Option<Instant>,
    #[cfg(test)]
    mutation: Option<super::Mutation>,
}

/// Transactions to be made one after the other, and what holds then.
#[derive(Debug)]
struct Writing {
    transactions: VecDeque<Transaction>,
    then: Then,
}

#[derive(Debug)]
enum Then {
    Committed(StateCard, Box<Controller>),
    Prepared(StateCard),
    Answered,
}

type Transaction = (Vec<Condition>, Vec<Write>);

/// Bytes of documents in a transaction.
const LARGE: usize = LONGEST_VALUE / 2 + 1;

/// Documents deleted in a transaction.
const MOST_GARBAGE: usize = 8;

/// Requests seen to at once: each takes two writes of a transaction.
const REQUESTS_AT_ONCE: usize = 32;

impl Leading {
    /// The leader's key was written.
    pub(super) fn elected(&mut self, revision: Revision) {
        if matches!(self, Self::Stands | Self::Asks) {
            *self = Self::Elected(revision);
        }
    }

    pub(super) fn next_deadline(&self) -> Option<Instant> {
        match self {
            Self::Leads(lead) => lead.deadline,
            Self::No | Self::Stands | Self::Doubts | Self::Asks | Self::Elected(_) => None,
        }
    }

    /// What the leader asked to be written was.
    pub(super) fn has_written(&mut self, revision: Revision) {
        if let Self::Leads(lead) = self {
            lead.has_written(revision);
        }
    }
}

impl Member {
    pub(super) fn lead(&mut self, clocks: Clocks, outputs: &mut Vec<Output>) {
        self.stand(clocks, outputs);
        self.take_office(clocks, outputs);
        let Some(session) = &mut self.session else { return };
        if let Leading::Leads(lead) = &mut self.leading {
            if session.get(keys::LEADER).is_none_or(|entry| entry.modified != lead.fence) {
                self.leading = Leading::No;
                return;
            }
            let members = session.members();
            if lead.writing.is_none() {
                lead.listen(&members, clocks);
                if let Err(message) = lead.step(session, &members, self.settings.share_clients, clocks) {
                    outputs.push(Output::Log { warning: true, message });
                }
            }
            let orphans = orphans(session, &members);
            if !orphans.is_empty() && !session.waits_for(&Purpose::Orphans) {
                let request = session.ask(&mut self.last_ticket, Purpose::Orphans, vec![lead.is_leader()], orphans);
                outputs.push(Output::Ask(request));
            }
            if !session.waits_for(&Purpose::Lead)
                && let Some((conditions, writes)) = lead.next_transaction()
            {
                let request = session.ask(&mut self.last_ticket, Purpose::Lead, conditions, writes);
                outputs.push(Output::Ask(request));
            }
        }
    }

    /// Stands for leader where there is none.
    fn stand(&mut self, clocks: Clocks, outputs: &mut Vec<Output>) {
        let Some(session) = &mut self.session else { return };
        let name = keys::LEADER.to_owned();
        let card = Leader { format: FORMAT, member: self.settings.name.clone(), instance: self.settings.instance };
        let write = put(keys::LEADER, cards::write(&card), true);
        match (&self.leading, session.get(keys::LEADER)) {
            (Leading::Doubts, Some(entry)) => {
                let condition = Condition::Created(name, entry.created);
                self.leading = Leading::Asks;
                let request = session.ask(&mut self.last_ticket, Purpose::Barrier, vec![condition], vec![write]);
                outputs.push(Output::Ask(request));
            }
            (Leading::Doubts, None) => self.leading = Leading::No,
            // What it was told not to be may have come true since.
            (Leading::No, Some(entry)) if is_own(&entry.value, self.settings.instance) => {
                self.leading = Leading::Doubts;
            }
            (Leading::No, None) => {
                let members = session.members();
                let somebody = members.values().any(|member| member.in_step);
                let waits = self.joined.is_none_or(|joined| joined + Self::HOLDS / 2 > clocks.now);
                let best = members.iter().max_by_key(|(name, member)| (member.epoch.map(|epoch| epoch.number), *name));
                // Where nobody is in step, the one with the latest epoch leads, once the others had time to come as well.
                let best = best.is_some_and(|(name, _)| *name == self.settings.name);
                if self.in_step || !somebody && best && !waits {
                    self.leading = Leading::Stands;
                    let absent = vec![Condition::Absent(name)];
                    let request = session.ask(&mut self.last_ticket, Purpose::Campaign, absent, vec![write]);
                    outputs.push(Output::Ask(request));
                }
            }
            (Leading::No | Leading::Stands | Leading::Asks | Leading::Elected(_) | Leading::Leads(_), _) => {}
        }
    }

    fn take_office(&mut self, clocks: Clocks, outputs: &mut Vec<Output>) {
        let Leading::Elected(revision) = self.leading else { return };
        let Some(session) = &self.session else { return };
        if session.revision() < revision {
            return;
        }
        let own = |entry: &&Entry| is_own(&entry.value, self.settings.instance);
        let Some(fence) = session.get(keys::LEADER).filter(own).map(|entry| entry.modified) else {
            self.leading = Leading::No;
            return;
        };
        match self.new_lead(session, fence, clocks) {
            Ok(Some(lead)) => {
                self.founded += u64::from(lead.epoch.is_none());
                self.leading = Leading::Leads(Box::new(lead));
                outputs.push(Output::Log { warning: false, message: "this balancer leads the fleet".to_owned() });
            }
            Ok(None) => {}
            Err(why) => {
                let message = format!("this balancer cannot lead the fleet: {why}");
                let news = self.failed.as_ref().is_none_or(|(_, known)| *known != message);
                if news {
                    outputs.push(Output::Log { warning: true, message: message.clone() });
                    self.failed = Some((Epoch { lineage: 0, number: 0 }, message));
                }
            }
        }
    }

    /// The leader's knowledge: of the epoch in the store, or else of the one that it applied last, or else of its file.
    fn new_lead(&self, session: &Session, fence: Revision, clocks: Clocks) -> Result<Option<Lead>, String> {
        let (config, key) = (self.settings.config.clone(), self.key.unwrap_or(self.settings.key));
        // As it was written: what has become due since is decided with the first step, and written.
        let from =
            |state: SavedState, at: Moment| Controller::decider_from(config.clone(), key, state, clocks.as_of(at));
        let (controller, epoch, document, emptied, lineage) = match session.epoch() {
            Some(card) => {
                let card = card.as_ref().map_err(|err| format!("{} in the store {err}", keys::EPOCH))?;
                let Some(state) = session.state(card) else { return Ok(None) };
                let written = session.get(keys::EPOCH).map(|entry| entry.modified).unwrap_or_default();
                let (epoch, document) = (Some((card.epoch, written)), Some(card.document));
                (from(state?, card.at)?, epoch, document, card.emptied.clone(), card.epoch.lineage)
            }
            None => {
                let controller = match &self.applied {
                    Some((_, state, at)) => from(state.clone(), *at)?,
                    None => Controller::decider(config, key, clocks.now),
                };
                // Far from those that another process would begin.
                let lineage = self.settings.instance.wrapping_add(self.founded.wrapping_mul(0x9e37_79b9_7f4a_7c15));
                (controller, None, None, Emptied::clone(&self.emptied), lineage)
            }
        };
        let mut garbage: Vec<u64> = session
            .below(keys::DOCUMENTS)
            .filter_map(|(key, _)| u64::from_str_radix(key.split('/').next()?, 16).ok())
            .filter(|other| Some(*other) != document)
            .collect();
        garbage.dedup();
        let last = garbage.iter().copied().chain(document).max().unwrap_or(0);
        Ok(Some(Lead {
            fence,
            epoch,
            lineage,
            first: self.epoch().map_or(1, |epoch| epoch.number + 1),
            keeping: keeping(&controller),
            emptied,
            committed: controller.clone(),
            decided: controller,
            taken: false,
            prepared: None,
            writing: None,
            answers: Vec::new(),
            seen: HashSet::new(),
            lines: Vec::new(),
            garbage: garbage.into_iter().chain(document).collect(),
            document: last,
            since: HashMap::new(),
            since_all: epoch.map_or(0, |(epoch, _)| epoch.number),
            sweeps: BTreeMap::new(),
            deadline: None,
            #[cfg(test)]
            mutation: self.mutation,
        }))
    }
}

impl Lead {
    /// Takes over what members say: what takes at once, everything else where nothing is being prepared.
    fn listen(&mut self, members: &BTreeMap<String, Card>, clocks: Clocks) {
        if self.epoch.is_none() {
            return;
        }
        let (downs, mut gives): (Vec<_>, Vec<_>) = self.judgements(members).into_iter().partition(is_down);
        let (takes, keeps) = self.that_take(downs, clocks.now);
        gives.extend(keeps);
        if !takes.is_empty() {
            let before = self.committed.agreed_state(clocks);
            let mut commands = self.committed.judge(&takes, clocks.now);
            commands.extend(self.committed.decide_what_is_due(clocks.now));
            self.lines.extend(lines(commands));
            let _ = self.decided.judge(&takes, clocks.now);
            self.taken |= self.committed.agreed_state(clocks) != before;
        }
        if self.prepared.is_none() && !gives.is_empty() {
            self.lines.extend(lines(self.decided.judge(&gives, clocks.now)));
        }
    }

    /// Those of `downs` after which a backend keeps nobody; the others let it keep whom it knows.
    fn that_take(&self, downs: Vec<Judgement>, now: Instant) -> (Vec<Judgement>, Vec<Judgement>) {
        if downs.is_empty() {
            return (downs, Vec::new());
        }
        let mut after = self.committed.clone();
        let _ = after.judge(&downs, now);
        let keeping = keeping(&after);
        downs.into_iter().partition(|judgement| !keeping[usize::from(judgement.backend.0)])
    }

    /// What members' opinions come to, where that is news.
    fn judgements(&self, members: &BTreeMap<String, Card>) -> Vec<Judgement> {
        let voters: Vec<(&str, &Card, u64)> = members
            .iter()
            .filter(|(_, card)| card.in_step)
            .filter_map(|(name, card)| {
                let epoch = card.epoch.filter(|epoch| epoch.lineage == self.lineage)?;
                Some((name.as_str(), card, epoch.number))
            })
            .collect();
        let judge = |backend: &Backend| {
            let id = backend.id();
            let since = self.since.get(&id).copied().unwrap_or(self.since_all);
            #[cfg(test)]
            let since = if self.mutation == Some(super::Mutation::VotesForOtherEpochs) { 0 } else { since };
            let current = voters.iter().filter(|(.., number)| *number >= since);
            let opinions: Vec<(&str, Opinion)> =
                current.map(|(name, card, _)| (*name, card.ballot.opinion(id))).collect();
            let opinions: Vec<(&str, &Opinion)> = opinions.iter().map(|(name, opinion)| (*name, opinion)).collect();
            let before = backend.agreed();
            let (way, verdict) = votes::agree(&opinions, before);
            ((&way, &verdict) != before).then_some(Judgement { backend: id, way, verdict })
        };
        self.decided.services().iter().flat_map(Service::backends).filter_map(judge).collect()
    }

    /// Decides what to write next.
    fn step(
        &mut self,
        session: &Session,
        members: &BTreeMap<String, Card>,
        share_clients: bool,
        clocks: Clocks,
    ) -> Result<(), String> {
        let Some((epoch, written)) = self.epoch else { return self.commit_first(clocks) };
        if mem::take(&mut self.taken) {
            self.garbage.extend(self.prepared.take().map(|card| card.document));
            return self.commit(self.committed.clone(), false, clocks);
        }
        if let Some(prepared) = &self.prepared {
            let ready = |card: &Card| !card.in_step || card.prepared == Some(prepared.document);
            #[cfg(test)]
            let ready = |card: &Card| self.mutation == Some(super::Mutation::CommitsWithoutWaiting) || ready(card);
            if members.values().all(ready) {
                let card = StateCard { lines: mem::take(&mut self.lines), ..prepared.clone() };
                self.commit_card(card, Vec::new(), self.decided.clone(), true);
            }
            return Ok(());
        }
        let due = self.decided.next_deadline().is_some_and(|deadline| deadline <= clocks.now);
        if due {
            self.lines.extend(lines(self.decided.decide_what_is_due(clocks.now)));
        }
        self.count_sweeps(members, clocks.now);
        self.see_to_requests(session, clocks.now);
        self.deadline = self.decided.next_deadline();
        if self.decided.agreed_state(clocks) == self.committed.agreed_state(clocks) {
            let mut writes = self.take_answers(epoch);
            if session.get(keys::NEXT).is_some() && session.revision() >= written {
                // Another leader's, which was never committed.
                writes.push(Write::Delete(keys::NEXT.to_owned()));
            }
            if !writes.is_empty() {
                self.write(vec![(vec![self.is_leader()], writes)], Then::Answered);
            }
            return Ok(());
        }
        self.lines.extend(lines(self.decided.decide_what_is_due(clocks.now)));
        if share_clients && self.decided.gives(&self.committed) {
            self.prepare(clocks)
        } else {
            self.commit(self.decided.clone(), true, clocks)
        }
    }

    fn count_sweeps(&mut self, members: &BTreeMap<String, Card>, now: Instant) {
        let current = || members.iter().filter(|(_, card)| card.in_step);
        let counted = |name: &String| self.sweeps.get(name).copied().unwrap_or(0);
        if !current().all(|(name, card)| card.sweeps > counted(name)) || current().next().is_none() {
            return;
        }
        let mut known: BTreeMap<BackendId, u64> = BTreeMap::new();
        for &(id, count) in current().flat_map(|(_, card)| &card.known) {
            let most = known.entry(id).or_default();
            *most = count.max(*most);
        }
        self.sweeps = current().map(|(name, card)| (name.clone(), card.sweeps)).collect();
        let commands = self.decided.handle(Event::Swept { known: known.into_iter().collect() }, now);
        self.lines.extend(lines(commands));
    }

    fn see_to_requests(&mut self, session: &Session, now: Instant) {
        let mut requests: Vec<_> = session.below(keys::REQUESTS).collect();
        requests.sort_by_key(|(_, entry)| entry.created);
        self.seen.retain(|key| session.get(key).is_some());
        for (_, entry) in requests {
            if self.answers.len() >= REQUESTS_AT_ONCE || !self.seen.insert(entry.key.clone()) {
                continue;
            }
            let done = match cards::read::<Request>(&entry.value) {
                Ok(request) => self.grant(request, now),
                Err(err) => Err(cards::Denied::Invalid(format!("the request {err}"))),
            };
            self.answers.push((entry.key.clone(), done));
        }
    }

    fn grant(&mut self, request: Request, now: Instant) -> Result<String, cards::Denied> {
        let generation = self.decided.generation();
        if request.if_generation.is_some_and(|wanted| wanted != generation) {
            return Err(cards::Denied::Stale(generation));
        }
        let decided = match request.wish {
            Wish::Change(change) => self.decided.decide_change(change, now),
            Wish::Services(services) => self.decided.decide_services(services, now),
        };
        let (message, commands) = decided?;
        self.lines.push(Line { warning: false, about: None, message: message.clone() });
        self.lines.extend(lines(commands));
        Ok(message)
    }

    fn commit_first(&mut self, clocks: Clocks) -> Result<(), String> {
        let commands = self.decided.decide_what_is_due(clocks.now);
        self.lines.extend(lines(commands));
        self.commit(self.decided.clone(), true, clocks)
    }

    /// Writes a controller's state as the epoch that holds.
    fn commit(&mut self, controller: Controller, is_decided: bool, clocks: Clocks) -> Result<(), String> {
        let lines = mem::take(&mut self.lines);
        let (card, parts) = self.state_card(&controller, lines, clocks)?;
        self.commit_card(card, parts, controller, is_decided);
        Ok(())
    }

    fn commit_card(&mut self, card: StateCard, parts: Vec<Write>, controller: Controller, is_decided: bool) {
        let epoch = Condition::Absent(keys::EPOCH.to_owned());
        let epoch = self.epoch.map_or(epoch, |(_, written)| Condition::Modified(keys::EPOCH.to_owned(), written));
        let mut writes = vec![put(keys::EPOCH, cards::write(&card), false), Write::Delete(keys::NEXT.to_owned())];
        if is_decided {
            writes.extend(self.take_answers(card.epoch));
        }
        self.garbage.retain(|document| *document != card.document);
        let some = self.garbage.len().min(MOST_GARBAGE);
        let old = self.garbage.drain(..some);
        writes.extend(old.map(|document| Write::DeletePrefix(keys::documents(&document_name(document)))));
        self.garbage.push(card.document);
        let transactions = self.in_transactions(parts, (vec![self.is_leader(), epoch], writes));
        self.write(transactions, Then::Committed(card, Box::new(controller)));
    }

    /// Has everybody prepare for what is decided.
    fn prepare(&mut self, clocks: Clocks) -> Result<(), String> {
        let (card, parts) = self.state_card(&self.decided.clone(), Vec::new(), clocks)?;
        let writes = vec![put(keys::NEXT, cards::write(&card), false)];
        let transactions = self.in_transactions(parts, (vec![self.is_leader()], writes));
        self.write(transactions, Then::Prepared(card));
        Ok(())
    }

    /// The card of a state that is to follow the epoch that holds, and the parts of its document.
    fn state_card(
        &mut self,
        controller: &Controller,
        lines: Vec<Line>,
        clocks: Clocks,
    ) -> Result<(StateCard, Vec<Write>), String> {
        let parts = documents::write(&controller.agreed_state(clocks))?;
        self.document += 1;
        let epoch =
            Epoch { lineage: self.lineage, number: self.epoch.map_or(self.first, |(epoch, _)| epoch.number + 1) };
        let card = StateCard {
            format: FORMAT,
            epoch,
            at: clocks.moment(clocks.now),
            document: self.document,
            parts: parts.len(),
            emptied: self.emptied_by(controller, epoch),
            lines,
        };
        let name = document_name(card.document);
        let writes = parts.into_iter().enumerate();
        Ok((card, writes.map(|(part, bytes)| put(&keys::document(&name, part), bytes, false)).collect()))
    }

    /// Which backends could not keep their clients once this is the epoch that holds.
    fn emptied_by(&self, next: &Controller, epoch: Epoch) -> Emptied {
        let mut emptied = self.emptied.clone();
        #[cfg(test)]
        if self.mutation == Some(super::Mutation::ForgetsWhoHadToLeave) {
            return emptied;
        }
        let keeping = self.keeping.iter().zip(keeping(next));
        let cease = (0..=u16::MAX).zip(keeping).filter_map(|(id, (kept, keeps))| (*kept && !keeps).then_some(id));
        emptied.note(cease, epoch.number as u32);
        emptied
    }

    /// Parts that are large go first, one by one.
    fn in_transactions(&self, parts: Vec<Write>, last: Transaction) -> Vec<Transaction> {
        let (conditions, mut writes) = last;
        let size: usize = parts.iter().map(size).sum();
        if size < LARGE {
            writes.extend(parts);
            return vec![(conditions, writes)];
        }
        let alone = |part| (vec![self.is_leader()], vec![part]);
        parts.into_iter().map(alone).chain([(conditions, writes)]).collect()
    }

    fn is_leader(&self) -> Condition {
        Condition::Modified(keys::LEADER.to_owned(), self.fence)
    }

    fn take_answers(&mut self, epoch: Epoch) -> Vec<Write> {
        let mut writes = Vec::new();
        for (request, done) in mem::take(&mut self.answers) {
            let answer = Answer { format: FORMAT, done, epoch };
            writes.push(put(&keys::answer(&request), cards::write(&answer), true));
            writes.push(Write::Delete(request));
        }
        writes
    }

    fn write(&mut self, transactions: Vec<Transaction>, then: Then) {
        self.writing = Some(Writing { transactions: transactions.into(), then });
    }

    fn next_transaction(&mut self) -> Option<Transaction> {
        let next = self.writing.as_mut()?.transactions.pop_front();
        #[cfg(test)]
        if self.mutation == Some(super::Mutation::WritesUnconditionally) {
            return next.map(|(_, writes)| (Vec::new(), writes));
        }
        next
    }

    fn has_written(&mut self, revision: Revision) {
        let Some(writing) = self.writing.take() else { return };
        if !writing.transactions.is_empty() {
            self.writing = Some(writing);
            return;
        }
        match writing.then {
            Then::Prepared(card) => self.prepared = Some(card),
            Then::Answered => {}
            Then::Committed(card, controller) => {
                self.note_changed_backends(&controller, card.epoch.number);
                if self.prepared.as_ref().is_some_and(|prepared| prepared.document == card.document) {
                    self.prepared = None;
                }
                self.epoch = Some((card.epoch, revision));
                (self.keeping, self.emptied) = (keeping(&controller), card.emptied);
                self.committed = *controller;
            }
        }
    }

    /// Ballots of members that apply an earlier epoch say nothing of a backend that is new or elsewhere.
    fn note_changed_backends(&mut self, next: &Controller, number: u64) {
        let before = targets(&self.committed);
        let after = targets(next);
        self.since.retain(|id, _| after.contains_key(id));
        let first = self.epoch.is_none();
        for (id, target) in after {
            if first || before.get(&id) != Some(&target) {
                self.since.insert(id, number);
            }
        }
    }
}

fn is_own(leader: &[u8], instance: u64) -> bool {
    cards::read::<Leader>(leader).is_ok_and(|leader| leader.instance == instance)
}

/// Answers whose askers have gone.
fn orphans(session: &Session, members: &BTreeMap<String, Card>) -> Vec<Write> {
    if session.below(keys::ANSWERS).next().is_none() {
        return Vec::new();
    }
    let askers: HashSet<String> = members.iter().map(|(name, card)| keys::asker(name, card.instance)).collect();
    let answers = session.below(keys::ANSWERS);
    let orphans = answers.filter(|(key, _)| key.split('/').next().is_none_or(|asker| !askers.contains(asker)));
    orphans.map(|(_, entry)| Write::Delete(entry.key.clone())).take(REQUESTS_AT_ONCE).collect()
}

/// Where backends are reached and checked.
fn targets(controller: &Controller) -> HashMap<BackendId, (SocketAddr, SocketAddr)> {
    let of = |service: &'_ Service| -> Vec<_> {
        let target = |backend: &Backend| (backend.id(), (backend.address(), service.check_target(backend)));
        service.backends().iter().map(target).collect()
    };
    controller.services().iter().flat_map(of).collect()
}

/// Of every id whether its backend's known clients stay.
fn keeping(controller: &Controller) -> Vec<bool> {
    let mut keeping = vec![false; usize::from(u16::MAX) + 1];
    for backend in controller.services().iter().flat_map(Service::backends) {
        keeping[usize::from(backend.id().0)] = backend.keeps_known();
    }
    keeping
}

fn is_down(judgement: &Judgement) -> bool {
    matches!(judgement.way, Way::Closed(_)) || matches!(judgement.verdict, Verdict::Down { .. })
}

fn size(write: &Write) -> usize {
    match write {
        Write::Put { value, .. } => value.len(),
        Write::Delete(_) | Write::DeletePrefix(_) => 0,
    }
}

/// The lines among a controller's commands. What it would have done is nobody's: those that follow do it.
fn lines(commands: Vec<Command>) -> Vec<Line> {
    let line = |command| match command {
        Command::Report(report) => Some(Line {
            warning: report.level == ReportLevel::Warn,
            about: report.about.map(|name| (name.service, name.backend)),
            message: report.message,
        }),
        Command::WriteBackend(_)
        | Command::RetireBackend(_)
        | Command::SwapTable { .. }
        | Command::PublishServices(_)
        | Command::SetRules { .. }
        | Command::WatchNextHop(_)
        | Command::UnwatchNextHop(_)
        | Command::StartChecks(_)
        | Command::StopChecks(_) => None,
    };
    commands.into_iter().filter_map(line).collect()
}
