//! Keeps the state file up to date.
//!
//! A change is on disk before the owner makes it: another thread computes and writes the state after the change, while
//! the owner continues to handle events. After the write, the owner makes the change and answers the requester. If the
//! state file cannot be written, the owner makes no change. If the change needs more room in the kernel's maps, these grow
//! before the write (`daemon/growing.rs`). If the change affects this machine, the host task prepares the machine before
//! the write. The owner makes changes in the order in which they were requested. This module also writes state changes
//! without a request soon after they happen, and writes counters periodically.

use std::{
    collections::VecDeque,
    future::pending,
    panic::{self, AssertUnwindSafe},
    time::Duration,
};

use anyhow::anyhow;
use balancer_control::{controller::Precomputed, io::Refused};
use balancer_dataplane::Dataplane;
use balancer_listeners::call::Request;
use balancer_runtime::supervisor::panicked;
use balancer_state::{
    restorable::Restorable,
    state_file::{Occasion, StateFile},
};
use tokio::{
    task::{JoinError, JoinHandle},
    time::Instant,
};
use tracing::error;

use super::{
    growing::Growing,
    host::{Host, Prepared},
    owner::{Owner, Proposal, not_worked_out},
};

/// The maximum delay before this module writes a state change that nobody requested.
const SOON: Duration = Duration::from_millis(500);
/// The interval of periodic writes, which is also the delay before a retry.
const NOW_AND_THEN: Duration = Duration::from_secs(10);

/// A store that keeps the state.
pub trait Save: Send + 'static {
    /// Stores the state durably before it returns.
    ///
    /// # Errors
    /// Fails if the state cannot be stored; the previous state is then intact.
    fn keep(&mut self, state: Restorable, occasion: Occasion) -> anyhow::Result<()>;
}

impl Save for StateFile {
    fn keep(&mut self, state: Restorable, occasion: Occasion) -> anyhow::Result<()> {
        Self::keep(self, state, occasion)
    }
}

/// The writer of the state file: see the [module](self).
#[derive(Debug)]
pub struct Persistence<F = StateFile> {
    /// The state file; `None` while a write is in progress.
    idle: Option<F>,
    writing: Option<Writing<F>>,
    waiting: VecDeque<Request>,
    stage: Option<Stage>,
    /// The next time to write counters or state changes that nobody requested.
    due: Instant,
    /// The reason why the last write failed; `None` if it did not fail.
    trouble: Option<String>,
}

/// A change that the owner may make now.
#[derive(Debug)]
pub struct Ready {
    pub request: Request,
    /// The preparation of this machine for the change, if the change needs one.
    pub prepared: Option<Prepared>,
    /// The precomputed tables and numbers of known clients.
    pub precomputed: Precomputed,
}

type Proposed = Result<Box<Proposal>, Refused>;

/// The progress of the first waiting change: the computation of its result, then the growth of the kernel's maps and the
/// preparation of this machine, if the change needs them, and after each of these another computation, because the state
/// may have changed in the meantime.
#[derive(Debug)]
enum Stage {
    Proposing(JoinHandle<Proposed>, Request, Option<Prepared>),
    Proposed(Box<Proposal>, Request, Option<Prepared>),
    Growing(Growing, Request),
    Preparing(JoinHandle<anyhow::Result<Prepared>>, Request),
    Prepared(Prepared, Request),
}

/// The result of a finished stage.
enum Staged {
    Proposed(Result<Proposed, JoinError>),
    Prepared(Result<anyhow::Result<Prepared>, JoinError>),
    Grown,
}

#[derive(Debug)]
struct Writing<F> {
    task: JoinHandle<(F, anyhow::Result<()>)>,
    /// The change that the owner makes after the write.
    change: Option<Ready>,
}

impl<F: Save> Persistence<F> {
    /// Makes a `Persistence` whose first write to `file` is due immediately.
    #[must_use]
    pub fn new(file: F) -> Self {
        Self {
            idle: Some(file),
            writing: None,
            waiting: VecDeque::new(),
            stage: None,
            due: Instant::now(),
            trouble: None,
        }
    }

    /// Accepts a request for a change. When the owner may make the change, [`progress`](Self::progress) returns it.
    pub fn ask(&mut self, request: Request) {
        self.waiting.push_back(request);
    }

    /// Records that the state has changed without a request.
    pub fn note(&mut self) {
        if self.trouble.is_none() {
            self.due = self.due.min(Instant::now() + SOON);
        }
    }

