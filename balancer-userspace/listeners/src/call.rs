//! Requests from the control API, the metrics listener and other tasks to the task that owns the controller.

use std::{collections::BTreeMap, path::PathBuf, sync::Arc, time::SystemTime};

use balancer_api::{
    model::{
        Changed, ClientQuery, ClientView, DropInText, DropInView, ForgottenView, ImportClient, ImportedView,
        KnownClientsView, RuleView,
    },
    trace::{BeginTrace, HopView},
};
use balancer_config::{config::Config, names::BackendName, validate::Valid};
use balancer_control::{
    io::{Change, Refused},
    plan::Planned,
    readiness::Announcement,
    snapshot::{Coming, Snapshot},
};
use balancer_runtime::events::Events;
use ipnet::IpNet;
use tokio::sync::{mpsc, oneshot};

use crate::{flow_look::FlowLook, trace::Trace};

/// A trace, with the paths to the backends in the trace.
pub type Traced = (Arc<Trace>, Vec<HopView>);

/// A drop-in with its text.
pub type DropIn = (DropInView, DropInText);

/// A change requested by a user.
#[derive(Clone, Debug, PartialEq)]
pub enum ChangeRequest {
    /// Change the configuration.
    Change(Change),
    /// Apply the configuration file, which a task has just reread. In a fleet, this request applies only the member's
    /// own settings, because [`Call::FileRead`] applies the services.
    Reread(Box<Config>),
    /// Withdraw this machine's VIPs (`true`), or restore them.
    Withdraw(bool),
}

/// A change request with the channel for the answer.
#[derive(Debug)]
pub struct Request {
    /// The change that the peer requests.
    pub change_request: ChangeRequest,
    /// The uid of the requesting peer, for the log.
    pub uid: Option<u32>,
    /// The generation that the configuration must have for the change to be made; `None` allows any generation.
    pub if_generation: Option<u64>,
    /// Sends a line about the change, or the reason why the controller refused the change.
    pub reply: oneshot::Sender<Result<Changed, Refused>>,
}

