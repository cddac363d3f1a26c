//! The server of the control API: HTTP and JSON, with limits on size, time and the number of connections.

mod asker;
mod body;
mod certificate;
mod change;
mod drop_ins;
mod events;
mod exchange;
mod failure;
mod foreign;
mod guard;
mod peer;
mod quic;
pub mod remote;
mod routes;
pub mod socket;
pub mod statistics;
mod trace;
mod written;

use std::{path::Path, sync::Arc, time::Duration};

use axum::{Extension, Router};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::UnixStream,
};

use self::{
    peer::{Peer, Process},
    routes::router,
};
pub use self::{routes::routes, socket::ControlSocket};
use super::{
    audit::Audit,
    call::Calls,
    configuration::Configurations,
    listener::{self, Limits},
};

const LIMITS: Limits = Limits {
    connections: 64,
    ask: Duration::from_secs(5),
    answer: Duration::from_secs(60),
    lifetime: Duration::from_secs(60),
    farewell: Duration::from_secs(2),
};

/// The state that all connections share to answer requests.
#[derive(Clone, Debug)]
pub struct Answering {
    calls: Calls,
    configurations: Configurations,
    audit: Audit,
}

impl Answering {
    /// Makes an `Answering` that sends calls to `calls`, reads files with `configurations`, and records requests in
    /// `audit`.
    #[must_use]
    pub const fn new(calls: Calls, configurations: Configurations, audit: Audit) -> Self {
        Self { calls, configurations, audit }
    }

    pub const fn audit(&self) -> &Audit {
        &self.audit
    }

    fn router(self) -> Router {
        router(self.calls, self.configurations).layer(Extension(self.audit))
    }
}

/// Serves the control API until `shutdown` completes and every pending request has been answered or has timed out.
///
/// # Errors
/// Fails if the control socket no longer accepts connections.
pub async fn serve(socket: ControlSocket, answering: Answering, shutdown: impl Future) -> anyhow::Result<()> {
    let router = answering.router();
    let of = move |stream: &UnixStream| router.clone().layer(Extension(Peer::Changer(process(stream))));
    listener::serve(socket, LIMITS, of, shutdown).await
}

/// Serves the read-only API on a second socket beside `changing`.
///
/// # Errors
/// Fails if the read-only socket no longer accepts connections.
pub async fn serve_readers(
    socket: ControlSocket,
    changing: Arc<Path>,
    answering: Answering,
    shutdown: impl Future,
) -> anyhow::Result<()> {
    let router = answering.router();
    let of = move |stream: &UnixStream| {
        let peer = Peer::Reader { process: process(stream), changing: Arc::clone(&changing) };
        router.clone().layer(Extension(peer))
    };
    listener::serve(socket, LIMITS, of, shutdown).await
}

fn process(stream: &UnixStream) -> Process {
    let credentials = stream.peer_cred().ok();
    Process { uid: credentials.map(|of| of.uid()), pid: credentials.and_then(|of| of.pid()) }
}

/// Serves one connection until the connection ends, for an unidentified peer.
pub async fn serve_one(stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static, calls: Calls) {
    let router = router(calls, Configurations::default()).layer(Extension(Peer::Unknown));
    listener::serve_one(stream, router, LIMITS).await;
}
