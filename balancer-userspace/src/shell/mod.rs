//! The tokio shell round the core: sockets, netlink, maps.

pub mod call;
pub mod dataplane;
pub mod interfaces;
pub mod neighbours;
pub mod snapshot;
