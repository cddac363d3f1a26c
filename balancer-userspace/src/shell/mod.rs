//! The tokio shell round the core: sockets, netlink, maps.

pub mod api_server;
pub mod call;
pub mod dataplane;
pub mod decap;
mod departed;
pub mod events;
pub mod host;
pub mod interfaces;
pub mod keeper;
mod layers;
mod lines;
mod listener;
pub mod metrics;
pub mod neighbours;
pub mod owner;
pub mod prober;
mod puzzles;
mod reload;
mod resume;
pub mod run;
pub mod service_manager;
pub mod shutdown;
pub mod state_file;
pub mod statistics;
pub mod supervisor;
