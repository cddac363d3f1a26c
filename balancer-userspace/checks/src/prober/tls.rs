//! TLS for the `https` and `grpcs` checks.

use std::{
    io,
    sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError},
    time::Duration,
};

use balancer_config::config::Tls;
use balancer_control::io::CheckOutcome;
use tokio::time::Instant;
use tokio_rustls::{
    TlsConnector,
    rustls::{
        AlertDescription, CipherSuite, ClientConfig, DigitallySignedStruct, Error, RootCertStore, SignatureScheme,
        client::{
            Resumption, WebPkiServerVerifier,
            danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
        },
        crypto::{CryptoProvider, ring},
        pki_types::{CertificateDer, ServerName, UnixTime, pem::PemObject as _},
    },
};

use super::{
    fault::reason,
    files::{NeededFiles, WatchedFile},
    identity::{CertificateAndKey, Identity},
};

type Verifier = Arc<dyn ServerCertVerifier>;

/// The TLS settings of a check's connections. The first check that needs the settings makes them, and a later check
/// makes them again if a file has changed in between.
pub(super) struct Security {
    trust: Trust,
    identity: Option<Identity>,
    server: ServerName<'static>,
    /// The ALPN name of the protocol that TLS carries.
    alpn: &'static [u8],
    made: Mutex<Option<Made>>,
}

/// TLS settings, and the file contents from which they were made.
struct Made {
    verifier: Verifier,
    pair: Option<CertificateAndKey>,
    connector: TlsConnector,
}

impl Made {
    fn is_of(&self, verifier: &Verifier, pair: Option<&CertificateAndKey>) -> bool {
        let same_pair = match (&self.pair, pair) {
            (Some(one), Some(other)) => one.is(other),
            (None, None) => true,
            (Some(_), None) | (None, Some(_)) => false,
        };
        same_pair && Arc::ptr_eq(&self.verifier, verifier)
    }
}

impl Security {
    /// Describes the TLS settings for a check's connections to `server` with the protocol `alpn`.
    pub(super) fn of(tls: &Tls, server: ServerName<'static>, alpn: &'static [u8]) -> Self {
        let identity = tls.client.as_ref().map(Identity::of);
        Self { trust: Trust::of(tls), identity, server, alpn, made: Mutex::new(None) }
    }

    /// The server name that the check requests.
    pub(super) fn server(&self) -> ServerName<'static> {
        self.server.clone()
    }

    /// Returns TLS settings that were made from the current contents of the files.
    ///
    /// # Errors
    /// Fails if the check must verify certificates but no root certificates exist, or if a file is missing or invalid.
    pub(super) async fn connector(&self) -> io::Result<TlsConnector> {
        let verifier = self.trust.verifier().await?;
        let pair = match &self.identity {
            Some(identity) => Some(identity.pair().await?),
            None => None,
        };
        // The data is consistent even if the lock is poisoned, because no thread panics while it changes the data.
        let mut made = self.made.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(made) = made.as_ref().filter(|made| made.is_of(&verifier, pair.as_ref())) {
            return Ok(made.connector.clone());
        }
        let connector = self.settings(&verifier, pair.as_ref())?;
        *made = Some(Made { verifier, pair, connector: connector.clone() });
        Ok(connector)
    }

    fn settings(&self, verifier: &Verifier, pair: Option<&CertificateAndKey>) -> io::Result<TlsConnector> {
        let config = ClientConfig::builder_with_provider(provider())
            .with_safe_default_protocol_versions()
            .map_err(io::Error::other)?
            .dangerous()
            .with_custom_certificate_verifier(Arc::clone(verifier));
        let mut config = match (&self.identity, pair) {
            (Some(identity), Some(pair)) => {
                let chosen = config.with_client_auth_cert(pair.chain.to_vec(), pair.key());
                let unfit = |error| io::Error::other(format!("{} cannot be used: {error}", identity.names()));
                chosen.map_err(unfit)?
            }
            _ => config.with_no_client_auth(),
        };
        config.alpn_protocols = vec![self.alpn.to_vec()];
        // Each check connects like a new client, without session resumption.
        config.resumption = Resumption::disabled();
        Ok(TlsConnector::from(Arc::new(config)))
    }
}

/// The rule by which a check judges a server's certificate.
enum Trust {
    /// The check accepts every certificate.
    Any,
    /// The check verifies certificates with the system's root certificates.
    System,
    /// The check verifies certificates with the root certificates in a file.
    File(Arc<WatchedFile<Verifier>>),
}

impl Trust {
    /// Returns the rule that the configuration of a check demands.
    fn of(tls: &Tls) -> Self {
        static FILES: NeededFiles<Verifier> = NeededFiles::new(of_file);
        match &tls.ca_file {
            Some(file) => Self::File(FILES.file(file)),
            None if tls.verify => Self::System,
            None => Self::Any,
        }
    }

    /// Returns the verifier of certificates, with current root certificates. All checks with the same root certificates
    /// share one verifier.
    ///
    /// # Errors
    /// Fails if the check must verify certificates but no root certificates exist.
    async fn verifier(&self) -> io::Result<Verifier> {
        static CAREFUL: Roots = Roots::new(careful);
        static CURIOUS: OnceLock<Verifier> = OnceLock::new();
        match self {
            Self::Any => Ok(Arc::clone(CURIOUS.get_or_init(curious))),
            Self::System => CAREFUL.verifier().await.map_err(io::Error::other),
            Self::File(file) => file.contents().await.map_err(|error| io::Error::other(format!("the ca_file {error}"))),
        }
    }
}

/// A function that reads the root certificates, on another thread than that of the checks.
type Read = fn() -> Result<Verifier, String>;

