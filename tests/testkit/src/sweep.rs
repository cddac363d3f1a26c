//! Sweeps the client table on the test's own thread.

use std::{thread, time::Duration};

use balancer_control::io::BackendId;
use balancer_dataplane::{Dataplane, Swept};

/// Sweeps the client table until a pass over the table ends, and returns the number of known clients of each backend.
/// Returns `None` if too little time has passed, or if the next pass has to wait for packets.
pub fn sweep(dataplane: &mut impl Dataplane, elapsed: Duration) -> Option<Vec<(BackendId, u64)>> {
    loop {
        match dataplane.sweep(elapsed) {
            Swept::GoesOn => thread::sleep(Duration::from_micros(50)),
            Swept::Rests => return None,
            Swept::Ends(known) => return Some(known),
        }
    }
}
