//! Having the kernel take a program.

use std::time::Duration;

use anyhow::anyhow;
use aya::programs::{ProgramError, Xdp};

/// Has the kernel verify and take the program.
///
/// # Errors
/// With the verifier's log, when it refuses.
pub(super) fn load_program(program: &mut Xdp) -> anyhow::Result<()> {
    // The verifier gives up with EAGAIN when the thread has a signal waiting, which says nothing about the program.
    const ATTEMPTS: u32 = 50;
    const PAUSE: Duration = Duration::from_millis(2);
    let mut result = program.load();
    for _ in 1..ATTEMPTS {
        match &result {
            Err(ProgramError::LoadError { io_error, .. }) if io_error.raw_os_error() == Some(libc::EAGAIN) => {
                std::thread::sleep(PAUSE);
                result = program.load();
            }
            Ok(()) | Err(_) => break,
        }
    }
    result.map_err(explain_load)
}

fn explain_load(error: ProgramError) -> anyhow::Error {
    if let ProgramError::LoadError { io_error, verifier_log } = &error {
        return anyhow!("the kernel refused the program: {io_error}\n{verifier_log}");
    }
    anyhow!("the kernel refused the program: {error}")
}
