//! Variables of the environment that make tests longer, or do the same again.

use std::env;

use anyhow::{Context as _, Result};

/// The number that a variable says, decimal or with `0x` before it; `None`: it says nothing.
///
/// # Errors
/// When it says something else.
pub fn number(name: &str) -> Result<Option<u64>> {
    let Ok(text) = env::var(name) else { return Ok(None) };
    let number = text.strip_prefix("0x").map_or_else(|| text.parse(), |hex| u64::from_str_radix(hex, 16));
    number.map(Some).with_context(|| format!("{name}={text}: give a number"))
}
