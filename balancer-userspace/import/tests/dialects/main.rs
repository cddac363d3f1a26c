//! Whole configurations of other programs: what they become, and whether these programs accept them.

#![expect(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

mod conversion;
mod golden;
mod programs;
mod support;
