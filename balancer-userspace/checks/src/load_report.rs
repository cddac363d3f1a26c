//! Reports about the load of backends, from their agents and from the header `X-Load` in their answers to checks.

use balancer_config::{agent::Answer, names::BackendName};
use tokio::sync::mpsc;

/// A report about the load of a backend.
#[derive(Debug)]
pub enum LoadReport {
    /// A task has queried the agent of a backend.
    Agent {
        /// The backend to which the agent belongs.
        name: BackendName,
        /// The agent's answer, or the reason why the agent did not answer.
        answer: Result<Answer, String>,
    },
    /// The prober has looked for `X-Load` in the answer to an HTTP check of a backend.
    Header {
        /// The backend that was checked.
        name: BackendName,
        /// The value of the header `X-Load`; `None` if the check passed and the answer had no such header.
        words: Option<Vec<u8>>,
    },
}

/// The sending half of the bounded channel for reports: agents wait while the receiver is busy, and checks skip a
/// report.
pub type LoadReports = mpsc::Sender<LoadReport>;
