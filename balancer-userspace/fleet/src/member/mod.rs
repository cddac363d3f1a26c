//! A member of a fleet, as a state machine.
//!
//! Every member keeps a copy of the store (`session.rs`) and acts on this copy: the member applies the current epoch,
//! sends the known clients in its client table, and reports about its backends. The leader (`lead.rs`) is one of the
//! members: it makes decisions from all ballots and users' requests, and writes epochs. The engine accepts an epoch
//! only if the writer is still the leader and knows the previous epoch.
//!
//! An epoch *gives* if it takes slots from backends that keep their known clients. All members first prepare for such
//! an epoch: every member sends the clients in the slots that are about to change, and then reports on its card that it
//! has sent them. All members receive cards and records in the same order, so a member that receives the epoch has
//! already received all records that were sent for the epoch.

mod card;
mod change_requests;
mod doubts;
mod dumps;
mod lead;
mod others;
mod partial;
mod pauses;
mod steps;
mod tallies;
mod telling;
mod time;

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    sync::Arc,
    time::{Duration, Instant},
};

use balancer_common::client::HashKey;
use balancer_config::config::Config;
use balancer_control::{
    io::{BackendId, Refused},
    room::{Room, Rooms},
    state::{Clocks, Moment, SavedState},
};

use crate::{
    emptied::Emptied,
    engine::{News, Request, Ticket, Write},
    keys,
    records::Record,
    session::Session,
    store_schema::{Ballot, ChangeRequest, Epoch, Leader, Line, Member as Card},
};
use card::OwnCard;
use change_requests::ChangeRequests;
use doubts::Doubts;
use lead::Leading;
use partial::Partial;
use pauses::Pauses;
use telling::{Batch, Preparing};
use time::{Heard, Skews};

/// The identity and the configuration of a member.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The member's unique name.
    pub name: String,
    /// A random number that identifies the process of the member.
    pub instance: u64,
    pub version: String,
    /// The fingerprint of how the member steers clients, see [`balancer_control::fingerprint`].
    pub steering: u32,
    /// The number of buckets of the member's client table.
    pub buckets: u32,
    /// The member's configuration, which becomes the fleet's configuration if this is the first member.
    pub config: Config,
    /// The member's own hash key; the fleet refuses a configured hash key that differs from the fleet's hash key.
    pub key: HashKey,
    /// Whether the hash key comes from the configuration.
    pub key_is_configured: bool,
    pub share_clients: bool,
    /// The time for which the engine keeps the leased keys of a member that has fallen silent.
    pub lease: Duration,
    /// The home of the member's process: a process that starts in the same home takes over the name of a process that
    /// has ended there.
    pub home: u64,
}

#[derive(Clone, Debug)]
pub enum Input {
    /// A message from the engine.
    News(News),
    /// The outcome of [`Output::Follow`]: the member's ballot about the backends of the applied state, or the reason
    /// why the member did not apply the state.
    Applied(Epoch, Result<Ballot, String>),
    /// The answer to [`Output::Tell`]: batches of client records.
    Told {
        /// The document for which the records were collected; `None` for the regular collection.
        document: Option<u64>,
        /// The batches; empty if there are no records to send.
        batches: Vec<Vec<u8>>,
    },
    /// The answer to [`Output::Dump`]: batches with the records of all known clients.
    Dumped {
        /// The name of the member that requested the dump.
        to: String,
        /// The random number of the process that requested the dump.
        instance: u64,
        /// The batches in the order of their parts.
        batches: Vec<Vec<u8>>,
    },
    /// The member's verdicts about backends have changed.
    Ballot(Ballot),
    /// A sweep of the member's client table is complete; contains the numbers of known clients at backends that are
    /// draining or being removed.
    Swept(Vec<(BackendId, u64)>),
    /// A count of the member's `snat` connections is complete; contains the counts for backends whose drains wait for
    /// connections to end.
    FlowsCounted(Vec<(BackendId, u64)>),
    /// The member's own readiness: `ready`, `degraded`, `not_ready`, `withdrawn`.
    Readiness(String),
    /// Whether the services in the member's configuration file differ from the services that the fleet last applied.
    FileDiffers(bool),
    /// A user has requested a change from this member.
    ChangeRequest {
        /// The number by which the answer refers to the request.
        id: u64,
        /// The change that the user wants.
        change_request: ChangeRequest,
        /// The generation that the configuration must have for the change to be made.
        if_generation: Option<u64>,
    },
    /// The member's counters for the other members, in at most [`LONGEST_VALUE`](crate::engine::LONGEST_VALUE) bytes.
    Tally(Vec<u8>),
    /// A request for the counters of all members, which [`Output::Tallies`] answers.
    AskTallies(u64),
    /// The deadline of the member has passed.
    Tick,
}

