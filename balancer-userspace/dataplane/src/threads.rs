//! Threads of the data path.

use std::{io, thread};

/// A starter of the threads that the data path cannot work without.
pub trait Threads {
    /// Starts a thread named `what` that does `work`.
    ///
    /// # Errors
    /// If the system allows no more threads.
    fn start(&self, what: &'static str, work: Box<dyn FnOnce() + Send>) -> io::Result<()>;
}

/// A starter of threads whose end nothing reports.
pub(super) struct Unwatched;

impl Threads for Unwatched {
    fn start(&self, _: &'static str, work: Box<dyn FnOnce() + Send>) -> io::Result<()> {
        thread::Builder::new().spawn(work).map(drop)
    }
}

/// Threads that a scheduler runs one at a time, in an order that it chooses.
#[cfg(test)]
pub(crate) struct Shuttled;

#[cfg(test)]
impl Threads for Shuttled {
    fn start(&self, _: &'static str, work: Box<dyn FnOnce() + Send>) -> io::Result<()> {
        shuttle::thread::spawn(work);
        Ok(())
    }
}
