//! Converts whole configurations of other programs, and checks that these programs accept them.

#![expect(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

mod conversion;
mod golden;
mod programs;
mod support;
