//! A simulated member (node): the protocol, a controller that follows it, and a data path.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    net::IpAddr,
    time::{Duration, Instant, SystemTime},
};

use balancer_config::{config::Config, fixture};
use balancer_control::{
    controller::Controller,
    io::{BackendId, CheckNumber, CheckOutcome, Command, Event, NextHop, ServiceId},
    state::{Clocks, Moment, SavedState},
};

use super::{
    plane::{BUCKETS, Plane},
    store::{Store, Time},
};
use crate::{
    clients::{Heard, Imported, Sharing},
    member::{Input, Member, Mutation, Output, Settings, Told},
    records,
    store_schema::{Ballot, Epoch},
};

/// An event at a node about which the simulated world must know.
pub(crate) enum Happened {
    Answered(u64, Result<String, String>),
    Applied,
}

/// The data that an ended process leaves: the tables in the kernel, and the saved state of the process.
pub(crate) type Left = (Plane, Option<(Epoch, SavedState, Moment)>);

pub(crate) struct Node {
    pub(crate) index: usize,
    pub(crate) member: Member,
    pub(crate) controller: Controller,
    pub(crate) plane: Plane,
    sharing: Sharing,
    /// The origin of the node's clock, because the clocks of members differ.
    begin: Instant,
    pub(crate) skew: Duration,
    checks: HashMap<BackendId, (CheckNumber, IpAddr)>,
    watched: HashSet<IpAddr>,
    ballot: Ballot,
    /// The backends that the node suspects because of packets.
    suspected: Vec<BackendId>,
    /// The numbers of connections of `snat` services, by backend. `None` if the node has not counted connections
    /// yet.
    pub(crate) flows: Option<BTreeMap<BackendId, u64>>,
    /// The backends that the node must check at once, because another member doubts them.
    pub(crate) asked: Vec<BackendId>,
    pub(crate) stopped_from: Time,
    pub(crate) stopped_until: Time,
    pub(crate) alone: bool,
    /// The time at which the node was last alone or out of step.
    pub(crate) astray: Time,
    pub(crate) born: Time,
    /// The time at which the node last sent its clients.
    pub(crate) told: Time,
    pub(crate) log: Vec<String>,
    /// The number of moves that the node has made but that other members count.
    pub(crate) repeated: u64,
    /// The name of a service that the node's data path refuses.
    pub(crate) refuses: Option<&'static str>,
    /// The events in which the node sent or received a record of a client, by the client's tag.
    heard: HashMap<u32, Vec<String>>,
}

fn hop() -> NextHop {
    NextHop {
        ifindex: 1,
        source_mac: [2; 6],
        destination_mac: [4; 6],
        mtu: 1500,
        source: Some([192, 0, 2, 1].into()),
        gateway: None,
        local: false,
    }
}

impl Node {
    /// Starts the process of a member; `before` contains the data that an earlier process of this member has left.
    pub(crate) fn start(
        (index, name): (usize, usize),
        instance: u64,
        config: Config,
        begin: Instant,
        now: Time,
        before: Option<Left>,
        mutation: Option<Mutation>,
    ) -> Self {
        let (plane, held) = before.map_or_else(|| (Plane::new(), None), |(plane, held)| (plane, held));
        let settings = Settings {
            name: format!("lb{name}"),
            instance,
            version: "1".to_owned(),
            steering: 1 + u32::from(plane.is_another_version()),
            buckets: BUCKETS as u32,
            config: config.clone(),
            key: fixture::KEY,
            key_is_configured: true,
            share_clients: true,
            lease: Duration::from_secs(5),
            home: 1 + index as u64,
        };
        let skew = Duration::from_secs(7 * index as u64);
        let mut this = Self {
            index,
            member: Member::new(settings, held.clone()),
            controller: Controller::follower(config.clone(), fixture::KEY, begin),
            plane,
            sharing: Sharing::new(BUCKETS * 8),
            begin,
            skew,
            checks: HashMap::new(),
            watched: HashSet::new(),
            ballot: Ballot::default(),
            suspected: Vec::new(),
            flows: Some(BTreeMap::new()),
            asked: Vec::new(),
            stopped_from: 0,
            stopped_until: 0,
            alone: true,
            astray: now,
            born: now,
            told: 0,
            log: Vec::new(),
            repeated: 0,
            refuses: None,
            heard: HashMap::new(),
        };
        this.member.mutate(mutation);
        this.sharing.mutate(mutation);
        if let Some((_, state, at)) = held {
            let commands = this.controller.follow(state, this.as_of(at, now)).expect("its own state");
            this.carry_out(commands);
        }
        let commands = this.controller.set_alone(true, this.clocks(now).now);
        this.carry_out(commands);
        this
    }

