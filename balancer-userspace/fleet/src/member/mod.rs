//! One member of a fleet.
//!
//! Every member keeps a copy of the store (`session.rs`) and acts on it: it applies the current epoch, sends the
//! clients of its table, and reports about its backends. One member leads (`lead.rs`): it decides on the basis of all
//! ballots and users' requests, and writes epochs on condition that it is still the leader and that the previous epoch
//! is the one it knows.
//!
//! An epoch *gives* if it takes slots from backends that keep their known clients. Such an epoch is prepared first:
//! every member sends the clients in slots that are about to change, and then says so on its card. All members receive
//! cards and records in the same order, so a member that sees the epoch has seen all records sent for it.

mod card;
mod change_requests;
mod doubts;
mod dumps;
mod lead;
mod others;
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
use pauses::Pauses;
use telling::{Batch, Preparing};
use time::{Heard, Skews};

/// The identity and the configuration of a member.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The member's unique name.
    pub name: String,
    /// A random number drawn when the member starts.
    pub instance: u64,
    /// The version of the member's balancer.
    pub version: String,
    /// The fingerprint of the member's steering: [`balancer_control::fingerprint`].
    pub steering: u32,
    /// The number of buckets of the member's client table.
    pub buckets: u32,
    /// The member's configuration, which also becomes the fleet's if this is the first member.
    pub config: Config,
    /// The member's own hash key; the fleet refuses a configured key that differs from its own.
    pub key: HashKey,
    /// Whether the key is configured.
    pub key_is_configured: bool,
    /// Whether known clients are shared.
    pub share_clients: bool,
    /// How long the engine keeps the leased keys of a silent member.
    pub lease: Duration,
    /// The place of the member's process: a process that starts in the same place takes over from one that has ended
    /// there.
    pub home: u64,
}

/// An input of the protocol.
#[derive(Clone, Debug)]
pub enum Input {
    /// A message from the engine.
    News(News),
    /// The outcome of [`Output::Follow`]: the member's ballot on the backends of the applied state, or why the state
    /// was not applied.
    Applied(Epoch, Result<Ballot, String>),
    /// The answer to [`Output::Tell`]: batches of records.
    Told {
        /// The document for which the records were collected; `None`: the regular collection.
        document: Option<u64>,
        /// The batches; empty if there is nothing to send.
        batches: Vec<Vec<u8>>,
    },
    /// The answer to [`Output::Dump`]: records of all known clients, in batches.
    Dumped {
        /// The name of the member that requested the dump.
        to: String,
        /// The process number of the requesting member.
        instance: u64,
        /// The batches in order.
        batches: Vec<Vec<u8>>,
    },
    /// The member's opinions of backends have changed.
    Ballot(Ballot),
    /// A sweep of the member's client table is complete: the known clients of draining or leaving backends.
    Swept(Vec<(BackendId, u64)>),
    /// A count of the member's `snat` connections is complete, while some drain waits for them: the counts of these
    /// backends.
    FlowsCounted(Vec<(BackendId, u64)>),
    /// The member's own readiness: `ready`, `degraded`, `not_ready`, `withdrawn`.
    Readiness(String),
    /// Whether the member's configuration file lists services other than those that the fleet last applied.
    FileDiffers(bool),
    /// A user's request.
    ChangeRequest {
        /// The number that identifies the answer.
        id: u64,
        /// The change that the user wants.
        change_request: ChangeRequest,
        /// The generation of the state for which the user made the request.
        if_generation: Option<u64>,
    },
    /// The member's counters, for other members to read: at most [`LONGEST_VALUE`](crate::engine::LONGEST_VALUE) bytes.
    Tally(Vec<u8>),
    /// A request for all members' counters, answered by [`Output::Tallies`].
    AskTallies(u64),
    /// A deadline has passed.
    Tick,
}

