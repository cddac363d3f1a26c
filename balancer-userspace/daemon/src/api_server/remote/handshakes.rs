//! Connections from other machines, which count once TLS is spoken. Those that take their time make room for others.

use std::{
    collections::VecDeque,
    io,
    net::SocketAddr,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use anyhow::anyhow;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::{TcpListener, TcpStream},
    sync::{Mutex, mpsc},
    task::{AbortHandle, JoinSet},
    time::{sleep, timeout},
};
use tokio_rustls::{TlsAcceptor, server::TlsStream};
use tracing::{debug, warn};

use super::{identity::Identity, names::Names};
use crate::listener::{Listen, is_passing};

/// How long a handshake may take.
const HANDSHAKE: Duration = Duration::from_secs(5);
/// Handshakes under way at once; for one more, the oldest is given up.
const HANDSHAKES: usize = 64;

/// A connection whose other end has shown a certificate.
pub(super) struct Arrived {
    stream: TlsStream<TcpStream>,
    pub(super) names: Names,
    pub(super) address: SocketAddr,
}

/// The connections that have arrived.
pub(super) struct Arrivals(Mutex<mpsc::Receiver<Arrived>>);

impl Arrivals {
    pub(super) fn new(arrivals: mpsc::Receiver<Arrived>) -> Self {
        Self(Mutex::new(arrivals))
    }
}

impl Listen for Arrivals {
    type Stream = Arrived;

    async fn accept(&self) -> io::Result<Arrived> {
        // Whoever accepts has said why there are no more.
        self.0.lock().await.recv().await.ok_or_else(|| io::Error::from_raw_os_error(libc::EBADF))
    }
}

/// Accepts connections, and sends those that have shown a certificate, as long as somebody takes them.
///
/// # Errors
/// When the listener is broken.
pub(super) async fn accept(
    listener: TcpListener,
    identity: Arc<Identity>,
    arrivals: mpsc::Sender<Arrived>,
) -> anyhow::Result<()> {
    let mut handshakes = JoinSet::new();
    let mut begun: VecDeque<AbortHandle> = VecDeque::new();
    loop {
        tokio::select! {
            () = arrivals.closed() => return Ok(()),
            Some(_) = handshakes.join_next() => begun.retain(|handshake| !handshake.is_finished()),
            accepted = listener.accept() => match accepted {
                Ok((stream, address)) => {
                    if begun.len() >= HANDSHAKES && let Some(oldest) = begun.pop_front() {
                        oldest.abort();
                    }
                    let handshake = shake_hands(stream, address, Arc::clone(&identity), arrivals.clone());
                    begun.push_back(handshakes.spawn(handshake));
                }
                Err(error) if is_passing(&error) => {
                    warn!("accepting a connection: {error}");
                    sleep(Duration::from_millis(100)).await;
                }
                Err(error) => return Err(anyhow!("no connection can be accepted any more: {error}")),
            },
        }
    }
}

async fn shake_hands(stream: TcpStream, address: SocketAddr, identity: Arc<Identity>, arrivals: mpsc::Sender<Arrived>) {
    let handshake = async {
        let settings = identity.settings().await.map_err(io::Error::other)?;
        TlsAcceptor::from(settings).accept(stream).await
    };
    match timeout(HANDSHAKE, handshake).await {
        Ok(Ok(stream)) => {
            let shown = stream.get_ref().1.peer_certificates().and_then(|chain| chain.first());
            let Some(names) = shown.map(Names::of) else { return };
            // An error says that nobody is served any more.
            let _ = arrivals.send(Arrived { stream, names, address }).await;
        }
        Ok(Err(error)) => debug!("the control listener refused {address}: {error}"),
        Err(_) => debug!("the control listener gave {address} up: no handshake within {} s", HANDSHAKE.as_secs()),
    }
}

impl AsyncRead for Arrived {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

impl AsyncWrite for Arrived {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}
