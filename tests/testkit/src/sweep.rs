//! Sweeps the client table for tests that do nothing else at that time.

use std::{thread, time::Duration};

use balancer_control::io::BackendId;
use balancer_dataplane::{Dataplane, Swept};

/// Sweeps a part of the client table, if enough time has passed. Returns the number of known clients of each backend
/// with the last part of a pass. Returns `None` also if the next pass has to wait for packets.
pub fn sweep(dataplane: &mut impl Dataplane, elapsed: Duration) -> Option<Vec<(BackendId, u64)>> {
    loop {
        match dataplane.sweep(elapsed) {
            Swept::GoesOn => thread::sleep(Duration::from_micros(50)),
            Swept::Rests => return None,
            Swept::Ends(known) => return Some(known),
        }
    }
}
