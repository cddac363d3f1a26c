//! The format of the demo servers' answers, for servers and clients.

use serde::{Deserialize, Serialize};

/// The response header that names the backend.
pub const BACKEND_HEADER: &str = "x-backend";

/// The cookie that names the session.
pub const SESSION_COOKIE: &str = "demo_session";

/// The body of an answer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Answer {
    /// The name of the backend that answers.
    pub backend: String,
    /// The id of the client's session, which the client sends back as [`SESSION_COOKIE`].
    pub session: String,
    /// The number of this session's requests that this backend has seen, including this one. Backends do not share
    /// sessions.
    pub requests: u64,
    /// The client's address as the backend sees it.
    pub client: String,
}
