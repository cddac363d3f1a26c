//! The certificates by which client and server identify themselves. The balancer rereads the certificate files when
//! they change.

use std::{
    path::Path,
    sync::Arc,
    time::{Duration, UNIX_EPOCH},
};

use balancer_config::{
    control::{Remote, Role},
    file::contents,
};
use balancer_runtime::{
    clocks::wall,
    file_version::{Version, version},
};
use tokio::{
    sync::Mutex,
    task::spawn_blocking,
    time::{Instant, timeout},
};
use tokio_rustls::rustls::{
    RootCertStore, ServerConfig,
    crypto::ring,
    pki_types::{CertificateDer, PrivateKeyDer, UnixTime, pem::PemObject as _},
    server::{NoServerSessionStorage, WebPkiClientVerifier, danger::ClientCertVerifier},
};
use tracing::{info, warn};

use super::super::certificate::CertificateNames;

/// When a client connects, the balancer checks the certificate files again if the last check was longer ago than this.
const LOOK: Duration = Duration::from_secs(1);
/// The maximum time that a caller waits for the certificate files if it needs their contents.
const PATIENCE: Duration = Duration::from_secs(5);
/// The maximum time that a caller waits for the certificate files if it only asks for a fault.
const SOON: Duration = Duration::from_millis(500);
/// The maximum size of a certificate file, in MiB.
const LARGEST: u64 = 1;

/// The balancer's certificate, the authority that signs client certificates, and the roles of clients.
#[derive(Debug)]
pub struct Identity {
    remote: Remote,
    known: Arc<Mutex<Known>>,
}

#[derive(Debug, Default)]
struct Known {
    looked: Option<Instant>,
    versions: Option<[Version; 3]>,
    /// What follows from the last valid contents of the certificate files.
    trust: Option<Trust>,
    /// The fault in the current contents of the certificate files.
    fault: Option<String>,
}

/// The TLS settings, and the verifier of client certificates that they use.
#[derive(Clone, Debug)]
struct Trust {
    settings: Arc<ServerConfig>,
    verifier: Arc<dyn ClientCertVerifier>,
}

impl Identity {
    pub(crate) fn new(remote: Remote) -> Self {
        Self { remote, known: Arc::default() }
    }

    /// Returns the TLS settings from the current certificate files, or from their last valid contents.
    ///
    /// # Errors
    /// Fails if the files have never been valid; the error names the configuration key of the faulty file and the
    /// fault.
    pub(crate) async fn settings(&self) -> Result<Arc<ServerConfig>, String> {
        Ok(self.trust().await?.settings)
    }

    async fn trust(&self) -> Result<Trust, String> {
        let mut known = Arc::clone(&self.known).lock_owned().await;
        if known.looked.is_none_or(|looked| looked.elapsed() >= LOOK) {
            let remote = self.remote.clone();
            // The read continues even if no caller waits any longer, so that a hanging file system blocks only one
            // thread.
            let look = spawn_blocking(move || {
                known.look(&remote);
                known
            });
            known = look.await.map_err(|error| error.to_string())?;
        }
        known.trust.clone().ok_or_else(|| known.fault.clone().unwrap_or_default())
    }

