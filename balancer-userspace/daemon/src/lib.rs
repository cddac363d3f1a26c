//! The balancer at work, the tokio shell round the core: the task that owns the controller and the maps, health checks,
//! netlink, both listeners, and what is changed on this machine.

pub mod api_server;
pub mod arena;
pub mod call;
mod clocks;
pub mod configuration;
pub mod decap;
mod departed;
pub mod events;
mod fleet;
mod flow_look;
mod flows;
pub mod host;
pub mod host_state;
pub mod interfaces;
pub mod keeper;
mod layers;
mod lines;
mod listener;
pub mod metrics;
pub mod neighbours;
pub mod owner;
mod packet_socket;
mod pieces;
mod precedence;
pub mod prober;
mod puzzles;
mod reload;
mod restorable;
mod resume;
pub mod run;
pub mod service_manager;
pub mod shutdown;
pub mod state_file;
pub mod statistics;
pub mod supervisor;
pub mod untrusted;
