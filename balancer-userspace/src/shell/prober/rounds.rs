//! The checks of all backends, one task for each, and their outcomes on the way to the controller.

use std::{
    collections::{HashMap, VecDeque},
    future::pending,
    net::SocketAddr,
    panic,
    time::Duration,
};

use tokio::{
    sync::mpsc,
    task::{AbortHandle, JoinSet},
    time::{Instant, sleep_until},
};

use super::{check::Check, pace::Pace};
use crate::{
    config::model::CheckConfig,
    core::{
        health::Health,
        io::{BackendId, BackendName, CheckOutcome, Event},
    },
};

/// How long an outcome that is only counted may wait for others, so that the controller is woken once for all of them.
const HELD: Duration = Duration::from_millis(100);
/// How many outcomes may wait; checks wait when there are more.
const FOUND: usize = 1024;

/// What is to be checked.
#[derive(Debug)]
pub(super) enum Order {
    Start { backend: BackendId, name: BackendName, target: SocketAddr, check: Box<CheckConfig> },
    Stop(BackendId),
}

/// How a check ended.
struct Found {
    /// Which of all the tasks says so; a backend may have had others.
    task: u64,
    backend: BackendId,
    outcome: CheckOutcome,
    took: Duration,
    /// Whether it may change what the controller thinks of the backend.
    matters: bool,
}

/// The tasks, and what they found that the controller has not been told.
pub(super) struct Rounds {
    events: mpsc::Sender<Event>,
    tasks: HashMap<BackendId, (u64, AbortHandle)>,
    running: JoinSet<()>,
    started: u64,
    origin: Instant,
    held: VecDeque<(BackendId, Event)>,
    /// When what is held is to be told.
    due: Option<Instant>,
}

impl Rounds {
    pub(super) fn new(events: mpsc::Sender<Event>) -> Self {
        let (tasks, held) = (HashMap::new(), VecDeque::new());
        Self { events, tasks, running: JoinSet::new(), started: 0, origin: Instant::now(), held, due: None }
    }

    /// Follows orders until nobody gives any more. A panic of a task is a panic of this: a backend that nobody checks would
    /// stay as it was for ever.
    pub(super) async fn follow(mut self, mut orders: mpsc::UnboundedReceiver<Order>) {
        let (found_in, mut found) = mpsc::channel(FOUND);
        let events = self.events.clone();
        let mut telling = false;
        loop {
            let due = self.due;
            let waited = async {
                match due {
                    Some(due) => sleep_until(due).await,
                    None => pending().await,
                }
            };
            tokio::select! {
                biased;
                order = orders.recv() => match order {
                    Some(order) => self.obey(order, &found_in),
                    None => return,
                },
                permit = events.reserve(), if telling => {
                    let Ok(permit) = permit else { return };
                    if let Some((_, event)) = self.held.pop_front() {
                        permit.send(event);
                    }
                    telling = !self.held.is_empty();
                }
                Some(found) = found.recv(), if self.held.len() < FOUND => telling |= self.hold(found),
                Some(ended) = self.running.join_next() => {
                    if let Err(error) = ended && let Ok(payload) = error.try_into_panic() {
                        panic::resume_unwind(payload);
                    }
                }
                () = waited => {
                    self.due = None;
                    telling = !self.held.is_empty();
                }
            }
        }
    }

    fn obey(&mut self, order: Order, found: &mpsc::Sender<Found>) {
        let (Order::Start { backend, .. } | Order::Stop(backend)) = order;
        if let Some((_, task)) = self.tasks.remove(&backend) {
            task.abort();
            self.held.retain(|(held, _)| *held != backend);
        }
        if let Order::Start { backend, name, target, check } = order {
            self.started += 1;
            let pace = Pace::new(fastrand::Rng::new(), self.origin);
            let round = Round { task: self.started, backend, name, target, check };
            let task = self.running.spawn(round.run(pace, found.clone()));
            self.tasks.insert(backend, (self.started, task));
        }
    }

    /// Whether the controller is to be told at once.
    fn hold(&mut self, found: Found) -> bool {
        let Found { task, backend, outcome, took, matters } = found;
        if self.tasks.get(&backend).is_some_and(|(current, _)| *current == task) {
            self.held.push_back((backend, Event::Checked { backend, outcome, took }));
            self.due.get_or_insert_with(|| Instant::now() + HELD);
        }
        matters || self.held.len() == FOUND
    }
}

/// The checks of one backend.
struct Round {
    task: u64,
    backend: BackendId,
    name: BackendName,
    target: SocketAddr,
    check: Box<CheckConfig>,
}

impl Round {
    async fn run(self, mut pace: Pace, found: mpsc::Sender<Found>) {
        let Self { task, backend, name, target, check: config } = self;
        sleep_until(pace.first(Instant::now(), config.interval)).await;
        let check = Check::new(&name, target, &config);
        // As the controller counts, which is told the same.
        let mut health = Health::default();
        let mut hindered = false;
        loop {
            let start = Instant::now();
            let outcome = match &check {
                Ok(check) => check.run().await.map_err(|error| error.to_string()),
                Err(error) => Err(error.to_string()),
            };
            let outcome = outcome.unwrap_or_else(|why| {
                if !hindered {
                    tracing::warn!(
                        "backend {name} cannot be checked: {why} on this machine; its health stays as it is"
                    );
                }
                CheckOutcome::Hindered(why)
            });
            hindered = matches!(outcome, CheckOutcome::Hindered(_));
            let (verdict, was_pending) = (health.verdict().clone(), health.is_pending());
            health.record(&outcome, &config);
            let matters = was_pending || health.is_pending() || *health.verdict() != verdict;
            if found.send(Found { task, backend, outcome, took: start.elapsed(), matters }).await.is_err() {
                return;
            }
            let interval = if health.is_pending() { config.fast_interval } else { config.interval };
            sleep_until(pace.next(start, interval)).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_check_that_panics_ends_them_all() {
        let (events, _told) = mpsc::channel(1);
        let (_orders, given) = mpsc::unbounded_channel();
        let mut rounds = Rounds::new(events);
        rounds.running.spawn(async { panic!("no such number") });
        let ended = tokio::spawn(rounds.follow(given)).await;
        assert!(ended.is_err_and(|error| error.to_string().contains("no such number")));
    }
}
