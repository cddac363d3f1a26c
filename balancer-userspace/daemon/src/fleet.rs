//! This balancer as a member of a fleet: this module passes the engine's messages to the protocol (`balancer-fleet`),
//! and carries out the protocol's outputs.

mod awaiting;
mod file;
mod home;
mod shown;
mod tallies;

use std::{
    collections::{HashMap, VecDeque},
    future::pending,
    time::{Duration, UNIX_EPOCH},
};

use anyhow::Context as _;
use balancer_api::model::Changed;
use balancer_common::{client::HashKey, verdict::Signal};
use balancer_config::{
    config::{Config, Fleet as FleetConfig},
    names::BackendName,
    states::Admin,
    words::{counted, grouped},
};
use balancer_control::{
    fingerprint,
    fleet::{FleetMember, FleetSnapshot},
    io::{BackendId, Change, Refused, Report, ReportLevel},
    readiness::FleetFacts,
    room::{Room, Rooms},
    service::Backend,
    state::{Clocks, Moment, SavedEpoch, SavedState},
};
use balancer_dataplane::{Capacity, Dataplane as _, KernelDataplane};
use balancer_etcd::Engine;
use balancer_fleet::{
    engine::{Answer, News, Request as Ask},
    member::{Done, Input, Member, Output, Settings},
    records,
    store_schema::{Ballot, ChangeRequest, Epoch, Line},
};
use tokio::{
    sync::oneshot,
    time::{Instant, sleep_until, timeout_at},
};
use tracing::{info, warn};

use awaiting::{Awaiting, Next};
use balancer_listeners::call::{self, Request, Tallies};
use balancer_runtime::{
    clocks::clocks,
    supervisor::{Supervisor, Task},
};
use balancer_sources::etcd_settings;
use file::OwnFile;
use shown::Shown;
pub(crate) use tallies::tell as tell_tallies;

use crate::{host::Host, owner::Owner};

/// The time that a starting member waits for the fleet's state before the member continues with its own state.
const FIRST_STATE: Duration = Duration::from_secs(5);

/// The maximum number of new clients per second that the member reports although the member has seen these clients in
/// only one tick. Above this limit, the member reports only clients that it has seen in several ticks, so that a flood
/// of sources does not reach the engine.
const NEWCOMERS: usize = 2_000;

/// A state of the fleet, with the epoch and the moment of the decision.
pub(crate) type Held = (Epoch, SavedState, Moment);

/// A member of a fleet: see the [module](self).
pub(crate) struct Fleet {
    config: FleetConfig,
    member: Member,
    engine: Engine,
    /// The task that runs the engine's driver.
    driving: Task<()>,
    /// The fleet's key, once it is known.
    key: Option<HashKey>,
    /// Outputs that the protocol made before the owner existed.
    early: VecDeque<Output>,
    change_requests: HashMap<u64, Asked>,
    /// Pending requests for the members' counters.
    readers: HashMap<u64, oneshot::Sender<Result<Tallies, Refused>>>,
    /// The last request number; requests for changes and requests for counters share the sequence.
    last_asked: u64,
    ballot: Ballot,
    sweeps: u64,
    flows_counted: u64,
    readiness: String,
    alone: bool,
    file: OwnFile,
    shown: Shown,
    /// The room of all members, by which this member plans changes.
    rooms: Rooms,
    /// The state for which the kernel program lacks features.
    awaiting: Option<Awaiting>,
}

struct Asked {
    uid: Option<u32>,
    about: Option<BackendName>,
    /// The number of clients that this member knew at a backend that is about to be removed.
    known: Option<u64>,
    reply: oneshot::Sender<Result<Changed, Refused>>,
}

