//! One member of a fleet.
//!
//! Everybody keeps a copy of what the store says (`session.rs`) and works towards what follows from it: applies the epoch
//! that holds, tells the clients of its table, answers for its backends. One of them leads (`lead.rs`): it decides by
//! everybody's ballots and users' wishes, and writes epochs, under the condition that it still is the leader and that
//! the epoch before is the one it knows.
//!
//! An epoch that *gives*, that is, takes slots from backends that keep their known clients, is prepared first: everybody
//! tells the others of the clients in slots that are about to change, and says so on its card. Cards and records are in
//! one order for everybody, so whoever sees the epoch has seen all records that were told for it.

mod card;
mod doubts;
mod dumps;
mod lead;
mod others;
mod pauses;
mod steps;
mod tallies;
mod telling;
mod time;
mod wishes;

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    sync::Arc,
    time::{Duration, Instant},
};

use balancer_common::client::HashKey;
use balancer_core::{
    io::{BackendId, Refused},
    state::{Clocks, Moment, SavedState},
};
use balancer_model::config::Config;

use crate::{
    cards::{Ballot, Epoch, Leader, Line, Member as Card, Wish},
    emptied::Emptied,
    engine::{News, Request, Ticket, Write},
    keys,
    records::Record,
    session::Session,
};
use card::OwnCard;
use doubts::Doubts;
use lead::Leading;
use pauses::Pauses;
use telling::{Batch, Preparing};
use time::{Heard, Skews};
use wishes::Wishes;

/// The identity and the configuration of a member.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The member's name, which no other member has.
    pub name: String,
    /// A number drawn at its start.
    pub instance: u64,
    /// The balancer's version.
    pub version: String,
    /// A number of how it steers: [`balancer_core::fingerprint`].
    pub steering: u32,
    /// Buckets of its client table.
    pub buckets: u32,
    /// The member's configuration; if it is the first member, also the fleet's.
    pub config: Config,
    /// The hash key that it brings; another one than the fleet's, from a configuration, is refused.
    pub key: HashKey,
    /// Whether the configuration says it.
    pub key_is_configured: bool,
    /// Whether clients are told of.
    pub share_clients: bool,
    /// How long the engine keeps what is leased to a member that it does not hear of.
    pub lease: Duration,
    /// Where its process runs: a process that starts in the same place takes the place of one that has ended there.
    pub home: u64,
}

/// Something that happened.
#[derive(Clone, Debug)]
pub enum Input {
    /// The engine said something.
    News(News),
    /// The state of an [`Output::Follow`] has been applied, with the member's ballot on that state's backends; or the
    /// reason why it has not.
    Applied(Epoch, Result<Ballot, String>),
    /// The answer to [`Output::Tell`]: batches of records.
    Told {
        /// As asked.
        document: Option<u64>,
        /// None, if there is nothing to tell.
        batches: Vec<Vec<u8>>,
    },
    /// The answer to [`Output::Dump`]: records of all known clients, in batches.
    Dumped {
        /// As asked.
        to: String,
        /// As asked.
        instance: u64,
        /// In order.
        batches: Vec<Vec<u8>>,
    },
    /// The member's opinions of backends have changed.
    Ballot(Ballot),
    /// A sweep of its client table is complete: known clients of backends that are drained or removed.
    Swept(Vec<(BackendId, u64)>),
    /// The member's connections of `snat` services were counted while some drain waits for them: the counts of the
    /// backends concerned.
    FlowsCounted(Vec<(BackendId, u64)>),
    /// The member's own readiness: `ready`, `degraded`, `not_ready`, `withdrawn`.
    Readiness(String),
    /// Whether its configuration file says other services than the fleet's last one.
    FileDiffers(bool),
    /// A user wants something.
    Wish {
        /// To tell answers apart.
        id: u64,
        /// The change that the user wants.
        wish: Wish,
        /// The generation that it was made for.
        if_generation: Option<u64>,
    },
    /// The member's counters, for others to read: at most [`LONGEST_VALUE`](crate::engine::LONGEST_VALUE) bytes.
    Tally(Vec<u8>),
    /// Somebody wants to know what all members have counted. Answered by [`Output::Tallies`].
    AskTallies(u64),
    /// A deadline has come.
    Tick,
}

