//! Measures the processor time of processes.

use std::time::Duration;

use anyhow::{Context as _, Result};
use nix::{
    time::{clock_getcpuclockid, clock_gettime},
    unistd::Pid,
};

/// Returns the processor time that a process has used, including the time in the kernel.
///
/// # Errors
/// Fails if the process does not exist.
pub fn of(pid: u32) -> Result<Duration> {
    let clock = clock_getcpuclockid(Pid::from_raw(pid.cast_signed())).with_context(|| format!("process {pid}"))?;
    Ok(clock_gettime(clock)?.into())
}
