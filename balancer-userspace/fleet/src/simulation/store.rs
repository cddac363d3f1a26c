//! A simulated store that gives exactly the guarantees of the engine.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use crate::{
    engine::{Answer, Condition, Entry, LIVE, News, Request, Revision, Ticket, Write},
    keys,
};

/// The maximum size of a transaction in bytes.
const LARGEST: usize = 3 << 19;

/// A time in milliseconds since the beginning of the simulation.
pub(crate) type Time = u64;

#[derive(Clone)]
struct Stored {
    value: Vec<u8>,
    created: Revision,
    modified: Revision,
    lease: Option<u64>,
}

/// A member's connection to the store.
#[derive(Default)]
pub(crate) struct Line {
    lease: Option<u64>,
    /// The time at which the member considers the connection's lease expired.
    lost_at: Time,
    /// The requests on their way to the store, and the answers and changes on their way back.
    up: VecDeque<(Time, Request)>,
    answers: VecDeque<(Time, News)>,
    changes: VecDeque<(Time, News)>,
    /// Requests of ended sessions that still arrive.
    late: Vec<(Time, u64, Request)>,
    joined: bool,
    pub(crate) cut: bool,
    /// Whether the store refuses all of this member's writes.
    pub(crate) may_not_write: bool,
}

/// The simulated store: see the [module](self).
pub(crate) struct Store {
    revision: i64,
    keys: BTreeMap<String, Stored>,
    leases: BTreeMap<u64, Time>,
    last_lease: u64,
    pub(crate) lines: Vec<Line>,
    pub(crate) down: bool,
    /// Whether the store is full: a full store answers, but accepts only writes that free space.
    pub(crate) full: bool,
    /// The number of requests that the store has answered.
    pub(crate) asked: u64,
    pub(crate) lease_time: Time,
    /// One in this number of requests gets no answer; 0 if every request gets an answer.
    pub(crate) loses_answers: u32,
    /// The next transaction that writes this key gets no answer, and reaches the store later by this time.
    pub(crate) delays: Option<(&'static str, Time)>,
    /// The number of transactions of ended sessions that the store made when they arrived.
    pub(crate) late_made: u64,
    pub(crate) slowest: Time,
    pub(crate) writes: u64,
    /// All answers that requests of users have received so far.
    granted: BTreeSet<String>,
}

impl Store {
    pub(crate) fn new(members: usize) -> Self {
        Self {
            revision: 1,
            keys: BTreeMap::new(),
            leases: BTreeMap::new(),
            last_lease: 0,
            lines: (0..members).map(|_| Line::default()).collect(),
            down: false,
            full: false,
            asked: 0,
            lease_time: 5000,
            loses_answers: 0,
            delays: None,
            late_made: 0,
            slowest: 40,
            writes: 0,
            granted: BTreeSet::new(),
        }
    }

    /// Makes the store lose all data.
    pub(crate) fn lose_everything(&mut self) {
        self.keys.clear();
        self.granted.clear();
        self.revision = 1;
        self.leases.clear();
    }

    /// Ends the connection of a member whose process has ended.
    pub(crate) fn hang_up(&mut self, member: usize) {
        let line = &mut self.lines[member];
        line.up.clear();
        line.answers.clear();
        line.changes.clear();
        line.joined = false;
        // The lease of the member expires later, without an action.
    }

    pub(crate) fn ask(&mut self, member: usize, request: Request, now: Time, rng: &mut fastrand::Rng) {
        let line = &mut self.lines[member];
        let at = later(line.up.back().map(|(at, _)| *at), now, self.slowest, rng);
        line.up.push_back((at, request));
    }

    /// Handles all events that are due up to `now`, and returns the messages to members.
    pub(crate) fn run(&mut self, now: Time, running: &[bool], rng: &mut fastrand::Rng) -> Vec<(usize, News)> {
        let mut news = Vec::new();
        for (member, runs) in running.iter().enumerate() {
            self.renew(member, now, *runs);
            self.carry_out(member, now, rng);
        }
        self.expire(now, rng);
        for (member, runs) in running.iter().enumerate() {
            if *runs {
                self.deliver(member, now, rng, &mut news);
            }
        }
        news
    }

    /// Renews the lease of a member if its connection is up and its process runs.
    fn renew(&mut self, member: usize, now: Time, runs: bool) {
        let (down, time) = (self.down, self.lease_time);
        let line = &mut self.lines[member];
        if line.joined
            && runs
            && !line.cut
            && !down
            && let Some(expires) = line.lease.and_then(|lease| self.leases.get_mut(&lease))
        {
            *expires = now + time;
            line.lost_at = now + time;
        }
    }

