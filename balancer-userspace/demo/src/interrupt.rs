//! Turns Ctrl-C, SIGTERM and SIGHUP into events that the demo waits for, so that it can clean up.

use std::{os::fd::AsFd as _, time::Duration};

use anyhow::{Context as _, Result};
use nix::{
    errno::Errno,
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::{
        signal::{SigSet, Signal},
        signalfd::SignalFd,
    },
};

/// The signals that end the demo.
pub(crate) struct Interrupt(SignalFd);

impl Interrupt {
    /// Blocks the signals in the calling thread, and in threads that it creates later, so that only this value receives
    /// the signals.
    pub(crate) fn new() -> Result<Self> {
        let mut signals = SigSet::empty();
        signals.extend([Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP]);
        signals.thread_block().context("blocking signals")?;
        Ok(Self(SignalFd::new(&signals).context("signalfd")?))
    }

    /// Waits up to `time` for a signal; returns true as soon as a signal has arrived, and on every later call.
    pub(crate) fn wait(&self, time: Duration) -> Result<bool> {
        let timeout = PollTimeout::try_from(time).context("too long a wait")?;
        match poll(&mut [PollFd::new(self.0.as_fd(), PollFlags::POLLIN)], timeout) {
            Ok(ready) => Ok(ready > 0),
            Err(Errno::EINTR) => Ok(false),
            Err(error) => Err(error).context("poll"),
        }
    }
}
