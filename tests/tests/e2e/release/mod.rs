//! Tests that a release must pass and a landing need not: labs with third-party software, and whole machines.

mod ansible;
mod ansible_role;
mod image;
mod kubernetes;
mod real_clients;
pub(crate) mod routers;
mod session_lab;
mod two_machines;
