//! Ctrl-C, SIGTERM and SIGHUP, so that whatever was begun is also undone.

use std::{
    sync::atomic::{AtomicBool, Ordering},
    thread,
};

use anyhow::{Context as _, Result, ensure};
use nix::sys::signal::{SigSet, Signal};

static ASKED: AtomicBool = AtomicBool::new(false);

/// Takes the signals over, for all threads that there will be.
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

/// Complains once somebody has asked for an end.
pub(crate) fn check() -> Result<()> {
    ensure!(!ASKED.load(Ordering::SeqCst), "interrupted; the same command goes on from here");
    Ok(())
}
