//! Headers that health checks send. The value of a header may be a secret, so only the request of a check and the saved
//! state contain the value.

use std::{fmt, path::PathBuf};

use http::HeaderName;
use serde::{Deserialize, Serialize};

use crate::value;

/// The maximum length of a header's value, in bytes.
pub const MAX_HEADER_VALUE: usize = 16 * 1024;

/// The headers that the check itself sets.
const OWN: [(&str, &str); 4] = [
    ("host", "write host = \"…\""),
    ("connection", "each check is a connection of its own"),
    ("content-length", "a check has no body"),
    ("transfer-encoding", "a check has no body"),
];

/// A header that a health check sends.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Header {
    /// A valid header name, in lower case.
    pub name: String,
    /// The value of the header, or the file that contains the value.
    pub value: HeaderText,
}

/// The source of a header's value.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum HeaderText {
    /// The value is a text in the configuration.
    Text(Secret),
    /// The value is in a file, which each check reads.
    File(PathBuf),
}

/// A secret text that no message may show.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Secret(pub String);

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("(secret)")
    }
}

/// Parses the name of a header that a health check may send, and converts the name to lower case.
///
/// # Errors
/// Fails if the text is not a header name, or is the name of a header that the check itself sets; the error is the
/// whole message.
pub fn name(text: &str) -> Result<String, String> {
    let Ok(name) = HeaderName::from_bytes(text.as_bytes()) else {
        return Err(format!("{} is not the name of a header; write one such as \"X-Probe\"", value::quoted(text)));
    };
    match OWN.into_iter().find(|(own, _)| *own == name.as_str()) {
        Some((_, why)) => {
            Err(format!("the header {} belongs to the check itself; remove it: {why}", value::quoted(text)))
        }
        None => Ok(name.as_str().to_owned()),
    }
}

/// The reason why a request over HTTP/2 may not contain a header, in a form that follows the header's name; `None`: the
/// header is allowed.
#[must_use]
pub fn unfit_for_http2(name: &str) -> Option<&'static str> {
    ["keep-alive", "proxy-connection", "te", "upgrade"].contains(&name).then_some("does not exist in HTTP/2")
}

/// The reason why a gRPC request may not contain a header, in a form that follows the header's name; `None`: the header
/// is allowed.
#[must_use]
pub fn unfit_for_grpc(name: &str) -> Option<&'static str> {
    let is_own = name == "te" || name == "content-type" || name.starts_with("grpc-");
    if is_own { Some("belongs to the check itself") } else { unfit_for_http2(name) }
}

/// Checks whether a request can contain `value` as the value of a header.
///
/// # Errors
/// Fails if the value is too long or contains control characters; the error follows the header's name in a message and
/// does not show the value.
pub fn sendable(value: &[u8]) -> Result<(), String> {
    if value.len() > MAX_HEADER_VALUE {
        return Err(format!("has {} bytes; give at most {MAX_HEADER_VALUE}", value.len()));
    }
    if value.iter().any(u8::is_ascii_control) {
        return Err("has a control character; remove it".to_owned());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn when_a_header_belongs_to_the_check_then_its_name_is_refused_in_any_case() {
        assert_eq!(name("X-Probe"), Ok("x-probe".to_owned()));
        for wrong in ["", "X Probe", "X-Probe:", "é", "Host", "CONNECTION", "content-length", "Transfer-Encoding"] {
            assert!(name(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn when_a_value_has_control_characters_then_it_is_refused_and_not_shown() {
        assert_eq!(sendable("Bearer é".as_bytes()), Ok(()));
        for wrong in [&b"hidden\n"[..], b"hid\0den", b"hid\tden", b"hidden\x7f", &[b'h'; MAX_HEADER_VALUE + 1]] {
            let why = sendable(wrong).unwrap_err();
            assert!(!why.contains("hid"), "{why}");
        }
    }

    #[test]
    fn when_a_header_is_printed_then_its_text_is_not_and_a_file_is() {
        let header = |value| Header { name: "authorization".to_owned(), value };
        let text = format!("{:?}", header(HeaderText::Text(Secret("hidden".to_owned()))));
        assert!(!text.contains("hidden"), "{text}");
        let file = format!("{:?}", header(HeaderText::File("/etc/token".into())));
        assert!(file.contains("/etc/token"), "{file}");
    }
}
