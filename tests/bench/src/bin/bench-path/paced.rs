//! Clients that pause between their packets, as real clients do. Periods of the client memory end during the pauses, so
//! a client's first packet in each period makes the program read the client's entry.

use std::time::Duration;

use anyhow::Result;

use crate::{
    bench::{Measured, PACKETS, Row},
    paths::Path,
    scene::Scene,
};

/// The pause between two packets of a client.
const PAUSE: Duration = Duration::from_secs(5);
/// The duration of one measurement, which covers the longest period of a three-hour memory, and more than twenty
/// periods of the shortest length.
const CYCLE: Duration = Duration::from_secs(170);
const CYCLES: usize = 3;

/// Measures the mean cost of a packet while all clients send packets, one client after another. The simulated time
/// passes as fast as the clients' pauses require.
pub(crate) fn row(path: Path, scene: &mut Scene, measured: &mut Measured) -> Result<Row> {
    let step = PAUSE * PACKETS / path.clients();
    let steps = (CYCLE.as_secs_f64() / step.as_secs_f64()).ceil() as u32;
    let mut rounds = Vec::new();
    // The first cycle ends the period of the client memory that began before the measurement.
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
    Ok(Row { path, net })
}
