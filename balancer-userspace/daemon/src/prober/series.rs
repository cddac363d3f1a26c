//! Series of checks of a suspected backend: the first check at once, and then one every 50 ms until there is a verdict.

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

/// The time between the starts of two checks.
const GAP: Duration = Duration::from_millis(50);
/// The minimum time between the starts of two series of a backend.
const PERIOD: Duration = Duration::from_secs(1);
/// The maximum number of checks in a series; `fall` may be lower.
const MOST: u32 = 20;

/// The start times of a backend's series.
pub(super) struct Series {
    suspected: Arc<Notify>,
    /// Whether a series is requested but not started.
    is_asked: bool,
    last: Option<Instant>,
}

impl Series {
    /// Makes the record of series that `suspected` requests.
    pub(super) const fn new(suspected: Arc<Notify>) -> Self {
        Self { suspected, is_asked: false, last: None }
    }

    /// Waits until a series is requested and may start. Cancelling the wait loses nothing: a backend that dies right
    /// after a check has found it working is checked a moment later.
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

/// Checks until `fall` consecutive checks have failed or one has passed. If a machine is dead, checks run into their
/// timeouts side by side, because a check does not wait for the one before.
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
        // The wait is cancelled repeatedly, like by checks that end meanwhile.
        for _ in 0..4 {
            assert!(timeout(Duration::from_millis(200), series.asked()).await.is_err());
        }
        series.asked().await;
        assert_eq!(first.elapsed(), PERIOD);
        assert!(timeout(10 * PERIOD, series.asked()).await.is_err(), "nothing else was asked for");
    }
}