/// The system's root certificates, which may change.
struct Roots {
    read: Read,
    known: Mutex<Known>,
}

#[derive(Clone, Default)]
struct Known {
    verifier: Option<Verifier>,
    /// The time of the last attempt to read the root certificates.
    at: Option<Instant>,
}

impl Roots {
    /// The age at which the prober rereads the system's root certificates. The check that triggers the read uses the
    /// previous root certificates, and later checks use the new ones.
    const FRESH: Duration = Duration::from_secs(60);

    const fn new(read: Read) -> Self {
        Self { read, known: Mutex::new(Known { verifier: None, at: None }) }
    }

    async fn verifier(&'static self) -> Result<Verifier, String> {
        let (verifier, stale) = {
            let mut known = self.known();
            let now = Instant::now();
            let stale = known.at.is_none_or(|at| now.saturating_duration_since(at) > Self::FRESH);
            if stale {
                known.at = Some(now);
            }
            (known.verifier.clone(), stale)
        };
        match verifier {
            Some(verifier) => {
                if stale {
                    tokio::task::spawn_blocking(|| self.read_again());
                }
                Ok(verifier)
            }
            None => tokio::task::spawn_blocking(|| self.read_again()).await.map_err(|error| error.to_string())?,
        }
    }

    /// Rereads the system's root certificates. The new root certificates replace the previous ones, unless the read
    /// finds none.
    fn read_again(&self) -> Result<Verifier, String> {
        let read = (self.read)();
        match &read {
            Ok(verifier) => self.known().verifier = Some(Arc::clone(verifier)),
            Err(why) if self.known().verifier.is_some() => {
                tracing::warn!("{why}; the previous ones stay in use");
            }
            Err(_) => {}
        }
        read
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        // The data is consistent even if the lock is poisoned, because no thread panics while it changes the data.
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Makes a verifier that checks certificates against the system's root certificates.
fn careful() -> Result<Verifier, String> {
    let found = rustls_native_certs::load_native_certs();
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(found.certs);
    if roots.is_empty() {
        return Err("tls_verify = true finds no root certificates (install ca-certificates)".to_owned());
    }
    verifying(roots)
}

/// Makes a verifier that checks certificates against the root certificates in a PEM file.
fn of_file(bytes: Vec<u8>) -> Result<Verifier, String> {
    let found = CertificateDer::pem_slice_iter(&bytes).collect::<Result<Vec<_>, _>>();
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(found.map_err(|error| format!("is not PEM: {error}"))?);
    if roots.is_empty() {
        return Err("holds no root certificate in PEM".to_owned());
    }
    verifying(roots)
}

fn verifying(roots: RootCertStore) -> Result<Verifier, String> {
    match WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider()).build() {
        Ok(verifier) => Ok(verifier),
        Err(error) => Err(error.to_string()),
    }
}

/// Makes a verifier that accepts every certificate, because only the server's answer matters to the check.
fn curious() -> Verifier {
    Arc::new(Unverified)
}

fn provider() -> Arc<CryptoProvider> {
    static PROVIDER: OnceLock<Arc<CryptoProvider>> = OnceLock::new();
    Arc::clone(PROVIDER.get_or_init(|| {
        let mut provider = ring::default_provider();
        // The cheapest cipher suite comes first, because checks send no secrets.
        provider.cipher_suites.sort_by_key(|suite| suite.suite() != CipherSuite::TLS13_AES_128_GCM_SHA256);
        Arc::new(provider)
    }))
}

/// Whether a connection error comes from TLS and not from the network; an error from TLS means that the server has
/// answered.
pub(super) fn is_refusal(error: &io::Error) -> bool {
    rustls_error(error).is_some()
}

/// Whether the error says that the server supports none of the offered protocols.
pub(super) fn knows_no_protocol(error: &io::Error) -> bool {
    matches!(rustls_error(error), Some(Error::AlertReceived(AlertDescription::NoApplicationProtocol)))
}

/// The outcome of a check whose TLS handshake has failed.
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

    /// Returns at successive calls: no root certificates, some, none again, and others.
    fn changing() -> Result<Verifier, String> {
        match READ.fetch_add(1, Ordering::Relaxed) {
            0 | 2 => Err("no roots".to_owned()),
            _ => verifying(own_roots()),
        }
    }

    fn own_roots() -> RootCertStore {
        let made = rcgen::generate_simple_self_signed(["www.example.com".to_owned()]).unwrap();
        let mut roots = RootCertStore::empty();
        roots.add(made.cert.der().clone()).unwrap();
        roots
    }

    async fn read(times: u32) {
        while READ.load(Ordering::Relaxed) < times {
            tokio::task::yield_now().await;
        }
    }

    #[tokio::test]
    async fn when_roots_are_read_again_and_there_are_none_then_the_old_ones_stay() {
        static ROOTS: Roots = Roots::new(changing);
        assert_eq!(ROOTS.verifier().await.err().as_deref(), Some("no roots"));
        let first = ROOTS.verifier().await.unwrap();
        assert!(Arc::ptr_eq(&first, &ROOTS.verifier().await.unwrap()), "read again at once");
        tokio::time::pause();
        tokio::time::advance(2 * Roots::FRESH).await;
        assert!(Arc::ptr_eq(&first, &ROOTS.verifier().await.unwrap()), "a check waits for the new ones");
        read(3).await;
        assert!(Arc::ptr_eq(&first, &ROOTS.verifier().await.unwrap()), "none took the place of some");
        tokio::time::advance(2 * Roots::FRESH).await;
        ROOTS.verifier().await.unwrap();
        read(4).await;
        while Arc::ptr_eq(&first, &ROOTS.verifier().await.unwrap()) {
            tokio::task::yield_now().await;
        }
    }
}
