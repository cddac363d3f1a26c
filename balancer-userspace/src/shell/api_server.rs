//! The answering end of the control socket: HTTP/JSON, bounded in size, time and number of connections.

mod asker;
mod body;
mod change;
mod events;
mod failure;
mod routes;
mod socket;
mod statistics;

use std::{sync::Arc, time::Duration};

use axum::{Extension, Router};
use hyper::server::conn::http1;
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    service::TowerToHyperService,
};
use tokio::{
    net::UnixStream,
    sync::{Semaphore, watch},
    task::JoinSet,
    time::{sleep, timeout},
};
use tracing::{debug, warn};

use self::{asker::Peer, routes::router};
pub use self::{routes::routes, socket::ControlSocket};
use super::call::Calls;

/// Connections served at once; more wait in the backlog.
const MAX_CONNECTIONS: usize = 64;
/// How long the head of a request may take.
const HEAD_TIMEOUT: Duration = Duration::from_secs(5);
/// How long a connection lives, however busy.
const CONNECTION_TIMEOUT: Duration = Duration::from_secs(60);
/// How long requests under way may take once the server stops.
const STOP_TIMEOUT: Duration = Duration::from_secs(2);

/// Serves the control API until `shutdown` completes and requests under way are answered, or had their time.
pub async fn serve(socket: ControlSocket, calls: Calls, shutdown: impl Future) {
    let router = router(calls);
    let slots = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    let (stop, stopped) = watch::channel(());
    let mut connections = JoinSet::new();
    let mut shutdown = std::pin::pin!(shutdown);
    loop {
        let next = async {
            let slot = Arc::clone(&slots).acquire_owned().await.ok();
            (socket.listener.accept().await, slot)
        };
        let (accepted, slot) = tokio::select! {
            accepted = next => accepted,
            Some(_) = connections.join_next() => continue,
            _ = &mut shutdown => break,
        };
        match accepted {
            Ok((stream, _)) => {
                let connection = connection(stream, router.clone(), stopped.clone());
                connections.spawn(async move {
                    let _slot = slot;
                    if timeout(CONNECTION_TIMEOUT, connection).await.is_err() {
                        debug!("control connection closed after {} s", CONNECTION_TIMEOUT.as_secs());
                    }
                });
            }
            Err(error) => {
                warn!("control socket: {error}");
                sleep(Duration::from_millis(100)).await;
            }
        }
    }
    drop(socket);
    drop(stop);
    let finish = async { while connections.join_next().await.is_some() {} };
    if timeout(STOP_TIMEOUT, finish).await.is_err() {
        debug!("control connections closed unanswered");
    }
}

async fn connection(stream: UnixStream, router: Router, mut stopped: watch::Receiver<()>) {
    let peer = Peer { uid: stream.peer_cred().ok().map(|credentials| credentials.uid()) };
    let service = TowerToHyperService::new(router.layer(Extension(peer)));
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIMEOUT)
        .serve_connection(TokioIo::new(stream), service);
    let mut connection = std::pin::pin!(connection);
    let ended = tokio::select! {
        ended = &mut connection => ended,
        _ = stopped.changed() => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = ended {
        debug!("control connection: {error}");
    }
}
