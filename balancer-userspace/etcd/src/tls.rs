//! Reads certificates and private keys from files.

use std::{fs, path::Path};

use rustls_pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _};
use tonic::transport::{Certificate, ClientTlsConfig, Identity};

use crate::Settings;

/// Returns the TLS configuration for a connection to `host`, made from the current contents of the files.
pub(crate) fn config(settings: &Settings, host: &str) -> Result<ClientTlsConfig, String> {
    let mut config = ClientTlsConfig::new().domain_name(host);
    config = match &settings.ca {
        Some(path) => config.ca_certificate(Certificate::from_pem(certificates(path)?)),
        None => config.with_native_roots(),
    };
    if let (Some(cert), Some(key)) = (&settings.cert, &settings.key) {
        config = config.identity(Identity::from_pem(certificates(cert)?, private_key(key)?));
    }
    Ok(config)
}

fn certificates(path: &Path) -> Result<Vec<u8>, String> {
    let pem = read(path)?;
    let found = CertificateDer::pem_slice_iter(&pem).collect::<Result<Vec<_>, _>>();
    match found {
        Ok(found) if found.is_empty() => Err(format!("{}: no certificate in it (PEM)", path.display())),
        Ok(_) => Ok(pem),
        Err(error) => Err(format!("{}: {error}", path.display())),
    }
}

fn private_key(path: &Path) -> Result<Vec<u8>, String> {
    let pem = read(path)?;
    match PrivateKeyDer::from_pem_slice(&pem) {
        Ok(_) => Ok(pem),
        Err(error) => Err(format!("{}: no private key in it (PEM): {error}", path.display())),
    }
}

fn read(path: &Path) -> Result<Vec<u8>, String> {
    fs::read(path).map_err(|error| format!("{}: {error}", path.display()))
}
