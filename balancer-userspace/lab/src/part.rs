//! Starts the programs of the lab, waits until they are ready, and kills them together with their child processes.

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

/// The maximum time for a program to become ready.
pub(crate) const PATIENCE: Duration = Duration::from_secs(40);
/// The time between two checks of a condition.
pub(crate) const GLANCE: Duration = Duration::from_millis(50);

/// A running program with its child processes, all in one process group. Dropping the value ends the program and its
/// child processes.
#[derive(Debug)]
pub(crate) struct Part {
    process: Process,
}

impl Part {
    /// Starts a command that runs in a namespace. The process writes its output to `NAME.log` in the directory `logs`.
    pub(crate) fn start(name: &str, command: &mut Command, logs: &Path) -> Result<Self> {
        Ok(Self { process: Process::spawn(name, command, &logs.join(format!("{name}.log")))? })
    }

    /// The process id of the program, without its child processes.
    pub(crate) fn pid(&self) -> u32 {
        self.process.pid()
    }

    /// Fails if the program has ended.
    pub(crate) fn ensure_running(&mut self) -> Result<()> {
        let Some(status) = self.process.exited()? else { return Ok(()) };
        let said = self.process.tail(3)?;
        let said = said.split_whitespace().collect::<Vec<_>>().join(" ");
        bail!(
            "{} does not run ({status}); mend what it says, or look at its log with --keep: {said}",
            self.process.what()
        )
    }

    /// Waits until `well` returns true, which means that the program is ready.
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

    /// Sends SIGTERM to the program, and waits until it has ended.
    pub(crate) fn stop(&mut self) -> Result<()> {
        self.process.stop().map(drop)
    }

    /// Kills the program and its child processes without warning, as a power failure would.
    pub(crate) fn kill(&mut self) -> Result<()> {
        self.signal(Signal::SIGKILL)?;
        self.process.kill().map(drop)
    }

    /// Sends a signal to the program and to its child processes.
    pub(crate) fn signal(&self, signal: Signal) -> Result<()> {
        match killpg(Pid::from_raw(self.process.pid().cast_signed()), signal) {
            Ok(()) | Err(Errno::ESRCH) => Ok(()),
            Err(error) => Err(error).with_context(|| format!("{signal} to {}", self.process.what())),
        }
    }

    /// Sends a signal to the program, but not to its child processes.
    pub(crate) fn signal_alone(&mut self, signal: Signal) -> Result<()> {
        self.process.signal(signal)
    }
}
