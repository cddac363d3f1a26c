//! The certificate that a check presents to servers that request a client certificate.

use std::{io, sync::Arc};

use balancer_config::config::ClientFiles;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _};

use super::files::{NeededFiles, WatchedFile};

/// A certificate, followed by the intermediate certificates up to a root.
pub(super) type Chain = Arc<Vec<CertificateDer<'static>>>;

/// The files that contain a certificate and its key.
pub(super) struct Identity {
    cert: Arc<WatchedFile<Chain>>,
    key: Arc<WatchedFile<Key>>,
    files: ClientFiles,
}

/// The private key of a certificate.
#[derive(Clone)]
pub(super) struct Key(Arc<PrivateKeyDer<'static>>);

/// The certificate and the key from the files, which may not match each other.
#[derive(Clone)]
pub(super) struct CertificateAndKey {
    pub(super) chain: Chain,
    key: Key,
}

impl CertificateAndKey {
    pub(super) fn key(&self) -> PrivateKeyDer<'static> {
        self.key.0.clone_key()
    }

    /// Whether both pairs were read from the same versions of the files.
    pub(super) fn is(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.chain, &other.chain) && Arc::ptr_eq(&self.key.0, &other.key.0)
    }
}

impl Identity {
    pub(super) fn of(files: &ClientFiles) -> Self {
        static CERTS: NeededFiles<Chain> = NeededFiles::new(chain);
        static KEYS: NeededFiles<Key> = NeededFiles::new(key);
        let key = files.key.as_ref().unwrap_or(&files.cert);
        Self { cert: CERTS.file(&files.cert), key: KEYS.file(key), files: files.clone() }
    }

    /// Returns the certificate and the key that the files currently contain.
    ///
    /// # Errors
    /// Fails with an error that names the missing or invalid file.
    pub(super) async fn pair(&self) -> io::Result<CertificateAndKey> {
        let named = |what: &'static str| move |error| io::Error::other(format!("the {what} {error}"));
        let chain = self.cert.contents().await.map_err(named("client_cert"))?;
        let of_key = if self.files.key.is_some() { "client_key" } else { "client_cert" };
        let key = self.key.contents().await.map_err(named(of_key))?;
        Ok(CertificateAndKey { chain, key })
    }

    /// Formats the names of the files, as the subject of a sentence.
    pub(super) fn names(&self) -> String {
        let cert = self.files.cert.display();
        match &self.files.key {
            Some(key) => format!("the client_cert {cert} with the client_key {}", key.display()),
            None => format!("the client_cert {cert} with its key"),
        }
    }
}

fn chain(bytes: Vec<u8>) -> Result<Chain, String> {
    let found = CertificateDer::pem_slice_iter(&bytes).collect::<Result<Vec<_>, _>>();
    let found = found.map_err(|error| format!("is not PEM: {error}"))?;
    if found.is_empty() { Err("holds no certificate in PEM".to_owned()) } else { Ok(Arc::new(found)) }
}

fn key(bytes: Vec<u8>) -> Result<Key, String> {
    let key = PrivateKeyDer::from_pem_slice(&bytes);
    key.map(|key| Key(Arc::new(key))).map_err(|_| "holds no private key in PEM without a password".to_owned())
}