    /// Verifies a client's certificate by the current certificate files at this time.
    ///
    /// # Errors
    /// Fails if the certificate has expired, or if no current authority has signed the certificate.
    pub(super) async fn verify(&self, chain: &[CertificateDer<'static>]) -> Result<(), String> {
        let late = |_| "reading client_ca takes too long".to_owned();
        let Trust { verifier, .. } = timeout(PATIENCE, self.trust()).await.map_err(late)??;
        let (own, others) = chain.split_first().ok_or_else(|| "there is none".to_owned())?;
        let now = UnixTime::since_unix_epoch(wall().duration_since(UNIX_EPOCH).unwrap_or_default());
        verifier.verify_client_cert(own, others, now).map(drop).map_err(|error| error.to_string())
    }

    /// Checks the certificate files like [`settings`](Self::settings), but waits only briefly.
    ///
    /// # Errors
    /// Fails if [`settings`](Self::settings) would fail, or if the balancer cannot read the files in time.
    pub(crate) async fn check(&self) -> Result<(), String> {
        let late = |_| "reading cert, key and client_ca takes too long".to_owned();
        timeout(PATIENCE, self.settings()).await.map_err(late)?.map(drop)
    }

    /// Returns the fault in the certificate files while the balancer uses their previous contents. The function returns
    /// soon, even if the balancer cannot read the files.
    pub(crate) async fn trouble(&self) -> Option<String> {
        let fault = async {
            let _ = self.settings().await;
            self.known.lock().await.fault.clone()
        };
        let fault = match timeout(SOON, fault).await {
            Ok(fault) => fault?,
            Err(_) => "reading the files of its certificates takes too long".to_owned(),
        };
        Some(format!("the control listener keeps its previous certificates: [control] {fault}"))
    }

    /// The role of a client whose certificate has these names.
    pub(super) fn role(&self, names: &CertificateNames) -> Option<Role> {
        self.remote.role(names.all())
    }
}

impl Known {
    /// Reads the certificate files if one of them has changed, or if the last read found a fault.
    fn look(&mut self, remote: &Remote) {
        // The file versions are determined before the read, so that a write in between causes another read.
        let versions = [&remote.cert, &remote.key, &remote.client_ca].map(|path| version(path));
        if self.fault.is_some() || self.versions != Some(versions) {
            match load(remote) {
                Ok(trust) => {
                    if self.trust.replace(trust).is_some() {
                        info!("the certificates of the control listener were read again");
                    }
                    self.fault = None;
                }
                Err(fault) => {
                    if self.fault.as_ref() != Some(&fault) {
                        warn!("the control listener: [control] {fault}");
                    }
                    self.fault = Some(fault);
                }
            }
        }
        (self.versions, self.looked) = (Some(versions), Some(Instant::now()));
    }
}

fn load(remote: &Remote) -> Result<Trust, String> {
    let of = |key: &'static str, path: &Path| {
        let named = format!("{key} {}", path.display());
        move |fault: String| format!("{named} {fault}")
    };
    let cert = read_certificates(&remote.cert).map_err(of("cert", &remote.cert))?;
    let key = read_key(&remote.key).map_err(of("key", &remote.key))?;
    let authorities = read_certificates(&remote.client_ca).map_err(of("client_ca", &remote.client_ca))?;
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(authorities);
    let provider = Arc::new(ring::default_provider());
    let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), Arc::clone(&provider))
        .build()
        .map_err(|error| of("client_ca", &remote.client_ca)(format!("cannot be used: {error}")))?;
    let mut settings = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| error.to_string())?
        .with_client_cert_verifier(Arc::clone(&verifier))
        .with_single_cert(cert, key)
        .map_err(|error| of("cert", &remote.cert)(format!("and key {} do not fit: {error}", remote.key.display())))?;
    settings.alpn_protocols = vec![b"http/1.1".to_vec()];
    // Without session storage, every client presents its certificate on each connection, and the balancer verifies the
    // certificate each time.
    settings.session_storage = Arc::new(NoServerSessionStorage {});
    settings.send_tls13_tickets = 0;
    Ok(Trust { settings: Arc::new(settings), verifier })
}

fn read_certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, String> {
    let bytes = contents::read(path, LARGEST)?;
    let found = CertificateDer::pem_slice_iter(&bytes).collect::<Result<Vec<_>, _>>();
    let found = found.map_err(|error| format!("is not PEM: {error}"))?;
    if found.is_empty() { Err("holds no certificate in PEM".to_owned()) } else { Ok(found) }
}

fn read_key(path: &Path) -> Result<PrivateKeyDer<'static>, String> {
    let bytes = contents::read(path, LARGEST)?;
    PrivateKeyDer::from_pem_slice(&bytes).map_err(|error| format!("holds no private key in PEM: {error}"))
}
