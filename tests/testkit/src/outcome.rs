//! Ends a test program.

use std::process::ExitCode;

/// Returns the exit code of `main`, after writing an error, if there is one, to standard error in one line.
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
