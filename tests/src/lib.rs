//! Contains the fuzz targets of this package, and what its programs share with the privileged tests, which are in
//! `tests/tests`.
//!
//! Begin with `tests/tests/packets/pass.rs` for single packets, or `tests/tests/e2e/stickiness.rs` for a whole site.

pub mod fuzz;
pub mod verified;
