//! A series of checks of a suspected backend: the first check starts at once, and a further check starts every 50 ms
//! until there is a verdict. At most one time-out of a series counts, so a series of several checks ends in a verdict
//! only if checks are refused.

use std::{io, sync::Arc, time::Duration};

use balancer_config::config::CheckConfig;
use balancer_control::{health::Verdict, io::CheckOutcome};
use tokio::{
    sync::{Notify, Semaphore},
    task::JoinSet,
    time::{Instant, sleep_until},
};

use super::{
    check::{Check, Whom},
    rounds::{Count, Ended},
};

/// The time from the start of one check to the start of the next check in a series.
const GAP: Duration = Duration::from_millis(50);
/// The minimum time from the start of one series to the start of the next series for the same backend.
const PERIOD: Duration = Duration::from_secs(1);
/// The maximum number of checks in a series; `fall`, if lower, is the maximum instead.
const MOST: u32 = 20;

/// The times at which series for a backend have started.
pub(super) struct Series {
    suspected: Arc<Notify>,
    /// Whether a series has been requested but not started yet.
    is_asked: bool,
    last: Option<Instant>,
}

impl Series {
    /// Makes the record of a backend's series, which notifications on `suspected` request.
    pub(super) const fn new(suspected: Arc<Notify>) -> Self {
        Self { suspected, is_asked: false, last: None }
    }

    /// Waits until a series has been requested and may start. If the caller cancels the wait, no request is lost: if a
    /// backend dies right after a successful check, the next series follows soon.
    pub(super) async fn asked(&mut self) {
        if !self.is_asked {
            self.suspected.notified().await;
            self.is_asked = true;
        }
        if let Some(last) = self.last {
            sleep_until(last + PERIOD).await;
        }
        (self.is_asked, self.last) = (false, Some(Instant::now()));
    }
}

/// Runs checks until `fall` consecutive checks have failed or one check has passed. A check does not wait for the end
/// of the previous check, so checks of a dead machine wait for their timeouts at the same time.
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

    #[tokio::test(start_paused = true)]
    async fn when_a_signal_comes_right_after_a_series_then_the_next_begins_a_second_after_the_first() {
        let suspected = Arc::new(Notify::new());
        let mut series = Series::new(Arc::clone(&suspected));
        suspected.notify_one();
        let first = Instant::now();
        series.asked().await;
        suspected.notify_one();
        // The test cancels the wait repeatedly, as checks that end during the wait would do.
        for _ in 0..4 {
            assert!(timeout(Duration::from_millis(200), series.asked()).await.is_err());
        }
        series.asked().await;
        assert_eq!(first.elapsed(), PERIOD);
        assert!(timeout(10 * PERIOD, series.asked()).await.is_err(), "nothing else was asked for");
    }
}