impl Fleet {
    /// Joins the fleet, and waits for the fleet's state for a limited time. `key` comes from the configuration or from
    /// the previous state.
    pub(crate) async fn join(
        fleet: &FleetConfig,
        config: &Config,
        key: HashKey,
        held: Option<Held>,
        supervisor: &Supervisor,
    ) -> anyhow::Result<Self> {
        let name = fleet.member_name().map_err(anyhow::Error::msg)?;
        let prefix = balancer_etcd::prefix_of(&fleet.name);
        let (engine, driver) = Engine::new(etcd_settings::settings(prefix, &fleet.etcd, fleet.lease));
        let driving = supervisor.spawn("the connection to etcd", async {
            driver.await;
            Ok(())
        });
        let settings = Settings {
            name,
            instance: getrandom::u64().context("no random numbers")?,
            version: env!("CARGO_PKG_VERSION").to_owned(),
            steering: fingerprint::of_steering(),
            buckets: Capacity::for_config(config).buckets(),
            config: config.clone(),
            key,
            key_is_configured: config.hash_key.is_some(),
            share_clients: fleet.share_clients,
            lease: fleet.lease,
            home: home::of_this_process(&config.state_file),
        };
        let mut this = Self {
            config: fleet.clone(),
            member: Member::new(settings, held),
            engine,
            driving,
            key: None,
            early: VecDeque::new(),
            change_requests: HashMap::new(),
            readers: HashMap::new(),
            last_asked: 0,
            ballot: Ballot::default(),
            sweeps: 0,
            flows_counted: 0,
            readiness: "not_ready".to_owned(),
            alone: true,
            file: OwnFile::new(config.services.clone()),
            shown: Shown::default(),
            rooms: Rooms::default(),
            awaiting: None,
        };
        this.await_state().await;
        Ok(this)
    }

    /// Handles inputs until the member has a state to follow, or until the time limit.
    async fn await_state(&mut self) {
        let deadline = Instant::now() + FIRST_STATE;
        loop {
            let Ok(input) = timeout_at(deadline, self.next()).await else {
                warn!(
                    "the fleet's state did not come within {} s: {}; starting without it",
                    FIRST_STATE.as_secs(),
                    self.what_is_missing()
                );
                return;
            };
            if matches!(input, Input::News(News::Joined { .. })) {
                self.tell_address();
            }
            for output in self.member.handle(input, clocks()) {
                match output {
                    Output::Ask(request) => self.ask_early(request),
                    Output::Key(key) => self.key = Some(key),
                    later @ (Output::Follow { .. }
                    | Output::Tell { .. }
                    | Output::Import { .. }
                    | Output::Doubt
                    | Output::Confirm
                    | Output::Dump { .. }
                    | Output::Check(_)
                    | Output::Alone(_)
                    | Output::Answer { .. }
                    | Output::Tallies { .. }
                    | Output::Log { .. }) => self.early.push_back(later),
                }
            }
            let follows = |output: &Output| matches!(output, Output::Follow { .. });
            // The member is in step, so the epoch in the member's stored state is the current epoch.
            if self.early.iter().any(follows) || self.key.is_some() && self.member.is_in_step() {
                return;
            }
        }
    }

    /// Explains why the member has no state to follow.
    fn what_is_missing(&self) -> String {
        let engine = self.engine.facts.borrow();
        let refused = self.member.troubles().into_iter().next();
        let why = refused.or_else(|| engine.denial.clone()).or_else(|| engine.trouble.clone());
        why.unwrap_or_else(|| {
            if self.member.holding().is_some() {
                "it has not arrived yet".to_owned()
            } else {
                "no member has written one yet".to_owned()
            }
        })
    }

    fn ask_early(&mut self, request: Ask) {
        // Without a session, the protocol expects no answer; with a session, the channel has room for the request.
        let _ = self.engine.requests.send(request);
    }

    /// This member's name.
    pub(crate) fn name(&self) -> &str {
        self.member.name()
    }

    /// The key of the fleet, if this member already knows the key.
    pub(crate) const fn key(&self) -> Option<HashKey> {
        self.key
    }

    /// The first state that this member will follow.
    pub(crate) fn first_state(&self) -> Option<&SavedState> {
        self.early
            .iter()
            .find_map(|output| if let Output::Follow { state, .. } = output { Some(&**state) } else { None })
    }

