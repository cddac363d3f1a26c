//! The ring buffer of suspected backends.

use aya::maps::{MapData, RingBuf};
use balancer_common::map_types::Sign;
use balancer_control::io::BackendId;

/// The program's reports of backends that may have failed.
pub(super) struct Suspects(pub(super) RingBuf<MapData>);

impl Suspects {
    /// The ids of the backends that the program has reported since the last call, each with the program's reason.
    pub(super) fn told(&mut self) -> Vec<(BackendId, u16)> {
        let mut told = Vec::new();
        while let Some(item) = self.0.next() {
            if let Ok(sign) = bytemuck::try_pod_read_unaligned::<Sign>(&item) {
                told.push((BackendId(sign.backend), sign.signal));
            }
        }
        told
    }
}
