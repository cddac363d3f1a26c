//! Tests that `balancer trace` and `balancer capture` report the packets of real clients correctly, and leave no
//! program attached.

mod capture;
mod trace;
pub(crate) mod watch;
