//! Everything that asks a server something: the health checks and the queries to agents of backends.

pub mod agents;
pub mod load_report;
pub mod prober;
