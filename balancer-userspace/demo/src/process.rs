//! Child processes that end when their owner is dropped.

use std::{
    fs::File,
    io::{Read as _, Seek as _, SeekFrom},
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

/// The maximum time for a process to end after SIGTERM; after this time, it is killed.
const GRACE: Duration = Duration::from_secs(5);

/// A running program, which is stopped when this value is dropped: SIGTERM first, and SIGKILL after five seconds.
#[derive(Debug)]
pub struct Process {
    what: String,
    child: Child,
    log: PathBuf,
}

impl Process {
    /// Starts `command` with an empty input. The process appends its output to the file `log`.
    ///
    /// # Errors
    /// Fails if the log cannot be created, or if the program cannot be started.
    pub fn spawn(what: &str, command: &mut Command, log: &Path) -> Result<Self> {
        let out = File::options().create(true).append(true).open(log).with_context(|| log.display().to_string())?;
        let err = out.try_clone().with_context(|| log.display().to_string())?;
        let program = command.get_program().to_owned();
        let child = command
            .stdin(Stdio::null())
            .stdout(out)
            .stderr(err)
            .spawn()
            .with_context(|| format!("cannot start {what} ({})", program.display()))?;
        Ok(Self { what: what.to_owned(), child, log: log.to_owned() })
    }

    /// Returns the name of the process, for messages.
    #[must_use]
    pub fn what(&self) -> &str {
        &self.what
    }

    /// Returns the id of the process.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// The path of the file with the process's output.
    #[must_use]
    pub fn log(&self) -> &Path {
        &self.log
    }

    /// The process's exit status, if it has ended.
    ///
    /// # Errors
    /// Fails if the state of the process cannot be read.
    pub fn exited(&mut self) -> Result<Option<ExitStatus>> {
        self.child.try_wait().with_context(|| format!("waiting for {}", self.what))
    }

    /// Sends a signal to the process if it is still running.
    ///
    /// # Errors
    /// Fails if the signal cannot be sent.
    pub fn signal(&mut self, signal: Signal) -> Result<()> {
        if self.exited()?.is_none() {
            kill(Pid::from_raw(self.child.id().cast_signed()), signal)
                .with_context(|| format!("{signal} to {}", self.what))?;
        }
        Ok(())
    }

    /// Sends SIGTERM, and waits until the process has ended.
    ///
    /// # Errors
    /// Fails if the signal cannot be sent, or if waiting fails.
    pub fn stop(&mut self) -> Result<ExitStatus> {
        self.signal(Signal::SIGTERM)?;
        let deadline = Instant::now() + GRACE;
        while Instant::now() < deadline {
            if let Some(status) = self.exited()? {
                return Ok(status);
            }
            thread::sleep(Duration::from_millis(10));
        }
        self.kill()
    }

    /// Kills the process and waits until it has ended.
    ///
    /// # Errors
    /// Fails if the signal cannot be sent, or if waiting fails.
    pub fn kill(&mut self) -> Result<ExitStatus> {
        self.child.kill().with_context(|| format!("killing {}", self.what))?;
        self.child.wait().with_context(|| format!("waiting for {}", self.what))
    }

    /// Returns the last `lines` lines of the process's output.
    ///
    /// # Errors
    /// Fails if the log cannot be read.
    pub fn tail(&self, lines: usize) -> Result<String> {
        tail(&self.log, lines).with_context(|| self.log.display().to_string())
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if let Err(error) = self.stop() {
            eprintln!("{} is left running: {error:#}", self.what);
        }
    }
}

fn tail(path: &Path, lines: usize) -> std::io::Result<String> {
    /// The number of bytes read from the end of the log, which is enough for the lines that callers request.
    const WINDOW: u64 = 64 << 10;
    let mut file = File::open(path)?;
    let length = file.metadata()?.len();
    file.seek(SeekFrom::Start(length.saturating_sub(WINDOW)))?;
    let mut bytes = Vec::new();
    file.take(WINDOW).read_to_end(&mut bytes)?;
    let text = String::from_utf8_lossy(&bytes);
    let all: Vec<&str> = text.lines().collect();
    Ok(all[all.len().saturating_sub(lines)..].join("\n"))
}
