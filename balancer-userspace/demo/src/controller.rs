//! A running `balancer`, which tests control by the commands that users type.

use std::{
    path::{Path, PathBuf},
    process::{Command, Output},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use balancer_api::model::StatusView;

use crate::{namespace::Namespace, process::Process};

/// The environment variable that contains the path of the control socket.
pub(crate) const SOCKET_VARIABLE: &str = "BALANCER_SOCKET";

/// A running `balancer run` in a namespace. Dropping the value ends the balancer gracefully.
#[derive(Debug)]
pub struct Controller {
    process: Process,
    binary: PathBuf,
    socket: PathBuf,
}

impl Controller {
    /// Starts a balancer; `config` must name `socket` as its control socket.
    ///
    /// # Errors
    /// Fails if the program cannot be started.
    pub fn start(namespace: &Namespace, binary: &Path, config: &Path, socket: &Path, log: &Path) -> Result<Self> {
        let mut command = namespace.command(binary);
        // The environment variable would override the `socket` in the configuration.
        command.env_remove(SOCKET_VARIABLE);
        command.arg("run").arg("--config").arg(config);
        let process = Process::spawn("balancer", &mut command, log)?;
        Ok(Self { process, binary: binary.to_owned(), socket: socket.to_owned() })
    }

    pub const fn process(&mut self) -> &mut Process {
        &mut self.process
    }

    /// Runs a command such as `["backend", "drain", "web/web2"]` against the balancer, as a user would.
    ///
    /// # Errors
    /// Fails if the program cannot be started.
    pub fn cli(&self, arguments: &[&str]) -> Result<Output> {
        Command::new(&self.binary)
            .args(arguments)
            .env(SOCKET_VARIABLE, &self.socket)
            .output()
            .with_context(|| format!("cannot start {}", self.binary.display()))
    }

    /// Runs `balancer status --json` and returns the status.
    ///
    /// # Errors
    /// Fails if the command fails, or if its output is not a status.
    pub fn status(&self) -> Result<StatusView> {
        let output = self.cli(&["status", "--json"])?;
        ensure!(
            output.status.success(),
            "`balancer status --json` failed ({}): {}",
            output.status,
            String::from_utf8_lossy(&output.stderr).trim()
        );
        serde_json::from_slice(&output.stdout).context("`balancer status --json` printed something else")
    }

    /// Waits until the controller answers with a status.
    ///
    /// # Errors
    /// Fails after `limit`, or if the controller has ended; the error then contains the last lines of its log.
    pub fn wait_ready(&mut self, limit: Duration) -> Result<StatusView> {
        self.wait_for(limit, "a status", |_| true)
    }

    /// Waits until the status is as `expected`.
    ///
    /// # Errors
    /// Fails after `limit`, or if the controller has ended; the error then contains the last lines of its log.
    pub fn wait_for(
        &mut self,
        limit: Duration,
        what: &str,
        expected: impl Fn(&StatusView) -> bool,
    ) -> Result<StatusView> {
        let deadline = Instant::now() + limit;
        loop {
            self.ensure_running()?;
            let status = self.status();
            if let Ok(status) = &status
                && expected(status)
            {
                return Ok(status.clone());
            }
            if Instant::now() > deadline {
                let last = status.map_or_else(|error| format!("{error:#}"), |status| format!("{status:?}"));
                bail!("waited {limit:?} for {what}; last: {last}\n{}", self.process.tail(20)?);
            }
            thread::sleep(Duration::from_millis(50));
        }
    }

    /// Checks that the controller has not ended.
    ///
    /// # Errors
    /// Fails with the last lines of the log if the controller has ended.
    pub fn ensure_running(&mut self) -> Result<()> {
        if let Some(status) = self.process.exited()? {
            bail!(
                "the balancer has ended ({status}); the last lines of {}:\n{}",
                self.process.log().display(),
                self.process.tail(20)?
            );
        }
        Ok(())
    }
}
