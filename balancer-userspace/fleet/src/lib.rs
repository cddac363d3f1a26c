//! The protocol by which the balancers of a fleet agree on a state. The crate uses neither I/O nor clocks nor tokio: it
//! receives the engine's messages as inputs, and returns requests to the engine.

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
