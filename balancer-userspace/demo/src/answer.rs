//! The answer of the demo's web servers, as servers write and clients read it.

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
    /// Name of the client's session, to be sent back as [`SESSION_COOKIE`].
    pub session: String,
    /// Requests of this session that this backend has seen, this one included. One backend knows nothing of another's.
    pub requests: u64,
    /// The client's address as the backend sees it.
    pub client: String,
}
