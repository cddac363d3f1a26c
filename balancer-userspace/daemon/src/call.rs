//! Requests of the control API and the metrics listener to the task that owns the controller.

use std::{collections::BTreeMap, path::PathBuf, sync::Arc, time::SystemTime};

use balancer_api::{
    model::{Changed, ClientQuery, ClientView, ForgottenView, ImportClient, ImportedView, KnownClientsView, RuleView},
    trace::{BeginTrace, HopView},
};
use balancer_config::{
    agent::Answer,
    config::Config,
    deny::DenyList,
    discover::{Source, Target},
    names::BackendName,
    validate::Valid,
};
use balancer_control::{
    controller::NearBackend,
    io::{Change, Refused},
    plan::Planned,
    readiness::Announcement,
    snapshot::{Coming, Snapshot},
};
use balancer_dataplane::FlowCounts;
use ipnet::IpNet;
use tokio::sync::{mpsc, oneshot};

use crate::{events::Events, flow_look::FlowLook, trace::Trace};

/// A deny list that was read, or why it could not be read.
pub type DenyFileRead = Result<Arc<DenyList>, String>;

/// The targets of a list that was read, or why they could not be read.
pub type ListRead = Result<Arc<Vec<Target>>, String>;

/// A trace, with the paths to its backends.
pub type Traced = (Arc<Trace>, Vec<HopView>);

/// A change requested by a user.
#[derive(Clone, Debug, PartialEq)]
pub enum ChangeRequest {
    /// Change the configuration.
    Change(Change),
    /// Apply the configuration file, which was read again. In a fleet, this applies only the member's own settings;
    /// [`Call::FileRead`] handles services.
    Reread(Box<Config>),
    /// Withdraw this machine's VIPs (`true`), or restore them.
    Withdraw(bool),
}

/// A change request.
#[derive(Debug)]
pub struct Request {
    /// The requested change.
    pub change_request: ChangeRequest,
    /// The uid of the requesting peer, for the log.
    pub uid: Option<u32>,
    /// Make the change only if the configuration has this generation; `None`: in any case.
    pub if_generation: Option<u64>,
    /// A line about the change, or the reason why it was refused.
    pub reply: oneshot::Sender<Result<Changed, Refused>>,
}

