//! The leader: at most one member at a time, which decides for the whole fleet.
//!
//! The leader runs two controllers, with the *committed* and with the *decided* state. A decision *takes* if a backend
//! loses its known clients by it, for example because most members report the backend as down. The leader applies a
//! decision that takes to both states, and writes the committed state at once. The leader applies all other decisions
//! only to the decided state. If the difference between the two states *gives* slots of backends that keep their
//! clients, the leader first asks all members to prepare, and makes no further decisions until the difference is
//! committed.

mod election;
mod writing;

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    mem,
    time::Instant,
};

use balancer_control::{
    agreed::{Judgement, Opinion, Way},
    controller::Controller,
    health::Verdict,
    io::{BackendId, Change, Command, Event, ReportLevel},
    room::Rooms,
    service::{Backend, Service},
    state::Clocks,
};

use self::writing::{Then, Writing, bounded};
use super::{Member, Output, pauses::Errand};
use crate::{
    documents,
    emptied::Emptied,
    engine::{Revision, Write},
    keys,
    session::{Purpose, Session},
    store_schema::{self, ChangeRequest, Epoch, Line, Member as Card, Request, StateCard},
    votes,
};

/// The stages of becoming the leader.
#[derive(Debug, Default)]
pub(super) enum Leading {
    /// Another member is the leader, or there is no leader.
    #[default]
    No,
    /// The member has requested to become the leader, and may have succeeded.
    Stands,
    /// The member is the leader, but does not know the outcome of its earlier writes.
    Doubts,
    /// The member confirms its leadership; when the engine answers, all earlier requests have ended or will be refused.
    Asks,
    /// The member has been elected at this revision, and waits until it has received all changes up to this revision.
    Elected(Revision),
    Leads(Box<Lead>),
    /// The member was the leader, and has requested to delete the leader's key.
    Resigns,
}

/// The state of a leader.
#[derive(Debug)]
pub(super) struct Lead {
    /// The revision at which the leader's key was last written; every write of the leader requires this revision. If
    /// the leader does not know the outcome of a write, it writes its key once more, so that the engine refuses all
    /// pending writes.
    fence: Revision,
    /// The current epoch, and the revision at which it was written.
    epoch: Option<(Epoch, Revision)>,
    lineage: u64,
    /// The number of the first epoch that this leader writes.
    first: u64,
    committed: Controller,
    decided: Controller,
    /// By backend id, whether the backend keeps its clients in the current epoch. `emptied` contains the backends that
    /// could not keep their clients.
    keeping: Vec<bool>,
    emptied: Emptied,
    /// Whether a decision that takes clients from backends has changed the committed state since the leader last wrote
    /// it.
    taken: bool,
    prepared: Option<StateCard>,
    /// The write that is in progress.
    writing: Option<Writing>,
    /// The outcomes of requests, which the leader will write together with the decided state.
    answers: Vec<(String, Result<String, store_schema::Denied>)>,
    /// The requests that the leader has handled.
    seen: HashSet<String>,
    lines: Vec<Line>,
    /// The numbers of documents that are no longer needed. `document` is the number of the latest document.
    garbage: Vec<u64>,
    document: u64,
    /// By backend id, the first epoch whose ballots are about the current backend with this id.
    since: HashMap<BackendId, u64>,
    since_all: u64,
    /// The sweeps of client tables that the leader has already handled. `flow_counts` contains the same for counts of
    /// connections.
    sweeps: Counted,
    flow_counts: Counted,
    deadline: Option<Instant>,
    name: String,
    /// The time of the last change that a user made.
    changed: Instant,
    /// The time at which a configuration file last changed the services.
    file: Instant,
    #[cfg(test)]
    mutation: Option<super::Mutation>,
}

/// The maximum number of requests that the leader handles together: each request needs two writes in the transaction.
const REQUESTS_AT_ONCE: usize = 32;

impl Leading {
    /// Handles the successful write of the leader's key by this member.
    pub(super) fn elected(&mut self, revision: Revision) {
        if matches!(self, Self::Stands | Self::Asks) {
            *self = Self::Elected(revision);
        }
    }

    pub(super) fn next_deadline(&self) -> Option<Instant> {
        match self {
            Self::Leads(lead) => lead.deadline,
            Self::No | Self::Stands | Self::Doubts | Self::Asks | Self::Elected(_) | Self::Resigns => None,
        }
    }

