//! Starts the threads of the data path.

use std::{io, thread};

/// A function that starts threads without which the data path cannot work.
pub trait Threads {
    /// Starts a thread that has the name `what` and does `work`.
    ///
    /// # Errors
    /// Fails if the system allows no more threads.
    fn start(&self, what: &'static str, work: Box<dyn FnOnce() + Send>) -> io::Result<()>;
}

/// A thread starter that does not report when a thread ends.
pub(super) struct Unwatched;

impl Threads for Unwatched {
    fn start(&self, _: &'static str, work: Box<dyn FnOnce() + Send>) -> io::Result<()> {
        thread::Builder::new().spawn(work).map(drop)
    }
}

/// A thread starter for tests: a scheduler runs the threads one at a time, in an order that the scheduler chooses.
#[cfg(test)]
pub(crate) struct Shuttled;

#[cfg(test)]
impl Threads for Shuttled {
    fn start(&self, _: &'static str, work: Box<dyn FnOnce() + Send>) -> io::Result<()> {
        shuttle::thread::spawn(work);
        Ok(())
    }
}
