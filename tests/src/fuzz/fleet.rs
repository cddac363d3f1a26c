//! Fuzzes writes that a program which is no member makes to the keys of a fleet.

use std::{
    collections::{BTreeMap, VecDeque},
    time::{Duration, Instant, UNIX_EPOCH},
};

use arbitrary::{Result, Unstructured};
use balancer_common::client::HashKey;
use balancer_config::{names::BackendName, states::Admin};
use balancer_control::{
    controller::Controller,
    io::Change,
    state::{Clocks, SavedState},
};
use balancer_fleet::{
    documents,
    engine::{Answer, Condition, Entry, LIVE, News, Request, Revision, Ticket, Write},
    keys,
    member::{Input, Member, Output, Settings},
    records,
    store_schema::{Ballot, ChangeRequest},
};
use serde_json::Value;

use super::{
    config::KEY,
    mutation,
    state::{configured, is_small},
};

/// The largest number of actions of the foreign program in one run.
const LONGEST: usize = 24;
/// The largest number of inputs that a member may handle without waiting.
const TALKATIVE: usize = 5_000;

/// Runs one member of a fleet while another program writes to the fleet's keys, as `bytes` determine.
pub fn fleet(bytes: &[u8]) {
    let _ = records::read(bytes);
    let mut world = World::new();
    world.join();
    // The end of the input ends the run.
    let _ = story(&mut Unstructured::new(bytes), &mut world);
    world.pass(Duration::from_secs(10));
}

fn story(bytes: &mut Unstructured<'_>, world: &mut World) -> Result<()> {
    world.pass(Duration::from_secs(2));
    for _ in 0..LONGEST {
        if bytes.is_empty() {
            break;
        }
        act(bytes, world)?;
        world.pass(Duration::from_millis(300));
    }
    Ok(())
}

fn act(bytes: &mut Unstructured<'_>, world: &mut World) -> Result<()> {
    let all: Vec<String> = world.keys.keys().cloned().collect();
    let kind = bytes.int_in_range(0..=9)?;
    if kind == 0 || all.is_empty() {
        world.pass(Duration::from_secs(3));
        return Ok(());
    }
    let key = bytes.choose(&all)?.clone();
    let value = world.keys.get(&key).map(|stored| stored.value.clone()).unwrap_or_default();
    match kind {
        1 => world.foreign(Write::Put { key, value: some(bytes)?, leased: false }),
        2 => world.foreign(Write::Delete(key)),
        3 => world.foreign(Write::Put { key: format!("{key}/{}", bytes.arbitrary::<u8>()?), value, leased: false }),
        4 => {
            let other = bytes.choose(&all)?;
            let value = world.keys.get(other).map(|stored| stored.value.clone()).unwrap_or_default();
            world.foreign(Write::Put { key, value, leased: false });
        }
        5 => {
            let names = [keys::member("other"), keys::dump("other"), keys::records("other.7", 1)];
            let more = [keys::request("other.7", 1), keys::NEXT.to_owned(), keys::LEADER.to_owned()];
            let key = bytes.choose(&[names, more].concat())?.clone();
            world.foreign(Write::Put { key, value: some(bytes)?, leased: false });
        }
        6 => {
            world.hear(News::Lost { reason: "a story".to_owned() });
            world.join();
        }
        7 => {
            let name = BackendName { service: "web".to_owned(), backend: "web1".to_owned() };
            let change = if bytes.arbitrary()? {
                Change::SetWeight { name, weight: bytes.arbitrary()? }
            } else {
                Change::SetAdmin { name, admin: Admin::Drain, timeout: None }
            };
            world.input(Input::ChangeRequest {
                id: 1,
                change_request: ChangeRequest::Change(change),
                if_generation: None,
            });
        }
        _ => {
            let value = vandalized(bytes, &key, &value)?;
            world.foreign(Write::Put { key, value, leased: false });
        }
    }
    Ok(())
}

/// Returns random bytes, or random bytes in the format of a batch of records.
fn some(bytes: &mut Unstructured<'_>) -> Result<Vec<u8>> {
    let length = bytes.int_in_range(0..=64)?;
    let some = bytes.bytes(length.min(bytes.len()))?.to_vec();
    Ok(if bytes.arbitrary()? { [&[1, 0, 0, 0, 0, 0, 0, 0], some.as_slice()].concat() } else { some })
}

/// Replaces some values in the JSON text of `value`.
fn vandalized(bytes: &mut Unstructured<'_>, key: &str, value: &[u8]) -> Result<Vec<u8>> {
    let packed = key.starts_with(keys::DOCUMENTS);
    let read = if packed { documents::unpack::<Value>(value, "it").ok() } else { serde_json::from_slice(value).ok() };
    let Some(mut json) = read else { return some(bytes) };
    mutation::vandalize(bytes, &mut json)?;
    let written = if packed { documents::pack(&json, "it") } else { Ok(json.to_string().into_bytes()) };
    Ok(written.unwrap_or_default())
}

struct Stored {
    value: Vec<u8>,
    created: Revision,
    modified: Revision,
}

/// One member of a fleet, the etcd store, and the connection between member and store.
struct World {
    begin: Instant,
    elapsed: Duration,
    revision: i64,
    keys: BTreeMap<String, Stored>,
    member: Member,
    /// The controller that carries out the member's decisions.
    plane: Controller,
    inputs: VecDeque<Input>,
}

