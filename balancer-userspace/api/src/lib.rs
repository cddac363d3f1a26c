//! The JSON of the control API: views made from snapshots of the core, and a client that requests these views.
//!
//! Begin with `model`, the JSON types; `views` makes them from a snapshot of the core. `client` and `server` are the two
//! sides of a connection.

#![warn(missing_docs)]

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

/// The maximum size of a request body in bytes, except for bodies with a configuration or clients.
pub const MAX_REQUEST_BODY: usize = 64 << 10;
/// The maximum size in bytes of a request body with a configuration: enough for a text of 16 MiB, even if JSON escapes
/// most characters.
pub const MAX_CONFIGURATION_BODY: usize = 40 << 20;
/// The maximum size of a request body with clients, in bytes.
pub const MAX_CLIENTS_BODY: usize = 1 << 20;
/// The request header that names a generation: the controller makes the change only if the configuration has this
/// generation.
pub const IF_GENERATION: &str = "if-generation";
