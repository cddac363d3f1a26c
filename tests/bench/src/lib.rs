//! The code that benchmarks share: loads, figures and reports.

pub mod asm;
pub mod classics;
pub mod failover;
pub mod figures;
pub mod http_server;
pub mod machine;
pub mod processor_time;
pub mod report;
