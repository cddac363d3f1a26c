//! Contains the fuzz targets of this package, and what its programs share with the privileged tests, which are in
//! `tests/tests`.

pub mod fuzz;
pub mod verified;
