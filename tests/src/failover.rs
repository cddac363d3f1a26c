//! What measurements of failures have in common: hosts, a steady load of clients' packets, and what crosses the backends'
//! wire.

pub mod hosts;
pub mod load;
pub mod wire;
