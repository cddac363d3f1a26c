//! The programs that are parts of the lab: starts them, waits until they are ready, and kills them with their children.

use std::{
    path::Path,
    process::Command,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};
use balancer_demo::process::Process;
use nix::{
    errno::Errno,
    sys::signal::{Signal, killpg},
    unistd::Pid,
};

use crate::interrupt;

/// How long a part may take to become ready.
pub(crate) const PATIENCE: Duration = Duration::from_secs(40);
/// The time between two checks.
pub(crate) const GLANCE: Duration = Duration::from_millis(50);

/// A program with its children, in one process group. Dropping the value ends them.
#[derive(Debug)]
pub(crate) struct Part {
    process: Process,
}

impl Part {
    /// Starts a command that a namespace has made. Its output goes to `NAME.log` in `logs`.
    pub(crate) fn start(name: &str, command: &mut Command, logs: &Path) -> Result<Self> {
        Ok(Self { process: Process::spawn(name, command, &logs.join(format!("{name}.log")))? })
    }

    /// The process id of the program itself.
    pub(crate) fn pid(&self) -> u32 {
        self.process.pid()
    }

    /// Returns an error if the program has ended.
    pub(crate) fn ensure_running(&mut self) -> Result<()> {
        let Some(status) = self.process.exited()? else { return Ok(()) };
        let said = self.process.tail(3)?;
        let said = said.split_whitespace().collect::<Vec<_>>().join(" ");
        bail!(
            "{} does not run ({status}); mend what it says, or look at its log with --keep: {said}",
            self.process.what()
        )
    }

    /// Waits until the program is ready.
    pub(crate) fn wait(&mut self, what: &str, mut well: impl FnMut() -> bool) -> Result<()> {
        let deadline = Instant::now() + PATIENCE;
        while !well() {
            self.ensure_running()?;
            if Instant::now() > deadline {
                let said = self.process.tail(1)?;
                bail!("{} is not {what} after {PATIENCE:?}; look at its log with --keep: {said}", self.process.what());
            }
            interrupt::check()?;
            thread::sleep(GLANCE);
        }
        Ok(())
    }

    /// Sends SIGTERM and waits until the program has ended.
    pub(crate) fn stop(&mut self) -> Result<()> {
        self.process.stop().map(drop)
    }

    /// Kills the program and its children, like a power failure.
    pub(crate) fn kill(&mut self) -> Result<()> {
        self.signal(Signal::SIGKILL)?;
        self.process.kill().map(drop)
    }

    /// Sends a signal to the program and its children.
    pub(crate) fn signal(&self, signal: Signal) -> Result<()> {
        match killpg(Pid::from_raw(self.process.pid().cast_signed()), signal) {
            Ok(()) | Err(Errno::ESRCH) => Ok(()),
            Err(error) => Err(error).with_context(|| format!("{signal} to {}", self.process.what())),
        }
    }

    /// Sends a signal to the program alone.
    pub(crate) fn signal_alone(&mut self, signal: Signal) -> Result<()> {
        self.process.signal(signal)
    }
}
