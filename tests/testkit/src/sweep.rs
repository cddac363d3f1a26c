//! The sweep of the client table, for whoever has nothing else to do meanwhile.

use std::{thread, time::Duration};

use balancer_core::io::BackendId;
use balancer_dataplane::{Dataplane, Swept};

/// Sweeps a part of the client table, when so much time has passed. With the last part of a pass: how many known clients each
/// backend has. `None` as well where packets are on their way that the next pass has to wait for.
pub fn sweep(dataplane: &mut impl Dataplane, elapsed: Duration) -> Option<Vec<(BackendId, u64)>> {
    loop {
        match dataplane.sweep(elapsed) {
            Swept::GoesOn => thread::sleep(Duration::from_micros(50)),
            Swept::Rests => return None,
            Swept::Ends(known) => return Some(known),
        }
    }
}