/// The times since users last changed the services of the fleet, if known.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LastChanges {
    /// The time since the last change of any kind except a drop-in.
    pub any: Option<Duration>,
    /// The time since a configuration file last changed the services.
    pub file: Option<Duration>,
}

impl LastChanges {
    /// The times at a moment that is later by `elapsed`.
    fn later(self, elapsed: Duration) -> Self {
        let later = |ago: Option<Duration>| ago.map(|ago| ago + elapsed);
        Self { any: later(self.any), file: later(self.file) }
    }
}

/// A task that the caller must carry out. The caller carries out the tasks in the given order.
#[derive(Clone, Debug)]
pub enum Output {
    /// Send this request to the engine.
    Ask(Request),
    /// Use this hash key, which is the fleet's; the output precedes the first epoch.
    Key(HashKey),
    /// Follow this state, even if the caller has followed another state in the meantime. [`Input::Applied`] answers
    /// this output.
    Follow {
        epoch: Epoch,
        /// The state as it was at the moment `at`.
        state: Box<SavedState>,
        /// The moment of the state, by the clock of the member that decided.
        at: Moment,
        /// The time since the decision.
        age: Duration,
        /// The times since users last made changes.
        changed: LastChanges,
        /// Whether this is the whole state of the epoch, and not only a part that this member can apply.
        whole: bool,
        /// The events of the epoch, as lines for the log.
        lines: Vec<Line>,
    },
    /// Collect the records of clients that the other members do not know. [`Input::Told`] answers this output.
    Tell {
        /// The document for which the caller collects the clients; `None` for the regular collection.
        document: Option<u64>,
        /// The state whose changed slots matter: include clients in these slots even if they were seen only once.
        state: Option<(Box<SavedState>, Moment)>,
    },
    /// Import records of another member.
    Import {
        /// The records, with the circumstances under which they are imported.
        told: Told,
        /// The backends whose known clients had to leave, up to the current epoch.
        emptied: Arc<Emptied>,
    },
    /// Assume that other members may have forgotten this member's records; imports of the other members' records
    /// follow.
    Doubt,
    /// The imports of the other members' records are complete: the next [`Output::Tell`] includes entries that the
    /// other members do not know.
    Confirm,
    /// Dump the records of all known clients for another member. [`Input::Dumped`] answers this output.
    Dump {
        /// The name of the receiving member.
        to: String,
        /// The random number of the process that receives the dump.
        instance: u64,
    },
    /// Check these backends at once, because another member doubts them.
    Check(Vec<BackendId>),
    /// Whether the engine is unreachable, in which case hard failures that this member sees take effect.
    Alone(bool),
    /// The outcome of a change that a user requested.
    Answer {
        /// The number that identified the change request.
        id: u64,
        /// The change and the members that apply it, or the reason why no change was made.
        result: Result<Done, Refused>,
    },
    /// The counters of the members, by member name.
    Tallies {
        /// The number that identified the request for counters.
        id: u64,
        /// The counters, or the reason why the counters are unknown.
        result: Result<Vec<(String, Vec<u8>)>, String>,
    },
    /// A line for the log.
    Log {
        warning: bool,
        /// The text of the line.
        message: String,
    },
}

/// Client records from another member.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Told {
    /// The client records from the other member.
    pub records: Vec<Record>,
    /// Whether the other member, whose name comes first, counts a move that both members have made.
    pub precedes: bool,
}

/// The result of a request that the leader has granted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Done {
    /// The message that describes the change.
    pub message: String,
    /// The number of members that apply the change, and with it all services of the fleet's state.
    pub applied: usize,
    pub members: usize,
    /// The names of members that do not apply the change yet.
    pub lagging: Vec<String>,
    /// The names of members that apply the change, but not all services of the fleet's state.
    pub partial: Vec<String>,
}

