//! The session lab without its hosts: which ways of keeping sessions there are and what happens to them, what clients make
//! of the answers, and what comes out.

pub mod cell;
pub mod client;
pub mod event;
pub mod page;
pub mod results;
pub mod row;
pub mod strategy;
pub mod table;
pub mod tally;
