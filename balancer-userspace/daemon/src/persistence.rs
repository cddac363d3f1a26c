//! Keeps the state file up to date.
//!
//! A change is on disk before it is made: its resulting state is computed and written while the owner continues to
//! handle events; then the owner makes the change and answers. If the file cannot be written, nothing has changed. If
//! the change needs something of this machine, the machine is prepared before. Changes are made in the order of their
//! requests. Spontaneous changes are written soon afterwards, and counters periodically.

use std::{
    collections::VecDeque,
    future::pending,
    panic::{self, AssertUnwindSafe},
    time::Duration,
};

use anyhow::anyhow;
use balancer_control::{controller::Precomputed, io::Refused};
use balancer_dataplane::Dataplane;
use tokio::{
    task::{JoinError, JoinHandle},
    time::Instant,
};
use tracing::error;

use super::{
    call::Request,
    host::{Host, Prepared},
    owner::{Owner, Proposal, not_worked_out},
    restorable::Restorable,
    state_file::{Occasion, StateFile},
    supervisor::panicked,
};

/// The maximum delay before spontaneous changes are written.
const SOON: Duration = Duration::from_millis(500);
/// The interval of periodic writes, and the delay before a retry.
const NOW_AND_THEN: Duration = Duration::from_secs(10);

/// A store for the state.
pub trait Save: Send + 'static {
    /// Stores the state durably before it returns.
    ///
    /// # Errors
    /// If the state cannot be stored; in that case the earlier state is intact.
    fn keep(&mut self, state: Restorable, occasion: Occasion) -> anyhow::Result<()>;
}

impl Save for StateFile {
    fn keep(&mut self, state: Restorable, occasion: Occasion) -> anyhow::Result<()> {
        Self::keep(self, state, occasion)
    }
}

/// See the [module](self).
#[derive(Debug)]
pub struct Persistence<F = StateFile> {
    /// The file, while nothing is being written.
    idle: Option<F>,
    writing: Option<Writing<F>>,
    waiting: VecDeque<Request>,
    stage: Option<Stage>,
    /// The next time to write spontaneous changes or counters.
    due: Instant,
    failing: bool,
}

/// A change that the owner may make now.
#[derive(Debug)]
pub struct Ready {
    pub request: Request,
    /// The preparation of this machine for the change.
    pub prepared: Option<Prepared>,
    /// The precomputed tables and numbers of known clients.
    pub precomputed: Precomputed,
}

type Proposed = Result<Box<Proposal>, Refused>;

/// The progress of the first waiting change: its result is computed, this machine is prepared if necessary, and the
/// result is computed again, because the state may have changed meanwhile.
#[derive(Debug)]
enum Stage {
    Proposing(JoinHandle<Proposed>, Request, Option<Prepared>),
    Proposed(Box<Proposal>, Request, Option<Prepared>),
    Preparing(JoinHandle<anyhow::Result<Prepared>>, Request),
    Prepared(Prepared, Request),
}

/// The result of a finished stage.
enum Staged {
    Proposed(Result<Proposed, JoinError>),
    Prepared(Result<anyhow::Result<Prepared>, JoinError>),
}

#[derive(Debug)]
struct Writing<F> {
    task: JoinHandle<(F, anyhow::Result<()>)>,
    /// The change to make once the write is complete.
    change: Option<Ready>,
}

impl<F: Save> Persistence<F> {
    /// Starts; the first write to `file` is due at once.
    #[must_use]
    pub fn new(file: F) -> Self {
        Self {
            idle: Some(file),
            writing: None,
            waiting: VecDeque::new(),
            stage: None,
            due: Instant::now(),
            failing: false,
        }
    }

    /// Accepts a change; [`progress`](Self::progress) returns it when it may be made.
    pub fn ask(&mut self, request: Request) {
        self.waiting.push_back(request);
    }

    /// Records that something has changed spontaneously.
    pub fn note(&mut self) {
        if !self.failing {
            self.due = self.due.min(Instant::now() + SOON);
        }
    }

