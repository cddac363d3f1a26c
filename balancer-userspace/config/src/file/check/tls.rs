//! The keys of checks over TLS.

use rustls_pki_types::ServerName;

use super::Keys;
use crate::{
    config::ClientFiles,
    file::{findings::Findings, section::Section},
    value,
};

/// Reads the keys that concern TLS. A `ca_file` in the check itself implies verification. If the check itself contains
/// `tls_verify = false`, the `ca_file` of the service has no effect. A `client_cert` in the check itself replaces both
/// the certificate and the key of the service's check.
pub(super) fn tls(section: &mut Section<'_>, keys: &mut Keys, findings: &mut Findings<'_>) {
    let verify = section.boolean("tls_verify", findings);
    let ca_file = section.text("ca_file", findings, value::absolute_path);
    let sni = section.text("sni", findings, server_name);
    match (verify, ca_file) {
        (Some(false), Some(ca_file)) => {
            let error = "ca_file is given, and tls_verify = false lets every certificate pass; remove one of them";
            findings.error(ca_file.at, error.to_owned());
        }
        (Some(false), None) => (keys.tls_verify, keys.ca_file) = (Some(false), None),
        (_, Some(ca_file)) => (keys.tls_verify, keys.ca_file) = (Some(true), Some(ca_file.value)),
        (verify, None) => keys.tls_verify = verify.or(keys.tls_verify),
    }
    keys.sni = sni.map(|sni| sni.value).or(keys.sni.take());
    keys.client = client(section, findings).or(keys.client.take());
}

fn client(section: &mut Section<'_>, findings: &mut Findings<'_>) -> Option<ClientFiles> {
    let is_lone = !section.has("client_cert");
    let cert = section.text("client_cert", findings, value::absolute_path);
    let key = section.text("client_key", findings, value::absolute_path);
    if let Some(key) = &key
        && is_lone
    {
        findings.error(key.at, "client_key is given without its client_cert; give both".to_owned());
    }
    Some(ClientFiles { cert: cert?.value, key: key.map(|key| key.value) })
}

/// Checks that the server name is valid.
fn server_name(text: &str) -> Result<String, String> {
    match ServerName::try_from(text) {
        Ok(_) => Ok(text.to_owned()),
        Err(_) => Err(format!(
            "{} is not a server name for TLS; write one without a port, such as \"www.example.com\"",
            value::quoted(text)
        )),
    }
}
