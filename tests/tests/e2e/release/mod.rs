//! Tests that a release must pass and a landing need not: labs with third-party software, whole machines,
//! files with thousands of services and backends, and figures over tens of seconds.

mod ansible;
mod ansible_role;
mod image;
mod kubernetes;
mod layouts;
mod rates;
mod real_clients;
mod restart_sizes;
pub(crate) mod routers;
mod session_lab;
mod statistics_families;
mod two_machines;
