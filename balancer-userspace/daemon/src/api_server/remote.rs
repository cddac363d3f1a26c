//! The control API for other machines, over TLS: each client must present a certificate.

mod handshakes;
mod identity;
mod names;
#[cfg(test)]
mod tests;

use std::{net::SocketAddr, sync::Arc};

use anyhow::anyhow;
use axum::Extension;
use tokio::{net::TcpListener, sync::mpsc};

use self::handshakes::{Arrivals, Arrived, accept};
pub(crate) use self::identity::Identity;
pub(super) use self::names::Names;
use super::{Answering, LIMITS, peer::Peer};
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
    let roles = Arc::clone(&identity);
    let of = move |arrived: &Arrived| {
        let names = arrived.names.clone();
        let role = roles.role(&names);
        router.clone().layer(Extension(Peer::Remote { names, role, address: arrived.address }))
    };
    let served = listener::serve(Arrivals::new(arrivals), LIMITS, of, shutdown);
    // Accepting connections and serving them end together, because later connections would not be served.
    let (accepted, served) = tokio::join!(accept(listener, identity, sender), served);
    accepted.and(served)
}
