//! Checks of a backend that packets suspect: one at once and then one every 50 ms, until there is a verdict.

use std::{io, sync::Arc, time::Duration};

use balancer_core::{health::Verdict, io::CheckOutcome};
use balancer_model::config::CheckConfig;
use tokio::{
    sync::{Notify, Semaphore},
    task::JoinSet,
    time::{Instant, sleep_until},
};

use super::{
    check::{Check, Whom},
    rounds::{Count, Ended},
};

/// Between the starts of two checks.
const GAP: Duration = Duration::from_millis(50);
/// Between the beginnings of two series of a backend.
const PERIOD: Duration = Duration::from_secs(1);
/// More checks than this make no verdict any more; `fall` may be less.
const MOST: u32 = 20;

/// When series of a backend begin.
pub(super) struct Series {
    suspected: Arc<Notify>,
    last: Option<Instant>,
}

impl Series {
    /// Those that are asked for by `suspected`.
    pub(super) const fn new(suspected: Arc<Notify>) -> Self {
        Self { suspected, last: None }
    }

    /// Waits until one is asked for, and may begin. What is asked for too early is not made up for.
    pub(super) async fn asked(&mut self) {
        loop {
            self.suspected.notified().await;
            let now = Instant::now();
            if self.last.is_none_or(|last| now.saturating_duration_since(last) >= PERIOD) {
                self.last = Some(now);
                return;
            }
        }
    }
}

/// Checks until `fall` in a row have failed, or one has passed. Those of a machine that is gone run into their time-outs side
/// by side: a check does not wait for the one before.
pub(super) async fn run(whom: &Whom, count: &mut Count, permits: &Arc<Semaphore>) -> Result<(), Ended> {
    if matches!(count.health.verdict(), Verdict::Down { .. }) {
        return Ok(());
    }
    tracing::debug!("packets suspect backend {}: it is checked at once", whom.name);
    let wanted = count.config.fall.saturating_sub(count.health.streak().1).clamp(1, MOST);
    let mut running = JoinSet::new();
    let (mut begun, mut next) = (0, Instant::now());
    loop {
        tokio::select! {
            biased;
            Some(ended) = running.join_next() => {
                let Ok((start, outcome)) = ended else { continue };
                let passed = matches!(outcome, Ok(CheckOutcome::Passed));
                count.add(outcome, start, true).await?;
                if passed || matches!(count.health.verdict(), Verdict::Down { .. }) || begun == wanted && running.is_empty() {
                    return Ok(());
                }
            }
            () = sleep_until(next), if begun < wanted => {
                running.spawn(once(whom.clone(), count.config.clone(), Arc::clone(permits)));
                begun += 1;
                next += GAP;
            }
        }
    }
}

async fn once(whom: Whom, config: CheckConfig, permits: Arc<Semaphore>) -> (Instant, io::Result<CheckOutcome>) {
    let _permit = permits.acquire().await;
    let start = Instant::now();
    let outcome = match Check::new(&whom, &config).await {
        Ok(check) => check.run().await,
        Err(error) => Err(error),
    };
    (start, outcome)
}

#[cfg(test)]
mod tests {
    use tokio::time::{sleep, timeout};

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn when_signals_come_all_the_time_then_a_series_begins_once_a_second() {
        let suspected = Arc::new(Notify::new());
        let mut series = Series::new(Arc::clone(&suspected));
        let signals = tokio::spawn(async move {
            loop {
                suspected.notify_one();
                sleep(Duration::from_millis(1)).await;
            }
        });
        let (begun, mut count) = (Instant::now(), 0);
        while timeout(Duration::from_secs(10).saturating_sub(begun.elapsed()), series.asked()).await.is_ok() {
            count += 1;
        }
        assert!((9..=11).contains(&count), "{count}");
        signals.abort();
    }
}
