//! `balancer doctor`: a healthy site has no finding, and of a seeded fault it names the cause and nothing else.

mod fault;
mod faults;
mod healthy;
mod without;