    /// Waits for the next input of the protocol. If the caller cancels the wait, no input is lost.
    pub(crate) async fn next(&mut self) -> Input {
        let deadline = Instant::from_std(self.member.next_deadline(Instant::now().into_std()));
        tokio::select! {
            news = self.engine.news.recv() => match news {
                Some(news) => Input::News(news),
                // The driver's task has ended, which the supervisor reports.
                None => pending().await,
            },
            () = sleep_until(deadline) => Input::Tick,
            // The handling of any input then applies the state.
            () = Awaiting::progress(&mut self.awaiting) => Input::Tick,
        }
    }

    /// Sets the room in the maps of this machine's data path.
    pub(crate) fn set_room(&mut self, room: Room) {
        self.member.note_room(room);
    }

    /// Carries out outputs that the protocol made before the owner existed.
    pub(crate) fn catch_up(&mut self, owner: &mut Owner<KernelDataplane>) {
        if self.config.share_clients {
            owner.dataplane().share_clients();
        }
        owner.set_alone(true);
        let mut inputs = VecDeque::new();
        for output in std::mem::take(&mut self.early) {
            self.obey(output, owner, &mut inputs);
        }
        self.handle_all(inputs, owner);
        self.look(owner);
    }

    /// Handles an input of the protocol and carries out the resulting outputs. The next call of [`look`](Self::look)
    /// reports the changes on this machine.
    pub(crate) fn handle(&mut self, input: Input, owner: &mut Owner<KernelDataplane>) {
        self.handle_all(VecDeque::from([input]), owner);
    }

    /// Asks the host for a kernel program with the features that the next state needs.
    pub(crate) fn extend_program(&mut self, owner: &mut Owner<KernelDataplane>, host: &Host) {
        if let Some(awaiting) = &mut self.awaiting {
            awaiting.advance(owner.dataplane(), host);
        }
    }

    fn handle_all(&mut self, mut inputs: VecDeque<Input>, owner: &mut Owner<KernelDataplane>) {
        if let Some((state, extended)) = Awaiting::take(&mut self.awaiting) {
            match extended {
                Ok(()) => self.follow(state, owner, &mut inputs),
                Err(why) => inputs.push_back(Input::Applied(state.epoch, Err(why))),
            }
        }
        while let Some(input) = inputs.pop_front() {
            if matches!(input, Input::News(News::Joined { .. })) {
                self.tell_address();
            }
            for output in self.member.handle(input, clocks()) {
                self.obey(output, owner, &mut inputs);
            }
        }
    }

    /// Reports changes on this machine to the protocol.
    pub(crate) fn look(&mut self, owner: &mut Owner<KernelDataplane>) {
        self.shown.look(&self.member);
        let mut inputs = VecDeque::new();
        if let Some(differs) = self.compare_file(owner) {
            inputs.push_back(Input::FileDiffers(differs));
        }
        let ballot = ballot(owner);
        if ballot != self.ballot {
            self.ballot = ballot.clone();
            inputs.push_back(Input::Ballot(ballot));
        }
        if owner.sweeps() != self.sweeps {
            self.sweeps = owner.sweeps();
            inputs.push_back(Input::Swept(owner.known_where_it_matters()));
        }
        if owner.flows_counted() != self.flows_counted {
            self.flows_counted = owner.flows_counted();
            inputs.extend(owner.connections_waited_for().map(Input::FlowsCounted));
        }
        let rooms = self.member.rooms();
        if rooms != self.rooms {
            self.rooms.clone_from(&rooms);
            owner.controller_mut().set_rooms(rooms);
        }
        owner.set_fleet(Some(self.facts(owner)));
        let readiness = if owner.is_withdrawn() {
            "withdrawn".to_owned()
        } else {
            owner.readiness().readiness.state.word().to_owned()
        };
        if readiness != self.readiness {
            self.readiness.clone_from(&readiness);
            inputs.push_back(Input::Readiness(readiness));
        }
        if !inputs.is_empty() {
            self.handle_all(inputs, owner);
        }
    }

