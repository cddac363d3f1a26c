//! The tokio shell round the core: sockets, netlink, maps.

pub mod api_server;
mod bpffs;
pub mod call;
pub mod dataplane;
pub mod decap;
pub mod events;
pub mod forwarding;
pub mod host;
pub mod interfaces;
pub mod metrics;
pub mod neighbours;
pub mod owner;
pub mod privileges;
pub mod prober;
pub mod run;
pub mod service_manager;
pub mod shutdown;
pub mod snapshot;
