//! Turns the result of a program into an exit code.

use std::process::ExitCode;

/// Returns the exit code for the result of `main`. Writes an error to standard error, in one line.
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
