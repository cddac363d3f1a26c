//! Keeps the state file up to date.
//!
//! A change is on disk before it is made: the state that it would lead to is worked out and written while the owner goes on
//! handling events, then the change is made and answered. If the file cannot be written, nothing has changed. Where the
//! change needs something of this machine, that is prepared before. Changes are made in the order asked for. What happens
//! by itself is written soon after, what is only counted now and then.

use std::{
    collections::VecDeque,
    future::pending,
    panic::{self, AssertUnwindSafe},
    time::Duration,
};

use anyhow::anyhow;
use balancer_core::{controller::Foresight, io::Refused};
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

/// How long what happens by itself may wait to be written.
const SOON: Duration = Duration::from_millis(500);
/// How often it is looked whether there is something to write that nobody has noted, and how long after a failure it is tried again.
const NOW_AND_THEN: Duration = Duration::from_secs(10);

/// Where the state is kept.
pub trait Save: Send + 'static {
    /// Keeps the state; it is kept when this returns.
    ///
    /// # Errors
    /// When it cannot be kept; what was there is then as before.
    fn keep(&mut self, state: Restorable, occasion: Occasion) -> anyhow::Result<()>;
}

impl Save for StateFile {
    fn keep(&mut self, state: Restorable, occasion: Occasion) -> anyhow::Result<()> {
        Self::keep(self, state, occasion)
    }
}

/// See the [module](self).
#[derive(Debug)]
pub struct Keeper<F = StateFile> {
    /// While nothing is written.
    idle: Option<F>,
    writing: Option<Writing<F>>,
    waiting: VecDeque<Request>,
    stage: Option<Stage>,
    /// When to write what has happened, or was counted.
    due: Instant,
    failing: bool,
}

/// A change that may be made.
#[derive(Debug)]
pub struct Ready {
    /// It.
    pub request: Request,
    /// The preparation of this machine for it.
    pub prepared: Option<Prepared>,
    /// The lookup tables that it takes, and known clients that it is about.
    pub foresight: Foresight,
}

type Proposed = Result<Box<Proposal>, Refused>;

/// How far the first change that waits has come: what it leads to is worked out, this machine is made ready for that if it
/// must be, and it is worked out again, as things may have happened meanwhile.
#[derive(Debug)]
enum Stage {
    Proposing(JoinHandle<Proposed>, Request, Option<Prepared>),
    Proposed(Box<Proposal>, Request, Option<Prepared>),
    Preparing(JoinHandle<anyhow::Result<Prepared>>, Request),
    Prepared(Prepared, Request),
}

/// The result of a stage that has ended.
enum Staged {
    Proposed(Result<Proposed, JoinError>),
    Prepared(Result<anyhow::Result<Prepared>, JoinError>),
}

#[derive(Debug)]
struct Writing<F> {
    task: JoinHandle<(F, anyhow::Result<()>)>,
    /// The change that is made when it is done.
    change: Option<Ready>,
}

impl<F: Save> Keeper<F> {
    /// Writes to `file`, at once for the first time.
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

    /// Takes a change on; [`progress`](Self::progress) gives it back when it may be made.
    pub fn ask(&mut self, request: Request) {
        self.waiting.push_back(request);
    }

    /// Something has happened.
    pub fn note(&mut self) {
        if !self.failing {
            self.due = self.due.min(Instant::now() + SOON);
        }
    }

    /// When to call [`advance`](Self::advance) at the latest.
    #[must_use]
    pub fn next_deadline(&self) -> Option<Instant> {
        (self.idle.is_some() && !self.is_proposing()).then_some(self.due)
    }

    /// Whether a proposal is under way. Its state is the next to be written, and would lack anything written before it
    /// ends.
    const fn is_proposing(&self) -> bool {
        matches!(self.stage, Some(Stage::Proposing(..)))
    }

    /// Begins to work out, to prepare or to write, if there is something to write and nothing is under way. Refuses what
    /// cannot be done.
    pub fn advance<D: Dataplane>(&mut self, owner: &mut Owner<D>, host: &Host) {
        while self.idle.is_some() {
            match self.stage.take() {
                None => match self.waiting.pop_front() {
                    Some(request) => self.propose(owner, request, None),
                    None => break,
                },
                Some(Stage::Prepared(prepared, request)) => self.propose(owner, request, Some(prepared)),
                Some(Stage::Proposed(proposal, request, prepared)) => {
                    let Proposal { state, wanted, foresight } = *proposal;
                    if prepared.is_none() && wanted != *host.wanted() {
                        self.stage = Some(Stage::Preparing(tokio::spawn(host.prepare(wanted)), request));
                    } else {
                        self.write(state, Some(Ready { request, prepared, foresight }), Occasion::Change);
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
        // Nobody waits for the answer: the caller was told that the outcome is unknown.
        if request.reply.is_closed() {
            return;
        }
        match owner.propose(request.wish.clone(), request.if_generation) {
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
            // A panic is the end of this state, not of the file.
            let saved = panic::catch_unwind(AssertUnwindSafe(save));
            let saved = saved.unwrap_or_else(|panic| Err(anyhow!("writing the state {}", panicked(panic.as_ref()))));
            (file, saved)
        });
        self.writing = Some(Writing { task, change });
    }

    /// Waits for the end of what is being worked out, prepared or written: for ever if nothing is. Gives a change that may
    /// be made now; one that may not has been answered.
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
            // Only when the runtime ends.
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
    use balancer_core::{controller::Controller, io::Change};
    use balancer_model::{
        fixture::{KEY, config, now, web},
        names::BackendName,
    };
    use tokio::sync::oneshot;

    use super::*;
    use crate::call::Wish;

    /// Panics with the first state.
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
                wish: Wish::Change(Change::SetWeight { name, weight: 1 }),
                uid: None,
                if_generation: None,
                reply,
            },
            answer,
        )
    }

    fn ready(request: Request) -> Ready {
        Ready { request, prepared: None, foresight: Foresight::default() }
    }

    #[tokio::test]
    async fn a_write_that_panics_refuses_its_change_and_holds_up_no_other() {
        let mut controller = Controller::new(config(vec![web()]), KEY);
        let now = now();
        controller.start(now);
        let state = Restorable::of(controller, now);
        let mut keeper = Keeper::new(Broken { saved: 0 });

        let (first, answer) = request();
        keeper.write(state.clone(), Some(ready(first)), Occasion::Change);
        assert!(keeper.progress().await.is_none());
        let Err(Refused::Unsaved(why)) = answer.await.unwrap() else { panic!("it was made, or refused otherwise") };
        assert_eq!(why, "nothing was changed: writing the state panicked: out of paper");

        let (second, _answer) = request();
        assert!(keeper.next_deadline().is_some());
        keeper.write(state, Some(ready(second)), Occasion::Change);
        assert!(keeper.progress().await.is_some());
    }
}
