//! The keys of checks of the types `http` and `https`, and the keys that HTTP checks share with gRPC checks.

use std::collections::BTreeMap;

use http::{
    HeaderValue, Method,
    uri::{Authority, PathAndQuery},
};
use regex::bytes::{Regex, RegexBuilder};
use rustls_pki_types::ServerName;

use super::{Keys, tls};
use crate::{
    config::{BodyTest, Header, HeaderText, Secret, StatusRanges},
    file::{
        findings::Findings,
        section::{Given, Located, Section},
    },
    header, value,
};

const MAX_BODY_TEXT: usize = 4096;
/// The maximum size of a compiled regular expression, in bytes.
const MAX_PATTERN: usize = 1 << 20;
const MAX_HEADERS: usize = 32;

/// Reads the keys of an HTTP check. The function adds errors to `findings`.
pub(super) fn http(section: &mut Section<'_>, keys: &mut Keys, findings: &mut Findings<'_>) {
    let own_method = section.text("method", findings, method);
    let own_path = section.text("path", findings, path);
    keys.http2 = section.boolean("http2", findings).or(keys.http2);
    let own_status = section.text("expect_status", findings, |text| text.parse::<StatusRanges>());
    let text = section.text("expect_body", findings, |text| match text.len() {
        1..=MAX_BODY_TEXT => Ok(text.to_owned()),
        length => Err(format!("expect_body has {length} bytes; give 1 to {MAX_BODY_TEXT}")),
    });
    let pattern = section.text("expect_body_regex", findings, pattern);
    if let (Some(_), Some(pattern)) = (&text, &pattern) {
        let error = "expect_body_regex is given, and expect_body as well; remove one of them";
        findings.error(pattern.at, error.to_owned());
    }
    request(section, keys, findings);
    keys.method = own_method.map(|method| method.value).or(keys.method.take());
    keys.path = own_path.map(|path| path.value).or(keys.path.take());
    keys.expect_status = own_status.map(|statuses| statuses.value).or(keys.expect_status.take());
    let body_at = text.as_ref().map(|text| text.at).or(pattern.as_ref().map(|pattern| pattern.at));
    let text = text.map(|text| BodyTest::Contains(text.value));
    keys.expect_body = pattern.map(|pattern| BodyTest::Matches(pattern.value)).or(text).or(keys.expect_body.take());
    if keys.expect_body.is_some() && keys.method.as_deref() == Some("HEAD") {
        let error = "expect_body needs a body, and HEAD asks for none; use method = \"GET\"";
        findings.error(body_at.unwrap_or(section.at), error.to_owned());
    }
}

/// Reads the keys about the request that HTTP checks and gRPC checks share. The function adds errors to `findings`.
pub(super) fn request(section: &mut Section<'_>, keys: &mut Keys, findings: &mut Findings<'_>) {
    let (secure, http2) = (keys.kind.is_secure(), keys.speaks_http2());
    let own_host = section.text("host", findings, |text| if secure { server_name(text) } else { host(text) });
    let own_headers = headers(section, findings);
    keys.host = own_host.map(|host| host.value).or(keys.host.take());
    if http2 && let Some(Err(why)) = keys.host.clone().map(authority) {
        findings.error(section.at, why);
    }
    keys.headers = own_headers.or(keys.headers.take());
    let unfit = |header: &Header| match &*header.name {
        name if keys.kind.is_grpc() => header::unfit_for_grpc(name),
        name if http2 => header::unfit_for_http2(name),
        _ => None,
    };
    for header in keys.headers.iter().flatten() {
        if let Some(why) = unfit(header) {
            findings.error(section.at, format!("the header {:?} {why}; remove it", header.name));
        }
    }
    if secure {
        tls::tls(section, keys, findings);
    }
}

