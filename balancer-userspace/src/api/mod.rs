//! The JSON that the control socket speaks, for both ends.

pub mod model;