    /// The latest time for the next call of [`advance`](Self::advance).
    #[must_use]
    pub fn next_deadline(&self) -> Option<Instant> {
        (self.idle.is_some() && !self.is_proposing()).then_some(self.due)
    }

    /// Whether a proposal is being computed. Its state is written next, and would miss anything that was written in
    /// between.
    const fn is_proposing(&self) -> bool {
        matches!(self.stage, Some(Stage::Proposing(..)))
    }

    /// Starts to compute, prepare or write, if there is something to write and nothing is in progress. Refuses
    /// impossible changes.
    pub fn advance<D: Dataplane>(&mut self, owner: &mut Owner<D>, host: &Host) {
        while self.idle.is_some() {
            match self.stage.take() {
                None => match self.waiting.pop_front() {
                    Some(request) => self.propose(owner, request, None),
                    None => break,
                },
                Some(Stage::Prepared(prepared, request)) => self.propose(owner, request, Some(prepared)),
                Some(Stage::Proposed(proposal, request, prepared)) => {
                    let Proposal { state, wanted, precomputed } = *proposal;
                    if prepared.is_none() && wanted != *host.wanted() {
                        self.stage = Some(Stage::Preparing(tokio::spawn(host.prepare(wanted)), request));
                    } else {
                        self.write(state, Some(Ready { request, prepared, precomputed }), Occasion::Change);
                    }
                }
                under_way @ Some(Stage::Proposing(..) | Stage::Preparing(..)) => {
                    self.stage = under_way;
                    break;
                }
            }
        }
        if self.idle.is_some() && !self.is_proposing() && self.due <= Instant::now() {
            self.write(owner.restorable(), None, Occasion::Refresh);
        }
    }

    fn propose<D: Dataplane>(&mut self, owner: &mut Owner<D>, request: Request, prepared: Option<Prepared>) {
        // No caller waits for the answer: the caller was told that the outcome is unknown.
        if request.reply.is_closed() {
            return;
        }
        match owner.propose(request.change_request.clone(), request.if_generation) {
            Ok(proposing) => {
                let task = tokio::task::spawn_blocking(|| proposing.finish().map(Box::new));
                self.stage = Some(Stage::Proposing(task, request, prepared));
            }
            Err(refused) => {
                let _ = request.reply.send(Err(refused));
            }
        }
    }

    fn write(&mut self, state: Restorable, change: Option<Ready>, occasion: Occasion) {
        let Some(mut file) = self.idle.take() else { return };
        self.due = Instant::now() + NOW_AND_THEN;
        let task = tokio::task::spawn_blocking(move || {
            let save = || file.keep(state, occasion);
            // A panic loses this state, but not the file.
            let saved = panic::catch_unwind(AssertUnwindSafe(save));
            let saved = saved.unwrap_or_else(|panic| Err(anyhow!("writing the state {}", panicked(panic.as_ref()))));
            (file, saved)
        });
        self.writing = Some(Writing { task, change });
    }

    /// Waits for the end of the current computation, preparation or write; waits forever if there is none. Returns a
    /// change that may be made now; refused changes have already been answered.
    pub async fn progress(&mut self) -> Option<Ready> {
        let Self { writing, stage, .. } = self;
        let written = async {
            match writing {
                Some(writing) => (&mut writing.task).await,
                None => pending().await,
            }
        };
        let staged = async {
            match stage {
                Some(Stage::Proposing(task, ..)) => Staged::Proposed(task.await),
                Some(Stage::Preparing(task, _)) => Staged::Prepared(task.await),
                Some(Stage::Proposed(..) | Stage::Prepared(..)) | None => pending().await,
            }
        };
        tokio::select! {
            written = written => return self.written(written),
            staged = staged => match staged {
                Staged::Proposed(proposed) => self.proposed(proposed),
                Staged::Prepared(prepared) => self.prepared(prepared.unwrap_or_else(|error| Err(error.into()))),
            }
        }
        None
    }