/// A task for the caller. Tasks must be done in the given order.
#[derive(Clone, Debug)]
pub enum Output {
    /// Send this request to the engine.
    Ask(Request),
    /// The fleet's key, sent before the first epoch.
    Key(HashKey),
    /// Follow this state, even if the caller followed another one meanwhile. Answered by [`Input::Applied`].
    Follow {
        /// The epoch of the state.
        epoch: Epoch,
        /// The state itself, as it was at the moment `at`.
        state: Box<SavedState>,
        /// The moment of the state, by the clock of the member that decided.
        at: Moment,
        /// The age of the decision.
        age: Duration,
        /// The time since the last change by a user, if known.
        changed: Option<Duration>,
        /// Events, as lines for the log.
        lines: Vec<Line>,
    },
    /// Collect the clients that the other members do not know. Answered by [`Input::Told`].
    Tell {
        /// The document for which the clients are collected; `None`: the regular collection.
        document: Option<u64>,
        /// Include clients seen only once, in slots that this state changes.
        state: Option<(Box<SavedState>, Moment)>,
    },
    /// Import another member's records.
    Import {
        /// The records, with what is needed to import them.
        told: Told,
        /// The backends that could not keep their clients up to the current epoch.
        emptied: Arc<Emptied>,
    },
    /// Other members may have forgotten what this member sent. Their knowledge is imported next.
    Doubt,
    /// The knowledge of other members has been imported: the next [`Output::Tell`] includes entries that they do not
    /// know.
    Confirm,
    /// Dump all clients for another member. Answered by [`Input::Dumped`].
    Dump {
        /// The name of the receiving member.
        to: String,
        /// The process number of the receiving member.
        instance: u64,
    },
    /// Check these backends at once, because another member doubts them.
    Check(Vec<BackendId>),
    /// Whether the engine is unreachable, so that hard failures seen here count.
    Alone(bool),
    /// The outcome of a user's request.
    Answer {
        /// The number of the request, as given.
        id: u64,
        /// The change with the members that apply it, or the reason why none was made.
        result: Result<Done, Refused>,
    },
    /// The members' counters, by member name.
    Tallies {
        /// The number of the request, as given.
        id: u64,
        /// The counters, or the reason why they are unknown.
        result: Result<Vec<(String, Vec<u8>)>, String>,
    },
    /// A line for the log.
    Log {
        /// Whether the line is a warning.
        warning: bool,
        /// The text.
        message: String,
    },
}

/// Records of clients from another member.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Told {
    /// The records.
    pub records: Vec<Record>,
    /// Whether the other member counts a move that both members have made, because its name comes first.
    pub precedes: bool,
}

/// A granted request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Done {
    /// The message that says what was done.
    pub message: String,
    /// The number of members that apply the change.
    pub applied: usize,
    /// The number of members present.
    pub members: usize,
    /// The members that do not apply the change yet.
    pub lagging: Vec<String>,
}

/// The progress of learning all clients.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Clients {
    /// The member needs a dump.
    Wanted,
    /// The member is reading its dump.
    Reading,
    /// The member has read its dump.
    Read,
    /// The member knows all clients.
    Known,
}

/// See the [module](self).
#[derive(Debug)]
pub struct Member {
    settings: Settings,
    session: Option<Session>,
    joined: Option<Instant>,
    last_ticket: Ticket,
    /// The reason why the member does not take part; `None` if it takes part.
    refused: Option<String>,
    /// The fleet's key, once it is known.
    key: Option<HashKey>,
    /// The applied epoch with its state.
    applied: Option<(Epoch, SavedState, Moment)>,
    /// When the member received the current epoch.
    heard: Option<Heard>,
    skews: Skews,
    /// The backends that could not keep their clients up to the last known epoch.
    emptied: Arc<Emptied>,
    /// The epoch being applied.
    applying: Option<Epoch>,
    incoming: Option<(Epoch, SavedState, Moment)>,
    /// An epoch that could not be applied, and why.
    failed: Option<(Epoch, String)>,
    /// Members that steer clients differently from this one.
    others: BTreeSet<String>,
    /// The document for which the member has sent its clients.
    prepared: Option<u64>,
    /// The document for which the member is writing its clients to the store.
    preparing: Option<Preparing>,
    /// Whether clients are being collected, and for which document.
    telling: Option<Option<u64>>,
    /// When the member last collected clients.
    told: Option<Instant>,
    /// Sent batches, oldest first.
    batches: VecDeque<Batch>,
    last_batch: u64,
    clients: Clients,
    /// Records that arrived before their epoch was applied.
    early: Vec<Told>,
    /// Whether the member has been in step in this session, so that it is not alone.
    in_step: bool,
    /// Whether the member has been in step in any session.
    been_in_step: bool,
    alone: bool,
    /// The members for which this member makes dumps, with their processes.
    dumping: BTreeMap<String, (u64, Instant)>,
    /// Dumped records to be written to the store.
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
    /// The member's address as the engine sees it.
    address: String,
    /// Whether the member's configuration file lists services other than those that the fleet last applied.
    file_differs: bool,
    /// The member's last reported counters.
    tally: Option<Vec<u8>>,
    /// Whether the member has asked the store to take these counters, and the store has not refused.
    tally_is_told: bool,
    change_requests: ChangeRequests,
    leading: Leading,
    /// Why the engine does not write this leader's decisions.
    lead_denial: Option<String>,
    /// The number of lineages that the member has begun. Each gets a different number, because the store may lose
    /// everything right after the member has begun one.
    founded: u64,
    #[cfg(test)]
    mutation: Option<Mutation>,
}