/// The progress of the member in learning the clients that other members know.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Clients {
    /// The member needs a dump from another member.
    Wanted,
    Reading,
    Read,
    /// The member knows all clients that the other members know.
    Known,
}

/// A member of a fleet: see the [module](self).
#[derive(Debug)]
pub struct Member {
    settings: Settings,
    session: Option<Session>,
    joined: Option<Instant>,
    last_ticket: Ticket,
    /// The reason why the member does not take part in the fleet; `None` if it takes part.
    refused: Option<String>,
    /// The hash key of the fleet, once it is known.
    key: Option<HashKey>,
    applied: Option<(Epoch, SavedState, Moment)>,
    /// The time at which the member received the current epoch.
    heard: Option<Heard>,
    skews: Skews,
    /// The backends whose known clients had to leave, up to the last known epoch.
    emptied: Arc<Emptied>,
    /// The epoch that the caller is applying.
    applying: Option<Epoch>,
    incoming: Option<(Epoch, SavedState, Moment)>,
    /// The epoch that the member could not apply, and the reason.
    failed: Option<(Epoch, String)>,
    partial: Partial,
    /// The other members that steer clients in a different way from this member.
    others: BTreeSet<String>,
    /// The document of the state for which the member has sent its clients.
    prepared: Option<u64>,
    /// The document of the state for which the member is writing its clients to the store.
    preparing: Option<Preparing>,
    /// Whether the caller is collecting clients, and for which document.
    telling: Option<Option<u64>>,
    /// The time at which the member last collected clients.
    told: Option<Instant>,
    /// The batches that the member has sent, oldest first.
    batches: VecDeque<Batch>,
    last_batch: u64,
    clients: Clients,
    /// The records that arrived before the member had applied their epoch.
    early: Vec<Told>,
    /// Whether the member has been in step during this session, so that it is not alone.
    in_step: bool,
    /// Whether the member has been in step during any session.
    been_in_step: bool,
    alone: bool,
    /// The members for which this member makes dumps, with the random number of each process.
    dumping: BTreeMap<String, (u64, Instant)>,
    /// The parts of dumps that the member has not written to the store yet.
    dumps: VecDeque<Write>,
    card: OwnCard,
    pauses: Pauses,
    ballot: Ballot,
    doubts: Doubts,
    sweeps: u64,
    known: Vec<(BackendId, u64)>,
    flow_counts: u64,
    connections: Vec<(BackendId, u64)>,
    readiness: String,
    /// The address from which the engine receives this member's connections.
    address: String,
    /// The room in the maps of this member's data path, once it is known.
    room: Option<Room>,
    /// Whether the services in the member's configuration file differ from the services that the fleet last applied.
    file_differs: bool,
    /// The counters that the member last reported.
    tally: Option<Vec<u8>>,
    /// Whether the member has sent these counters to the store, and the store has not refused them.
    tally_is_told: bool,
    change_requests: ChangeRequests,
    leading: Leading,
    /// The reason why the engine does not write the decisions of this leader.
    lead_denial: Option<String>,
    /// The number of lineages that this process has begun. Each lineage gets a different number, because the store may
    /// lose all data right after the member has begun a lineage.
    founded: u64,
    #[cfg(test)]
    mutation: Option<Mutation>,
}

/// A fault that a test puts into the protocol and that the simulation must find.
#[cfg(test)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mutation {
    /// A member sends new clients only while a state is in preparation.
    TellsNothingByItself,
    /// Joining members get no dumps of clients.
    JoinsWithoutClients,
    /// A leader writes without the condition that it is still the leader and knows the current epoch.
    WritesUnconditionally,
    /// The leader counts ballots about backends that are newer than the ballot's epoch.
    VotesForOtherEpochs,
    /// A leader commits a change that *gives* slots before the other members have sent their known clients.
    CommitsWithoutWaiting,
    /// The store keeps the cards of members whose lease has expired.
    StaysWithoutLease,
    /// A member sends each client only once, however long it is known.
    TellsOnce,
    /// A member does not report that a client has moved.
    ForgetsMoves,
    /// Epochs lack the record of backends whose clients had to leave.
    ForgetsWhoHadToLeave,
    /// A member does not check at once those backends that other members suspect.
    KeepsDoubtsToItself,
}