    /// The reason why the state file lacks the present state, as a sentence; `None` if the last write succeeded.
    #[must_use]
    pub fn trouble(&self) -> Option<&str> {
        self.trouble.as_deref()
    }

    /// The time at which the caller must call [`advance`](Self::advance) again at the latest.
    #[must_use]
    pub fn next_deadline(&self) -> Option<Instant> {
        (self.idle.is_some() && !self.is_proposing()).then_some(self.due)
    }

    /// Whether the computation of a proposal is in progress. The next write will contain the proposal's state, and this
    /// state would lack the contents of any write in between.
    const fn is_proposing(&self) -> bool {
        matches!(self.stage, Some(Stage::Proposing(..)))
    }

    /// Starts a computation, a preparation or a write, if one is due and no other step is in progress. The function
    /// refuses changes that cannot be made.
    pub fn advance<D: Dataplane>(&mut self, owner: &mut Owner<D>, host: &Host) {
        while self.idle.is_some() {
            match self.stage.take() {
                None => match self.waiting.pop_front() {
                    Some(request) => self.propose(owner, request, None),
                    None => break,
                },
                Some(Stage::Prepared(prepared, request)) => self.propose(owner, request, Some(prepared)),
                Some(Stage::Proposed(proposal, request, prepared)) => {
                    let Proposal { state, wanted, precomputed, need } = *proposal;
                    if let Some(growth) = owner.dataplane().growth(&need) {
                        // A preparation that was made already is made again afterwards.
                        self.stage = Some(Stage::Growing(Growing::begin(growth, host), request));
                    } else if prepared.is_none() && wanted != *host.wanted() {
                        self.stage = Some(Stage::Preparing(tokio::spawn(host.prepare(wanted)), request));
                    } else {
                        self.write(state, Some(Ready { request, prepared, precomputed }), Occasion::Change);
                    }
                }
                Some(Stage::Growing(growing, request)) => match growing.advance(owner.dataplane(), host) {
                    Err(growing) => {
                        self.stage = Some(Stage::Growing(growing, request));
                        break;
                    }
                    Ok(Ok(())) => self.propose(owner, request, None),
                    Ok(Err(why)) => {
                        let _ = request.reply.send(Err(Refused::Conflict(format!("nothing was changed: {why}"))));
                    }
                },
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
        // The requester no longer waits for the answer: the server has reported to the requester that the outcome is
        // unknown.
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
            // A panic during the write loses this state, but the state file remains.
            let saved = panic::catch_unwind(AssertUnwindSafe(save));
            let saved = saved.unwrap_or_else(|panic| Err(anyhow!("writing the state {}", panicked(panic.as_ref()))));
            (file, saved)
        });
        self.writing = Some(Writing { task, change });
    }

    /// Waits until the current computation, preparation or write has ended; waits forever if no step is in progress.
    /// The function returns a change that the owner may make now; it has already answered refused changes.
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
                Some(Stage::Growing(growing, _)) => {
                    growing.progress().await;
                    Staged::Grown
                }
                Some(Stage::Proposed(..) | Stage::Prepared(..)) | None => pending().await,
            }
        };
        tokio::select! {
            written = written => return self.written(written),
            staged = staged => match staged {
                Staged::Proposed(proposed) => self.proposed(proposed),
                // The next call of `advance` takes the next step.
                Staged::Grown => {}
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
            // This error occurs only when the runtime shuts down.
            Err(error) => Err(error.into()),
        };
        let Err(error) = saved else {
            self.trouble = None;
            return change;
        };
        let trouble = format!("{error:#}; a restart would lose the drains and check results since the last write");
        if self.trouble.is_none() {
            error!("{trouble}");
        }
        self.trouble = Some(trouble);
        if let Some(Ready { request, .. }) = change {
            let refused = Refused::Unsaved(format!("nothing was changed: {error:#}"));
            let _ = request.reply.send(Err(refused));
        }
        None
    }

    /// Writes the last state before the process ends. Changes that still wait are not made.
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
    use balancer_listeners::call::ChangeRequest;
    use tokio::sync::oneshot;

    use super::*;

    /// A store that panics when it receives the first state.
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
        assert!(persistence.trouble().is_some_and(|trouble| trouble.contains("out of paper")));

        let (second, _answer) = request();
        assert!(persistence.next_deadline().is_some());
        persistence.write(state, Some(ready(second)), Occasion::Change);
        assert!(persistence.progress().await.is_some());
        assert_eq!(persistence.trouble(), None);
    }
}
