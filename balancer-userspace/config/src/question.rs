//! Health checks over UDP: the datagrams that these checks send, and the answers that they expect.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};

use crate::value::{hex_bytes, quoted};

/// A health check that sends a datagram and waits for an answer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct UdpCheck {
    /// The port to which the check sends the datagram, in place of the backend's port.
    pub port: Option<u16>,
    /// The datagram that the check sends.
    pub send: Payload,
    /// The bytes that the answer must contain; `None`: the check accepts any answer.
    pub expect: Option<Payload>,
}

/// A health check that sends a DNS query.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DnsCheck {
    /// The port to which the check sends the query, in place of the backend's port.
    pub port: Option<u16>,
    /// The name that the check queries.
    pub name: DnsName,
    /// The type of the DNS record that the check queries.
    pub record: Record,
    /// The response codes that the check accepts; the list is not empty.
    pub expect_rcode: Vec<Rcode>,
}

/// The bytes that a check sends, written as text, or as `hex:` with pairs of hexadecimal digits.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Payload(pub Vec<u8>);

impl Payload {
    /// The maximum length of a datagram in bytes, so that the datagram fits into one packet on every network.
    pub const MAX: usize = 1200;
    const HEX: &'static str = "hex:";
}

impl FromStr for Payload {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let bytes = match text.strip_prefix(Self::HEX) {
            None => text.as_bytes().to_vec(),
            Some(digits) => hex_bytes(&digits.replace(' ', "")).ok_or_else(|| {
                format!(
                    "{} is not \"hex:\" and pairs of hexadecimal digits; write bytes such as \"hex:00 ff 1b\"",
                    quoted(text)
                )
            })?,
        };
        if bytes.len() > Self::MAX {
            return Err(format!("{} bytes are too many to send; give at most {}", bytes.len(), Self::MAX));
        }
        Ok(Self(bytes))
    }
}

impl fmt::Display for Payload {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match str::from_utf8(&self.0) {
            Ok(text) if !text.starts_with(Self::HEX) => f.write_str(text),
            Ok(_) | Err(_) => {
                f.write_str(Self::HEX)?;
                self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
            }
        }
    }
}

impl TryFrom<String> for Payload {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl From<Payload> for String {
    fn from(payload: Payload) -> Self {
        payload.to_string()
    }
}

/// A domain name without its final dot; the root is written as a dot.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct DnsName(String);

impl DnsName {
    const MAX: usize = 253;
    const MAX_LABEL: usize = 63;

    /// The root of the tree of domain names.
    #[must_use]
    pub fn root() -> Self {
        Self(".".to_owned())
    }

    /// The labels of the name from left to right; the root has no label.
    pub fn labels(&self) -> impl Iterator<Item = &str> {
        self.0.split('.').filter(|label| !label.is_empty())
    }
}

impl FromStr for DnsName {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text == "." {
            return Ok(Self::root());
        }
        let bare = text.strip_suffix('.').unwrap_or(text);
        let fits = |label: &str| {
            (1..=Self::MAX_LABEL).contains(&label.len())
                && label.bytes().all(|byte| byte.is_ascii_graphic() && byte != b'\\')
        };
        if bare.len() <= Self::MAX && bare.split('.').all(fits) {
            return Ok(Self(bare.to_owned()));
        }
        Err(format!(
            "{} is not a domain name; write labels of 1 to 63 ASCII characters, such as \"www.example.com\", or \".\"",
            quoted(text)
        ))
    }
}

