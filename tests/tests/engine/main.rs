//! Tests of the etcd driver against real servers, which the tests kill, freeze and compact.
#![expect(
    clippy::unwrap_used,
    clippy::panic,
    clippy::wildcard_enum_match_arm,
    reason = "a test fails by panicking, and says what came instead"
)]

mod lab;

mod denials;
mod failures;
mod foreign;
mod leases;
mod partitions;
mod secrets;
mod transactions;
mod trees;
mod volumes;
