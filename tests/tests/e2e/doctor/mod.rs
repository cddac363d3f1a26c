//! Tests of `balancer doctor`: a healthy site has no finding, and for a seeded fault it names only the cause.

mod fault;
mod faults;
mod healthy;
mod without;
