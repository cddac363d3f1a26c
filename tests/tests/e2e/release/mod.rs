//! Tests that a release must pass and a landing need not: labs with third-party software, whole
//! machines, and files with thousands of services and backends.

mod ansible;
mod ansible_role;
mod image;
mod kubernetes;
mod real_clients;
mod restart_sizes;
pub(crate) mod routers;
mod session_lab;
mod two_machines;
