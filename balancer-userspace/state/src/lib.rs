//! The state that a restart must preserve, and the files that keep it.

pub mod restorable;
pub mod state_file;
