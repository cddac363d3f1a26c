//! Ends a test's threads together with the test.

use std::sync::atomic::{AtomicBool, Ordering};

/// Dropping this value, even in a panic, tells the threads of a test to end.
#[derive(Debug)]
pub struct StopOnDrop<'a>(pub &'a AtomicBool);

impl Drop for StopOnDrop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}
