//! The thread that scans the client table.

use anyhow::Context as _;

#[cfg(not(test))]
use std::sync::mpsc::{Receiver, Sender, channel};

#[cfg(test)]
use shuttle::sync::mpsc::{Receiver, Sender, channel};

use super::{
    sweep::{Scan, Scanned},
    threads::Threads,
};

/// The scanning thread, which ends when the owner drops this value.
pub(super) struct Scanner {
    wanted: Sender<Scan>,
    found: Receiver<Scanned>,
}

impl Scanner {
    /// Starts the scanning thread.
    ///
    /// # Errors
    /// Fails if the system allows no more threads.
    pub(super) fn spawn(threads: &dyn Threads) -> anyhow::Result<Self> {
        let ((wanted, scans), (finds, found)) = (channel(), channel());
        let work = move || while scans.recv().is_ok_and(|scan: Scan| finds.send(scan.run()).is_ok()) {};
        threads.start("the sweep", Box::new(work)).context("cannot start the thread that sweeps the client table")?;
        Ok(Self { wanted, found })
    }

    /// Starts a scan in the scanning thread. If the thread has ended, nothing happens.
    pub(super) fn begin(&self, scan: Scan) {
        let _ = self.wanted.send(scan);
    }

    /// Returns the findings after the scan is complete.
    pub(super) fn found(&self) -> Option<Scanned> {
        self.found.try_recv().ok()
    }
}
