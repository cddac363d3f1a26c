//! Reads environment variables that make tests longer or repeat a run.

use std::env;

use anyhow::{Context as _, Result};

/// Parses a variable as a decimal or `0x` number. Returns `None` if the variable is not set.
///
/// # Errors
/// Fails if the value of the variable is not such a number.
pub fn number(name: &str) -> Result<Option<u64>> {
    let Ok(text) = env::var(name) else { return Ok(None) };
    let number = text.strip_prefix("0x").map_or_else(|| text.parse(), |hex| u64::from_str_radix(hex, 16));
    number.map(Some).with_context(|| format!("{name}={text}: give a number"))
}
