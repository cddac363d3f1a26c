//! What the control API and the metrics listener ask of the one task that owns the controller.

use tokio::sync::{mpsc, oneshot};

use crate::{
    api::model::{Changed, ClientQuery, ClientView},
    core::io::{Change, Refused},
    shell::{events::Events, snapshot::Snapshot},
};

/// One request with the way its answer goes back. A dropped `reply` means that the controller is shutting down.
#[derive(Debug)]
pub enum Call {
    /// Everything there is to see.
    Snapshot {
        /// The answer.
        reply: oneshot::Sender<anyhow::Result<Snapshot>>,
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
    /// Change something.
    Change {
        /// What.
        change: Change,
        /// The uid of the peer that asked, for the log.
        uid: Option<u32>,
        /// What was done, or why not.
        reply: oneshot::Sender<Result<Changed, Refused>>,
    },
}

/// The sending half, bounded: callers wait when the controller is busy.
pub type Calls = mpsc::Sender<Call>;
