//! Finds out why packets do not flow. [`look`] gathers facts about this machine, the controller and its backends, [`judge`]
//! makes findings of them, and [`cure`] carries out what can be taken back.

pub mod cure;
pub mod facts;
pub mod finding;
pub mod judge;
pub mod look;
