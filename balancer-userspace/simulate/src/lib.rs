//! Computes which servers the clients in an access log would get under the rules of several balancers, and which
//! clients a change would move. The crate reads no clock and prints nothing.
//!
//! Begin with `compare`; `rules` has one file for each program, `format` one for each kind of log.

pub mod census;
pub mod compare;
pub mod format;
pub mod gaps;
pub mod lines;
pub mod product;
pub mod report;
pub mod rules;
pub mod servers;
pub mod time;

mod address;
mod heavy;
mod suggest;