/// A deliberate fault that the simulation must find.
#[cfg(test)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mutation {
    /// A member sends new clients only while a state is being prepared.
    TellsNothingByItself,
    /// Joining members get no clients.
    JoinsWithoutClients,
    /// A leader writes without checking that it still leads and that it knows the current epoch.
    WritesUnconditionally,
    /// Ballots count for backends that are newer than their epoch.
    VotesForOtherEpochs,
    /// A leader commits changes that *give* before the other members have sent their known clients.
    CommitsWithoutWaiting,
    /// Cards stay in the store after their members are gone.
    StaysWithoutLease,
    /// A member sends each client only once, however long the client stays.
    TellsOnce,
    /// The member does not report that clients have moved.
    ForgetsMoves,
    /// Epochs lack the record of backends that could not keep their clients.
    ForgetsWhoHadToLeave,
    /// The member does not immediately check backends that other members suspect.
    KeepsDoubtsToItself,
}

impl Member {
    /// The interval at which a member sends new clients.
    pub const TELLS_EVERY: Duration = Duration::from_secs(1);
    /// How long sent records stay in the store for slow members: longer than a lease.
    const BATCH_STAYS: Duration = Duration::from_secs(90);
    /// The time after which a member requests a missing dump again.
    const DUMP_TAKES: Duration = Duration::from_secs(10);
    /// How long a member stays alone after it has reconnected, so that members can agree on failures meanwhile.
    const HOLDS: Duration = Duration::from_secs(2);

    /// Creates a member that applies `held`, an earlier epoch, or nothing yet.
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
            other @ (Leading::No | Leading::Stands | Leading::Doubts | Leading::Asks | Leading::Elected(_)) => {
                format!("{other:?}")
            }
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

    /// Handles an input, and returns the tasks that follow.
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

    /// Sets the member's address as the engine sees it.
    pub fn note_address(&mut self, address: String) {
        self.address = address;
    }

    /// The latest time for the next [`Input::Tick`].
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

    /// Returns the member's name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.settings.name
    }

    /// The epoch that the member applies.
    #[must_use]
    pub fn epoch(&self) -> Option<Epoch> {
        self.applied.as_ref().map(|(epoch, ..)| *epoch)
    }

    /// Returns the applied state, which the caller saves for a restart.
    #[must_use]
    pub const fn held(&self) -> Option<&(Epoch, SavedState, Moment)> {
        self.applied.as_ref()
    }

    /// Whether the member has the current epoch and all clients.
    #[must_use]
    pub const fn is_in_step(&self) -> bool {
        self.in_step
    }

    /// Whether the member has been in step since it was started.
    #[must_use]
    pub const fn has_been_in_step(&self) -> bool {
        self.been_in_step
    }

    /// Whether the member can reach the engine.
    #[must_use]
    pub const fn is_connected(&self) -> bool {
        self.session.is_some()
    }

    /// Why the member does not take part although it reaches the engine.
    #[must_use]
    pub fn refused(&self) -> Option<&str> {
        self.refused.as_deref()
    }

    /// Why the reachable engine refuses the member's writes, in the engine's words.
    #[must_use]
    pub fn denial(&self) -> Option<&str> {
        self.card.denial()
    }

    /// Whether the member is the leader.
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

    /// Returns the current troubles, one per line.
    #[must_use]
    pub fn troubles(&self) -> Vec<String> {
        let failed = self.failed.as_ref().map(|(epoch, why)| format!("epoch {} is not applied: {why}", epoch.number));
        let others = self.others.iter().map(|name| others::steers_otherwise(name));
        let files = self.cards();
        let files = files.iter().filter(|(_, card)| card.file_differs).map(|(name, _)| {
            format!("the configuration file of {name} says other services than the fleet's last one; the fleet's hold")
        });
        let denied = self.lead_denial.iter().map(|why| format!("what it decides for the fleet is not written: {why}"));
        self.refused
            .iter()
            .cloned()
            .chain(denied)
            .chain(failed)
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
