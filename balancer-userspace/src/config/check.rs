//! `check = { … }` of a service or backend.

use std::time::Duration;

use hyper::http::{HeaderValue, Method, uri::PathAndQuery};

use super::{
    findings::Findings,
    model::{CheckConfig, CheckKind, HttpCheck, StatusRanges},
    section::{Located, Section},
    value,
};

const MIN_TIME: Duration = Duration::from_millis(100);
const MAX_TIME: Duration = Duration::from_secs(24 * 3600);
const INTERVAL: Duration = Duration::from_secs(2);
const TIMEOUT: Duration = Duration::from_secs(1);
const FALL: u32 = 3;
const RISE: u32 = 2;
const MAX_COUNT: i64 = 1000;
const MAX_BODY_TEXT: usize = 4096;

/// Keys by the type of check they belong to.
const TIMING: [&str; 4] = ["interval", "timeout", "fall", "rise"];
const HTTP: [&str; 5] = ["method", "path", "host", "expect_status", "expect_body"];

#[derive(Clone, Copy)]
enum Type {
    Tcp,
    Http,
    None,
}

/// The check of a service that has none in the file.
pub(super) fn default_check(kind: CheckKind) -> CheckConfig {
    CheckConfig { kind, interval: INTERVAL, timeout: TIMEOUT, fall: FALL, rise: RISE }
}

/// Reads a check; `None` when it is invalid, which has been reported.
pub(super) fn check(mut section: Section<'_>, findings: &mut Findings<'_>) -> Option<Located<CheckConfig>> {
    let at = section.at;
    section.require("type", "type = \"tcp\", \"http\" or \"none\"", findings);
    let kind = section.text("type", findings, |text| {
        let words = [("tcp", Type::Tcp), ("http", Type::Http), ("none", Type::None)];
        value::word("type", text, &words, &["https", "exec"])
    })?;
    for key in ["tls", "fast_interval"] {
        section.refuse(key, "is not available yet; remove it", findings);
    }

    let mut refuse_all = |keys: &[&'static str], findings: &mut Findings<'_>| {
        for key in keys {
            section.refuse(
                key,
                &format!("means nothing to a check of type {}; remove it", type_word(kind.value)),
                findings,
            );
        }
    };
    match kind.value {
        Type::None => {
            refuse_all(&TIMING, findings);
            refuse_all(&["port"], findings);
            refuse_all(&HTTP, findings);
        }
        Type::Tcp => refuse_all(&HTTP, findings),
        Type::Http => {}
    }

    let interval = section.text("interval", findings, |text| time("interval", text));
    let timeout = section.text("timeout", findings, |text| time("timeout", text));
    let fall = section.integer("fall", findings, (1, MAX_COUNT)).map_or(FALL, |fall| fall.value);
    let rise = section.integer("rise", findings, (1, MAX_COUNT)).map_or(RISE, |rise| rise.value);
    let interval = interval.map_or(INTERVAL, |interval| interval.value);
    if let Some(timeout) = timeout
        && timeout.value > interval
    {
        let [timeout_text, interval_text] = [timeout.value, interval].map(humantime::format_duration);
        findings.error(
            timeout.at,
            format!("timeout = \"{timeout_text}\" is longer than the interval; give at most \"{interval_text}\""),
        );
    }
    let timeout = timeout.map_or(TIMEOUT.min(interval), |timeout| timeout.value);

    let port = section.integer("port", findings, (1, 65_535)).map(|port| port.value);
    let kind = match kind.value {
        Type::None => CheckKind::None,
        Type::Tcp => CheckKind::Tcp { port },
        Type::Http => CheckKind::Http(http(&mut section, port, findings)),
    };
    section.finish(findings);
    Some(Located { at, value: CheckConfig { kind, interval, timeout, fall, rise } })
}

fn type_word(kind: Type) -> &'static str {
    match kind {
        Type::Tcp => "\"tcp\"",
        Type::Http => "\"http\"",
        Type::None => "\"none\"",
    }
}

fn time(key: &str, text: &str) -> Result<Duration, String> {
    let time = value::duration(text)?;
    if !(MIN_TIME..=MAX_TIME).contains(&time) {
        return Err(format!("{key} = {} is out of range; give \"100ms\" to \"24h\"", value::quoted(text)));
    }
    Ok(time)
}

/// Reads the keys of an HTTP check. An invalid one, which has been reported, leaves its default.
fn http(section: &mut Section<'_>, port: Option<u16>, findings: &mut Findings<'_>) -> HttpCheck {
    let method = section.text("method", findings, method);
    let path = section.text("path", findings, path);
    let host = section.text("host", findings, host);
    let expect_status = section.text("expect_status", findings, value::status_ranges);
    let expect_body = section.text("expect_body", findings, |text| match text.len() {
        1..=MAX_BODY_TEXT => Ok(text.to_owned()),
        length => Err(format!("expect_body has {length} bytes; give 1 to {MAX_BODY_TEXT}")),
    });
    let method = method.map_or_else(|| "GET".to_owned(), |method| method.value);
    if let Some(expect_body) = &expect_body
        && method == "HEAD"
    {
        findings
            .error(expect_body.at, "expect_body needs a body, and HEAD asks for none; use method = \"GET\"".to_owned());
    }
    HttpCheck {
        port,
        method,
        path: path.map_or_else(|| "/".to_owned(), |path| path.value),
        host: host.map(|host| host.value),
        expect_status: expect_status.map_or_else(|| StatusRanges(vec![(200, 399)]), |statuses| statuses.value),
        expect_body: expect_body.map(|body| body.value),
    }
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
        "{} is not a path to ask for; write one from / on without spaces, such as \"/healthz\"",
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
