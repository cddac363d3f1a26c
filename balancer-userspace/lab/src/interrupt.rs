//! Turns Ctrl-C, SIGTERM and SIGHUP into a flag, so that the lab can clean up.

use std::{
    sync::atomic::{AtomicBool, Ordering},
    thread,
};

use anyhow::{Context as _, Result, ensure};
use nix::sys::signal::{SigSet, Signal};

static ASKED: AtomicBool = AtomicBool::new(false);

/// Handles the signals for all current and later threads of the process.
pub(crate) fn take_over() -> Result<()> {
    let mut signals = SigSet::empty();
    signals.extend([Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP]);
    signals.thread_block().context("blocking signals")?;
    thread::spawn(move || {
        while signals.wait().is_ok() {
            ASKED.store(true, Ordering::SeqCst);
        }
    });
    Ok(())
}

/// Fails if one of the signals has arrived.
pub(crate) fn check() -> Result<()> {
    ensure!(!ASKED.load(Ordering::SeqCst), "interrupted; the same command goes on from here");
    Ok(())
}