/// Something to do, in the order given.
#[derive(Clone, Debug)]
pub enum Output {
    /// To be asked of the engine.
    Ask(Request),
    /// The fleet's key, before the first epoch.
    Key(HashKey),
    /// Follow this state; again, where something else was followed meanwhile. Answered by [`Input::Applied`].
    Follow {
        /// Which.
        epoch: Epoch,
        /// The state itself, as it was at the moment `at`.
        state: Box<SavedState>,
        /// As of when, on the clock of the member that decided.
        at: Moment,
        /// How long ago that is.
        age: Duration,
        /// How long ago a user has changed something, if that is known.
        changed: Option<Duration>,
        /// Events, as lines for the log.
        lines: Vec<Line>,
    },
    /// Tell the clients that others have not been told of. Answered by [`Input::Told`].
    Tell {
        /// The document that they are told for; none: as every second.
        document: Option<u64>,
        /// Tell also those seen only once, in slots that this state changes.
        state: Option<(Box<SavedState>, Moment)>,
    },
    /// Another member tells these.
    Import {
        /// The records, with the telling member's circumstances.
        told: Told,
        /// Which backends could not keep their clients, by the epoch that holds.
        emptied: Arc<Emptied>,
    },
    /// Others may have forgotten what they were told. What they know is imported next.
    Doubt,
    /// The knowledge of others has been imported: entries that they do not know are to be told with the next
    /// [`Output::Tell`].
    Confirm,
    /// Dump all clients for another member. Answered by [`Input::Dumped`].
    Dump {
        /// For whom.
        to: String,
        /// Which process of it.
        instance: u64,
    },
    /// Check these backends at once: another member has doubts of them.
    Check(Vec<BackendId>),
    /// Whether the engine is out of reach, so that hard failures seen here count.
    Alone(bool),
    /// The outcome of a wish.
    Answer {
        /// As given.
        id: u64,
        /// The change that was made, with the members that apply it; or the reason why none was.
        result: Result<Done, Refused>,
    },
    /// The members' counters, by member name.
    Tallies {
        /// As asked.
        id: u64,
        /// Or why it is not known.
        result: Result<Vec<(String, Vec<u8>)>, String>,
    },
    /// A line for the log.
    Log {
        /// Whether something is wrong.
        warning: bool,
        /// In words.
        message: String,
    },
}

/// Records of clients that another member tells.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Told {
    /// Where they are.
    pub records: Vec<Record>,
    /// Whether a move that both have made counts there: its name precedes this one's.
    pub precedes: bool,
}

/// A wish that was granted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Done {
    /// The message that says what was done.
    pub message: String,
    /// Members that apply it.
    pub applied: usize,
    /// Members that are there.
    pub members: usize,
    /// Those that do not apply it yet.
    pub lagging: Vec<String>,
}

/// How far a member has come in knowing everybody's clients.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Clients {
    /// It has to be told.
    Wanted,
    /// It reads what was dumped for it.
    Reading,
    /// It has read it.
    Read,
    /// It knows.
    Known,
}

/// See the [module](self).
#[derive(Debug)]
pub struct Member {
    settings: Settings,
    session: Option<Session>,
    joined: Option<Instant>,
    last_ticket: Ticket,
    /// Why it does not take part, if it does not.
    refused: Option<String>,
    /// The fleet's key, once it is known.
    key: Option<HashKey>,
    /// The epoch that it applies, and its state.
    applied: Option<(Epoch, SavedState, Moment)>,
    /// When it heard of the epoch that holds.
    heard: Option<Heard>,
    skews: Skews,
    /// Which backends could not keep their clients, by the epoch that holds, as last heard.
    emptied: Arc<Emptied>,
    /// The epoch that it is being brought to, and its state.
    applying: Option<Epoch>,
    incoming: Option<(Epoch, SavedState, Moment)>,
    /// An epoch that could not be applied, and why.
    failed: Option<(Epoch, String)>,
    /// Members that steer otherwise.
    others: BTreeSet<String>,
    /// The document whose clients it has told.
    prepared: Option<u64>,
    /// The document whose clients it is putting into the store.
    preparing: Option<Preparing>,
    /// Whether it is telling, and for which document.
    telling: Option<Option<u64>>,
    /// When it last told.
    told: Option<Instant>,
    /// Told batches, oldest first.
    batches: VecDeque<Batch>,
    last_batch: u64,
    clients: Clients,
    /// Records that came before the epoch that they are about was applied.
    early: Vec<Told>,
    /// Whether it has once been in step since the session began, so that it need not be alone.
    in_step: bool,
    /// Whether it has been in any session.
    been_in_step: bool,
    alone: bool,
    /// Members it dumps for, by their processes.
    dumping: BTreeMap<String, (u64, Instant)>,
    /// Dumped records that are to be put into the store.
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
    /// The member's address, as the engine sees it.
    address: String,
    /// Whether its configuration file says other services than the fleet's last one.
    file_differs: bool,
    /// The member's counters, as reported last.
    tally: Option<Vec<u8>>,
    /// Whether the store was asked to take it, and has not said no.
    tally_is_told: bool,
    wishes: Wishes,
    leading: Leading,
    /// Why the engine does not write what it decides.
    lead_denial: Option<String>,
    /// Lineages that it has begun: each has another name, as the store may have been lost right after.
    founded: u64,
    #[cfg(test)]
    mutation: Option<Mutation>,
}