/// A request with the channel for its answer. A dropped `reply` means that the controller is shutting down.
#[derive(Debug)]
pub enum Call {
    /// Return a snapshot of the whole state. The time for assembling its services grows with the number of backends and
    /// CPUs.
    Snapshot { reply: oneshot::Sender<anyhow::Result<Snapshot<Coming>>> },
    /// Return whether the balancer is fit to receive clients.
    Ready { reply: oneshot::Sender<Announcement> },
    /// Return the backend to which a client is steered.
    Clients {
        /// The client and the service.
        query: ClientQuery,
        /// Sends a view for each service of the address's family, or the reason why there is none.
        reply: oneshot::Sender<Result<Vec<ClientView>, Refused>>,
    },
    /// Return a handle for reading the history.
    Events { reply: oneshot::Sender<Events> },
    /// Plan a change: count the slots and clients that it would move, without making the change.
    Plan {
        /// The change.
        change: Change,
        /// The plan, or the reason why the change would be refused.
        reply: oneshot::Sender<Result<Planned, Refused>>,
    },
    /// Return the rules for client prefixes.
    Rules {
        /// The service to which the answer is restricted; `None`: all services.
        service: Option<String>,
        /// Views in the order of services and prefixes, or the reason why there are none.
        reply: oneshot::Sender<Result<Vec<RuleView>, Refused>>,
    },
    /// Return access to the connections of `snat` services.
    Flows {
        /// The service to which the answer is restricted; `None`: all services.
        service: Option<String>,
        /// A view of the table, or the reason why there is none.
        reply: oneshot::Sender<Result<FlowLook, Refused>>,
    },
    /// Start a trace of packets.
    Trace {
        /// The packets to trace.
        wanted: BeginTrace,
        /// The uid of the requesting peer, for the log.
        uid: Option<u32>,
        /// The trace, or the reason why there is none.
        reply: oneshot::Sender<Result<Arc<Trace>, Refused>>,
    },
    /// Return a running trace.
    Traced {
        /// The number of the trace.
        trace: u64,
        /// The trace with the paths to its backends, or an error if the trace has ended.
        reply: oneshot::Sender<Result<Traced, Refused>>,
    },
    /// Return the backends that may reply to some clients directly, bypassing this machine.
    NearBackends { reply: oneshot::Sender<Vec<NearBackend>> },
    /// The connections of `snat` services were counted.
    FlowsCounted(FlowCounts),
    /// Forget a client.
    Forget {
        /// The client and the service.
        query: ClientQuery,
        /// The uid of the requesting peer, for the log.
        uid: Option<u32>,
        /// The number of forgotten entries, or the reason why there are none.
        reply: oneshot::Sender<Result<ForgottenView, Refused>>,
    },
    /// Record that clients are known at certain backends.
    ImportClients {
        /// The service's name.
        service: String,
        /// The clients with their backends.
        clients: Vec<ImportClient>,
        /// The uid of the requesting peer, for the log.
        uid: Option<u32>,
        /// The number of recorded clients, or the reason why nothing was changed.
        reply: oneshot::Sender<Result<ImportedView, Refused>>,
    },
    /// Find the known clients of a service.
    ExportClients {
        /// The service's name.
        service: String,
        /// The prefixes to which the search is restricted.
        within: Vec<IpNet>,
        /// The clients found, or the reason why there are none.
        reply: oneshot::Sender<Result<KnownClientsView, Refused>>,
    },
    /// Forget every client of a backend.
    ForgetAll {
        /// The backend whose clients are forgotten.
        backend: BackendName,
        /// The uid of the requesting peer, for the log.
        uid: Option<u32>,
        /// The number of forgotten entries, or the reason why there are none.
        reply: oneshot::Sender<Result<ForgottenView, Refused>>,
    },
    /// Return the counters of the other members of the fleet.
    Tallies {
        /// The members' last reports, or the reason why they are unknown.
        reply: oneshot::Sender<Result<Tallies, Refused>>,
    },
    /// The configuration file was read again: its services become the fleet's if they are newer.
    FileRead {
        /// The configuration in the file.
        config: Box<Config>,
        /// The time of the file's last change, if known.
        modified: Option<SystemTime>,
        /// A line about the change; `None`: the services stay as they are.
        reply: oneshot::Sender<Result<Option<Changed>, Refused>>,
    },
    /// A deny list was read because it is new or has changed.
    DenyFileRead {
        /// The file.
        file: PathBuf,
        /// The list in the file, or the error in it.
        read: DenyFileRead,
    },
    /// The agent of a backend was queried.
    AgentAnswered {
        /// The backend.
        name: BackendName,
        /// The answer of the agent, or the reason why there is none.
        answer: Result<Answer, String>,
    },
    /// The balancer has looked for `X-Load` in the answer to an HTTP check of a backend.
    LoadSaid {
        /// The backend.
        name: BackendName,
        /// The value of the header; `None`: the check passed without it.
        words: Option<Vec<u8>>,
    },
    /// A list of targets was read because it is new or has changed, or its DNS answer arrived.
    ListRead {
        /// The list.
        source: Source,
        /// The targets in the list, or the error in it.
        read: ListRead,
    },
    /// The change that a list of targets required was made or refused.
    Discovered {
        /// The service that names the list.
        service: String,
        /// The list.
        source: Source,
        /// The reason for a refusal.
        refused: Option<Refused>,
    },
    /// A configuration file was applied, possibly the balancer's own.
    FileApplied {
        /// The path of the file, without symbolic links.
        path: PathBuf,
        /// The services in the file.
        services: Valid,
    },
    /// Return when a user last changed something in the fleet.
    FleetChanged {
        /// The time by this machine's clock; `None`: there is no fleet, or the time is unknown.
        reply: oneshot::Sender<Option<SystemTime>>,
    },
    /// Send this member's counters to the other members.
    Tell(Vec<u8>),
    /// Make a change.
    Change(Request),
}

/// The counters of the other members of a fleet.
#[derive(Clone, Debug)]
pub struct Tallies {
    /// A packed [`Tally`](balancer_api::tally::Tally) by member, or the reason why there is none.
    pub others: BTreeMap<String, Result<Vec<u8>, String>>,
    /// Whether all members share their known clients.
    pub shared: bool,
}

/// The sending half of the bounded channel: callers wait while the controller is busy.
pub type Calls = mpsc::Sender<Call>;
