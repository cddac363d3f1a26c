//! Programs that are parts of the lab: started, seen to be well, killed with all that they have started.

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

/// How long a part may take until it is well.
pub(crate) const PATIENCE: Duration = Duration::from_secs(40);
/// Between two looks.
pub(crate) const GLANCE: Duration = Duration::from_millis(50);

/// A program with its children, which are one process group. Dropping it ends them.
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

    /// Complains if it has ended.
    pub(crate) fn ensure_running(&mut self) -> Result<()> {
        let Some(status) = self.process.exited()? else { return Ok(()) };
        let said = self.process.tail(3)?;
        let said = said.split_whitespace().collect::<Vec<_>>().join(" ");
        bail!(
            "{} does not run ({status}); mend what it says, or look at its log with --keep: {said}",
            self.process.what()
        )
    }

    /// Waits until it is well.
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

    /// Asks it to end, and waits.
    pub(crate) fn stop(&mut self) -> Result<()> {
        self.process.stop().map(drop)
    }

    /// Kills it and its children, as a power failure does.
    pub(crate) fn kill(&mut self) -> Result<()> {
        self.signal(Signal::SIGKILL)?;
        self.process.kill().map(drop)
    }

    /// A signal to it and its children.
    pub(crate) fn signal(&self, signal: Signal) -> Result<()> {
        match killpg(Pid::from_raw(self.process.pid().cast_signed()), signal) {
            Ok(()) | Err(Errno::ESRCH) => Ok(()),
            Err(error) => Err(error).with_context(|| format!("{signal} to {}", self.process.what())),
        }
    }

    /// A signal to it alone.
    pub(crate) fn signal_alone(&mut self, signal: Signal) -> Result<()> {
        self.process.signal(signal)
    }
}
