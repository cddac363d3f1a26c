//! Computes which servers the clients in an access log would get under the rules of several balancers, and which
//! clients a change would move. The crate reads no clock and prints nothing.

pub mod census;
pub mod compare;
pub mod format;
pub mod gaps;
pub mod lines;
pub mod product;
pub mod report;
pub mod rules;
pub mod servers;

mod address;
mod heavy;
mod suggest;
mod time;
