//! The requests of the control API and the metrics listener to the one task that owns the controller.

use std::{collections::BTreeMap, path::PathBuf, sync::Arc, time::SystemTime};

use balancer_api::{
    model::{Changed, ClientQuery, ClientView, ForgottenView, ImportClient, ImportedView, KnownClientsView, RuleView},
    trace::{BeginTrace, HopView},
};
use balancer_core::{
    controller::NearBackend,
    io::{Change, Refused},
    plan::Planned,
    readiness::Announcement,
    snapshot::{Coming, Snapshot},
};
use balancer_dataplane::FlowCounts;
use balancer_model::{
    agent::Answer,
    config::Config,
    deny::DenyList,
    discover::{Source, Target},
    names::BackendName,
    validate::Valid,
};
use ipnet::IpNet;
use tokio::sync::{mpsc, oneshot};

use crate::{events::Events, flow_look::FlowLook, trace::Trace};

/// A list of denied prefixes as it was read, or why it was not.
pub type DenyFileRead = Result<Arc<DenyList>, String>;

/// The targets of a list as they were read, or why they were not.
pub type ListRead = Result<Arc<Vec<Target>>, String>;

/// A trace, with how backends are reached.
pub type Traced = (Arc<Trace>, Vec<HopView>);

/// A change that a user asks for.
#[derive(Clone, Debug, PartialEq)]
pub enum Wish {
    /// To change what clients find.
    Change(Change),
    /// To take over the configuration file, which was read again. Of a member of a fleet that is what is its own: services
    /// are asked for by [`Call::FileRead`].
    Reread(Box<Config>),
    /// To have this machine's VIPs taken away (`true`), or brought back.
    Withdraw(bool),
}

/// A change that somebody asks for.
#[derive(Debug)]
pub struct Request {
    /// The change that is asked for.
    pub wish: Wish,
    /// The uid of the peer that asked, for the log.
    pub uid: Option<u32>,
    /// Only if the configuration is of this generation.
    pub if_generation: Option<u64>,
    /// A line about the change made, or why it was refused.
    pub reply: oneshot::Sender<Result<Changed, Refused>>,
}

