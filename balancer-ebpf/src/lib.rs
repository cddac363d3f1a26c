//! The data path: parse, find the service, choose the backend, forward.
//!
//! Everything here takes a [`packet::Packet`], so that the parts without maps run on the host over a byte slice.

#![cfg_attr(not(test), no_std)]

mod control;
pub mod forward;
mod memory;
pub mod outcome;
pub mod packet;
pub mod parse;
mod path;
mod probe;
mod returns;
mod service;
pub mod stats;
mod steer;

pub use path::{Ingress, process};