impl fmt::Display for DnsName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl TryFrom<String> for DnsName {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl From<DnsName> for String {
    fn from(name: DnsName) -> Self {
        name.0
    }
}

/// A type of DNS record, given by its number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
#[repr(u16)]
#[expect(missing_docs, reason = "the names are DNS's own")]
pub enum Record {
    A = 1,
    Ns = 2,
    Cname = 5,
    Soa = 6,
    Ptr = 12,
    Mx = 15,
    Txt = 16,
    Aaaa = 28,
    Srv = 33,
    Https = 65,
}

impl Record {
    /// All types of DNS records that have a name here, with these names.
    pub const WORDS: [(&'static str, Self); 10] = [
        ("A", Self::A),
        ("AAAA", Self::Aaaa),
        ("CNAME", Self::Cname),
        ("HTTPS", Self::Https),
        ("MX", Self::Mx),
        ("NS", Self::Ns),
        ("PTR", Self::Ptr),
        ("SOA", Self::Soa),
        ("SRV", Self::Srv),
        ("TXT", Self::Txt),
    ];

    /// The number of the record type in a DNS message.
    #[must_use]
    pub const fn number(self) -> u16 {
        self as u16
    }
}

impl fmt::Display for Record {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(word(*self, &Self::WORDS))
    }
}

/// A DNS response code, given by its number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
#[repr(u8)]
#[expect(missing_docs, reason = "the names are DNS's own")]
pub enum Rcode {
    NoError = 0,
    FormErr = 1,
    ServFail = 2,
    NxDomain = 3,
    NotImp = 4,
    Refused = 5,
    NotAuth = 9,
}

impl Rcode {
    /// All response codes that have a name here, with these names.
    pub const WORDS: [(&'static str, Self); 7] = [
        ("NOERROR", Self::NoError),
        ("FORMERR", Self::FormErr),
        ("SERVFAIL", Self::ServFail),
        ("NXDOMAIN", Self::NxDomain),
        ("NOTIMP", Self::NotImp),
        ("REFUSED", Self::Refused),
        ("NOTAUTH", Self::NotAuth),
    ];

    /// The number of the response code in a DNS message.
    #[must_use]
    pub fn from_number(number: u8) -> Option<Self> {
        Self::WORDS.into_iter().map(|(_, code)| code).find(|code| *code as u8 == number)
    }
}

impl fmt::Display for Rcode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(word(*self, &Self::WORDS))
    }
}

fn word<T: PartialEq>(value: T, words: &[(&'static str, T)]) -> &'static str {
    words.iter().find(|(_, of)| *of == value).map_or("", |(word, _)| word)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn when_a_payload_is_text_or_hexadecimal_then_its_bytes_are_known() {
        let bytes = |text: &str| text.parse::<Payload>().map(|payload| payload.0);
        assert_eq!(bytes("ping\n"), Ok(b"ping\n".to_vec()));
        assert_eq!(bytes(""), Ok(vec![]));
        assert_eq!(bytes("hex:00 fF1b"), Ok(vec![0, 0xff, 0x1b]));
        for wrong in ["hex:0", "hex:0g", "hex:+1", "hex:é"] {
            assert!(bytes(wrong).is_err(), "{wrong}");
        }
        assert!(bytes(&"x".repeat(Payload::MAX + 1)).is_err());
    }

    #[test]
    fn when_a_payload_is_written_then_it_is_read_as_it_was() {
        for bytes in [&b"ping"[..], b"hex:00", b"\xff\x00", b""] {
            let payload = Payload(bytes.to_vec());
            assert_eq!(payload.to_string().parse(), Ok(payload));
        }
    }

    #[test]
    fn when_a_name_is_no_domain_name_then_it_is_refused() {
        let labels = |text: &str| text.parse::<DnsName>().map(|name| name.labels().map(str::to_owned).collect());
        assert_eq!(labels("."), Ok(vec![]));
        assert_eq!(labels("www.example.com."), Ok(["www", "example", "com"].map(str::to_owned).to_vec()));
        let (label, name) = ("x".repeat(64), ["x"; 128].join("."));
        for wrong in ["", "..", "a..b", ".a", "bücher.example", "a b", &label, &name] {
            assert!(labels(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn when_a_code_or_type_is_written_then_it_is_the_one_that_was_read() {
        for (word, code) in Rcode::WORDS {
            assert_eq!((code.to_string().as_str(), Rcode::from_number(code as u8)), (word, Some(code)));
        }
        for (word, record) in Record::WORDS {
            assert_eq!(record.to_string(), word);
        }
    }
}