/// One request with the way its answer goes back. A dropped `reply` means that the controller is shutting down.
#[derive(Debug)]
pub enum Call {
    /// Everything there is to see. What services come of it takes as long as there are backends and CPUs.
    Snapshot {
        /// The answer.
        reply: oneshot::Sender<anyhow::Result<Snapshot<Coming>>>,
    },
    /// Whether it is fit to be sent clients.
    Ready {
        /// The answer.
        reply: oneshot::Sender<Announcement>,
    },
    /// Which backend a client is steered to.
    Clients {
        /// Which client, which service.
        query: ClientQuery,
        /// One view for each service of the address's family, or why there is none.
        reply: oneshot::Sender<Result<Vec<ClientView>, Refused>>,
    },
    /// The history, to read in.
    Events {
        /// The answer.
        reply: oneshot::Sender<Events>,
    },
    /// Plan a change: find how many slots and clients it would move, without making it.
    Plan {
        /// The change.
        change: Change,
        /// The plan, or why the change would be refused.
        reply: oneshot::Sender<Result<Planned, Refused>>,
    },
    /// The rules for client prefixes.
    Rules {
        /// Only those of this service.
        service: Option<String>,
        /// In the order of services and prefixes, or why there is none.
        reply: oneshot::Sender<Result<Vec<RuleView>, Refused>>,
    },
    /// The connections of `snat` services.
    Flows {
        /// Only those of this service.
        service: Option<String>,
        /// Where to look, or why there is nothing to look at.
        reply: oneshot::Sender<Result<FlowLook, Refused>>,
    },
    /// Have packets be told of.
    Trace {
        /// Whose packets.
        wanted: BeginTrace,
        /// The uid of the peer that asked, for the log.
        uid: Option<u32>,
        /// The trace, or why there is none.
        reply: oneshot::Sender<Result<Arc<Trace>, Refused>>,
    },
    /// A trace that is under way.
    Traced {
        /// Which.
        trace: u64,
        /// The trace, with how backends are reached, or that it has ended.
        reply: oneshot::Sender<Result<Traced, Refused>>,
    },
    /// Backends that may answer some clients past this machine.
    NearBackends {
        /// The answer.
        reply: oneshot::Sender<Vec<NearBackend>>,
    },
    /// The connections of `snat` services were counted.
    FlowsCounted(FlowCounts),
    /// Forget a client.
    Forget {
        /// Which client, which service.
        query: ClientQuery,
        /// The uid of the peer that asked, for the log.
        uid: Option<u32>,
        /// How many entries, or why not.
        reply: oneshot::Sender<Result<ForgottenView, Refused>>,
    },
    /// Have clients be known.
    ImportClients {
        /// The service's name.
        service: String,
        /// Which, and where.
        clients: Vec<ImportClient>,
        /// The uid of the peer that asked, for the log.
        uid: Option<u32>,
        /// How many clients were taken over, or why nothing was changed.
        reply: oneshot::Sender<Result<ImportedView, Refused>>,
    },
    /// Find the known clients of a service.
    ExportClients {
        /// The service's name.
        service: String,
        /// Those with addresses in these prefixes.
        within: Vec<IpNet>,
        /// Those that were found, or why there are none.
        reply: oneshot::Sender<Result<KnownClientsView, Refused>>,
    },
    /// Forget every client of a backend.
    ForgetAll {
        /// The backend whose clients are forgotten.
        backend: BackendName,
        /// The uid of the peer that asked, for the log.
        uid: Option<u32>,
        /// How many entries, or why not.
        reply: oneshot::Sender<Result<ForgottenView, Refused>>,
    },
    /// Find the counts of the other members of the fleet.
    Tallies {
        /// As they told it, or why that is not known.
        reply: oneshot::Sender<Result<Tallies, Refused>>,
    },
    /// The configuration file was read again: its services become the fleet's, if they are newer than those.
    FileRead {
        /// The configuration in the file.
        config: Box<Config>,
        /// When it was last changed, if that is known.
        modified: Option<SystemTime>,
        /// A line about the change made; `None`: the services stay as they are.
        reply: oneshot::Sender<Result<Option<Changed>, Refused>>,
    },
    /// A file of denied prefixes was read, because it is new or has changed.
    DenyFileRead {
        /// Which.
        file: PathBuf,
        /// The list in the file, or why it is wrong.
        read: DenyFileRead,
    },
    /// The agent of a backend was asked.
    AgentAnswered {
        /// The backend.
        name: BackendName,
        /// The answer, or why there is none.
        answer: Result<Answer, String>,
    },
    /// The answer to an HTTP check of a backend was looked at for `X-Load`.
    LoadSaid {
        /// The backend.
        name: BackendName,
        /// The words in the header; `None`: an answer that passed has none.
        words: Option<Vec<u8>>,
    },
    /// A list of targets was read, because it is new or has changed, or was asked for.
    ListRead {
        /// Which.
        source: Source,
        /// The targets of the list, or why it is wrong.
        read: ListRead,
    },
    /// A change was made, or refused, that a list of targets has asked for.
    Discovered {
        /// The service that names the list.
        service: String,
        /// Which list.
        source: Source,
        /// Why it was refused.
        refused: Option<Refused>,
    },
    /// A configuration file was applied, perhaps the own one.
    FileApplied {
        /// Which, without links.
        path: PathBuf,
        /// The services in the file.
        services: Valid,
    },
    /// When a user last changed something in the fleet.
    FleetChanged {
        /// On the clock of this machine; `None`: it is in no fleet, or that is not known.
        reply: oneshot::Sender<Option<SystemTime>>,
    },
    /// Tell the other members what this one has counted.
    Tell(Vec<u8>),
    /// Change something.
    Change(Request),
}

/// The counts of the other members of a fleet.
#[derive(Clone, Debug)]
pub struct Tallies {
    /// A packed [`Tally`](balancer_api::tally::Tally), or why there is none, by member.
    pub others: BTreeMap<String, Result<Vec<u8>, String>>,
    /// Whether all members know each client.
    pub shared: bool,
}

/// The sending half, bounded: callers wait when the controller is busy.
pub type Calls = mpsc::Sender<Call>;