impl Member {
    /// The interval at which a member sends new clients.
    pub const TELLS_EVERY: Duration = Duration::from_secs(1);
    /// The time for which sent records stay in the store for slow members, longer than a lease.
    const BATCH_STAYS: Duration = Duration::from_secs(90);
    /// The time after which a member requests a missing dump again.
    const DUMP_TAKES: Duration = Duration::from_secs(10);
    /// The time for which a member stays alone after it has reconnected, so that the members can agree on failures.
    const HOLDS: Duration = Duration::from_secs(2);

    /// Creates a member that applies the epoch `held` from its last run, or no epoch yet.
    #[must_use]
    pub fn new(settings: Settings, held: Option<(Epoch, SavedState, Moment)>) -> Self {
        let pauses = Pauses::new(settings.instance);
        Self {
            settings,
            session: None,
            joined: None,
            last_ticket: Ticket::default(),
            refused: None,
            key: None,
            applied: held,
            heard: None,
            skews: Skews::default(),
            emptied: Arc::default(),
            applying: None,
            incoming: None,
            failed: None,
            partial: Partial::default(),
            others: BTreeSet::new(),
            prepared: None,
            preparing: None,
            telling: None,
            told: None,
            batches: VecDeque::new(),
            last_batch: 0,
            clients: Clients::Wanted,
            early: Vec::new(),
            in_step: false,
            been_in_step: false,
            alone: true,
            dumping: BTreeMap::new(),
            dumps: VecDeque::new(),
            card: OwnCard::default(),
            pauses,
            ballot: Ballot::default(),
            doubts: Doubts::default(),
            sweeps: 0,
            known: Vec::new(),
            flow_counts: 0,
            connections: Vec::new(),
            readiness: "not_ready".to_owned(),
            address: String::new(),
            room: None,
            file_differs: false,
            tally: None,
            tally_is_told: false,
            change_requests: ChangeRequests::default(),
            leading: Leading::No,
            lead_denial: None,
            founded: 0,
            #[cfg(test)]
            mutation: None,
        }
    }

    #[cfg(test)]
    pub(crate) fn leading(&self) -> String {
        match &self.leading {
            Leading::Leads(_) => "leads".to_owned(),
            other @ (Leading::No
            | Leading::Stands
            | Leading::Doubts
            | Leading::Asks
            | Leading::Elected(_)
            | Leading::Resigns) => format!("{other:?}"),
        }
    }

    #[cfg(test)]
    pub(crate) const fn mutate(&mut self, mutation: Option<Mutation>) {
        self.mutation = mutation;
    }

    #[cfg(test)]
    fn makes(&self, mistake: Mutation) -> bool {
        self.mutation == Some(mistake)
    }

    /// Handles an input, and returns the resulting tasks for the caller.
    pub fn handle(&mut self, input: Input, clocks: Clocks) -> Vec<Output> {
        let mut outputs = Vec::new();
        match input {
            Input::News(news) => self.hear(news, clocks, &mut outputs),
            Input::Applied(epoch, result) => self.has_applied(epoch, result, &mut outputs),
            Input::Told { document, batches } => self.has_told(document, batches, clocks.now),
            Input::Dumped { to, instance, batches } => self.has_dumped(&to, instance, batches),
            Input::Ballot(ballot) => self.ballot = ballot,
            Input::Swept(known) => {
                self.sweeps += 1;
                self.known = known;
            }
            Input::FlowsCounted(connections) => {
                self.flow_counts += 1;
                self.connections = connections;
            }
            Input::Readiness(readiness) => self.readiness = readiness,
            Input::FileDiffers(differs) => self.file_differs = differs,
            Input::ChangeRequest { id, change_request, if_generation } => {
                self.change_request(id, change_request, if_generation, clocks.now, &mut outputs);
            }
            Input::Tally(tally) => self.tally(tally, &mut outputs),
            Input::AskTallies(id) => self.ask_tallies(id, &mut outputs),
            Input::Tick => {}
        }
        self.step(clocks, &mut outputs);
        outputs
    }

