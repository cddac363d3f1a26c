//! The signals that end the program.

use std::{fmt, future::Future, io};

use tokio::signal::unix::{SignalKind, signal};

/// A signal that asks the program to end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ShutdownSignal {
    /// `SIGTERM`, as a service manager sends it.
    Terminate,
    /// `SIGINT`, as Ctrl-C sends it.
    Interrupt,
}

impl fmt::Display for ShutdownSignal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Terminate => "SIGTERM",
            Self::Interrupt => "SIGINT",
        })
    }
}

/// Catches the signals from now on; the future ends with the first of them. One that comes before the future is awaited
/// is not lost. Must be called on a tokio runtime.
///
/// # Errors
/// When the kernel refuses to install a handler.
pub fn listen() -> io::Result<impl Future<Output = ShutdownSignal> + Send + 'static> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    Ok(async move {
        tokio::select! {
            _ = terminate.recv() => ShutdownSignal::Terminate,
            _ = interrupt.recv() => ShutdownSignal::Interrupt,
        }
    })
}

#[cfg(test)]
mod tests {
    use nix::sys::signal::{Signal, raise};

    use super::*;

    #[tokio::test]
    async fn says_which_signal_came() {
        for (sent, seen) in [(Signal::SIGTERM, ShutdownSignal::Terminate), (Signal::SIGINT, ShutdownSignal::Interrupt)]
        {
            let shutdown = listen().unwrap();
            raise(sent).unwrap();
            assert_eq!(shutdown.await, seen);
        }
    }
}