impl World {
    fn new() -> Self {
        let (begin, config) = (Instant::now(), configured());
        let settings = Settings {
            name: "lb1".to_owned(),
            instance: 1,
            version: "0.1.0".to_owned(),
            steering: 1,
            buckets: 1024,
            config: config.clone(),
            key: KEY,
            key_is_configured: false,
            share_clients: true,
            lease: Duration::from_secs(5),
            home: 1,
        };
        let mut plane = Controller::follower(config, KEY, begin);
        let _ = plane.start_following(begin);
        let member = Member::new(settings, None);
        let inputs = VecDeque::new();
        Self { begin, elapsed: Duration::ZERO, revision: 1, keys: BTreeMap::new(), member, plane, inputs }
    }

    fn clocks(&self) -> Clocks {
        let wall = UNIX_EPOCH + Duration::from_secs(1 << 30) + self.elapsed;
        Clocks { now: self.begin + self.elapsed, wall }
    }

    fn hear(&mut self, news: News) {
        self.input(Input::News(news));
    }

    fn input(&mut self, input: Input) {
        self.inputs.push_back(input);
        self.settle();
    }

    fn join(&mut self) {
        let live = self.keys.iter().filter(|(key, _)| key.starts_with(LIVE));
        let entries = live.map(|(key, stored)| entry(key, stored)).collect();
        self.hear(News::Joined { revision: Revision(self.revision), entries });
    }

    fn pass(&mut self, time: Duration) {
        let end = self.elapsed + time;
        while self.elapsed < end {
            self.elapsed += Duration::from_millis(300);
            self.input(Input::Tick);
        }
    }

    /// Feeds inputs to the member and carries out the member's outputs until no input is left.
    fn settle(&mut self) {
        for _ in 0..TALKATIVE {
            let Some(input) = self.inputs.pop_front() else { return };
            for output in self.member.handle(input, self.clocks()) {
                self.take(output);
            }
        }
        unreachable!("it goes round in circles: {:?}", self.inputs);
    }

    fn take(&mut self, output: Output) {
        match output {
            Output::Ask(Request::Transaction { ticket, conditions, writes }) => {
                self.transaction(ticket, &conditions, writes);
            }
            Output::Ask(Request::Read { ticket, prefix }) => {
                let found = self.keys.iter().filter(|(key, _)| key.starts_with(&prefix));
                let found = Answer::Read(found.map(|(key, stored)| entry(key, stored)).collect());
                self.inputs.push_back(Input::News(News::Answered(ticket, found)));
            }
            // The simulated store denies no request, so the member never ends.
            Output::Ask(Request::End { reason }) => unreachable!("{reason}"),
            Output::Follow { epoch, state, .. } => {
                let result = self.follow(*state);
                self.inputs.push_back(Input::Applied(epoch, result));
            }
            Output::Tell { document, .. } => self.inputs.push_back(Input::Told { document, batches: Vec::new() }),
            Output::Dump { to, instance } => {
                self.inputs.push_back(Input::Dumped { to, instance, batches: Vec::new() });
            }
            Output::Alone(alone) => {
                let now = self.clocks().now;
                let _ = self.plane.set_alone(alone, now);
            }
            Output::Key(HashKey { .. })
            | Output::Import { .. }
            | Output::Doubt
            | Output::Confirm
            | Output::Answer { .. }
            | Output::Tallies { .. } => {}
            Output::Check(backends) => assert!(!backends.is_empty()),
            Output::Log { message, .. } => assert!(!message.is_empty()),
        }
    }

    fn follow(&mut self, state: SavedState) -> std::result::Result<Ballot, String> {
        if !is_small(&state) {
            return Err("too large to be played".to_owned());
        }
        let clocks = self.clocks();
        let _ = self.plane.follow(state, clocks)?;
        Ok(Ballot::of(&self.plane, self.plane.begin_to_fail().collect()))
    }

    fn transaction(&mut self, ticket: Ticket, conditions: &[Condition], writes: Vec<Write>) {
        let holds = |condition: &Condition| match condition {
            Condition::Absent(key) => !self.keys.contains_key(key),
            Condition::Created(key, at) => self.keys.get(key).is_some_and(|stored| stored.created == *at),
            Condition::Modified(key, at) => self.keys.get(key).is_some_and(|stored| stored.modified == *at),
        };
        let answer = if conditions.iter().all(holds) { Answer::Made(self.write(writes)) } else { Answer::Refused };
        self.inputs.push_back(Input::News(News::Answered(ticket, answer)));
    }

    /// Writes to the store as another client of etcd would.
    fn foreign(&mut self, write: Write) {
        self.write(vec![write]);
        self.settle();
    }

    fn write(&mut self, writes: Vec<Write>) -> Revision {
        self.revision += 1;
        let revision = Revision(self.revision);
        let (mut put, mut deleted) = (Vec::new(), Vec::new());
        for write in writes {
            match write {
                Write::Put { key, value, .. } => {
                    let created = self.keys.get(&key).map_or(revision, |before| before.created);
                    let stored = Stored { value, created, modified: revision };
                    put.push(entry(&key, &stored));
                    self.keys.insert(key, stored);
                }
                Write::Delete(key) => deleted.extend(self.keys.remove(&key).map(|_| key)),
                Write::DeletePrefix(prefix) => {
                    let gone: Vec<String> = self.keys.keys().filter(|key| key.starts_with(&prefix)).cloned().collect();
                    self.keys.retain(|key, _| !key.starts_with(&prefix));
                    deleted.extend(gone);
                }
            }
        }
        put.retain(|entry| entry.key.starts_with(LIVE));
        deleted.retain(|key| key.starts_with(LIVE));
        if !(put.is_empty() && deleted.is_empty()) {
            self.inputs.push_back(Input::News(News::Changed { revision, put, deleted }));
        }
        revision
    }
}

fn entry(key: &str, stored: &Stored) -> Entry {
    let Stored { value, created, modified } = stored;
    Entry { key: key.to_owned(), value: value.clone(), created: *created, modified: *modified }
}