    fn carry_out(&mut self, member: usize, now: Time, rng: &mut fastrand::Rng) {
        if self.lines[member].cut || self.down {
            return;
        }
        let late: Vec<_> = {
            let line = &mut self.lines[member];
            let (due, rest) = std::mem::take(&mut line.late).into_iter().partition(|(at, ..)| *at <= now);
            line.late = rest;
            due
        };
        for (_, lease, request) in late {
            self.late_made += u64::from(matches!(self.make(request, lease, now, rng), Answer::Made(_)));
        }
        while self.lines[member].up.front().is_some_and(|(at, _)| *at <= now) {
            let Some((_, request)) = self.lines[member].up.pop_front() else { break };
            let Some(lease) = self.lines[member].lease else { break };
            self.asked += 1;
            let ticket = match &request {
                Request::Transaction { ticket, .. } | Request::Read { ticket, .. } => *ticket,
                Request::End { .. } => {
                    self.end_session(member, now);
                    break;
                }
            };
            let answer = if let Some(why) = self.denial(member, &request) {
                Answer::Denied(why.to_owned())
            } else if let Some((_, time)) = self.delays.take_if(|(key, _)| puts(&request, key)) {
                self.lines[member].late.push((now + time, lease, request));
                Answer::Unknown("no answer".to_owned())
            } else if self.loses_answers > 0 && rng.u32(..self.loses_answers) == 0 {
                match rng.u8(..3) {
                    0 => {}
                    1 => {
                        self.make(request, lease, now, rng);
                    }
                    _ => self.lines[member].late.push((now + rng.u64(..3000), lease, request)),
                }
                Answer::Unknown("no answer".to_owned())
            } else {
                self.make(request, lease, now, rng)
            };
            self.answer(member, ticket, answer, now, rng);
        }
    }

    /// Ends the session of a member. The leased keys of the member disappear at once. If the store refuses all writes
    /// of the member, the leased keys disappear only when the lease expires.
    fn end_session(&mut self, member: usize, now: Time) {
        let line = &mut self.lines[member];
        line.lost_at = now;
        if !line.may_not_write
            && let Some(expires) = line.lease.and_then(|lease| self.leases.get_mut(&lease))
        {
            *expires = now;
        }
    }

    fn denial(&self, member: usize, request: &Request) -> Option<&'static str> {
        let Request::Transaction { writes, .. } = request else { return None };
        if self.lines[member].may_not_write {
            return Some("permission denied");
        }
        let size = |write: &Write| if let Write::Put { key, value, .. } = write { key.len() + value.len() } else { 0 };
        if writes.iter().map(size).sum::<usize>() > LARGEST {
            return Some("request is too large");
        }
        (self.full && writes.iter().any(|write| matches!(write, Write::Put { .. })))
            .then_some("database space exceeded")
    }

    fn answer(&mut self, member: usize, ticket: Ticket, answer: Answer, now: Time, rng: &mut fastrand::Rng) {
        let line = &mut self.lines[member];
        let at = later(line.answers.back().map(|(at, _)| *at), now, self.slowest, rng);
        line.answers.push_back((at, News::Answered(ticket, answer)));
    }

    pub(super) fn make(&mut self, request: Request, lease: u64, now: Time, rng: &mut fastrand::Rng) -> Answer {
        match request {
            Request::End { .. } => Answer::Unknown("no request that is answered".to_owned()),
            Request::Read { prefix, .. } => {
                let entries = self.keys.range(prefix.clone()..).take_while(|(key, _)| key.starts_with(&prefix));
                Answer::Read(entries.map(|(key, stored)| entry(key, stored)).collect())
            }
            Request::Transaction { conditions, writes, .. } => {
                assert!(conditions.len() + writes.len() <= 100, "too large a transaction");
                if !conditions.iter().all(|condition| self.holds(condition)) {
                    return Answer::Refused;
                }
                let leased = writes.iter().any(|write| matches!(write, Write::Put { leased: true, .. }));
                if leased && !self.leases.contains_key(&lease) {
                    return Answer::Unknown("the lease is not there".to_owned());
                }
                self.revision += 1;
                self.writes += 1;
                let (mut put, mut deleted) = (Vec::new(), Vec::new());
                self.note_granted(&writes);
                for write in writes {
                    self.write(write, lease, &mut put, &mut deleted);
                }
                self.tell(put, deleted, now, rng);
                Answer::Made(Revision(self.revision))
            }
        }
    }

    /// Records granted requests, and checks that no request changes the epoch twice.
    fn note_granted(&mut self, writes: &[Write]) {
        let puts =
            || writes.iter().filter_map(|write| if let Write::Put { key, .. } = write { Some(key) } else { None });
        if puts().any(|key| key == keys::EPOCH) {
            for answer in puts().filter(|key| key.starts_with(keys::ANSWERS)) {
                assert!(self.granted.insert(answer.clone()), "a change request is granted twice: {answer}");
            }
        }
    }

    fn write(&mut self, write: Write, lease: u64, put: &mut Vec<Entry>, deleted: &mut Vec<String>) {
        let modified = Revision(self.revision);
        match write {
            Write::Put { key, value, leased } => {
                let created = self.keys.get(&key).map_or(modified, |stored| stored.created);
                let stored = Stored { value, created, modified, lease: leased.then_some(lease) };
                put.push(entry(&key, &stored));
                self.keys.insert(key, stored);
            }
            Write::Delete(key) => {
                if self.keys.remove(&key).is_some() {
                    deleted.push(key);
                }
            }
            Write::DeletePrefix(prefix) => {
                let keys: Vec<String> = self.keys.keys().filter(|key| key.starts_with(&prefix)).cloned().collect();
                for key in keys {
                    self.keys.remove(&key);
                    deleted.push(key);
                }
            }
        }
    }

