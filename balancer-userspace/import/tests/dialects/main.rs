//! Tests that convert whole configurations of other programs and check that these programs accept the configurations.

#![expect(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

mod choices;
mod collection;
mod conversion;
mod details;
mod golden;
mod programs;
mod support;
