//! The JSON that the control socket speaks, for both ends.

pub mod client;
pub mod events;
pub mod model;

/// Largest request body, in bytes.
pub const MAX_REQUEST_BODY: usize = 64 << 10;
