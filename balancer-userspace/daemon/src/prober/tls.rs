//! TLS under the `https` check.

use std::{
    io,
    sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError},
    time::Duration,
};

use balancer_core::io::CheckOutcome;
use balancer_model::config::Tls;
use tokio::time::Instant;
use tokio_rustls::{
    TlsConnector,
    rustls::{
        CipherSuite, ClientConfig, DigitallySignedStruct, Error, RootCertStore, SignatureScheme,
        client::{
            Resumption, WebPkiServerVerifier,
            danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
        },
        crypto::{CryptoProvider, ring},
        pki_types::{CertificateDer, ServerName, UnixTime, pem::PemObject as _},
    },
};

use super::{
    check::reason,
    files::{Shelf, Watched},
};

/// How certificates are judged.
pub(super) enum Trust {
    /// Every certificate is accepted.
    Any,
    /// Certificates are verified by the system's roots.
    System,
    /// Certificates are verified by the roots of a file.
    File(Arc<Watched<TlsConnector>>),
}

impl Trust {
    /// The trust that a check configures.
    pub(super) fn of(tls: &Tls) -> Self {
        static FILES: Shelf<TlsConnector> = Shelf::new(of_file);
        match &tls.ca_file {
            Some(file) => Self::File(FILES.file(file)),
            None if tls.verify => Self::System,
            None => Self::Any,
        }
    }

    /// The TLS settings, made once for all checks with the same roots, which are up to date.
    ///
    /// # Errors
    /// If certificates must be verified but there are no roots.
    pub(super) async fn connector(&self) -> io::Result<TlsConnector> {
        static CAREFUL: Roots = Roots::new(careful);
        static CURIOUS: OnceLock<Result<TlsConnector, String>> = OnceLock::new();
        let made = match self {
            Self::Any => CURIOUS.get_or_init(curious).clone(),
            Self::System => CAREFUL.settings().await,
            Self::File(file) => {
                return file.contents().await.map_err(|error| io::Error::other(format!("the ca_file {error}")));
            }
        };
        made.map_err(io::Error::other)
    }
}

/// Reads the roots, off the thread of the checks.
type Read = fn() -> Result<TlsConnector, String>;

/// Settings with the system's roots, which may change.
struct Roots {
    read: Read,
    known: Mutex<Known>,
}

#[derive(Clone, Default)]
struct Known {
    settings: Option<TlsConnector>,
    /// When they were read, or when the attempt was made.
    at: Option<Instant>,
}

impl Roots {
    /// The maximum age of roots. A check uses the known ones, and later checks get newer ones.
    const FRESH: Duration = Duration::from_secs(60);

    const fn new(read: Read) -> Self {
        Self { read, known: Mutex::new(Known { settings: None, at: None }) }
    }

    async fn settings(&'static self) -> Result<TlsConnector, String> {
        let (settings, stale) = {
            let mut known = self.known();
            let now = Instant::now();
            let stale = known.at.is_none_or(|at| now.saturating_duration_since(at) > Self::FRESH);
            if stale {
                known.at = Some(now);
            }
            (known.settings.clone(), stale)
        };
        match settings {
            Some(settings) => {
                if stale {
                    tokio::task::spawn_blocking(|| self.read_again());
                }
                Ok(settings)
            }
            None => tokio::task::spawn_blocking(|| self.read_again()).await.map_err(|error| error.to_string())?,
        }
    }

