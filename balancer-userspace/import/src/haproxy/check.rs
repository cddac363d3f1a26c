//! `option httpchk` and `http-check`.

use super::parse::Line;
use crate::{notes::Conversion, service};

const EXEC: &str = "a check asks once, and compares the status or `expect_body`; use a check of type `exec`";

#[derive(Clone, Debug, Default)]
pub(super) struct Http {
    method: Option<String>,
    path: Option<String>,
    host: Option<String>,
    status: Option<String>,
}

impl Http {
    pub(super) fn kind(&self, https: bool) -> service::Http {
        let Self { method, path, host, status } = self.clone();
        let method = method.or_else(|| Some("OPTIONS".to_owned()));
        service::Http { https, method, path, host, status, body_regex: None }
    }
}

/// `option httpchk [METHOD] [URI] [VERSION]`, with `\r\nHost:\ www` at the version in old files.
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
            "a failure is hard or soft: `on_failure` says that known clients stay after a soft one, which a wrong status is",
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
                (name, _) => conversion.needs_you(
                    &line.place,
                    format!("http-check send hdr {}", name.unwrap_or_default()),
                    "a check sends no headers but Host; use a check of type `exec`",
                ),
            },
            word => conversion.needs_you(
                &line.place,
                format!("http-check send {word}"),
                "a check sends method, path and host; use a check of type `exec`",
            ),
        }
    }
}
