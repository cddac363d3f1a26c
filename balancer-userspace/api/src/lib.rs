//! The JSON that the control socket speaks, for both ends: made of the core's facts, and asked for by the client.

pub mod client;
pub mod events;
pub mod model;
pub mod one_by_one;
pub mod quic;
pub mod server;
pub mod statistics;
pub mod tally;
pub mod trace;
mod views;

/// Largest request body, in bytes, except that of a configuration.
pub const MAX_REQUEST_BODY: usize = 64 << 10;
/// Largest request body with a configuration, in bytes: a text of 16 MiB with most of it escaped.
pub const MAX_CONFIGURATION_BODY: usize = 40 << 20;
/// Largest request body with clients, in bytes.
pub const MAX_CLIENTS_BODY: usize = 1 << 20;
/// The header of a change that is only to be made if the configuration is of this generation.
pub const IF_GENERATION: &str = "if-generation";