    /// Reads the roots again. They replace the old ones, unless there are none.
    fn read_again(&self) -> Result<TlsConnector, String> {
        let read = (self.read)();
        match &read {
            Ok(settings) => self.known().settings = Some(settings.clone()),
            Err(why) if self.known().settings.is_some() => {
                tracing::warn!("{why}; those that were read before stay in use");
            }
            Err(_) => {}
        }
        read
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        // A panicking thread did not hold the lock during a change.
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Settings that verify certificates by the system's roots.
fn careful() -> Result<TlsConnector, String> {
    let found = rustls_native_certs::load_native_certs();
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(found.certs);
    if roots.is_empty() {
        return Err("tls_verify = true finds no root certificates (install ca-certificates)".to_owned());
    }
    verifying(roots)
}

/// Settings that verify certificates by the roots of a PEM file.
fn of_file(bytes: Vec<u8>) -> Result<TlsConnector, String> {
    let found = CertificateDer::pem_slice_iter(&bytes).collect::<Result<Vec<_>, _>>();
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(found.map_err(|error| format!("is not PEM: {error}"))?);
    if roots.is_empty() {
        return Err("holds no root certificate in PEM".to_owned());
    }
    verifying(roots)
}

fn verifying(roots: RootCertStore) -> Result<TlsConnector, String> {
    let verifier = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider()).build();
    settings(verifier.map_err(|error| error.to_string())?)
}

/// Settings that accept every certificate, because only the server's answer matters.
fn curious() -> Result<TlsConnector, String> {
    settings(Arc::new(Unverified))
}

fn provider() -> Arc<CryptoProvider> {
    static PROVIDER: OnceLock<Arc<CryptoProvider>> = OnceLock::new();
    Arc::clone(PROVIDER.get_or_init(|| {
        let mut provider = ring::default_provider();
        // The checks send nothing secret, so the cheapest cipher comes first.
        provider.cipher_suites.sort_by_key(|suite| suite.suite() != CipherSuite::TLS13_AES_128_GCM_SHA256);
        Arc::new(provider)
    }))
}

fn settings(verifier: Arc<dyn ServerCertVerifier>) -> Result<TlsConnector, String> {
    let mut config = ClientConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()
        .map_err(|error| error.to_string())?
        .dangerous()
        .with_custom_certificate_verifier(verifier)
        .with_no_client_auth();
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    // Each check is a connection like that of a new client.
    config.resumption = Resumption::disabled();
    Ok(TlsConnector::from(Arc::new(config)))
}

/// Whether an error of a connection comes from TLS rather than the network, so that the server has answered.
pub(super) fn is_refusal(error: &io::Error) -> bool {
    rustls_error(error).is_some()
}

/// The meaning of a TLS failure.
pub(super) fn failure(error: &io::Error) -> CheckOutcome {
    match rustls_error(error) {
        Some(Error::InvalidMessage(_)) => CheckOutcome::Soft("tls: not a TLS answer".to_owned()),
        Some(error) => CheckOutcome::Soft(format!("tls: {error}")),
        None => CheckOutcome::Hard(format!("tls: connection {}", reason(error))),
    }
}

fn rustls_error(error: &io::Error) -> Option<&Error> {
    error.get_ref()?.downcast_ref()
}

#[derive(Debug)]
struct Unverified;

impl ServerCertVerifier for Unverified {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        provider().signature_verification_algorithms.supported_schemes()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};

    use super::*;

    static READ: AtomicU32 = AtomicU32::new(0);

    /// Returns no roots first, then some, then none again, then others.
    fn changing() -> Result<TlsConnector, String> {
        match READ.fetch_add(1, Ordering::Relaxed) {
            0 | 2 => Err("no roots".to_owned()),
            _ => curious(),
        }
    }

    async fn read(times: u32) {
        while READ.load(Ordering::Relaxed) < times {
            tokio::task::yield_now().await;
        }
    }

    fn same(one: &TlsConnector, other: &TlsConnector) -> bool {
        Arc::ptr_eq(one.config(), other.config())
    }

    #[tokio::test]
    async fn when_roots_are_read_again_and_there_are_none_then_the_old_ones_stay() {
        static ROOTS: Roots = Roots::new(changing);
        assert_eq!(ROOTS.settings().await.err().as_deref(), Some("no roots"));
        let first = ROOTS.settings().await.unwrap();
        assert!(same(&first, &ROOTS.settings().await.unwrap()), "read again at once");
        tokio::time::pause();
        tokio::time::advance(2 * Roots::FRESH).await;
        assert!(same(&first, &ROOTS.settings().await.unwrap()), "a check waits for the new ones");
        read(3).await;
        assert!(same(&first, &ROOTS.settings().await.unwrap()), "none took the place of some");
        tokio::time::advance(2 * Roots::FRESH).await;
        ROOTS.settings().await.unwrap();
        read(4).await;
        while same(&first, &ROOTS.settings().await.unwrap()) {
            tokio::task::yield_now().await;
        }
    }
}