    fn facts(&self, owner: &Owner<KernelDataplane>) -> FleetFacts {
        let member = &self.member;
        // A member that was once in step keeps receiving clients while it recovers.
        let joined =
            member.epoch().is_some() && (member.is_in_step() || !member.is_connected() || member.has_been_in_step());
        let engine = self.engine.facts.borrow();
        let is_reachable = self.member.is_connected() || engine.reachable && engine.denial.is_some();
        FleetFacts {
            joined,
            engine_reachable: is_reachable,
            engine_trouble: engine.trouble.clone(),
            denial: engine.denial.as_deref().filter(|_| is_reachable).map(shown::in_its_words),
            refused: self.member.refused().map(ToOwned::to_owned),
            lacks: self.member.lacks(),
            engine_warnings: engine.warnings(),
            alone: self.alone && (!self.member.is_connected() || self.member.denial().is_some()),
            when_alone: self.config.when_alone,
            unreachable_here: owner.unreachable_here(),
        }
    }

    /// Applies a state for which the kernel program has all features.
    fn follow(&mut self, next: Next, owner: &mut Owner<KernelDataplane>, inputs: &mut VecDeque<Input>) {
        let age = next.age();
        let Next { epoch, state, at, changed, whole, lines, .. } = next;
        let is_news = self.member.is_in_step() && self.member.epoch() != Some(epoch);
        // The decision time is on this machine's clock, like the moments in the saved state.
        let decided = clocks().moment(clocks().now).0.saturating_sub(age);
        // A part of an epoch is not the epoch: after a restart, which may make room, the member tries the whole epoch.
        let number = epoch.number.saturating_sub(u64::from(!whole));
        let saved = SavedEpoch { lineage: epoch.lineage, number, at: Moment(decided) };
        let result = owner.follow(*state, saved, clocks_at(at, age));
        if result.is_ok() {
            self.file.fleet_has_changed(changed);
            if is_news {
                self.shown.applied(at);
            }
            tell(owner, lines);
        }
        let result = result.map(|()| {
            self.ballot = ballot(owner);
            self.ballot.clone()
        });
        inputs.push_back(Input::Applied(epoch, result));
    }

    fn obey(&mut self, output: Output, owner: &mut Owner<KernelDataplane>, inputs: &mut VecDeque<Input>) {
        match output {
            Output::Ask(request) => self.ask(request, inputs),
            Output::Key(key) => self.key = Some(key),
            Output::Follow { epoch, state, at, age, changed, whole, lines } => {
                let next = Next { epoch, state, at, age, since: Instant::now(), changed, whole, lines };
                let features = next.state.features(&owner.controller().local_addresses());
                let need = owner.controller().need_for(&next.state);
                // A state that waits already would otherwise replace this newer one.
                let is_first = self.awaiting.is_none();
                if is_first
                    && owner.dataplane().require(features).and_then(|()| owner.dataplane().make_room(&need)).is_ok()
                {
                    self.follow(next, owner, inputs);
                } else {
                    self.awaiting = Some(Awaiting::new(next, features, need, self.awaiting.take()));
                }
            }
            Output::Tell { document, state } => {
                let changed = state
                    .map(|(state, at)| owner.changed_slots(*state, clocks_at(at, Duration::ZERO)))
                    .unwrap_or_default();
                let records = owner.dataplane().tell_clients(self.epoch(), &changed, NEWCOMERS);
                self.shown.told(records.len());
                inputs.push_back(Input::Told { document, batches: records::batches(&records) });
            }
            Output::Import { told, emptied } => {
                let imported = owner.dataplane().import_clients(&told, self.epoch(), &emptied);
                self.shown.imported(&imported);
                owner.count_repeated(imported.repeated);
            }
            Output::Doubt => owner.dataplane().doubt_clients(),
            Output::Confirm => owner.dataplane().confirm_clients(),
            Output::Dump { to, instance } => {
                let records = owner.dataplane().dump_clients(self.epoch());
                self.shown.told(records.len());
                info!("{} known clients are told to {to}", grouped(records.len() as u64));
                inputs.push_back(Input::Dumped { to, instance, batches: records::batches(&records) });
            }
            Output::Check(backends) => backends.into_iter().for_each(|id| owner.suspect(id, Signal::Member)),
            Output::Alone(alone) => {
                self.alone = alone;
                owner.set_alone(alone);
            }
            Output::Answer { id, result } => self.answer(id, result, owner),
            Output::Tallies { id, result } => self.answer_reader(id, result),
            Output::Log { warning: true, message } => owner.events().warn(&message),
            Output::Log { warning: false, message } => owner.events().note(&message),
        }
    }

