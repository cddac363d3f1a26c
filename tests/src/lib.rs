//! Contains the fuzz targets of this package. The privileged tests are in `tests/tests`.

pub mod fuzz;