    fn proposed(&mut self, proposed: Result<Proposed, JoinError>) {
        let Some(Stage::Proposing(_, request, prepared)) = self.stage.take() else { return };
        match proposed.unwrap_or_else(|error| Err(not_worked_out(error))) {
            Ok(proposal) => self.stage = Some(Stage::Proposed(proposal, request, prepared)),
            Err(refused) => {
                let _ = request.reply.send(Err(refused));
            }
        }
    }

    fn prepared(&mut self, prepared: anyhow::Result<Prepared>) {
        let Some(Stage::Preparing(_, request)) = self.stage.take() else { return };
        match prepared {
            Ok(prepared) => self.stage = Some(Stage::Prepared(prepared, request)),
            Err(error) => {
                let _ = request.reply.send(Err(Refused::Conflict(format!("nothing was changed: {error:#}"))));
            }
        }
    }

    fn written(&mut self, ended: Result<(F, anyhow::Result<()>), JoinError>) -> Option<Ready> {
        let change = self.writing.take().and_then(|writing| writing.change);
        let saved = match ended {
            Ok((file, saved)) => {
                self.idle = Some(file);
                saved
            }
            // The error occurs only when the runtime ends.
            Err(error) => Err(error.into()),
        };
        let Err(error) = saved else {
            self.failing = false;
            return change;
        };
        if !self.failing {
            error!("{error:#}; a restart would go on from an older state");
        }
        self.failing = true;
        if let Some(Ready { request, .. }) = change {
            let refused = Refused::Unsaved(format!("nothing was changed: {error:#}"));
            let _ = request.reply.send(Err(refused));
        }
        None
    }

    /// Writes the last state. Changes that still wait are not made.
    pub async fn finish<D: Dataplane>(mut self, owner: &Owner<D>) {
        self.waiting.clear();
        self.stage = None;
        if let Some(writing) = self.writing.take()
            && let Ok((file, _)) = writing.task.await
        {
            self.idle = Some(file);
        }
        if self.idle.is_some() {
            self.write(owner.restorable(), None, Occasion::Whole);
            self.progress().await;
        }
    }
}

#[cfg(test)]
mod tests {
    use balancer_api::model::Changed;
    use balancer_config::{
        fixture::{KEY, config, now, web},
        names::BackendName,
    };
    use balancer_control::{controller::Controller, io::Change};
    use tokio::sync::oneshot;

    use super::*;
    use crate::call::ChangeRequest;

    /// A store that panics when it gets the first state.
    struct Broken {
        saved: u32,
    }

    impl Save for Broken {
        fn keep(&mut self, _: Restorable, _: Occasion) -> anyhow::Result<()> {
            self.saved += 1;
            assert!(self.saved > 1, "out of paper");
            Ok(())
        }
    }

    fn request() -> (Request, oneshot::Receiver<Result<Changed, Refused>>) {
        let (reply, answer) = oneshot::channel();
        let name = BackendName { service: "web".to_owned(), backend: "web1".to_owned() };
        (
            Request {
                change_request: ChangeRequest::Change(Change::SetWeight { name, weight: 1 }),
                uid: None,
                if_generation: None,
                reply,
            },
            answer,
        )
    }

    fn ready(request: Request) -> Ready {
        Ready { request, prepared: None, precomputed: Precomputed::default() }
    }

    #[tokio::test]
    async fn when_a_write_panics_then_its_change_is_refused_and_later_ones_go_on() {
        let mut controller = Controller::new(config(vec![web()]), KEY);
        let now = now();
        controller.start(now);
        let state = Restorable::of(controller, now);
        let mut persistence = Persistence::new(Broken { saved: 0 });

        let (first, answer) = request();
        persistence.write(state.clone(), Some(ready(first)), Occasion::Change);
        assert!(persistence.progress().await.is_none());
        let Err(Refused::Unsaved(why)) = answer.await.unwrap() else { panic!("it was made, or refused otherwise") };
        assert_eq!(why, "nothing was changed: writing the state panicked: out of paper");

        let (second, _answer) = request();
        assert!(persistence.next_deadline().is_some());
        persistence.write(state, Some(ready(second)), Occasion::Change);
        assert!(persistence.progress().await.is_some());
    }
}