    fn epoch(&self) -> u32 {
        // Members only compare the epoch's number, and it never exceeds 32 bits in practice.
        self.member.epoch().map_or(0, |epoch| u32::try_from(epoch.number).unwrap_or(u32::MAX))
    }

    fn ask(&mut self, request: Ask, inputs: &mut VecDeque<Input>) {
        if let Err(balancer_etcd::Unsent::Full(Ask::Transaction { ticket, .. } | Ask::Read { ticket, .. })) =
            self.engine.requests.send(request)
        {
            let answer = Answer::Unknown("too many requests wait".to_owned());
            inputs.push_back(Input::News(News::Answered(ticket, answer)));
        }
    }

    /// Tells the protocol the address of this machine from which the engine receives connections.
    fn tell_address(&mut self) {
        let Some(address) = self.engine.facts.borrow().local.map(|local| local.to_string()) else { return };
        self.member.note_address(address);
    }

    /// The reason why the engine refuses writes although it is reachable.
    fn engine_denial(&self) -> Option<String> {
        let engine = self.engine.facts.borrow();
        engine.denial.as_deref().filter(|_| engine.reachable).map(shown::in_its_words)
    }

    /// Whether this member is the leader of the fleet.
    pub(crate) const fn leads(&self) -> bool {
        self.member.leads()
    }

    pub(crate) fn change_request(&mut self, request: Request, owner: &mut Owner<KernelDataplane>) {
        let Request { change_request, uid, if_generation, reply } = request;
        let call::ChangeRequest::Change(change) = change_request else { return };
        if let Some(why) = self.engine_denial().filter(|_| !self.member.is_connected()) {
            let why = format!("nothing was changed: etcd takes no writes ({why})");
            let _ = reply.send(Err(Refused::Conflict(why)));
            return;
        }
        let about = balancer_runtime::events::subject(&change);
        let leaves = if let Change::Remove { name, force: false } = &change { Some(name) } else { None };
        let known = leaves.map(|name| owner.controller().parts(name).map(Backend::known_clients).sum());
        let change_request = if let Change::Reload(config) = change {
            ChangeRequest::Services(config.services.copies())
        } else if let Change::Reset(config) = change {
            ChangeRequest::Reset(config.services.copies())
        } else {
            ChangeRequest::Change(change)
        };
        self.last_asked += 1;
        let id = self.last_asked;
        self.change_requests.insert(id, Asked { uid, about, known, reply });
        self.handle(Input::ChangeRequest { id, change_request, if_generation }, owner);
    }

    fn answer(&mut self, id: u64, result: Result<Done, Refused>, owner: &Owner<KernelDataplane>) {
        let Some(asked) = self.change_requests.remove(&id) else { return };
        let result = result.map(|done| {
            let mut message = format!("{}; applied by {} of {} members", done.message, done.applied, done.members);
            if let Some(known) = asked.known {
                let clients = counted(known as usize, "client");
                message += &format!("; {} knew {clients} of it at its last sweep", self.member.name());
            }
            if !done.lagging.is_empty() {
                message += &format!("; not yet by {}", done.lagging.join(", "));
                owner.events().warn(&format!("{} has not applied the last change yet", done.lagging.join(", ")));
            }
            if !done.partial.is_empty() {
                message += &format!("; applied only in part by {}", done.partial.join(", "));
            }
            owner.events().change(asked.about.as_ref(), &message, asked.uid, None);
            Changed { message, not_applied_by: done.lagging.into_iter().chain(done.partial).collect() }
        });
        // Sending fails if the requester no longer waits.
        let _ = asked.reply.send(result);
    }

