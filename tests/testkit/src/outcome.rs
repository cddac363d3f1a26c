//! How a program of these ends.

use std::process::ExitCode;

/// What `main` gives back; what went wrong is on standard error, in one line.
#[must_use]
pub fn outcome(done: anyhow::Result<()>) -> ExitCode {
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
