//! The names in a client certificate, which determine the client's role.

use std::{fmt, sync::Arc};

use tokio_rustls::rustls::pki_types::CertificateDer;
use webpki::EndEntityCert;

/// The object identifier of a common name, 2.5.4.3.
const COMMON_NAME: [u8; 3] = [0x55, 0x04, 0x03];
/// The DER string types that a common name may have: UTF8String, PrintableString, IA5String.
const TEXTS: [u8; 3] = [0x0c, 0x13, 0x16];
const SEQUENCE: u8 = 0x30;
const SET: u8 = 0x31;
const OBJECT_IDENTIFIER: u8 = 0x06;

/// The common name in a certificate, if there is one, followed by the certificate's DNS names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct CertificateNames {
    has_common_name: bool,
    names: Arc<[String]>,
}

impl CertificateNames {
    /// Reads the names in a verified certificate.
    pub(super) fn of(certificate: &CertificateDer<'_>) -> Self {
        let Ok(certificate) = EndEntityCert::try_from(certificate) else {
            return Self { has_common_name: false, names: Arc::default() };
        };
        let common = common_name(certificate.subject()).filter(|name| is_plain(name));
        let others = certificate.valid_dns_names().filter(|name| is_plain(name));
        let names = common.iter().copied().chain(others).map(str::to_owned).collect();
        Self { has_common_name: common.is_some(), names }
    }

    /// The names of a certificate that contains only this common name.
    #[cfg(test)]
    pub(crate) fn named(common_name: &str) -> Self {
        Self { has_common_name: true, names: Arc::new([common_name.to_owned()]) }
    }

    pub(super) fn all(&self) -> impl Iterator<Item = &str> {
        self.names.iter().map(String::as_str)
    }
}

/// Writes the first of the names.
impl fmt::Display for CertificateNames {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.names.first() {
            Some(name) if self.has_common_name => write!(f, "CN={name}"),
            Some(name) => write!(f, "DNS:{name}"),
            None => f.write_str("without a name"),
        }
    }
}

/// Whether a name can appear unchanged in a message.
fn is_plain(name: &str) -> bool {
    !name.is_empty() && name.len() <= 255 && !name.contains(char::is_control)
}

/// The common name in a certificate's subject, if there is exactly one.
fn common_name(subject: &[u8]) -> Option<&str> {
    let mut found = None;
    let mut sets = subject;
    while !sets.is_empty() {
        let (mut attributes, rest) = element(sets, SET)?;
        sets = rest;
        while !attributes.is_empty() {
            let (attribute, rest) = element(attributes, SEQUENCE)?;
            attributes = rest;
            let (kind, value) = element(attribute, OBJECT_IDENTIFIER)?;
            if kind != COMMON_NAME {
                continue;
            }
            let tag = value.first().copied().filter(|tag| TEXTS.contains(tag))?;
            let (text, _) = element(value, tag)?;
            if found.replace(std::str::from_utf8(text).ok()?).is_some() {
                return None;
            }
        }
    }
    found
}

/// The contents of the first element of DER data, if the element has this tag, and the bytes after the element.
fn element(bytes: &[u8], tag: u8) -> Option<(&[u8], &[u8])> {
    let (&first, rest) = bytes.split_first()?;
    let (&length, rest) = rest.split_first()?;
    let (length, rest) = match length {
        0..=0x7f => (usize::from(length), rest),
        0x81 => rest.split_first().map(|(&length, rest)| (usize::from(length), rest))?,
        0x82 => rest.split_first_chunk().map(|(&length, rest)| (usize::from(u16::from_be_bytes(length)), rest))?,
        _ => return None,
    };
    if first == tag { rest.split_at_checked(length) } else { None }
}

#[cfg(test)]
mod tests {
    use rcgen::{CertificateParams, DistinguishedName, DnType, KeyPair};

    use super::*;

    fn names(subject: &[(DnType, &str)], dns: &[&str]) -> CertificateNames {
        let mut params = CertificateParams::new(dns.iter().map(|&name| name.to_owned()).collect::<Vec<_>>()).unwrap();
        params.distinguished_name = DistinguishedName::new();
        for (kind, value) in subject {
            params.distinguished_name.push(kind.clone(), *value);
        }
        let certificate = params.self_signed(&KeyPair::generate().unwrap()).unwrap();
        CertificateNames::of(certificate.der())
    }

    #[test]
    fn when_a_certificate_has_names_then_they_are_read() {
        let organization = (DnType::OrganizationName, "Example");
        let long = "n".repeat(200);
        for (subject, dns, shown, all) in [
            (&[(DnType::CommonName, "deploy")][..], &[][..], "CN=deploy", &["deploy"][..]),
            (&[organization.clone(), (DnType::CommonName, "märz")], &[], "CN=märz", &["märz"]),
            (&[(DnType::CommonName, long.as_str())], &["a.example"], &format!("CN={long}"), &[&long, "a.example"]),
            (&[organization], &["a.example", "b.example"], "DNS:a.example", &["a.example", "b.example"]),
            (&[], &[], "without a name", &[]),
            (&[(DnType::CommonName, "two\nlines")], &[], "without a name", &[]),
        ] {
            let names = names(subject, dns);
            assert_eq!((names.to_string(), names.all().collect::<Vec<_>>()), (shown.to_owned(), all.to_vec()));
        }
    }

    #[test]
    fn when_a_subject_is_broken_or_has_two_common_names_then_there_is_none() {
        let attribute = |text: &str| {
            let mut bytes =
                vec![SEQUENCE, text.len() as u8 + 7, OBJECT_IDENTIFIER, 3, 0x55, 0x04, 0x03, 0x0c, text.len() as u8];
            bytes.extend(text.as_bytes());
            [vec![SET, bytes.len() as u8], bytes].concat()
        };
        let one = attribute("deploy");
        assert_eq!(common_name(&one), Some("deploy"));
        assert_eq!(common_name(&[one.clone(), attribute("admin")].concat()), None);
        for end in 1..one.len() {
            assert_eq!(common_name(&one[..end]), None, "{end}");
        }
        let mut other = one.clone();
        // The changed byte turns the type into BMPString, in which each character has two bytes.
        other[9] = 0x1e;
        assert_eq!(common_name(&other), None);
    }
}
