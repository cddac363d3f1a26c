//! The fuzz targets. The privileged tests are beside.

pub mod fuzz;
