//! Questions and reports of the daemon's own tasks to the task that owns the controller.

use balancer_config::discover::Source;
use balancer_control::{controller::NearBackend, io::Refused};
use balancer_dataplane::FlowCounts;
use tokio::sync::{mpsc, oneshot};

/// A question or report of a task.
#[derive(Debug)]
pub(crate) enum TaskCall {
    /// Return the backends that may reply directly to some clients, bypassing this machine.
    NearBackends { reply: oneshot::Sender<Vec<NearBackend>> },
    /// A task has counted the connections of `snat` services.
    FlowsCounted(FlowCounts),
    /// The controller has made or refused the change that a new list of targets required.
    Discovered {
        /// The service that names the list.
        service: String,
        /// The source of the list.
        source: Source,
        /// The reason for the refusal, if the controller refused the change.
        refused: Option<Refused>,
    },
    /// Send this packed tally of the member's counters to the other members.
    Tell(Vec<u8>),
}

/// The sending half of the bounded channel to the owner: tasks wait while the controller is busy.
pub(crate) type TaskCalls = mpsc::Sender<TaskCall>;