/// Reads additional headers of the request. If a backend's check specifies headers, they replace all headers of its
/// service's check.
fn headers(section: &mut Section<'_>, findings: &mut Findings<'_>) -> Option<Vec<Header>> {
    const WANTED: &str = "headers = { X-Probe = \"balancer\", Authorization = { file = \"/etc/balancer/token\" } }";
    let at = section.at;
    let given = section.texts_or_files("headers", WANTED, findings, header)?;
    if given.len() > MAX_HEADERS {
        findings.error(at, format!("headers has {} entries; give at most {MAX_HEADERS}", given.len()));
    }
    let mut headers = BTreeMap::new();
    for Located { at, value: Header { name, value } } in given {
        if headers.contains_key(&name) {
            findings.error(at, format!("headers has {name:?} twice, whatever its case; remove one of them"));
        }
        headers.insert(name, value);
    }
    Some(headers.into_iter().map(|(name, value)| Header { name, value }).collect())
}

fn header(name: &str, given: Given<'_>) -> Result<Header, String> {
    let shown = value::quoted(name);
    let value = match given {
        Given::Text(text) => match header::sendable(text.as_bytes()) {
            Ok(()) => HeaderText::Text(Secret(text.to_owned())),
            Err(why) => return Err(format!("the header {shown} {why}")),
        },
        Given::File(path) => HeaderText::File(value::absolute_path(path)?),
    };
    Ok(Header { name: header::name(name)?, value })
}

pub(super) fn pattern(text: &str) -> Result<Regex, String> {
    RegexBuilder::new(text).size_limit(MAX_PATTERN).build().map_err(|error| {
        let why = if let regex::Error::CompiledTooBig(_) = error {
            "it is too large".to_owned()
        } else {
            // The last line of the message contains the error; the lines before it show the error's position.
            error.to_string().lines().last().unwrap_or_default().trim_start_matches("error: ").to_owned()
        };
        format!("{} is not a regular expression ({why}); see the syntax of Rust's regex", value::quoted(text))
    })
}

fn method(text: &str) -> Result<String, String> {
    let upper = text.to_uppercase();
    match Method::from_bytes(text.as_bytes()) {
        Ok(_) if text != upper => {
            Err(format!("the method {} is not in capitals; did you mean {upper:?}?", value::quoted(text)))
        }
        Ok(Method::CONNECT) => Err("the method \"CONNECT\" checks nothing; use \"GET\"".to_owned()),
        Ok(_) => Ok(text.to_owned()),
        Err(_) => Err(format!("{} is not an HTTP method; use \"GET\", \"HEAD\" or \"OPTIONS\"", value::quoted(text))),
    }
}

fn path(text: &str) -> Result<String, String> {
    if text.starts_with('/') && text.parse::<PathAndQuery>().is_ok_and(|path| path.as_str() == text) {
        return Ok(text.to_owned());
    }
    Err(format!(
        "{} is not the path of a URL; begin it with / and write no spaces, such as \"/healthz\"",
        value::quoted(text)
    ))
}

fn host(text: &str) -> Result<String, String> {
    let visible = HeaderValue::from_str(text).is_ok() && text.bytes().all(|byte| byte.is_ascii_graphic());
    if visible && !text.is_empty() && !text.contains('/') {
        return Ok(text.to_owned());
    }
    Err(format!("{} is not a host; write HOST or HOST:PORT, such as \"www.example.com\"", value::quoted(text)))
}

/// Checks that an HTTP/2 request can contain this host.
fn authority(host: String) -> Result<String, String> {
    match host.parse::<Authority>() {
        Ok(authority) if !authority.as_str().contains('@') => Ok(host),
        Ok(_) | Err(_) => Err(format!(
            "{} is not a host for HTTP/2; write HOST or HOST:PORT, such as \"www.example.com\"",
            value::quoted(&host)
        )),
    }
}

/// Checks that a TLS handshake can request this host.
fn server_name(text: &str) -> Result<String, String> {
    let text = host(text)?;
    match ServerName::try_from(without_port(&text)) {
        Ok(_) => Ok(text),
        Err(_) => {
            Err(format!("{} is not a host name for TLS; write one such as \"www.example.com\"", value::quoted(&text)))
        }
    }
}

/// The host in a text of the form `HOST` or `HOST:PORT`.
pub fn without_port(host: &str) -> &str {
    let bare = match host.rsplit_once(':') {
        Some((bare, port)) if !bare.contains(':') || bare.ends_with(']') && port.parse::<u16>().is_ok() => bare,
        Some(_) | None => host,
    };
    bare.strip_prefix('[').and_then(|bare| bare.strip_suffix(']')).unwrap_or(bare)
}
