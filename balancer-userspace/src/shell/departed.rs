//! The counters of backends that are gone for good, in the state file.

use balancer_common::map_types::BackendStats;

use crate::core::state::Counters;

/// For the file.
pub(super) fn counters(stats: &BackendStats) -> Counters {
    Counters {
        packets: stats.packets,
        bytes: stats.bytes,
        connections: stats.connections,
        decisions: stats.decisions.to_vec(),
        moves: stats.moves.to_vec(),
    }
}

/// From the file; counters that are new since it was written are 0.
pub(super) fn stats(counters: &Counters) -> BackendStats {
    let mut stats = BackendStats {
        packets: counters.packets,
        bytes: counters.bytes,
        connections: counters.connections,
        ..BackendStats::default()
    };
    let kept = counters.decisions.iter().zip(&mut stats.decisions).chain(counters.moves.iter().zip(&mut stats.moves));
    kept.for_each(|(kept, counter)| *counter = *kept);
    stats
}
