//! The fuzz targets. The privileged tests are in `tests/tests`.

pub mod fuzz;
