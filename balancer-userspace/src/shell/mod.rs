//! The tokio shell round the core: sockets, netlink, maps.

pub mod api_server;
pub mod call;
pub mod dataplane;
pub mod run;
pub mod snapshot;