    /// Returns the state of the fleet for display.
    pub(crate) fn snapshot(&mut self, owner: &Owner<KernelDataplane>) -> FleetSnapshot {
        let own = FleetMember {
            name: self.member.name().to_owned(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            ready: self.readiness.clone(),
            epoch: self.member.epoch().map(|epoch| epoch.number),
            lag_seconds: 0.0,
            votes_differ: Vec::new(),
            clock_ahead_seconds: None,
            file_differs: self.file.differs(),
            address: String::new(),
        };
        let facts = self.engine.facts.borrow().clone();
        let engine = shown::engine(facts, &self.engine.traffic, self.member.is_connected());
        self.shown.snapshot(&self.config.name, &self.member, own, engine, owner)
    }

    /// Ends the engine's session, so that other members do not wait for this member.
    pub(crate) async fn leave(self) {
        self.driving.release();
        self.engine.stop().await;
    }
}

/// Reports events that concern the whole fleet; every member reports them.
fn tell(owner: &Owner<KernelDataplane>, lines: Vec<Line>) {
    for Line { warning, about, message } in lines {
        let level = if warning { ReportLevel::Warn } else { ReportLevel::Info };
        let about = about.map(|(service, backend)| BackendName { service, backend });
        owner.events().report(&Report { level, about, message, moves: None });
    }
}

/// Returns this balancer's vote about the backends in the state that it follows.
fn ballot(owner: &Owner<KernelDataplane>) -> Ballot {
    Ballot::of(owner.controller(), owner.suspected())
}

/// The times on both clocks of a decision that was made `age` ago; the wall clock is the leader's clock.
fn clocks_at(at: Moment, age: Duration) -> Clocks {
    let now = clocks().now;
    Clocks { now: now.checked_sub(age).unwrap_or(now), wall: UNIX_EPOCH + at.0 }
}

impl Owner<KernelDataplane> {
    /// Applies a state of the fleet, either completely or not at all.
    fn follow(&mut self, state: SavedState, epoch: SavedEpoch, clocks: Clocks) -> Result<(), String> {
        let before = self.controller().clone();
        let commands = self.controller_mut().follow(state, clocks)?;
        self.do_as_told(commands, before)?;
        self.set_epoch(epoch);
        Ok(())
    }

    /// The numbers of known clients of those backends that are draining or being removed, because the fleet waits for
    /// these clients.
    fn known_where_it_matters(&self) -> Vec<(BackendId, u64)> {
        let controller = self.controller();
        let backends = controller.services().iter().flat_map(|service| service.backends());
        let drained = backends.filter(|backend| backend.admin() == Admin::Drain || !backend.takes_new_clients());
        let drained = drained.map(|backend| (backend.id(), backend.known_clients()));
        let gone = controller.gone().iter().map(|gone| (gone.row.id, gone.known));
        drained.chain(gone).filter(|&(_, known)| known > 0).collect()
    }

    /// The backends that are up according to the fleet but that this balancer cannot reach.
    fn unreachable_here(&self) -> Vec<String> {
        let unreachable = self.controller().opinions().filter_map(|(service, backend, opinion)| {
            backend.unreachable_here(&opinion).map(|_| service.name_of(backend).to_string())
        });
        unreachable.collect()
    }

    /// The number of slots of each service that a state would change.
    fn changed_slots(&self, state: SavedState, clocks: Clocks) -> HashMap<balancer_control::io::ServiceId, Vec<bool>> {
        let mut next = self.controller().clone();
        if next.follow(state, clocks).is_err() {
            return HashMap::new();
        }
        let changed = self.controller().services().iter().filter_map(|service| {
            let next = next.services().with_id(service.id())?;
            Some((service.id(), next.slots_changed_since(service)))
        });
        changed.collect()
    }
}
