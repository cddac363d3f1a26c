//! The connections of `snat` services are counted again and again.

use std::{sync::Arc, time::Duration};

use balancer_dataplane::FlowTable;
use tokio::{
    task::spawn_blocking,
    time::{MissedTickBehavior, interval},
};

use crate::call::{Call, Calls};

/// How often all are looked at.
const EVERY: Duration = Duration::from_secs(1);

/// Counts the connections again and again, and gives up the rows of those that have ended; the owner hears what there is.
pub(crate) async fn watch(table: Arc<FlowTable>, calls: Calls) {
    let mut ticks = interval(EVERY);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        let table = Arc::clone(&table);
        let Ok(counts) = spawn_blocking(move || table.sweep()).await else { return };
        if calls.send(Call::FlowsCounted(counts)).await.is_err() {
            return;
        }
    }
}
