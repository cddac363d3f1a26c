//! The tokio shell round the core: sockets, netlink, maps.

pub mod api_server;
mod bpffs;
pub mod call;
pub mod changes;
pub mod dataplane;
pub mod decap;
pub mod forwarding;
pub mod host;
pub mod interfaces;
pub mod metrics;
pub mod neighbours;
pub mod owner;
pub mod privileges;
pub mod prober;
pub mod run;
pub mod shutdown;
pub mod snapshot;
pub mod statistics;