    /// Returns the times of the node's clocks; the node's wall clock is wrong by some seconds.
    pub(crate) fn clocks(&self, now: Time) -> Clocks {
        let elapsed = Duration::from_millis(now);
        let wall = SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000) + self.skew + elapsed;
        Clocks { now: self.begin + elapsed, wall }
    }

    fn as_of(&self, at: Moment, now: Time) -> Clocks {
        Clocks { now: self.clocks(now).now, wall: SystemTime::UNIX_EPOCH + at.0 }
    }

    /// Passes an input to the member, and carries out its outputs.
    pub(crate) fn handle(
        &mut self,
        input: Input,
        now: Time,
        store: &mut Store,
        rng: &mut fastrand::Rng,
    ) -> Vec<Happened> {
        let mut happened = Vec::new();
        let mut inputs = vec![input];
        while let Some(input) = inputs.pop() {
            for output in self.member.handle(input, self.clocks(now)) {
                self.obey(output, now, (store, rng), &mut inputs, &mut happened);
            }
            // The inputs are reversed, because the loop takes the last input first and must handle the inputs in order
            // of arrival.
            inputs.reverse();
        }
        if self.alone || !self.member.is_in_step() {
            self.astray = now;
        }
        happened
    }

    fn obey(
        &mut self,
        output: Output,
        now: Time,
        (store, rng): (&mut Store, &mut fastrand::Rng),
        inputs: &mut Vec<Input>,
        happened: &mut Vec<Happened>,
    ) {
        match output {
            Output::Ask(request) => store.ask(self.index, request, now, rng),
            Output::Key(key) => assert_eq!(key, fixture::KEY),
            Output::Follow { epoch, state, at, age, lines, .. } => {
                self.log.extend(lines.into_iter().map(|line| line.message));
                let now = self.clocks(now).now;
                let as_of = Clocks { now: now - age, wall: SystemTime::UNIX_EPOCH + at.0 };
                let refuses = |name: &str| state.services.iter().any(|service| service.settings.name == name);
                let result = match self.refuses.filter(|name| refuses(name)) {
                    Some(name) => Err(format!("the data path refused: no room for {name}")),
                    None => self.controller.follow(*state, as_of),
                };
                let result = result.map(|commands| {
                    self.carry_out(commands);
                    self.ballot = self.ballot_now();
                    self.ballot.clone()
                });
                inputs.push(Input::Applied(epoch, result));
                happened.push(Happened::Applied);
            }
            Output::Tell { document, .. } => {
                let epoch = self.member.epoch().map_or(0, |epoch| epoch.number as u32);
                let records = self.plane.collect(&mut self.sharing, epoch, now);
                self.told = now;
                self.sharing.has_told(epoch);
                for record in &records {
                    let heard = self.heard.entry(record.tag).or_default();
                    heard.push(format!(
                        "{now}: told at {} in {}{}",
                        record.backend,
                        record.epoch,
                        if record.moved { "!" } else { "" }
                    ));
                }
                inputs.push(Input::Told { document, batches: records::batches(&records) });
            }
            Output::Import { told: Told { records, precedes }, emptied } => {
                let epoch = self.member.epoch().map_or(0, |epoch| epoch.number as u32);
                for record in records {
                    let heard = Heard { precedes, epoch, emptied: &emptied };
                    let outcome = self.plane.import(&mut self.sharing, &record, heard, now);
                    self.repeated += u64::from(matches!(outcome, Imported::Repeated(_)));
                    let heard = self.heard.entry(record.tag).or_default();
                    heard.push(format!(
                        "{now}: {outcome:?} at {} in {}{}",
                        record.backend,
                        record.epoch,
                        if record.moved { "!" } else { "" }
                    ));
                }
            }
            Output::Doubt => self.sharing.doubt(),
            Output::Confirm => self.sharing.confirm(),
            Output::Dump { to, instance } => {
                let epoch = self.member.epoch().map_or(0, |epoch| epoch.number as u32);
                let records = self.plane.dump(&self.sharing, epoch, now);
                inputs.push(Input::Dumped { to, instance, batches: records::batches(&records) });
            }
            Output::Check(backends) => self.asked.extend(backends),
            Output::Alone(alone) => {
                self.alone = alone;
                let commands = self.controller.set_alone(alone, self.clocks(now).now);
                self.carry_out(commands);
            }
            Output::Answer { id, result } => {
                let result = result.map(|done| done.message).map_err(|refused| refused.to_string());
                happened.push(Happened::Answered(id, result));
            }
            Output::Tallies { .. } => unreachable!("nobody asks"),
            Output::Log { warning, message } => self.log.push(format!("{}{message}", if warning { "! " } else { "" })),
        }
    }

    fn carry_out(&mut self, commands: Vec<Command>) {
        for command in commands {
            match &command {
                Command::StartChecks(check) => {
                    self.checks.insert(check.backend, (check.number, check.target.ip()));
                }
                Command::StopChecks(id) => {
                    self.checks.remove(id);
                }
                Command::WatchNextHop(address) => {
                    self.watched.insert(*address);
                }
                Command::UnwatchNextHop(address) => {
                    self.watched.remove(address);
                }
                Command::WriteBackend(_)
                | Command::RetireBackend(_)
                | Command::SwapTable { .. }
                | Command::PublishServices(_)
                | Command::SetRules { .. }
                | Command::Report(_) => {}
            }
            self.plane.carry_out(command);
        }
    }

    /// Describes what the node knows about a client, for human readers.
    pub(crate) fn trace(&self, service: ServiceId, client: u32) -> String {
        let Some(hash) = self.plane.hash(service, client) else { return String::new() };
        let (entry, keeps) = self.plane.entry(hash);
        let heard = self.heard.get(&((hash >> 32) as u32)).cloned().unwrap_or_default();
        format!("lb{} {entry:?} keeps {keeps:?} {}", self.index, heard.join(", "))
    }

    /// The backend at which the node knows a client.
    pub(crate) fn backend_of(&self, service: ServiceId, client: u32) -> Option<u16> {
        self.plane.entry(self.plane.hash(service, client)?).0.map(|(backend, _)| backend)
    }

    fn ballot_now(&self) -> Ballot {
        let mut suspected = self.suspected.clone();
        suspected.extend(self.controller.begin_to_fail());
        Ballot::of(&self.controller, suspected)
    }

    /// Runs each check of the node once; `reaches` tells whether the node reaches an address.
    pub(crate) fn check(
        &mut self,
        now: Time,
        reaches: impl Fn(IpAddr) -> bool,
        store: &mut Store,
        rng: &mut fastrand::Rng,
    ) -> Vec<Happened> {
        let mut events: Vec<Event> =
            self.watched.iter().map(|&address| Event::NextHop { address, next_hop: Ok(hop()) }).collect();
        events.extend(self.checks.iter().map(|(&backend, &(check, address))| {
            let outcome =
                if reaches(address) { CheckOutcome::Passed } else { CheckOutcome::Hard("connect: refused".to_owned()) };
            Event::Checked { backend, check, outcome, took: Duration::from_millis(1), asked: false }
        }));
        let commands = self.controller.handle_all(events, self.clocks(now).now);
        self.carry_out(commands);
        self.suspected.clear();
        self.vote(now, store, rng)
    }

    /// Simulates packets from which the node suspects a failure.
    pub(crate) fn suspect(
        &mut self,
        id: BackendId,
        now: Time,
        store: &mut Store,
        rng: &mut fastrand::Rng,
    ) -> Vec<Happened> {
        self.suspected.push(id);
        self.asked.push(id);
        self.vote(now, store, rng)
    }

    /// Reports the node's ballot to the member if it has changed.
    fn vote(&mut self, now: Time, store: &mut Store, rng: &mut fastrand::Rng) -> Vec<Happened> {
        let ballot = self.ballot_now();
        if ballot == self.ballot {
            return Vec::new();
        }
        self.ballot = ballot.clone();
        self.handle(Input::Ballot(ballot), now, store, rng)
    }

    /// Checks the requested backends twice, which is enough to reach a verdict.
    pub(crate) fn check_asked(
        &mut self,
        now: Time,
        reaches: impl Fn(IpAddr) -> bool,
        store: &mut Store,
        rng: &mut fastrand::Rng,
    ) -> Vec<Happened> {
        let asked: Vec<_> = std::mem::take(&mut self.asked)
            .into_iter()
            .filter_map(|id| self.checks.get(&id).map(|&(number, address)| (id, number, address)))
            .collect();
        let once = |&(backend, check, address): &(BackendId, CheckNumber, IpAddr)| {
            let outcome =
                if reaches(address) { CheckOutcome::Passed } else { CheckOutcome::Hard("connect: refused".to_owned()) };
            Event::Checked { backend, check, outcome, took: Duration::from_millis(1), asked: false }
        };
        let events: Vec<Event> = asked.iter().chain(&asked).map(once).collect();
        self.suspected.retain(|id| !asked.iter().any(|(checked, ..)| checked == id));
        let commands = self.controller.handle_all(events, self.clocks(now).now);
        self.carry_out(commands);
        self.vote(now, store, rng)
    }

    /// Sweeps the node's client table.
    pub(crate) fn sweep(&mut self, now: Time, store: &mut Store, rng: &mut fastrand::Rng) -> Vec<Happened> {
        let known = self.plane.known();
        let mut all: Vec<(BackendId, u64)> = known.iter().map(|(&id, &count)| (BackendId(id), count)).collect();
        all.sort_unstable();
        let commands = self.controller.handle_all([Event::Swept { known: all.clone() }], self.clocks(now).now);
        self.carry_out(commands);
        self.handle(Input::Swept(all), now, store, rng)
    }

    /// Counts the node's `snat` connections.
    pub(crate) fn count_flows(&mut self, now: Time, store: &mut Store, rng: &mut fastrand::Rng) -> Vec<Happened> {
        let Some(of) = self.flows.clone() else { return Vec::new() };
        let flows = of.iter().map(|(&id, &count)| (id, count)).filter(|&(_, count)| count > 0).collect();
        let commands = self
            .controller
            .handle_all([Event::Flows { of, ports: BTreeMap::new(), active: BTreeSet::new() }], self.clocks(now).now);
        self.carry_out(commands);
        self.handle(Input::FlowsCounted(flows), now, store, rng)
    }
}
