//! Finds out why packets do not flow. [`look`] gathers facts about this machine, the controller and its backends,
//! [`judge`] derives findings from them, and [`cure`] carries out the steps that can be undone.

pub mod cure;
pub mod facts;
pub mod finding;
pub mod judge;
pub mod look;