    fn holds(&self, condition: &Condition) -> bool {
        match condition {
            Condition::Absent(key) => !self.keys.contains_key(key),
            Condition::Created(key, revision) => self.keys.get(key).is_some_and(|stored| stored.created == *revision),
            Condition::Modified(key, revision) => self.keys.get(key).is_some_and(|stored| stored.modified == *revision),
        }
    }

    /// Ends the leases whose time has passed, and deletes their keys.
    fn expire(&mut self, now: Time, rng: &mut fastrand::Rng) {
        if self.down {
            return;
        }
        let over: Vec<u64> = self.leases.iter().filter(|(_, at)| **at <= now).map(|(lease, _)| *lease).collect();
        for lease in over {
            self.leases.remove(&lease);
            let of = |stored: &Stored| stored.lease == Some(lease);
            let gone: Vec<String> =
                self.keys.iter().filter(|(_, stored)| of(stored)).map(|(key, _)| key.clone()).collect();
            if gone.is_empty() {
                continue;
            }
            self.revision += 1;
            for key in &gone {
                self.keys.remove(key);
            }
            self.tell(Vec::new(), gone, now, rng);
        }
    }

    fn tell(&mut self, put: Vec<Entry>, deleted: Vec<String>, now: Time, rng: &mut fastrand::Rng) {
        let put: Vec<Entry> = put.into_iter().filter(|entry| entry.key.starts_with(LIVE)).collect();
        let deleted: Vec<String> = deleted.into_iter().filter(|key| key.starts_with(LIVE)).collect();
        if put.is_empty() && deleted.is_empty() {
            return;
        }
        for line in self.lines.iter_mut().filter(|line| line.joined) {
            let at = later(line.changes.back().map(|(at, _)| *at), now, self.slowest, rng);
            let (put, deleted) = (put.clone(), deleted.clone());
            line.changes.push_back((at, News::Changed { revision: Revision(self.revision), put, deleted }));
        }
    }

    fn deliver(&mut self, member: usize, now: Time, rng: &mut fastrand::Rng, news: &mut Vec<(usize, News)>) {
        let (down, full, lease_time) = (self.down, self.full, self.lease_time);
        let line = &mut self.lines[member];
        let over = line.lease.is_none_or(|lease| !self.leases.contains_key(&lease)) && !line.cut && !down;
        if line.joined && (line.lost_at <= now || over) {
            line.joined = false;
            line.up.clear();
            line.answers.clear();
            line.changes.clear();
            news.push((member, News::Lost { reason: "the lease has run out".to_owned() }));
            return;
        }
        if !line.joined {
            if line.cut || down || full || rng.u8(..10) > 0 {
                return;
            }
            // The lease of the earlier process or session expires without an action.
            self.last_lease += 1;
            line.lease = Some(self.last_lease);
            line.joined = true;
            line.lost_at = now + lease_time;
            line.changes.clear();
            self.leases.insert(self.last_lease, now + lease_time);
            let live = self.keys.iter().filter(|(key, _)| key.starts_with(LIVE));
            let entries = live.map(|(key, stored)| entry(key, stored)).collect();
            news.push((member, News::Joined { revision: Revision(self.revision), entries }));
            return;
        }
        if line.cut || down {
            return;
        }
        // Answers and changes travel in separate queues.
        let mut queues = [&mut line.answers, &mut line.changes];
        if rng.bool() {
            queues.reverse();
        }
        for queue in queues {
            while queue.front().is_some_and(|(at, _)| *at <= now) {
                news.extend(queue.pop_front().map(|(_, one)| (member, one)));
            }
        }
    }

    pub(crate) fn get(&self, key: &str) -> Option<&[u8]> {
        self.keys.get(key).map(|stored| stored.value.as_slice())
    }

    pub(crate) fn keys(&self) -> impl Iterator<Item = &str> {
        self.keys.keys().map(String::as_str)
    }
}

fn entry(key: &str, stored: &Stored) -> Entry {
    Entry { key: key.to_owned(), value: stored.value.clone(), created: stored.created, modified: stored.modified }
}

fn puts(request: &Request, key: &str) -> bool {
    match request {
        Request::Transaction { writes, .. } => {
            writes.iter().any(|write| matches!(write, Write::Put { key: of, .. } if of == key))
        }
        Request::Read { .. } | Request::End { .. } => false,
    }
}

/// A random time of arrival that is not before the arrival of the previous message.
fn later(last: Option<Time>, now: Time, slowest: Time, rng: &mut fastrand::Rng) -> Time {
    last.unwrap_or(0).max(now + rng.u64(1..=slowest))
}
