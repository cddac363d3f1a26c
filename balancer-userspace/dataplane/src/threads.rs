//! The data path's own threads.

use std::{io, thread};

/// A starter of the threads that the data path cannot be without.
pub trait Threads {
    /// Starts a thread that does `work`, called `what`.
    ///
    /// # Errors
    /// When there can be no more threads.
    fn start(&self, what: &'static str, work: Box<dyn FnOnce() + Send>) -> io::Result<()>;
}

/// Nobody hears of their end.
pub(super) struct Unwatched;

impl Threads for Unwatched {
    fn start(&self, _: &'static str, work: Box<dyn FnOnce() + Send>) -> io::Result<()> {
        thread::Builder::new().spawn(work).map(drop)
    }
}

/// Threads of which a scheduler runs one at a time, in an order of its choice.
#[cfg(test)]
pub(crate) struct Shuttled;

#[cfg(test)]
impl Threads for Shuttled {
    fn start(&self, _: &'static str, work: Box<dyn FnOnce() + Send>) -> io::Result<()> {
        shuttle::thread::spawn(work);
        Ok(())
    }
}
