//! The control API for other machines, over TLS: each client must present a certificate.

mod handshakes;
mod identity;
#[cfg(test)]
mod tests;

use std::{net::SocketAddr, sync::Arc};

use anyhow::anyhow;
use axum::{
    extract::{Request, State},
    http::{StatusCode, header::CONNECTION},
    middleware::{Next, from_fn_with_state},
    response::{IntoResponse as _, Response},
};
use tokio::{net::TcpListener, sync::mpsc};
use tracing::info;

use self::handshakes::{Arrivals, Arrived, Client, accept};
pub use self::identity::Identity;
use super::{Answering, LIMITS, failure::Failure, peer::Peer};
use crate::listener;

/// Opens a TCP listener at the address `listen`.
///
/// # Errors
/// Fails if the address does not belong to this machine, is in use, or needs privileges.
pub(crate) async fn bind(listen: SocketAddr) -> anyhow::Result<TcpListener> {
    TcpListener::bind(listen).await.map_err(|error| {
        let advice = match error.raw_os_error() {
            Some(libc::EADDRINUSE) => "another program listens there",
            Some(libc::EADDRNOTAVAIL) => "this machine does not have that address",
            _ => "it cannot be used",
        };
        anyhow!("the control listener on {listen}: {advice} ({error}); set [control] listen to a free address and port")
    })
}

/// Serves the control API to clients that present a certificate, within the limits of their roles. Returns when
/// `shutdown` has completed and every pending request has been answered or has timed out.
///
/// # Errors
/// Fails if the listener no longer accepts connections.
pub(crate) async fn serve(
    listener: TcpListener,
    identity: Arc<Identity>,
    answering: Answering,
    shutdown: impl Future,
) -> anyhow::Result<()> {
    let router = answering.router();
    let (sender, arrivals) = mpsc::channel(1);
    let checked = Arc::clone(&identity);
    let of = move |arrived: &Arrived| {
        router.clone().layer(from_fn_with_state((Arc::clone(&checked), arrived.client.clone()), check))
    };
    let served = listener::serve(Arrivals::new(arrivals), LIMITS, of, shutdown);
    // Accepting connections and serving them end together, because later connections would not be served.
    let (accepted, served) = tokio::join!(accept(listener, identity, sender), served);
    accepted.and(served)
}

/// Refuses a request if the client's certificate is no longer valid, because a connection may outlive the certificate.
async fn check(
    State((identity, Client { chain, names, address })): State<(Arc<Identity>, Client)>,
    mut request: Request,
    next: Next,
) -> Response {
    if let Err(why) = identity.verify(&chain).await {
        info!("a request of the certificate {names} at {address} was refused: {why}");
        let failure = Failure::new(StatusCode::UNAUTHORIZED, format!("your certificate is no longer accepted: {why}"));
        return ([(CONNECTION, "close")], failure).into_response();
    }
    let role = identity.role(&names);
    request.extensions_mut().insert(Peer::Remote { names, role, address });
    next.run(request).await
}
