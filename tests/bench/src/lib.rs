//! The code that benchmarks share: loads and figures.
//!
//! Begin with `src/bin/bench-path`, which measures the kernel program path by path and also compares two commits.

pub mod asm;
pub mod classics;
pub mod failover;
pub mod figures;
pub mod http_server;
pub mod machine;
pub mod processor_time;
