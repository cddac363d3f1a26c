//! What the balancer listens to and answers: the control sockets, the control listener with TLS, metrics and the page;
//! and the calls by which these ask the task that owns the controller.

pub mod api_server;
pub mod audit;
pub mod call;
pub mod configuration;
pub mod flow_look;
mod listener;
pub mod metrics;
pub mod outlets;
mod pieces;
pub mod reload;
pub mod statistics;
pub mod trace;