    /// Records the address from which the engine receives this member's connections.
    pub fn note_address(&mut self, address: String) {
        self.address = address;
    }

    /// Records the room in the maps of this member's data path.
    pub fn note_room(&mut self, room: Room) {
        self.room = Some(room);
    }

    /// The room in the maps of all members that have told theirs.
    #[must_use]
    pub fn rooms(&self) -> Rooms {
        lead::rooms(&self.cards())
    }

    /// The time at which the caller must pass the next [`Input::Tick`] at the latest.
    #[must_use]
    pub fn next_deadline(&self, now: Instant) -> Instant {
        let tells = now + Self::TELLS_EVERY / 4;
        let lead = self.leading.next_deadline();
        lead.into_iter()
            .chain(self.change_requests.next_deadline())
            .chain(self.pauses.next_deadline(now))
            .chain([tells])
            .min()
            .unwrap_or(tells)
    }

    #[must_use]
    pub fn name(&self) -> &str {
        &self.settings.name
    }

    /// The epoch that the member currently applies.
    #[must_use]
    pub fn epoch(&self) -> Option<Epoch> {
        self.applied.as_ref().map(|(epoch, ..)| *epoch)
    }

    /// Returns the applied epoch with its state, which the caller saves for a restart. If the member applies only a part
    /// of an epoch, this is not the epoch, so that the member tries the whole epoch after a restart, which may make room.
    #[must_use]
    pub fn held(&self) -> Option<(Epoch, SavedState, Moment)> {
        let (epoch, state, at) = self.applied.clone()?;
        let number =
            if self.partial.reasons().next().is_some() { epoch.number.saturating_sub(1) } else { epoch.number };
        Some((Epoch { number, ..epoch }, state, at))
    }

    /// Whether the member applies the current epoch and knows all clients.
    #[must_use]
    pub const fn is_in_step(&self) -> bool {
        self.in_step
    }

    /// Whether the member has been in step at any time since its start.
    #[must_use]
    pub const fn has_been_in_step(&self) -> bool {
        self.been_in_step
    }

    /// Whether the member can reach the engine.
    #[must_use]
    pub const fn is_connected(&self) -> bool {
        self.session.is_some()
    }

    /// The reason why the member does not take part in the fleet although it reaches the engine.
    #[must_use]
    pub fn refused(&self) -> Option<&str> {
        self.refused.as_deref()
    }

    /// The reason why the engine, although reachable, refuses the member's writes, in the engine's words.
    #[must_use]
    pub fn denial(&self) -> Option<&str> {
        self.card.denial()
    }

    #[must_use]
    pub const fn leads(&self) -> bool {
        matches!(self.leading, Leading::Leads(_))
    }

    /// The current epoch, as the member last received it.
    #[must_use]
    pub fn holding(&self) -> Option<Epoch> {
        self.session.as_ref()?.holding()
    }

    /// The name of the leader, as the member last received it.
    #[must_use]
    pub fn leader(&self) -> Option<String> {
        let card = self.session.as_ref()?.card::<Leader>(keys::LEADER)?;
        Some(card.ok()?.member)
    }

    /// Returns the current problems, as one line each.
    #[must_use]
    pub fn troubles(&self) -> Vec<String> {
        let failed = self.failed.as_ref().map(|(epoch, why)| format!("epoch {} is not applied: {why}", epoch.number));
        let others = self.others.iter().map(|name| others::steers_otherwise(name));
        let files = self.cards();
        let files = files.iter().filter(|(_, card)| card.file_differs).map(|(name, _)| {
            format!(
                "services in the configuration file of {name} differ from the fleet's, and the fleet's are in \
                     force"
            )
        });
        let denied = self.lead_denial.iter().map(|why| format!("its decisions for the fleet are not written: {why}"));
        self.refused
            .iter()
            .cloned()
            .chain(denied)
            .chain(failed)
            .chain(self.partial.reasons())
            .chain(others)
            .chain(self.clock_troubles())
            .chain(files)
            .collect()
    }

    /// The members' cards by name, as this member last received them.
    #[must_use]
    pub fn cards(&self) -> Arc<BTreeMap<String, Card>> {
        self.session.as_ref().map(Session::members).unwrap_or_default()
    }
}
