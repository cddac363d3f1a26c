//! How several balancers come to one answer. No I/O, no clock, no tokio: what the engine says goes in, what to ask of it
//! comes out.

pub mod cards;
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
pub mod votes;
