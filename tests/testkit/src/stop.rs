//! Ends threads together with a test.

use std::sync::atomic::{AtomicBool, Ordering};

/// Tells threads to end when dropped, also after a panic.
#[derive(Debug)]
pub struct StopOnDrop<'a>(pub &'a AtomicBool);

impl Drop for StopOnDrop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}
