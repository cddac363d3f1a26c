//! The circumstances of a measurement: time, machine and program.

use std::{
    process::Command,
    time::{Duration, SystemTime},
};

use serde::Serialize;

use crate::machine::Machine;

/// The machine, time and program of a report's measurements.
#[derive(Clone, Debug, Serialize)]
pub struct Setting {
    /// The benchmark's command line.
    pub command: String,
    /// The time at which the benchmark started, in UTC.
    pub date: String,
    /// The duration of the benchmark, in seconds.
    pub seconds: u64,
    /// The commit of the source code, with the suffix `-dirty` if the sources differ from that commit.
    pub commit: String,
    /// The average number of runnable threads in the last 1, 5 and 15 minutes before the start.
    pub load_before: String,
    /// The machine that ran the benchmark.
    pub machine: Machine,
}

impl Setting {
    /// Describes the current machine and commit, and a run of `command` that took `took`.
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

    /// Describes the machine, the date and the load of the machine in a few words.
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
