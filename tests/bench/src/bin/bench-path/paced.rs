//! Clients with pauses between their packets: periods of the memory end in between, and a client's first packet in each
//! period reads its entry.

use std::time::Duration;

use anyhow::Result;

use crate::{
    bench::{Measured, PACKETS, Row},
    paths::Path,
    scene::Scene,
};

/// The pause between two packets of a client.
const PAUSE: Duration = Duration::from_secs(5);
/// The time of one measurement: the longest period if clients are remembered for three hours, and more than twenty of
/// the shortest.
const CYCLE: Duration = Duration::from_secs(170);
const CYCLES: usize = 3;

/// Measures the mean cost of packets of all clients in turn, while simulated time passes as it would with these pauses.
pub(crate) fn row(path: Path, scene: &mut Scene, measured: &mut Measured) -> Result<Row> {
    let step = PAUSE * PACKETS / path.clients();
    let steps = (CYCLE.as_secs_f64() / step.as_secs_f64()).ceil() as u32;
    let mut rounds = Vec::new();
    // The first cycle ends the period from before the measurement.
    for _ in 0..=CYCLES {
        measured.forget();
        measured.run_empty()?;
        for _ in 0..steps {
            scene.pass(step);
            measured.run_full(scene)?;
        }
        rounds.push(measured.mean());
    }
    rounds.remove(0);
    let net = rounds.iter().sum::<f64>() / rounds.len() as f64;
    Ok(Row { path, net, rounds })
}