/// A deliberate mistake, which the simulation must find.
#[cfg(test)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mutation {
    /// New clients are told of only where something is prepared.
    TellsNothingByItself,
    /// Members that join are not told of clients.
    JoinsWithoutClients,
    /// A leader writes without asking whether it still leads, and which epoch holds.
    WritesUnconditionally,
    /// Ballots count for backends that came after the epoch that they are about.
    VotesForOtherEpochs,
    /// Changes that give are written before the others have told their known clients.
    CommitsWithoutWaiting,
    /// Cards stay when their members are gone.
    StaysWithoutLease,
    /// Clients are told of once, however long they stay.
    TellsOnce,
    /// That a client was moved is not told.
    ForgetsMoves,
    /// Which backends could not keep their clients is not taken note of.
    ForgetsWhoHadToLeave,
    /// Backends that others suspect are not checked at once.
    KeepsDoubtsToItself,
}

impl Member {
    /// How often new clients are told of.
    pub const TELLS_EVERY: Duration = Duration::from_secs(1);
    /// How long told records stay in the store, for members that are slow: longer than a lease.
    const BATCH_STAYS: Duration = Duration::from_secs(90);
    /// After which a dump that does not come is made again.
    const DUMP_TAKES: Duration = Duration::from_secs(10);
    /// How long a member stays alone after it has found the fleet again, so that failures are agreed on meanwhile.
    const HOLDS: Duration = Duration::from_secs(2);

    /// A member that applies `held`, an epoch from before, or nothing yet.
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
            wishes: Wishes::default(),
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

    /// Takes note of something, and says what to do.
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
            Input::Wish { id, wish, if_generation } => {
                self.wish(id, wish, if_generation, clocks.now, &mut outputs);
            }
            Input::Tally(tally) => self.tally(tally, &mut outputs),
            Input::AskTallies(id) => self.ask_tallies(id, &mut outputs),
            Input::Tick => {}
        }
        self.step(clocks, &mut outputs);
        outputs
    }

    /// Takes note of its address, as the engine sees it.
    pub fn note_address(&mut self, address: String) {
        self.address = address;
    }

    /// When to send [`Input::Tick`] at the latest.
    #[must_use]
    pub fn next_deadline(&self, now: Instant) -> Instant {
        let tells = now + Self::TELLS_EVERY / 4;
        let lead = self.leading.next_deadline();
        lead.into_iter()
            .chain(self.wishes.next_deadline())
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

    /// The epoch that it applies.
    #[must_use]
    pub fn epoch(&self) -> Option<Epoch> {
        self.applied.as_ref().map(|(epoch, ..)| *epoch)
    }

    /// Returns the applied state, to be kept over a restart.
    #[must_use]
    pub const fn held(&self) -> Option<&(Epoch, SavedState, Moment)> {
        self.applied.as_ref()
    }

    /// Whether it has the epoch that holds and everybody's clients.
    #[must_use]
    pub const fn is_in_step(&self) -> bool {
        self.in_step
    }

    /// Whether it has been in step since it was started.
    #[must_use]
    pub const fn has_been_in_step(&self) -> bool {
        self.been_in_step
    }

    /// Whether it can reach the engine.
    #[must_use]
    pub const fn is_connected(&self) -> bool {
        self.session.is_some()
    }

    /// Why it does not take part, though it reaches the engine.
    #[must_use]
    pub fn refused(&self) -> Option<&str> {
        self.refused.as_deref()
    }

    /// Why the engine, which it reaches, takes no writes of it, in the engine's words.
    #[must_use]
    pub fn denial(&self) -> Option<&str> {
        self.card.denial()
    }

    /// Whether it decides.
    #[must_use]
    pub const fn leads(&self) -> bool {
        matches!(self.leading, Leading::Leads(_))
    }

    /// The epoch that holds, as last heard.
    #[must_use]
    pub fn holding(&self) -> Option<Epoch> {
        self.session.as_ref()?.holding()
    }

    /// The member that decides, as last heard.
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

    /// The members' cards, by name, as last heard.
    #[must_use]
    pub fn cards(&self) -> Arc<BTreeMap<String, Card>> {
        self.session.as_ref().map(Session::members).unwrap_or_default()
    }
}
