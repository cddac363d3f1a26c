//! The configuration: valid by type once it exists.

pub mod model;
