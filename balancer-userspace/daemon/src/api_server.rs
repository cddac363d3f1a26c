//! The answering end of the control socket: HTTP/JSON, bounded in size, time and number of connections.

mod asker;
mod body;
mod change;
mod events;
mod failure;
mod foreign;
mod quic;
mod routes;
pub(super) mod socket;
pub(crate) mod statistics;
mod trace;
mod written;

use std::time::Duration;

use axum::Extension;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::UnixStream,
};

use self::{asker::Peer, routes::router};
pub use self::{routes::routes, socket::ControlSocket};
use super::{
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

/// Serves the control API until `shutdown` completes and requests under way are answered, or had their time.
///
/// # Errors
/// When the socket is broken.
pub async fn serve(
    socket: ControlSocket,
    calls: Calls,
    configurations: Configurations,
    shutdown: impl Future,
) -> anyhow::Result<()> {
    let router = router(calls, configurations);
    let of = move |stream: &UnixStream| {
        let peer = Peer { uid: stream.peer_cred().ok().map(|credentials| credentials.uid()) };
        router.clone().layer(Extension(peer))
    };
    listener::serve(socket, LIMITS, of, shutdown).await
}

/// Serves one connection, from nobody in particular, to its end.
pub(crate) async fn serve_one(stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static, calls: Calls) {
    let router = router(calls, Configurations::default()).layer(Extension(Peer { uid: None }));
    listener::serve_one(stream, router, LIMITS).await;
}
