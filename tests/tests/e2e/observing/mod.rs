//! `balancer trace` and `balancer capture`: what they say of real clients' packets, and that they leave nothing attached.

mod capture;
mod trace;
mod watch;
