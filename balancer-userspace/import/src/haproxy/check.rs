//! Reads HAProxy's `option httpchk` and `http-check`.

use super::parse::Line;
use crate::{
    notes::Conversion,
    service::{self, Tls},
};
use balancer_config::header::{name, sendable};

const EXEC: &str = "a check asks once, and compares the status or `expect_body`; use a check of type `exec`";

#[derive(Clone, Debug, Default)]
pub(super) struct Http {
    method: Option<String>,
    path: Option<String>,
    host: Option<String>,
    headers: Option<Vec<(String, String)>>,
    status: Option<String>,
}

impl Http {
    /// Returns the check with the TLS settings and the HTTP version of a server.
    pub(super) fn kind(&self, tls: Option<Tls>, http2: Option<bool>) -> service::Http {
        let Self { method, path, host, headers, status } = self.clone();
        let method = method.or_else(|| Some("OPTIONS".to_owned()));
        service::Http { tls, http2, method, path, host, headers, status, body_regex: None }
    }
}

/// Reads a line `option httpchk [METHOD] [URI] [VERSION]`. In old files, `\r\nHost:\ www` follows the version.
pub(super) fn httpchk(http: &mut Http, line: &Line) {
    match line.after(2) {
        [] => {}
        [path] => http.path = Some(path.clone()),
        [method, path, ..] => (http.method, http.path) = (Some(method.clone()), Some(path.clone())),
    }
    let words = line.after(4).join(" ");
    let host = words.split_once("Host: ").map(|(_, host)| host.split(['\r', '\n', '\\']).next().unwrap_or_default());
    http.host = host.map(|host| host.trim().to_owned()).or(http.host.take());
}

pub(super) fn http_check(conversion: &mut Conversion, http: &mut Http, line: &Line) {
    match (line.word(1), line.word(2), line.words.len()) {
        ("send", ..) => send(conversion, http, line),
        ("expect", "status", 4) => http.status = Some(line.word(3).to_owned()),
        ("disable-on-404", ..) => conversion.needs_you(
            &line.place,
            line.text(),
            "known clients leave a server that answers 404, as after any other wrong status; write \"drain\" as `soft` in `on_failure` where they should stay",
        ),
        _ => conversion.needs_you(&line.place, line.text(), EXEC),
    }
}

fn send(conversion: &mut Conversion, http: &mut Http, line: &Line) {
    let mut words = line.after(2).iter();
    while let Some(word) = words.next() {
        let mut value = || words.next().cloned();
        match word.as_str() {
            "meth" => http.method = value(),
            "uri" => http.path = value(),
            "ver" => drop(value()),
            "hdr" => match (value(), value()) {
                (Some(name), host) if name.eq_ignore_ascii_case("host") => http.host = host,
                (name, value) => {
                    header(conversion, http, line, (name.unwrap_or_default(), value.unwrap_or_default()));
                }
            },
            word => conversion.needs_you(
                &line.place,
                format!("http-check send {word}"),
                "a check sends method, path and headers; use a check of type `exec`",
            ),
        }
    }
}

/// Adds a header to the check, if the balancer can send this header. Notes never show the value of a header.
fn header(conversion: &mut Conversion, http: &mut Http, line: &Line, (word, value): (String, String)) {
    let directive = format!("http-check send hdr {word}");
    if word.eq_ignore_ascii_case("connection") {
        return conversion.not_needed(&line.place, directive, "each check is a connection of its own; nothing to do");
    }
    // Two percent signs stand for one percent sign; a single percent sign begins an expression. Inside quotes, `$`
    // begins the name of a variable.
    let literal = value.replace("%%", "");
    let headers = http.headers.get_or_insert_default();
    let why = if literal.contains(['%', '$']) {
        "the value depends on HAProxy or its environment; write it, or `{ file = … }`, in `headers`".to_owned()
    } else if headers.iter().any(|(other, _)| other.eq_ignore_ascii_case(&word)) {
        "a check sends each header once; write one value".to_owned()
    } else if let Err(why) = name(&word) {
        why
    } else if let Err(why) = sendable(value.as_bytes()) {
        format!("it {why}")
    } else {
        return headers.push((word, value.replace("%%", "%")));
    };
    conversion.needs_you(&line.place, directive, why);
}
