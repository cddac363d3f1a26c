//! Tests of `balancer trace` and `balancer capture`: their output for real clients' packets, and that they leave no
//! program attached.

mod capture;
mod trace;
pub(crate) mod watch;