    /// Records that the engine has made a write of the leader.
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
        self.leave_office(outputs);
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
            if !orphans.is_empty()
                && !session.waits_for(&Purpose::Orphans)
                && !self.pauses.hold(Errand::Orphans, clocks.now)
            {
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
}

impl Member {
    /// Leaves the office if another member should lead, as soon as no write is in progress.
    fn leave_office(&mut self, outputs: &mut Vec<Output>) {
        let Leading::Leads(lead) = &self.leading else { return };
        let (fence, writes) = (lead.fence, lead.writing.is_some());
        let waits = self.session.as_ref().is_some_and(|session| session.waits_for(&Purpose::Lead));
        if !writes && !waits {
            self.resign(fence, outputs);
        }
    }
}

impl Lead {
    /// Decides from the members' reports: applies decisions that take clients at once, and other decisions only while
    /// no state is in preparation.
    fn listen(&mut self, members: &BTreeMap<String, Card>, clocks: Clocks) {
        if self.epoch.is_none() {
            return;
        }
        let failing = self.failing(members);
        self.committed.note_failing(&failing);
        self.decided.note_failing(&failing);
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

    /// Splits `downs` into verdicts after which the backend keeps no clients, and verdicts after which the backend
    /// still keeps its clients.
    fn that_take(&self, downs: Vec<Judgement>, now: Instant) -> (Vec<Judgement>, Vec<Judgement>) {
        if downs.is_empty() {
            return (downs, Vec::new());
        }
        let mut after = self.committed.clone();
        let _ = after.judge(&downs, now);
        let keeping = keeping(&after);
        downs.into_iter().partition(|judgement| !keeping[usize::from(judgement.backend.0)])
    }

    /// The backends whose latest check failed according to more than half of the voting members.
    fn failing(&self, members: &BTreeMap<String, Card>) -> HashSet<BackendId> {
        let votes = |card: &&Card| card.in_step && card.epoch.is_some_and(|epoch| epoch.lineage == self.lineage);
        let ballots: Vec<_> = members.values().filter(votes).map(|card| &card.ballot).collect();
        let named: HashSet<BackendId> = ballots.iter().flat_map(|ballot| ballot.failing.iter().copied()).collect();
        let by = |id: BackendId| ballots.iter().filter(|ballot| ballot.fails(id)).count();
        named.into_iter().filter(|&id| by(id) * 2 > ballots.len()).collect()
    }

    /// Returns the new verdicts that follow from the members' ballots.
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

    /// Decides what the leader writes next.
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
                let card = StateCard { lines: bounded(mem::take(&mut self.lines)), ..prepared.clone() };
                self.commit_card(card, Vec::new(), self.decided.clone(), true);
            }
            return Ok(());
        }
        let due = self.decided.next_deadline().is_some_and(|deadline| deadline <= clocks.now);
        if due {
            self.lines.extend(lines(self.decided.decide_what_is_due(clocks.now)));
        }
        self.count_sweeps(members, clocks.now);
        self.count_flows(members, clocks.now);
        self.see_to_requests(session, members, clocks.now);
        self.deadline = self.decided.next_deadline();
        if self.decided.agreed_state(clocks) == self.committed.agreed_state(clocks) {
            let mut writes = self.take_answers(epoch);
            if session.get(keys::NEXT).is_some() && session.revision() >= written {
                // The card belongs to an earlier leader that did not commit the state.
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
        if !self.sweeps.all_have_more(members, |card| card.sweeps) {
            return;
        }
        let mut known: BTreeMap<BackendId, u64> = BTreeMap::new();
        for &(id, count) in current(members).flat_map(|(_, card)| &card.known) {
            let most = known.entry(id).or_default();
            *most = count.max(*most);
        }
        let commands = self.decided.handle(Event::Swept { known: known.into_iter().collect() }, now);
        self.lines.extend(lines(commands));
    }

    /// Adds up the numbers of connections of all members, because each connection belongs to only one member.
    fn count_flows(&mut self, members: &BTreeMap<String, Card>, now: Instant) {
        if !self.flow_counts.all_have_more(members, |card| card.flow_counts) {
            return;
        }
        let mut of: BTreeMap<BackendId, u64> = BTreeMap::new();
        for &(id, count) in current(members).flat_map(|(_, card)| &card.connections) {
            let sum = of.entry(id).or_default();
            *sum = sum.saturating_add(count);
        }
        let commands = self.decided.handle(Event::Flows { of, ports: BTreeMap::new(), active: BTreeSet::new() }, now);
        self.lines.extend(lines(commands));
    }

    fn see_to_requests(&mut self, session: &Session, members: &BTreeMap<String, Card>, now: Instant) {
        let mut requests: Vec<_> = session.below(keys::REQUESTS).collect();
        if !requests.is_empty() {
            self.decided.set_rooms(rooms(members));
        }
        requests.sort_by_key(|(_, entry)| entry.created);
        self.seen.retain(|key| session.get(key).is_some());
        for (_, entry) in requests {
            if self.answers.len() >= REQUESTS_AT_ONCE || !self.seen.insert(entry.key.clone()) {
                continue;
            }
            let done = match store_schema::read::<Request>(&entry.value) {
                Ok(request) => change_request(&request, session, &entry.key)
                    .and_then(|change_request| self.grant(change_request, request.if_generation, now)),
                Err(err) => Err(store_schema::Denied::Invalid(format!("the request {err}"))),
            };
            self.answers.push((entry.key.clone(), done));
        }
    }

    fn grant(
        &mut self,
        change_request: ChangeRequest,
        if_generation: Option<u64>,
        now: Instant,
    ) -> Result<String, store_schema::Denied> {
        let generation = self.decided.generation();
        if if_generation.is_some_and(|wanted| wanted != generation) {
            return Err(store_schema::Denied::Stale(generation));
        }
        // A file is not older than a drop-in, because the file does not replace drop-ins.
        let is_drop_in = matches!(change_request, ChangeRequest::Change(Change::SetDropIn { .. }));
        let is_file = matches!(change_request, ChangeRequest::Services(_) | ChangeRequest::Reset(_));
        let decided = match change_request {
            ChangeRequest::Change(change) => self.decided.decide_change(change, now),
            ChangeRequest::Services(services) => self.decided.decide_services(services, false, now),
            ChangeRequest::Reset(services) => self.decided.decide_services(services, true, now),
        };
        let (message, commands) = decided?;
        if self.decided.generation() != generation && !is_drop_in {
            self.changed = now;
            if is_file {
                self.file = now;
            }
        }
        self.lines.push(Line { warning: false, about: None, message: message.clone() });
        self.lines.extend(lines(commands));
        Ok(message)
    }
}

/// The room in the maps of those members whose cards say it.
pub(super) fn rooms(members: &BTreeMap<String, Card>) -> Rooms {
    Rooms::of_members(members.iter().filter_map(|(name, card)| Some((name.clone(), card.room.clone()?))))
}

/// The members that apply an epoch of the current lineage; the leader uses only the reports of these members.
fn current(members: &BTreeMap<String, Card>) -> impl Iterator<Item = (&String, &Card)> {
    members.iter().filter(|(_, card)| card.in_step)
}

/// The counters of an activity when the leader last handled them, by member and process.
#[derive(Clone, Debug, Default)]
pub(super) struct Counted(BTreeMap<(String, u64), u64>);

impl Counted {
    /// Whether every member's counter has risen since the leader last handled them; if so, records the new counters.
    fn all_have_more(&mut self, members: &BTreeMap<String, Card>, count: impl Fn(&Card) -> u64) -> bool {
        let now: BTreeMap<(String, u64), u64> =
            current(members).map(|(name, card)| ((name.clone(), card.instance), count(card))).collect();
        let all = !now.is_empty() && now.iter().all(|(who, count)| self.0.get(who).copied().unwrap_or(0) < *count);
        if all {
            self.0 = now;
        }
        all
    }
}

/// Returns the change in a request, unpacked if necessary.
fn change_request(request: &Request, session: &Session, key: &str) -> Result<ChangeRequest, store_schema::Denied> {
    if let Some(change_request) = &request.change_request {
        return Ok(change_request.clone());
    }
    let packed = session.get(&keys::part(key));
    let packed =
        packed.ok_or_else(|| store_schema::Denied::Conflict("a part of the request is not there".to_owned()))?;
    documents::unpack(&packed.value, "the request").map_err(store_schema::Denied::Invalid)
}

/// Returns writes that delete the answers to requesters that no longer exist.
fn orphans(session: &Session, members: &BTreeMap<String, Card>) -> Vec<Write> {
    if session.below(keys::ANSWERS).next().is_none() {
        return Vec::new();
    }
    let askers: HashSet<String> = members.iter().map(|(name, card)| keys::asker(name, card.instance)).collect();
    let answers = session.below(keys::ANSWERS);
    let orphans = answers.filter(|(key, _)| key.split('/').next().is_none_or(|asker| !askers.contains(asker)));
    orphans.map(|(_, entry)| Write::Delete(entry.key.clone())).take(REQUESTS_AT_ONCE).collect()
}

/// Returns by backend id whether the backend keeps its known clients.
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

/// Returns the log lines among a controller's commands. The function ignores all other commands, because the members
/// carry them out when they follow the state.
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
