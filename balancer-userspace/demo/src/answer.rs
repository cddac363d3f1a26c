//! The format of the demo servers' answers, which servers and clients share.

use serde::{Deserialize, Serialize};

/// The HTTP response header that names the backend.
pub const BACKEND_HEADER: &str = "x-backend";

/// The cookie that contains the session's id.
pub const SESSION_COOKIE: &str = "demo_session";

/// The body of a demo server's answer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Answer {
    /// The name of the backend that has sent the answer.
    pub backend: String,
    /// The id of the client's session, which the client sends back as [`SESSION_COOKIE`].
    pub session: String,
    /// The number of requests of this session that this backend has seen, including the current request. Each backend
    /// has its own sessions.
    pub requests: u64,
    /// The source address of the request, as the backend sees it.
    pub client: String,
}
