//! The JSON that the control socket speaks, for both ends.

pub mod client;
pub mod model;
pub mod statistics;

/// Largest request body, in bytes.
pub const MAX_REQUEST_BODY: usize = 64 << 10;
