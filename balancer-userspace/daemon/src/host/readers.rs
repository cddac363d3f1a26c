//! The socket that only reads, which may come, change its group, and go while the balancer runs.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

use balancer_config::control::readers_socket;
use tokio::sync::watch;
use tracing::{info, warn};

use super::give;
use crate::{
    api_server::{self, Answering, ControlSocket, socket::Whose},
    supervisor::{Supervisor, Task},
};

/// The server, and what it is to become.
pub(super) struct Readers {
    /// The socket that changes things.
    changing: Arc<Path>,
    path: PathBuf,
    answering: Answering,
    supervisor: Supervisor,
    /// The group that it is for, while it is served.
    group: Option<String>,
    serving: Option<Serving>,
    /// A change that is not made yet.
    next: Option<Next>,
}

struct Serving {
    stop: watch::Sender<()>,
    task: Task<()>,
}

enum Next {
    Begin(String, ControlSocket),
    /// It has been given to this group.
    Given(String),
    End,
}

impl Readers {
    /// Serves the `bound` socket, which is of a group, beside the socket `changing`.
    pub(super) fn start(
        changing: &Path,
        bound: Option<(String, ControlSocket)>,
        answering: Answering,
        supervisor: Supervisor,
    ) -> Self {
        let path = readers_socket(changing);
        let mut this =
            Self { changing: changing.into(), path, answering, supervisor, group: None, serving: None, next: None };
        if let Some((group, socket)) = bound {
            this.begin(group, socket);
        }
        this
    }

    fn begin(&mut self, group: String, socket: ControlSocket) {
        info!("members of the group {group} may read by {}", self.path.display());
        let (stop, mut stopped) = watch::channel(());
        let ended = async move {
            // An error says that the sender is gone, which is the end as well.
            let _ = stopped.changed().await;
        };
        let served = api_server::serve_readers(socket, Arc::clone(&self.changing), self.answering.clone(), ended);
        let task = self.supervisor.spawn("the socket for readers", served);
        (self.group, self.serving) = (Some(group), Some(Serving { stop, task }));
    }

    /// Has ready what readers of the group `wanted` take.
    ///
    /// # Errors
    /// When there is no such group, or the socket cannot be made or given to it. Nothing has changed then.
    pub(super) async fn prepare(&mut self, wanted: Option<&str>) -> anyhow::Result<()> {
        self.next = match (self.group.as_deref(), wanted) {
            (before, wanted) if before == wanted => None,
            (None, Some(group)) => {
                Some(Next::Begin(group.to_owned(), ControlSocket::bind_readers(&self.changing, group).await?))
            }
            (Some(_), Some(group)) => {
                give(&self.path, Some(group), Whose::Readers).await?;
                Some(Next::Given(group.to_owned()))
            }
            (_, None) => Some(Next::End),
        };
        Ok(())
    }

    /// The change is made.
    pub(super) fn make(&mut self) {
        match self.next.take() {
            Some(Next::Begin(group, socket)) => self.begin(group, socket),
            Some(Next::Given(group)) => self.group = Some(group),
            Some(Next::End) => {
                info!("{} is gone", self.path.display());
                drop(self.stop());
            }
            None => {}
        }
    }

    /// The change is not made.
    pub(super) async fn undo(&mut self) {
        // A socket that was bound goes with it.
        if let Some(Next::Given(_)) = self.next.take()
            && let Err(error) = give(&self.path, self.group.as_deref(), Whose::Readers).await
        {
            warn!("{error:#}");
        }
    }

    /// Ends it; requests under way have a moment.
    pub(super) async fn end(mut self) {
        if let Some(task) = self.stop() {
            let _ = task.ended().await;
        }
    }

    fn stop(&mut self) -> Option<Task<()>> {
        self.group = None;
        let Serving { stop, task } = self.serving.take()?;
        task.release();
        drop(stop);
        Some(task)
    }
}
