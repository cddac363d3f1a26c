//! A series of checks of a suspected backend: the first check starts at once, and a further check starts every 50 ms
//! until there is a verdict. At most one time-out of a series counts, so a series of several checks ends in a verdict
//! only if checks are refused. If refusals do not count yet, because the server may be restarting, the series goes on.

use std::{
    io,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use balancer_common::verdict::Signal;
use balancer_config::config::CheckConfig;
use balancer_control::{health::Verdict, io::CheckOutcome};
use tokio::{
    sync::{Notify, Semaphore},
    task::JoinSet,
    time::{Instant, sleep_until},
};

use super::{
    check::{Check, CheckedBackend},
    count::{Count, ReceiverGone},
};

/// The time from the start of one check to the start of the next check in a series.
const GAP: Duration = Duration::from_millis(50);
/// The time from the start of one check to the start of the next check while the server may be restarting.
const SHUT_GAP: Duration = Duration::from_millis(100);
/// The minimum time from the start of one series to the start of the next series for the same backend.
const PERIOD: Duration = Duration::from_secs(1);
/// The maximum of this time after signals that anybody can cause, and that ended in successful checks.
const LONGEST_PERIOD: Duration = Duration::from_secs(60);
/// The maximum number of checks in a series; `fall`, if lower, is the maximum instead.
const MOST: u32 = 20;

/// The requests for series of checks of a backend.
#[derive(Default)]
pub(super) struct Requests {
    news: Notify,
    /// Whether the backend itself or another member of the fleet has given cause.
    words: AtomicBool,
    /// Whether packets that anybody can cause or forge have given cause.
    hints: AtomicBool,
}

impl Requests {
    pub(super) fn add(&self, signal: Signal) {
        match signal {
            Signal::Refused | Signal::Member => self.words.store(true, Ordering::Relaxed),
            Signal::Unreachable | Signal::Unanswered => self.hints.store(true, Ordering::Relaxed),
        }
        self.news.notify_one();
    }
}

/// The times at which series for a backend have started.
pub(super) struct Series {
    requests: Arc<Requests>,
    last: Option<Instant>,
    /// The minimum time from the start of one series to a series that hints request.
    patience: Duration,
}

impl Series {
    /// Makes the record of the series of a backend that `requests` ask for.
    pub(super) const fn new(requests: Arc<Requests>) -> Self {
        Self { requests, last: None, patience: PERIOD }
    }

    /// Waits until a series has been requested and may start. If the caller cancels the wait, no request is lost: if a
    /// backend dies right after a successful check, the next series follows soon.
    pub(super) async fn asked(&mut self) {
        loop {
            let due = self.due();
            tokio::select! {
                biased;
                () = sleep_until(due.unwrap_or_else(Instant::now)), if due.is_some() => break,
                () = self.requests.news.notified() => {}
            }
        }
        self.requests.words.store(false, Ordering::Relaxed);
        self.requests.hints.store(false, Ordering::Relaxed);
        self.last = Some(Instant::now());
    }

    /// The time at which the requested series may start; `None`: no series is requested.
    fn due(&self) -> Option<Instant> {
        let wait = if self.requests.words.load(Ordering::Relaxed) {
            PERIOD
        } else if self.requests.hints.load(Ordering::Relaxed) {
            self.patience
        } else {
            return None;
        };
        Some(self.last.map_or_else(Instant::now, |last| last + wait))
    }

    /// Records the end of a series. Hints that turn out to be wrong are followed less and less often.
    fn ended(&mut self, failed: bool) {
        self.patience = if failed { PERIOD } else { (2 * self.patience).min(LONGEST_PERIOD) };
    }

    /// Records the end of a regular check. After a failure, hints are followed at once again.
    pub(super) const fn checked(&mut self, failed: bool) {
        if failed {
            self.patience = PERIOD;
        }
    }
}

/// Runs checks until `fall` consecutive checks have failed or one check has passed. A check does not wait for the end
/// of the previous check, so checks of a dead machine wait for their timeouts at the same time.
pub(super) async fn run(
    whom: &CheckedBackend,
    count: &mut Count,
    permits: &Arc<Semaphore>,
    series: &mut Series,
) -> Result<(), ReceiverGone> {
    let ended = run_once(whom, count, permits).await;
    series.ended(count.fails());
    ended
}

async fn run_once(whom: &CheckedBackend, count: &mut Count, permits: &Arc<Semaphore>) -> Result<(), ReceiverGone> {
    if matches!(count.health.verdict(), Verdict::Down { .. }) {
        return Ok(());
    }
    tracing::debug!("packets suspect backend {}: it is checked at once", whom.name);
    let wanted = count.config.fall.saturating_sub(count.health.streak().1).clamp(1, MOST);
    let mut running = JoinSet::new();
    let (mut begun, mut next) = (0, Instant::now());
    loop {
        let may_begin = begun < wanted || count.is_shut();
        tokio::select! {
            biased;
            Some(ended) = running.join_next() => {
                let Ok((start, outcome)) = ended else { continue };
                let passed = matches!(outcome, Ok(CheckOutcome::Passed));
                count.add(outcome, start, true).await?;
                let is_last = begun >= wanted && running.is_empty() && !count.is_shut();
                if passed || matches!(count.health.verdict(), Verdict::Down { .. }) || is_last {
                    return Ok(());
                }
            }
            () = sleep_until(next), if may_begin => {
                running.spawn(once(whom.clone(), count.config.clone(), Arc::clone(permits)));
                begun += 1;
                next += if begun < wanted { GAP } else { SHUT_GAP };
            }
        }
    }
}

async fn once(
    whom: CheckedBackend,
    config: CheckConfig,
    permits: Arc<Semaphore>,
) -> (Instant, io::Result<CheckOutcome>) {
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

    /// Signals all the time; returns the starts of series within the given number of seconds, in whole seconds.
    async fn starts(signal: Signal, time: u64, ended: impl Fn(&mut Series)) -> Vec<u64> {
        let requests = Arc::new(Requests::default());
        let mut series = Series::new(Arc::clone(&requests));
        let signals = tokio::spawn(async move {
            loop {
                requests.add(signal);
                sleep(Duration::from_millis(1)).await;
            }
        });
        let (begun, mut starts) = (Instant::now(), Vec::new());
        let left = || (Duration::from_secs(time) - PERIOD / 2).saturating_sub(begun.elapsed());
        while timeout(left(), series.asked()).await.is_ok() {
            starts.push((begun.elapsed() + PERIOD / 2).as_secs());
            ended(&mut series);
        }
        signals.abort();
        starts
    }

    #[tokio::test(start_paused = true)]
    async fn when_signals_come_all_the_time_then_a_series_begins_once_a_second() {
        let all = (0..10).collect::<Vec<_>>();
        assert_eq!(starts(Signal::Refused, 10, |series| series.ended(false)).await, all);
        assert_eq!(starts(Signal::Unanswered, 10, |series| series.ended(true)).await, all);
    }

    #[tokio::test(start_paused = true)]
    async fn when_hints_are_wrong_then_the_next_series_wait_twice_as_long_up_to_a_minute() {
        let passed = |series: &mut Series| series.ended(false);
        assert_eq!(starts(Signal::Unanswered, 250, passed).await, [0, 2, 6, 14, 30, 62, 122, 182, 242]);
        assert_eq!(starts(Signal::Unreachable, 20, passed).await, [0, 2, 6, 14]);
    }

    /// After wrong hints, a regular check fails, or the backend itself refuses a connection.
    #[tokio::test(start_paused = true)]
    async fn when_hints_were_wrong_then_a_failure_or_a_refusal_still_starts_a_series_at_once() {
        for signal in [Signal::Unanswered, Signal::Refused] {
            let requests = Arc::new(Requests::default());
            let mut series = Series::new(Arc::clone(&requests));
            (0..6).for_each(|_| series.ended(false));
            requests.add(Signal::Unanswered);
            series.asked().await;
            let begun = Instant::now();
            requests.add(Signal::Unanswered);
            assert!(timeout(10 * PERIOD, series.asked()).await.is_err(), "the hint waits");
            if signal == Signal::Unanswered {
                series.checked(true);
            } else {
                requests.add(signal);
            }
            series.asked().await;
            assert_eq!(begun.elapsed(), 10 * PERIOD, "{signal:?}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn when_a_signal_comes_right_after_a_series_then_the_next_begins_a_second_after_the_first() {
        let requests = Arc::new(Requests::default());
        let mut series = Series::new(Arc::clone(&requests));
        requests.add(Signal::Refused);
        let first = Instant::now();
        series.asked().await;
        requests.add(Signal::Refused);
        // The test cancels the wait repeatedly, as checks that end during the wait would do.
        for _ in 0..4 {
            assert!(timeout(Duration::from_millis(200), series.asked()).await.is_err());
        }
        series.asked().await;
        assert_eq!(first.elapsed(), PERIOD);
        assert!(timeout(10 * PERIOD, series.asked()).await.is_err(), "nothing else was asked for");
    }
}
