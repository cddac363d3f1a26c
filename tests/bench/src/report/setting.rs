//! The circumstances of a measurement: time, machine and program.

use std::{
    process::Command,
    time::{Duration, SystemTime},
};

use serde::Serialize;

use crate::machine::Machine;

/// The circumstances of a report.
#[derive(Clone, Debug, Serialize)]
pub struct Setting {
    /// The command line.
    pub command: String,
    /// The start, in UTC.
    pub date: String,
    /// The duration, in seconds.
    pub seconds: u64,
    /// The commit of the sources, with `-dirty` if they differ.
    pub commit: String,
    /// The number of runnable threads before the start, in the last 1, 5 and 15 minutes.
    pub load_before: String,
    /// The machine.
    pub machine: Machine,
}

impl Setting {
    /// Describes this machine and commit, for `command` with this duration.
    #[must_use]
    pub fn here(command: String, load_before: String, took: Duration) -> Self {
        Self {
            command,
            date: humantime::format_rfc3339_seconds(SystemTime::now() - took).to_string(),
            seconds: took.as_secs(),
            commit: commit().unwrap_or_else(|| "unknown".to_owned()),
            load_before,
            machine: Machine::here(),
        }
    }

    /// Describes machine, day and other load in a few words.
    #[must_use]
    pub fn in_short(&self) -> String {
        let day = self.date.split('T').next().unwrap_or_default();
        let load = self.load_before.split(' ').next().unwrap_or_default();
        format!("{}; {day}; load before: {load}", self.machine.describe())
    }
}

fn commit() -> Option<String> {
    let mut git = Command::new("git");
    git.current_dir(env!("CARGO_MANIFEST_DIR")).args(["describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"]);
    let output = git.output().ok()?;
    output.status.success().then(|| String::from_utf8_lossy(&output.stdout).trim().to_owned())
}
