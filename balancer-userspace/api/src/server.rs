//! A controller on another machine, and the certificates by which client and server identify themselves.

use std::{
    fmt,
    path::{Path, PathBuf},
    sync::Arc,
};

use hyper::Uri;
use tokio::net::TcpStream;
use tokio_rustls::{
    TlsConnector,
    client::TlsStream,
    rustls::{
        ClientConfig, RootCertStore,
        crypto::ring,
        pki_types::{CertificateDer, PrivateKeyDer, ServerName, pem::PemObject as _},
    },
};

/// The port of a control listener, if the URL names no port.
pub const DEFAULT_PORT: u16 = 9661;

/// The control listener of a balancer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Server {
    host: String,
    port: u16,
    ca: PathBuf,
    cert: PathBuf,
    key: PathBuf,
}

impl Server {
    /// Makes the description of the server at `url`. A certificate authority in the file `ca` must have signed the
    /// server's certificate. The client presents the certificate in the file `cert`; the file `key` has the private
    /// key. The client reads all three files again for each connection.
    ///
    /// # Errors
    /// Fails if `url` is not the URL of a control listener.
    pub fn new(url: &str, ca: &Path, cert: &Path, key: &Path) -> Result<Self, String> {
        let wrong = || {
            format!(
                "{url:?} is not a control listener; write https://HOST:PORT, such as \"https://lb1:{DEFAULT_PORT}\""
            )
        };
        let uri: Uri = url.parse().map_err(|_| wrong())?;
        let authority = uri.authority().filter(|authority| !authority.as_str().contains('@')).ok_or_else(wrong)?;
        if uri.scheme_str() != Some("https") || uri.path() != "/" || uri.query().is_some() {
            return Err(wrong());
        }
        let host = authority.host().trim_start_matches('[').trim_end_matches(']').to_owned();
        let port = authority.port_u16().unwrap_or(DEFAULT_PORT);
        ServerName::try_from(host.as_str()).map_err(|_| wrong())?;
        Ok(Self { host, port, ca: ca.to_owned(), cert: cert.to_owned(), key: key.to_owned() })
    }

    /// Connects to the server.
    ///
    /// # Errors
    /// Fails with the reason why the connection was not established.
    pub(crate) async fn connect(&self) -> Result<TlsStream<TcpStream>, String> {
        let connector = self.connector()?;
        let name = ServerName::try_from(self.host.clone()).map_err(|error| error.to_string())?;
        let stream = TcpStream::connect((self.host.as_str(), self.port)).await.map_err(|error| error.to_string())?;
        connector.connect(name, stream).await.map_err(|error| error.to_string())
    }

    fn connector(&self) -> Result<TlsConnector, String> {
        let at = |path: &Path| {
            let path = path.display().to_string();
            move |why: &dyn fmt::Display| format!("{path}: {why}")
        };
        let mut roots = RootCertStore::empty();
        roots.add_parsable_certificates(certificates(&self.ca)?);
        let key = PrivateKeyDer::from_pem_file(&self.key).map_err(|error| at(&self.key)(&error))?;
        let settings = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()
            .map_err(|error| error.to_string())?
            .with_root_certificates(roots)
            .with_client_auth_cert(certificates(&self.cert)?, key)
            .map_err(|error| at(&self.cert)(&error))?;
        Ok(TlsConnector::from(Arc::new(settings)))
    }
}

/// Formats the server in the same way as in the URL.
impl fmt::Display for Server {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { host, port, .. } = self;
        if host.contains(':') { write!(f, "https://[{host}]:{port}") } else { write!(f, "https://{host}:{port}") }
    }
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, String> {
    let cannot = |error: &dyn fmt::Display| format!("{}: {error}", path.display());
    let found = CertificateDer::pem_file_iter(path).map_err(|error| cannot(&error))?;
    let found = found.collect::<Result<Vec<_>, _>>().map_err(|error| cannot(&error))?;
    if found.is_empty() { Err(cannot(&"it holds no certificate in PEM")) } else { Ok(found) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn when_a_url_names_a_control_listener_then_it_is_understood() {
        let server = |url: &str| Server::new(url, "/ca".as_ref(), "/cert".as_ref(), "/key".as_ref());
        for (url, shown) in [
            ("https://lb1", "https://lb1:9661"),
            ("https://lb1.example.com:443/", "https://lb1.example.com:443"),
            ("https://192.0.2.1:9661", "https://192.0.2.1:9661"),
            ("https://[2001:db8::1]", "https://[2001:db8::1]:9661"),
        ] {
            assert_eq!(server(url).unwrap().to_string(), shown);
        }
        for url in ["", "lb1", "http://lb1:9661", "https://lb1/v1", "https://lb1?x=1", "https://me@lb1", "https://l b"]
        {
            let error = server(url).unwrap_err();
            assert!(error.contains("is not a control listener; write https://HOST:PORT"), "{error}");
        }
    }
}
