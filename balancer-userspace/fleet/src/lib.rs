//! The protocol by which the balancers of a fleet agree on a state. The crate uses neither I/O nor clocks nor tokio: it
//! receives the engine's messages as inputs, and returns requests to the engine.
//!
//! Begin with [`member`], the state machine of one member, and `member/lead.rs`, what a leader does in addition. `engine` is
//! the store that the protocol needs, `store_schema` and `documents` are what members write there, and `records` and
//! `clients` are the shared clients. `simulation` runs whole fleets in one process.

pub mod clients;
pub mod documents;
pub mod emptied;
pub mod engine;
pub mod keys;
pub mod member;
pub mod records;
mod session;
#[cfg(test)]
mod simulation;
pub mod store_schema;
pub mod votes;
