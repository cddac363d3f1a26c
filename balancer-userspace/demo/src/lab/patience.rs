//! Waits for a condition, up to a time limit or a signal.

use std::{
    error::Error,
    fmt,
    time::{Duration, Instant},
};

use anyhow::{Result, bail};

use crate::interrupt::Interrupt;

/// The maximum time for a component of the lab to become ready.
const LIMIT: Duration = Duration::from_secs(40);

/// The time between two checks of a condition.
const GLANCE: Duration = Duration::from_millis(50);

/// The error that a signal arrived before everything was ready.
#[derive(Debug)]
pub(super) struct Interrupted;

impl fmt::Display for Interrupted {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("interrupted")
    }
}

impl Error for Interrupted {}

/// Waits for conditions, and stops waiting when a signal arrives.
pub(super) struct Patience<'a>(&'a Interrupt);

impl<'a> Patience<'a> {
    pub(super) const fn new(interrupt: &'a Interrupt) -> Self {
        Self(interrupt)
    }

    /// Waits until `missing` returns `None`. After the time limit, the function fails with the last result of
    /// `missing`.
    pub(super) fn until(&self, mut missing: impl FnMut() -> Result<Option<String>>) -> Result<()> {
        let deadline = Instant::now() + LIMIT;
        loop {
            let Some(what) = missing()? else { return Ok(()) };
            if Instant::now() > deadline {
                bail!("{what} (after {} s)", LIMIT.as_secs());
            }
            if self.0.wait(GLANCE)? {
                return Err(Interrupted.into());
            }
        }
    }
}
