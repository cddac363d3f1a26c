//! A member of a fleet without a kernel program, but with the real protocol, etcd driver, core and sharing of clients.
//! The client table of the member is in memory.

use std::{
    collections::{HashMap, HashSet},
    net::IpAddr,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use balancer_common::{
    client::HashKey,
    client_table::{BUCKET_ENTRIES, Entry},
};
use balancer_config::config::Config;
use balancer_control::{
    controller::Controller,
    fingerprint,
    io::{BackendId, Change, CheckNumber, CheckOutcome, Command, Event, NextHop},
    state::Clocks,
};
use balancer_etcd::Engine;
use balancer_fleet::{
    clients::{Facts, Heard, Sharing, Table},
    member::{Input, Member, Output, Settings},
    records,
    store_schema::{Ballot, ChangeRequest},
};
use tokio::{
    select,
    sync::{mpsc, oneshot},
    time::sleep_until,
};

/// The number of ticks after which a member forgets a client.
const REMEMBER: u16 = 32;
const TICK: u16 = 1000;
/// The number of ticks after which a member sends a client again that still sends packets: more than a quarter of
/// `REMEMBER`.
const STALE: u16 = REMEMBER / 4 + 1;
pub(crate) const KEY: HashKey = HashKey { k0: 1, k1: 2 };

/// A command that the benchmark sends to a member.
pub(crate) enum Order {
    /// The member makes a change, and sends back the fleet's answer.
    Change(Box<Change>, oneshot::Sender<Result<String, String>>),
    /// The member records the given clients; all members get the same clients.
    Fill(Arc<Vec<Known>>),
    /// The member behaves as if the given clients had sent packets again.
    See(Vec<usize>),
    /// The member's checks find that the backend at the given address is down.
    Lose(IpAddr),
}

/// A client that all members of the fleet know, and that has been silent for a while.
pub(crate) struct Known {
    /// The index of the client's entry in the client table.
    pub(crate) index: usize,
    /// The high half of the client's hash.
    pub(crate) tag: u32,
    /// The index of the client's backend in the service.
    pub(crate) backend: u16,
}

/// An event that a member reports.
pub(crate) enum Told {
    /// The member has joined or left the fleet, and knows the given number of clients.
    InStep(usize),
    /// The member has applied an epoch, after which the given number of backends of the first service are up.
    Applied(usize),
    /// The member has changed its votes about the states of backends.
    Voted,
    /// The member has recorded the clients in its table.
    Filled,
}

/// A report of a member: the member's number, the event, and the time.
pub(crate) type Report = (usize, Told, Instant);

pub(crate) struct Light {
    number: usize,
    member: Member,
    engine: Engine,
    controller: Controller,
    sharing: Sharing,
    words: Words,
    checks: HashMap<BackendId, (CheckNumber, IpAddr)>,
    watched: HashSet<IpAddr>,
    lost: HashSet<IpAddr>,
    ballot: Ballot,
    answers: HashMap<u64, oneshot::Sender<Result<String, String>>>,
    in_step: bool,
    reports: mpsc::UnboundedSender<Report>,
}

struct Words(Vec<AtomicU64>);

impl Table for Words {
    fn entries(&self) -> usize {
        self.0.len()
    }

    fn load(&self, index: usize) -> Entry {
        Entry(self.0.get(index).map_or(0, |word| word.load(Relaxed)))
    }

    fn exchange(&self, index: usize, old: Entry, new: Entry) -> bool {
        self.0.get(index).is_some_and(|word| word.compare_exchange(old.0, new.0, Relaxed, Relaxed).is_ok())
    }
}

fn clocks() -> Clocks {
    Clocks { now: Instant::now(), wall: SystemTime::now() }
}

fn hop() -> NextHop {
    NextHop {
        ifindex: 1,
        source_mac: [2; 6],
        destination_mac: [4; 6],
        mtu: 1500,
        source: None,
        gateway: None,
        local: false,
    }
}

impl Light {
    pub(crate) fn new(
        number: usize,
        config: Config,
        entries: usize,
        engine: Engine,
        reports: mpsc::UnboundedSender<Report>,
    ) -> Self {
        let settings = Settings {
            name: format!("lb{number:02}"),
            instance: fastrand::u64(1..),
            version: "bench".to_owned(),
            steering: fingerprint::of_steering(),
            buckets: u32::try_from(entries / BUCKET_ENTRIES).unwrap_or(u32::MAX),
            config: config.clone(),
            key: KEY,
            key_is_configured: true,
            share_clients: true,
            lease: Duration::from_secs(5),
            home: number as u64 + 1,
        };
        Self {
            number,
            member: Member::new(settings, None),
            engine,
            controller: Controller::follower(config, KEY, Instant::now()),
            sharing: Sharing::new(entries),
            words: Words((0..entries).map(|_| AtomicU64::new(0)).collect()),
            checks: HashMap::new(),
            watched: HashSet::new(),
            lost: HashSet::new(),
            ballot: Ballot::default(),
            answers: HashMap::new(),
            in_step: false,
            reports,
        }
    }

    /// Runs the member until the sender of commands is dropped.
    pub(crate) async fn serve(mut self, mut orders: mpsc::UnboundedReceiver<Order>) {
        let mut change_requests = 0;
        loop {
            let deadline = self.member.next_deadline(Instant::now());
            select! {
                biased;
                news = self.engine.news.recv() => match news {
                    Some(news) => self.handle(Input::News(news)),
                    None => return,
                },
                order = orders.recv() => match order {
                    Some(order) => self.obey_order(order, &mut change_requests),
                    None => return,
                },
                () = sleep_until(deadline.into()) => self.handle(Input::Tick),
            }
        }
    }

    fn obey_order(&mut self, order: Order, change_requests: &mut u64) {
        match order {
            Order::Change(change, answer) => {
                *change_requests += 1;
                self.answers.insert(*change_requests, answer);
                self.handle(Input::ChangeRequest {
                    id: *change_requests,
                    change_request: ChangeRequest::Change(*change),
                    if_generation: None,
                });
            }
            Order::Fill(clients) => {
                let ids: Vec<u16> =
                    self.controller.services().first().map_or_else(Vec::new, |service| {
                        service.backends().iter().map(|backend| backend.id().0).collect()
                    });
                for client in clients.iter() {
                    let entry = Entry::heard_of(client.tag, ids[usize::from(client.backend)], false, STALE, TICK);
                    self.words.0[client.index].store(entry.0, Relaxed);
                }
                let _ = self.sharing.collect(&self.words, &facts, self.epoch(), |_| true);
                self.sharing.has_told(self.epoch());
                self.report(Told::Filled);
            }
            Order::See(indices) => {
                for index in indices {
                    let entry = self.words.load(index);
                    let seen = Entry::heard_of(entry.tag(), entry.backend(), entry.away(), 0, TICK);
                    self.words.0[index].store(seen.0, Relaxed);
                }
            }
            Order::Lose(address) => {
                self.lost.insert(address);
                self.check();
            }
        }
    }

    fn handle(&mut self, input: Input) {
        let mut inputs = vec![input];
        while let Some(input) = inputs.pop() {
            for output in self.member.handle(input, clocks()) {
                self.obey(output, &mut inputs);
            }
            // The member handles its inputs in the order of their arrival.
            inputs.reverse();
        }
        if self.member.is_in_step() != self.in_step {
            self.in_step = !self.in_step;
            let known = self.words.0.iter().filter(|word| word.load(Relaxed) != 0).count();
            self.report(Told::InStep(known));
        }
    }

    fn obey(&mut self, output: Output, inputs: &mut Vec<Input>) {
        match output {
            Output::Ask(request) => {
                if let Err(error) = self.engine.requests.send(request) {
                    eprintln!("lb{:02}: {error}", self.number);
                }
            }
            Output::Follow { epoch, state, at, .. } => {
                let clocks = Clocks { now: Instant::now(), wall: UNIX_EPOCH + at.0 };
                let result = self.controller.follow(*state, clocks).map(|commands| {
                    self.carry_out(commands);
                    let _ = self.look();
                    self.ballot.clone()
                });
                self.report(Told::Applied(self.up()));
                inputs.push(Input::Applied(epoch, result));
            }
            Output::Tell { document, .. } => {
                let records = self.sharing.collect(&self.words, &facts, self.epoch(), |_| true);
                self.sharing.has_told(self.epoch());
                inputs.push(Input::Told { document, batches: records::batches(&records) });
            }
            Output::Import { told, emptied } => {
                let heard = Heard { precedes: told.precedes, epoch: self.epoch(), emptied: &emptied };
                for record in &told.records {
                    let _ = self.sharing.import(&self.words, record, heard, &facts, |_, _, _| {});
                }
            }
            Output::Doubt => self.sharing.doubt(),
            Output::Confirm => self.sharing.confirm(),
            Output::Dump { to, instance } => {
                let records = self.sharing.dump(&self.words, &facts, self.epoch());
                inputs.push(Input::Dumped { to, instance, batches: records::batches(&records) });
            }
            Output::Alone(alone) => {
                let commands = self.controller.set_alone(alone, Instant::now());
                self.carry_out(commands);
            }
            Output::Answer { id, result } => {
                if let Some(answer) = self.answers.remove(&id) {
                    let result = result.map(|done| format!("{} of {}", done.applied, done.members));
                    let _ = answer.send(result.map_err(|refused| refused.to_string()));
                }
            }
            Output::Log { warning: true, message } => eprintln!("lb{:02}: {message}", self.number),
            Output::Key(_) | Output::Check(_) | Output::Tallies { .. } | Output::Log { warning: false, .. } => {}
        }
    }

    fn carry_out(&mut self, commands: Vec<Command>) {
        for command in commands {
            match command {
                Command::StartChecks(check) => {
                    self.checks.insert(check.backend, (check.number, check.target.ip()));
                }
                Command::StopChecks(id) => drop(self.checks.remove(&id)),
                Command::WatchNextHop(address) => drop(self.watched.insert(address)),
                Command::UnwatchNextHop(address) => drop(self.watched.remove(&address)),
                Command::WriteBackend(_)
                | Command::RetireBackend(_)
                | Command::SwapTable { .. }
                | Command::PublishServices(_)
                | Command::SetRules { .. }
                | Command::Report(_) => {}
            }
        }
    }

    fn check(&mut self) {
        let mut inputs = Vec::new();
        self.check_into(&mut inputs);
        inputs.into_iter().for_each(|input| self.handle(input));
    }

    fn check_into(&mut self, inputs: &mut Vec<Input>) {
        if self.look() {
            inputs.push(Input::Ballot(self.ballot.clone()));
        }
    }

    /// Runs the member's checks once, and makes the results the member's votes. Returns whether the member's votes have
    /// changed.
    fn look(&mut self) -> bool {
        let hops = self.watched.iter().map(|&address| Event::NextHop { address, next_hop: Ok(hop()) });
        let checks = self.checks.iter().map(|(&backend, &(check, address))| {
            let down = self.lost.contains(&address);
            let outcome = if down { CheckOutcome::Hard("connect: refused".to_owned()) } else { CheckOutcome::Passed };
            Event::Checked { backend, check, outcome, took: Duration::from_millis(1), asked: false }
        });
        let events: Vec<Event> = hops.chain(checks).collect();
        let commands = self.controller.handle_all(events, Instant::now());
        self.carry_out(commands);
        let ballot = Ballot::of(&self.controller, self.controller.begin_to_fail().collect());
        let news = ballot != self.ballot;
        if news {
            self.ballot = ballot;
            self.report(Told::Voted);
        }
        news
    }

    /// The number of backends that have slots in the lookup table.
    fn up(&self) -> usize {
        let service = self.controller.services().first();
        service.map_or(0, |service| service.backends().iter().filter(|backend| backend.slots() > 0).count())
    }

    fn epoch(&self) -> u32 {
        self.member.epoch().map_or(0, |epoch| u32::try_from(epoch.number).unwrap_or(u32::MAX))
    }

    fn report(&self, what: Told) {
        // At the end of the benchmark, the receiver of reports no longer exists.
        let _ = self.reports.send((self.number, what, Instant::now()));
    }
}

fn facts(_: u16) -> Option<Facts> {
    Some(Facts { service: 0, tick: TICK, remember: REMEMBER, keeps: true })
}
