//! Connections of `snat` services: see [`balancer_common::flows`].
//!
//! Packets to these services and to ports of a pool leave the path of most packets and take steps of their own.

pub(crate) mod back;
pub(crate) mod errors;
pub(crate) mod find;
pub(crate) mod open;
pub(crate) mod parts;
mod place;
mod pool;
pub(crate) mod ports;
mod rewriting;
mod table;
pub(crate) mod there;
