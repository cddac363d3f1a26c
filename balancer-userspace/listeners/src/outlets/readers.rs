//! The read-only socket, which may be created, change its group, and be removed while the balancer runs.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

use balancer_config::control::readers_socket;
use balancer_runtime::supervisor::{Supervisor, Task};
use tokio::sync::watch;
use tracing::{info, warn};

use super::give;
use crate::api_server::{self, Answering, ControlSocket, socket::SocketUsers};

/// The server of the read-only socket, and a prepared change of the socket.
pub struct Readers {
    /// The path of the socket that allows changes.
    changing: Arc<Path>,
    path: PathBuf,
    answering: Answering,
    supervisor: Supervisor,
    /// The group of the read-only socket, while the server runs.
    group: Option<String>,
    serving: Option<Serving>,
    /// A change that was prepared but not made yet.
    next: Option<Next>,
}

struct Serving {
    stop: watch::Sender<()>,
    task: Task<()>,
}

enum Next {
    Begin(String, ControlSocket),
    /// The file of the socket already belongs to this group.
    Given(String),
    End,
}

impl Readers {
    /// Starts to serve the `bound` socket, which has its group and belongs to the control socket `changing`.
    pub fn start(
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
            // An error means that the sender was dropped, which also ends the server.
            let _ = stopped.changed().await;
        };
        let served = api_server::serve_readers(socket, Arc::clone(&self.changing), self.answering.clone(), ended);
        let task = self.supervisor.spawn("the socket for readers", served);
        (self.group, self.serving) = (Some(group), Some(Serving { stop, task }));
    }

    /// Prepares a read-only socket for the group `wanted`.
    ///
    /// # Errors
    /// Fails if the group does not exist, or if this process cannot create the socket or give it to the group. After a
    /// failure, the current socket is unchanged.
    pub async fn prepare(&mut self, wanted: Option<&str>) -> anyhow::Result<()> {
        self.next = match (self.group.as_deref(), wanted) {
            (before, wanted) if before == wanted => None,
            (None, Some(group)) => {
                Some(Next::Begin(group.to_owned(), ControlSocket::bind_readers(&self.changing, group).await?))
            }
            (Some(_), Some(group)) => {
                give(&self.path, Some(group), SocketUsers::Readers).await?;
                Some(Next::Given(group.to_owned()))
            }
            (_, None) => Some(Next::End),
        };
        Ok(())
    }

    /// Completes the prepared change of the read-only socket.
    pub fn make(&mut self) {
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

    /// Cancels the prepared change of the read-only socket.
    pub async fn undo(&mut self) {
        // Dropping the change also removes a socket that was bound for the change.
        if let Some(Next::Given(_)) = self.next.take()
            && let Err(error) = give(&self.path, self.group.as_deref(), SocketUsers::Readers).await
        {
            warn!("{error:#}");
        }
    }

    /// Ends the server; pending requests get a short time to finish.
    pub async fn end(mut self) {
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
