//! Keeps the state file up to date.
//!
//! A change is on disk before it is made: the state that it would lead to is written while the owner goes on handling
//! events, then the change is made and answered. If the file cannot be written, nothing has changed. What happens by
//! itself is written soon after, what is only counted now and then.

use std::{collections::VecDeque, future::pending, time::Duration};

use tokio::{sync::oneshot, task::JoinHandle, time::Instant};
use tracing::error;

use super::{dataplane::Dataplane, owner::Owner, state_file::StateFile};
use crate::{
    api::model::Changed,
    core::{
        io::{Change, Refused},
        state::State,
    },
};

/// How long what happens by itself may wait to be written.
const SOON: Duration = Duration::from_millis(500);
/// How often counters are written, and how long after a failure it is tried again.
const NOW_AND_THEN: Duration = Duration::from_secs(10);

/// A change that somebody asks for.
#[derive(Debug)]
pub struct Request {
    /// What.
    pub change: Change,
    /// The uid of the peer that asked, for the log.
    pub uid: Option<u32>,
    /// Only if the configuration is of this generation.
    pub if_generation: Option<u64>,
    /// What was done, or why not.
    pub reply: oneshot::Sender<Result<Changed, Refused>>,
}

/// See the [module](self).
#[derive(Debug)]
pub struct Keeper {
    /// While nothing is written.
    idle: Option<StateFile>,
    writing: Option<Writing>,
    waiting: VecDeque<Request>,
    /// When to write what has happened, or was counted.
    due: Instant,
    failing: bool,
}

#[derive(Debug)]
struct Writing {
    task: JoinHandle<(StateFile, anyhow::Result<()>)>,
    /// The change that is made when it is done.
    request: Option<Request>,
}

impl Keeper {
    /// Writes to `file`, at once for the first time.
    #[must_use]
    pub fn new(file: StateFile) -> Self {
        Self { idle: Some(file), writing: None, waiting: VecDeque::new(), due: Instant::now(), failing: false }
    }

    /// Takes a change on; [`written`](Self::written) gives it back when it may be made.
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
        self.idle.is_some().then_some(self.due)
    }

    /// Begins to write, if there is something to write and nothing is being written. Refuses what cannot be done.
    pub fn advance<D: Dataplane>(&mut self, owner: &Owner<D>) {
        while self.idle.is_some() {
            // Whoever has gone away has been told that nothing is certain.
            let Some(request) = self.waiting.pop_front() else { break };
            if request.reply.is_closed() {
                continue;
            }
            match owner.propose(&request.change, request.if_generation) {
                Ok(state) => self.write(state, Some(request)),
                Err(refused) => {
                    let _ = request.reply.send(Err(refused));
                }
            }
        }
        if self.idle.is_some() && self.due <= Instant::now() {
            self.write(owner.export(), None);
        }
    }

    fn write(&mut self, state: State, request: Option<Request>) {
        let Some(mut file) = self.idle.take() else { return };
        self.due = Instant::now() + NOW_AND_THEN;
        let task = tokio::task::spawn_blocking(move || {
            let saved = file.save(&state);
            (file, saved)
        });
        self.writing = Some(Writing { task, request });
    }

    /// Waits for the end of what is being written, if anything is: for ever if nothing is. Gives a change that may be
    /// made now; one that may not has been answered.
    pub async fn written(&mut self) -> Option<Request> {
        let Some(writing) = &mut self.writing else { return pending().await };
        let ended = (&mut writing.task).await;
        let request = self.writing.take().and_then(|writing| writing.request);
        let saved = match ended {
            Ok((file, saved)) => {
                self.idle = Some(file);
                saved
            }
            // Only if it panicked.
            Err(error) => Err(error.into()),
        };
        let Err(error) = saved else {
            self.failing = false;
            return request;
        };
        if !self.failing {
            error!("{error:#}; a restart would go on from an older state");
        }
        self.failing = true;
        if let Some(request) = request {
            let refused = Refused::Unsaved(format!("nothing was changed: {error:#}"));
            let _ = request.reply.send(Err(refused));
        }
        None
    }

    /// Writes the last state. Changes that still wait are not made.
    pub async fn finish<D: Dataplane>(mut self, owner: &Owner<D>) {
        self.waiting.clear();
        if let Some(writing) = self.writing.take()
            && let Ok((file, _)) = writing.task.await
        {
            self.idle = Some(file);
        }
        self.write(owner.export(), None);
        self.written().await;
    }
}
