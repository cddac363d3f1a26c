//! The tokio shell round the core: sockets, netlink, maps.

pub mod api_server;
mod bpffs;
pub mod call;
pub mod changes;
pub mod dataplane;
pub mod decap;
mod departed;
pub mod events;
pub mod forwarding;
pub mod host;
pub mod interfaces;
pub mod keeper;
mod lines;
pub mod metrics;
pub mod neighbours;
pub mod owner;
pub mod privileges;
pub mod prober;
mod reload;
mod resume;
pub mod run;
pub mod service_manager;
pub mod shutdown;
pub mod snapshot;
pub mod state_file;
pub mod statistics;
pub mod vips;
