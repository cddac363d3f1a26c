//! The signals that end the program.

use std::{fmt, io};

use tokio::signal::unix::{Signal, SignalKind, signal};

/// A signal that asks the program to end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ShutdownSignal {
    /// The signal `SIGTERM`, which service managers send.
    Terminate,
    /// The signal `SIGINT`, which Ctrl-C sends.
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

/// Catches the signals to end, from the creation of this value on. A signal is not lost if it arrives before the caller
/// waits for it.
#[derive(Debug)]
pub struct Signals {
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    /// Installs the signal handlers. Callers must call this function on a tokio runtime.
    ///
    /// # Errors
    /// Fails if a signal handler cannot be installed.
    pub fn new() -> io::Result<Self> {
        Ok(Self { terminate: signal(SignalKind::terminate())?, interrupt: signal(SignalKind::interrupt())? })
    }

    /// Waits for the next signal to end.
    pub async fn next(&mut self) -> ShutdownSignal {
        tokio::select! {
            _ = self.terminate.recv() => ShutdownSignal::Terminate,
            _ = self.interrupt.recv() => ShutdownSignal::Interrupt,
        }
    }
}

#[cfg(test)]
mod tests {
    use nix::sys::signal::{Signal, raise};

    use super::*;

    #[tokio::test]
    async fn when_a_signal_comes_then_it_is_told_each_time() {
        let mut signals = Signals::new().unwrap();
        for (sent, seen) in [
            (Signal::SIGTERM, ShutdownSignal::Terminate),
            (Signal::SIGINT, ShutdownSignal::Interrupt),
            (Signal::SIGTERM, ShutdownSignal::Terminate),
        ] {
            raise(sent).unwrap();
            assert_eq!(signals.next().await, seen);
        }
    }
}
