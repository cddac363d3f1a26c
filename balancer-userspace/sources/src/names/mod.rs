//! DNS queries whose answers are lists of targets. A separate task repeats each query when the answer expires, so a
//! query without an answer delays no other query.

mod asker;
mod servers;

use std::{sync::Arc, time::Duration};

use balancer_config::{
    discover::{Source, Target},
    dns::DnsSource,
    questions::Questions,
};
use balancer_runtime::tasks_by_key;
use tokio::{
    sync::{Semaphore, watch},
    task::JoinSet,
    time::{Instant, sleep, timeout_at},
};

use self::asker::Asker;
use crate::source_read::{ListRead, SourceRead, SourceReads};

/// The minimum and maximum time from one query to the next.
const BETWEEN: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(300));
/// The maximum time from one query to the next while no answer arrives.
const BACK_OFF: Duration = Duration::from_secs(30);
/// The maximum fraction by which jitter extends the time until the next query. Jitter never shortens this time, because
/// a cache would still give the same answer.
const JITTER: f64 = 0.1;
/// The maximum number of concurrent queries. Above this number, further queries wait for a permit.
const AT_ONCE: usize = 64;

/// Performs all queries once, and returns the answers that arrive within `patience`.
pub(crate) async fn first_answers(questions: &Questions, patience: Duration) -> Vec<(DnsSource, Arc<Vec<Target>>)> {
    let mut asking = JoinSet::new();
    for (dns, families) in questions.clone() {
        asking.spawn(async move {
            let answer = Asker::new(dns.clone(), families).ask().await;
            (dns, answer)
        });
    }
    let (deadline, mut answers) = (Instant::now() + patience, Vec::new());
    while let Ok(Some(done)) = timeout_at(deadline, asking.join_next()).await {
        if let Ok((dns, Ok(answer))) = done {
            answers.push((dns, Arc::new(answer.targets)));
        }
    }
    answers
}

/// Performs the `wanted` queries repeatedly, and reports each answer to the owner.
pub(crate) async fn follow(wanted: watch::Receiver<Questions>, reads: SourceReads) {
    let permits = Arc::new(Semaphore::new(AT_ONCE));
    tasks_by_key::follow(wanted, |dns, families| {
        ask_on(Asker::new(dns, families), Arc::clone(&permits), reads.clone())
    })
    .await;
}

/// Performs one query until the caller ends this task.
async fn ask_on(mut asker: Asker, permits: Arc<Semaphore>, reads: SourceReads) {
    let mut failures = 0;
    loop {
        let Ok(permit) = permits.acquire().await else { return };
        let answer = asker.ask().await;
        drop(permit);
        let is_whole = answer.as_ref().is_ok_and(|answer| answer.targets.iter().all(|target| target.why.is_none()));
        failures = if is_whole { 0 } else { failures + 1 };
        let wait = wait(answer.as_ref().ok().map(|answer| answer.valid), failures);
        let read: ListRead = answer.map(|answer| Arc::new(answer.targets));
        if reads.send(SourceRead::List { source: Source::Dns(asker.dns().clone()), read }).await.is_err() {
            return;
        }
        sleep(wait.mul_f64(fastrand::f64().mul_add(JITTER, 1.0))).await;
    }
}

/// The time until the next query, after `failures` consecutive answers that were incomplete or missing.
fn wait(valid: Option<Duration>, failures: u32) -> Duration {
    let (least, most) = BETWEEN;
    let patience = match failures.checked_sub(1) {
        Some(more) => least.saturating_mul(1 << more.min(16)).min(BACK_OFF),
        None => most,
    };
    valid.unwrap_or(most).clamp(least, most).min(patience)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn when_an_answer_is_valid_for_some_time_then_it_is_asked_for_again_after_that_within_bounds() {
        let seconds = |seconds| Some(Duration::from_secs(seconds));
        for (valid, failures, expected) in
            [(0, 0, 1), (1, 0, 1), (60, 0, 60), (86_400, 0, 300), (60, 1, 1), (60, 3, 4), (60, 99, 30), (2, 99, 2)]
        {
            assert_eq!(wait(seconds(valid), failures), Duration::from_secs(expected), "{valid} {failures}");
        }
    }

    #[test]
    fn when_there_is_no_answer_then_it_is_asked_for_less_and_less_often() {
        let waits: Vec<u64> = (1..8).map(|failures| wait(None, failures).as_secs()).collect();
        assert_eq!(waits, [1, 2, 4, 8, 16, 30, 30]);
    }
}