/// A request to the owner, with the channel for the answer. A dropped `reply` means that the controller is shutting
/// down.
#[derive(Debug)]
pub enum Call {
    /// Return a snapshot of the whole state. The time for assembling the services of the snapshot grows with the number
    /// of backends and CPUs.
    Snapshot { reply: oneshot::Sender<anyhow::Result<Snapshot<Coming>>> },
    /// Return whether the balancer is fit to receive clients.
    Ready { reply: oneshot::Sender<Announcement> },
    /// Return the backend to which a client is steered.
    Clients {
        /// The client and the service to look for.
        query: ClientQuery,
        /// Sends a view for each service with the address family of the client, or the reason why there is no view.
        reply: oneshot::Sender<Result<Vec<ClientView>, Refused>>,
    },
    /// Return a handle for reading the history of events.
    Events { reply: oneshot::Sender<Events> },
    /// Plan a change: count the slots and clients that the change would move, without making the change.
    Plan {
        /// The change to be planned.
        change: Change,
        /// Sends the plan, or the reason why the controller would refuse the change.
        reply: oneshot::Sender<Result<Planned, Refused>>,
    },
    /// Return the drop-ins.
    DropIns { reply: oneshot::Sender<Vec<DropIn>> },
    /// Return the rules of services.
    Rules {
        /// The service to which the answer is restricted; `None` means all services.
        service: Option<String>,
        /// Sends views of the rules, sorted by service and prefix, or the reason why there are no views.
        reply: oneshot::Sender<Result<Vec<RuleView>, Refused>>,
    },
    /// Return a view of the connections of `snat` services.
    Flows {
        /// The service to which the answer is restricted; `None` means all services.
        service: Option<String>,
        /// Sends a view of the flow table, or the reason why there is no view.
        reply: oneshot::Sender<Result<FlowLook, Refused>>,
    },
    /// Start a trace of packets.
    Trace {
        /// The packets to trace.
        wanted: BeginTrace,
        /// The uid of the requesting peer, for the log.
        uid: Option<u32>,
        /// Sends the trace, or the reason why the trace could not be started.
        reply: oneshot::Sender<Result<Arc<Trace>, Refused>>,
    },
    /// Return a running trace.
    Traced {
        /// The number of the trace.
        trace: u64,
        /// Sends the trace with the paths to its backends, or an error if the trace has ended.
        reply: oneshot::Sender<Result<Traced, Refused>>,
    },
    /// Forget a client.
    Forget {
        /// The client to forget, and the service.
        query: ClientQuery,
        /// The uid of the requesting peer, for the log.
        uid: Option<u32>,
        /// Sends the number of forgotten entries, or the reason for the refusal.
        reply: oneshot::Sender<Result<ForgottenView, Refused>>,
    },
    /// Record for clients the backends at which the clients are known.
    ImportClients {
        /// The service's name.
        service: String,
        /// The clients with their backends.
        clients: Vec<ImportClient>,
        /// Whether clients that this balancer has served are recorded as well.
        overwrite: bool,
        /// The uid of the requesting peer, for the log.
        uid: Option<u32>,
        /// Sends the number of recorded clients, or the reason for the refusal.
        reply: oneshot::Sender<Result<ImportedView, Refused>>,
    },
    /// Find the known clients of a service.
    ExportClients {
        /// The service's name.
        service: String,
        /// The prefixes to which the search is restricted.
        within: Vec<IpNet>,
        /// Sends the known clients, or the reason for the refusal.
        reply: oneshot::Sender<Result<KnownClientsView, Refused>>,
    },
    /// Forget every client of a backend.
    ForgetAll {
        /// The backend whose clients the controller forgets.
        backend: BackendName,
        /// The uid of the requesting peer, for the log.
        uid: Option<u32>,
        /// Sends the number of forgotten entries, or the reason for the refusal.
        reply: oneshot::Sender<Result<ForgottenView, Refused>>,
    },
    /// Return the counters of the other members of the fleet.
    Tallies {
        /// Sends the members' last reports, or the reason why the reports are unknown.
        reply: oneshot::Sender<Result<Tallies, Refused>>,
    },
    /// A task has reread the configuration file; the file's services become the fleet's services if the file's services
    /// are newer.
    FileRead {
        /// The configuration in the file.
        config: Box<Config>,
        /// The time of the file's last change, if known.
        modified: Option<SystemTime>,
        /// Sends a line about the change; `None` if the services stay unchanged.
        reply: oneshot::Sender<Result<Option<Changed>, Refused>>,
    },
    /// The controller has applied a configuration file, possibly the balancer's own file.
    FileApplied {
        /// The path of the file, without symbolic links.
        path: PathBuf,
        /// The services in the file.
        services: Valid,
    },
    /// Return the time before which a configuration file must not have been written last if the fleet is to apply it.
    OldestFile {
        /// The services in the file.
        services: Valid,
        /// Whether the file is to undo all changes made at run time.
        reset: bool,
        /// Sends the time by this machine's clock; `None` if there is no fleet, if the time is unknown, or if the fleet
        /// applies the file however old it is.
        reply: oneshot::Sender<Option<SystemTime>>,
    },
    /// Make a change that a user has requested.
    Change(Request),
}

/// The counters of the other members of a fleet.
#[derive(Clone, Debug)]
pub struct Tallies {
    /// A packed [`Tally`](balancer_api::tally::Tally) by member, or the reason why the member has sent none.
    pub others: BTreeMap<String, Result<Vec<u8>, String>>,
    /// Whether all members share their known clients.
    pub shared: bool,
}

/// The sending half of the bounded channel to the owner: callers wait while the controller is busy.
pub type Calls = mpsc::Sender<Call>;
