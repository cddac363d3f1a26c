//! Accepts connections from other machines, and passes on each connection after its TLS handshake. If there are too
//! many handshakes, each new handshake replaces the oldest one.

use std::{
    collections::VecDeque,
    io,
    net::SocketAddr,
    pin::Pin,
    sync::{Arc, PoisonError},
    task::{Context, Poll},
    time::Duration,
};

use anyhow::anyhow;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::{TcpListener, TcpStream},
    sync::{Mutex, mpsc},
    task::{AbortHandle, JoinSet},
    time::{Instant, sleep, timeout},
};
use tokio_rustls::{TlsAcceptor, rustls::pki_types::CertificateDer, server::TlsStream};
use tracing::{debug, warn};

use super::{super::certificate::CertificateNames, identity::Identity};
use crate::listener::{Listen, is_passing};

/// The maximum duration of a TLS handshake.
const HANDSHAKE: Duration = Duration::from_secs(5);
/// The maximum number of concurrent handshakes; a further handshake makes the balancer abort the oldest one.
const HANDSHAKES: usize = 64;

/// After a log line about a refused connection, the balancer logs no refusals for this time.
const QUIET: Duration = Duration::from_secs(60);

/// A client that has presented a certificate.
#[derive(Clone)]
pub(super) struct Client {
    /// The client's certificate, followed by the certificates between this certificate and a root.
    pub(super) chain: Arc<[CertificateDer<'static>]>,
    pub(super) names: CertificateNames,
    pub(super) address: SocketAddr,
}

/// A connection from a client that has presented a certificate.
pub(super) struct Arrived {
    stream: TlsStream<TcpStream>,
    pub(super) client: Client,
}

/// The connections whose handshakes are complete.
pub(super) struct Arrivals(Mutex<mpsc::Receiver<Arrived>>);

impl Arrivals {
    pub(super) fn new(arrivals: mpsc::Receiver<Arrived>) -> Self {
        Self(Mutex::new(arrivals))
    }
}

impl Listen for Arrivals {
    type Stream = Arrived;

    async fn accept(&self) -> io::Result<Arrived> {
        // The task that accepts connections has already logged why it ended.
        self.0.lock().await.recv().await.ok_or_else(|| io::Error::from_raw_os_error(libc::EBADF))
    }
}

/// Accepts connections, and sends those with a client certificate to the receiver, until the receiver is dropped.
///
/// # Errors
/// Fails if the listener no longer accepts connections.
pub(super) async fn accept(
    listener: TcpListener,
    identity: Arc<Identity>,
    arrivals: mpsc::Sender<Arrived>,
) -> anyhow::Result<()> {
    let mut handshakes = JoinSet::new();
    let refusals = Arc::new(Refusals::default());
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
                    let (identity, arrivals, refusals) = (Arc::clone(&identity), arrivals.clone(), Arc::clone(&refusals));
                    begun.push_back(handshakes.spawn(async move {
                        if let Err(why) = shake_hands(stream, address, &identity, &arrivals).await {
                            refusals.tell(address, &why);
                        }
                    }));
                }
                Err(error) if is_passing(&error) => {
                    warn!("cannot accept a connection: {error}");
                    sleep(Duration::from_millis(100)).await;
                }
                Err(error) => return Err(anyhow!("no connection can be accepted any more: {error}")),
            },
        }
    }
}

async fn shake_hands(
    stream: TcpStream,
    address: SocketAddr,
    identity: &Identity,
    arrivals: &mpsc::Sender<Arrived>,
) -> Result<(), String> {
    let handshake = async {
        let settings = identity.settings().await?;
        TlsAcceptor::from(settings).accept(stream).await.map_err(|error| error.to_string())
    };
    let late = |_| format!("no handshake within {} s", HANDSHAKE.as_secs());
    let stream = timeout(HANDSHAKE, handshake).await.map_err(late)??;
    let chain: Arc<[_]> = stream.get_ref().1.peer_certificates().unwrap_or_default().into();
    let names = chain.first().map(CertificateNames::of).ok_or_else(|| "it shows no certificate".to_owned())?;
    // Sending fails only if the server no longer serves connections.
    let _ = arrivals.send(Arrived { stream, client: Client { chain, names, address } }).await;
    Ok(())
}

/// Logs refused connections. Any client can cause refusals, so the balancer logs at most one refusal per [`QUIET`]
/// period.
#[derive(Default)]
struct Refusals(std::sync::Mutex<Option<Instant>>);

impl Refusals {
    fn tell(&self, address: SocketAddr, why: &str) {
        let mut last = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if last.is_none_or(|last| last.elapsed() >= QUIET) {
            *last = Some(Instant::now());
            warn!(
                "the control listener refused {address}: {why}; further refusals are not logged for {} s",
                QUIET.as_secs()
            );
        } else {
            debug!("the control listener refused {address}: {why}");
        }
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
