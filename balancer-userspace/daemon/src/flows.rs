//! Counts the connections of `snat` services periodically.

use std::{sync::Arc, time::Duration};

use balancer_dataplane::FlowTable;
use tokio::{
    task::spawn_blocking,
    time::{MissedTickBehavior, interval},
};

use crate::task_call::{TaskCall, TaskCalls};

/// The interval between two counts of the connections.
const EVERY: Duration = Duration::from_secs(1);

/// Counts the connections periodically, frees the rows of ended connections, and reports the counts to the owner.
pub(crate) async fn watch(table: Arc<FlowTable>, calls: TaskCalls) {
    let mut ticks = interval(EVERY);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        let table = Arc::clone(&table);
        let Ok(counts) = spawn_blocking(move || table.sweep()).await else { return };
        if calls.send(TaskCall::FlowsCounted(counts)).await.is_err() {
            return;
        }
    }
}
