//! The doctor, which finds out why packets do not reach their destination. [`look`] gathers facts about this machine,
//! the controller and the backends, [`judge`] derives findings from the facts, and [`cure`] carries out the steps that
//! can be undone.
//!
//! Begin with `judge`, which is pure; [`facts`] lists what it may know.

pub mod cure;
pub mod facts;
pub mod finding;
pub mod judge;
pub mod look;
