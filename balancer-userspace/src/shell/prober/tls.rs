//! TLS under the `https` check.

use std::{
    io,
    sync::{Arc, OnceLock},
};

use tokio_rustls::{
    TlsConnector,
    rustls::{
        CipherSuite, ClientConfig, DigitallySignedStruct, Error, RootCertStore, SignatureScheme,
        client::{
            Resumption, WebPkiServerVerifier,
            danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
        },
        crypto::{CryptoProvider, ring},
        pki_types::{CertificateDer, ServerName, UnixTime},
    },
};

use super::check::reason;
use crate::{config::model::Tls, core::io::CheckOutcome};

/// The settings, made once for all checks.
///
/// # Errors
/// When certificates are to be verified and this machine has none to start from.
pub(super) fn connector(tls: Tls) -> io::Result<TlsConnector> {
    static CAREFUL: OnceLock<Result<TlsConnector, String>> = OnceLock::new();
    static CURIOUS: OnceLock<Result<TlsConnector, String>> = OnceLock::new();
    let made = if tls.verify { CAREFUL.get_or_init(careful) } else { CURIOUS.get_or_init(curious) };
    made.clone().map_err(io::Error::other)
}

/// Verifies certificates by the system's roots.
fn careful() -> Result<TlsConnector, String> {
    let found = rustls_native_certs::load_native_certs();
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(found.certs);
    if roots.is_empty() {
        return Err("tls_verify = true finds no root certificates (install ca-certificates)".to_owned());
    }
    let verifier = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider()).build();
    settings(verifier.map_err(|error| error.to_string())?)
}

/// Takes every certificate: only whether the server answers is asked.
fn curious() -> Result<TlsConnector, String> {
    settings(Arc::new(Unverified))
}

fn provider() -> Arc<CryptoProvider> {
    static PROVIDER: OnceLock<Arc<CryptoProvider>> = OnceLock::new();
    Arc::clone(PROVIDER.get_or_init(|| {
        let mut provider = ring::default_provider();
        // What is said is no secret: the cheapest first.
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
    // Each check is a connection as a new client makes it.
    config.resumption = Resumption::disabled();
    Ok(TlsConnector::from(Arc::new(config)))
}

/// Whether an error of a connection is TLS's and not the network's: somebody answers.
pub(super) fn is_refusal(error: &io::Error) -> bool {
    rustls_error(error).is_some()
}

/// What a failure to speak TLS means.
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
