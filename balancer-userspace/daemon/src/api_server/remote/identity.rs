//! The certificates by which both ends of a connection are known. Files are read again when they change.

use std::{path::Path, sync::Arc, time::Duration};

use balancer_config::{
    control::{Remote, Role},
    file::contents,
};
use tokio::{
    sync::Mutex,
    task::spawn_blocking,
    time::{Instant, timeout},
};
use tokio_rustls::rustls::{
    RootCertStore, ServerConfig,
    crypto::ring,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _},
    server::{NoServerSessionStorage, WebPkiClientVerifier},
};
use tracing::{info, warn};

use super::names::Names;
use crate::followed_files::{Version, version};

/// How old what is known of the files may be when somebody connects.
const LOOK: Duration = Duration::from_secs(1);
/// How long whoever wants to use the files waits for them.
const PATIENCE: Duration = Duration::from_secs(5);
/// How long whoever asks for the fault in them waits.
const SOON: Duration = Duration::from_millis(500);
/// The largest file, in MiB.
const LARGEST: u64 = 1;

/// The balancer's certificate, and the authority and roles of its clients.
#[derive(Debug)]
pub(crate) struct Identity {
    remote: Remote,
    known: Arc<Mutex<Known>>,
}

#[derive(Debug, Default)]
struct Known {
    looked: Option<Instant>,
    versions: Option<[Version; 3]>,
    /// As they were when they were right.
    settings: Option<Arc<ServerConfig>>,
    /// The fault in what the files have now.
    fault: Option<String>,
}

impl Identity {
    pub(crate) fn new(remote: Remote) -> Self {
        Self { remote, known: Arc::default() }
    }

    /// The settings by the files as they are now, or were when they were last right.
    ///
    /// # Errors
    /// The key of the configuration whose file has a fault, and the fault, if they have never been right.
    pub(crate) async fn settings(&self) -> Result<Arc<ServerConfig>, String> {
        let mut known = Arc::clone(&self.known).lock_owned().await;
        if known.looked.is_none_or(|looked| looked.elapsed() >= LOOK) {
            let remote = self.remote.clone();
            // It goes on where nobody waits for it any more: a file system that does not answer holds one thread only.
            let look = spawn_blocking(move || {
                known.look(&remote);
                known
            });
            known = look.await.map_err(|error| error.to_string())?;
        }
        known.settings.clone().ok_or_else(|| known.fault.clone().unwrap_or_default())
    }

    /// The same, soon.
    ///
    /// # Errors
    /// As [`settings`](Self::settings), and when the files are not read in time.
    pub(crate) async fn check(&self) -> Result<(), String> {
        let late = |_| "cert, key and client_ca are not read in time".to_owned();
        timeout(PATIENCE, self.settings()).await.map_err(late)?.map(drop)
    }

    /// The fault in the files, while what they had before is used. Returns soon, also where they are not read.
    pub(crate) async fn trouble(&self) -> Option<String> {
        let fault = async {
            let _ = self.settings().await;
            self.known.lock().await.fault.clone()
        };
        let fault = match timeout(SOON, fault).await {
            Ok(fault) => fault?,
            Err(_) => "the files of its certificates are not read in time".to_owned(),
        };
        Some(format!("the control listener goes on with the certificates that it had before: [control] {fault}"))
    }

    /// The role of whoever goes by these names.
    pub(super) fn role(&self, names: &Names) -> Option<Role> {
        self.remote.role(names.all())
    }
}

impl Known {
    /// Reads the files if one is another one, or had a fault.
    fn look(&mut self, remote: &Remote) {
        // The versions are those before the read, so that a write meanwhile makes another one.
        let versions = [&remote.cert, &remote.key, &remote.client_ca].map(|path| version(path));
        if self.fault.is_some() || self.versions != Some(versions) {
            match load(remote) {
                Ok(settings) => {
                    if self.settings.replace(Arc::new(settings)).is_some() {
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

fn load(remote: &Remote) -> Result<ServerConfig, String> {
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
        .with_client_cert_verifier(verifier)
        .with_single_cert(cert, key)
        .map_err(|error| of("cert", &remote.cert)(format!("and key {} do not fit: {error}", remote.key.display())))?;
    settings.alpn_protocols = vec![b"http/1.1".to_vec()];
    // Everybody shows a certificate each time, which is verified as of then.
    settings.session_storage = Arc::new(NoServerSessionStorage {});
    settings.send_tls13_tickets = 0;
    Ok(settings)
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
