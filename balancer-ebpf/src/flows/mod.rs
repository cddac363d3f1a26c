//! Connections of `snat` services: see [`balancer_common::flows`].
//!
//! Packets to `snat` services and to the ports of an address pool take separate steps instead of the path of most
//! packets.

mod again;
pub(crate) mod back;
mod compare;
pub(crate) mod errors;
pub(crate) mod families;
pub(crate) mod find;
mod held;
pub(crate) mod named;
pub(crate) mod open;
pub(crate) mod parts;
pub(crate) mod path;
mod place;
mod pool;
pub(crate) mod ports;
mod rewriting;
mod stamp;
mod table;
pub(crate) mod there;
mod ways;
