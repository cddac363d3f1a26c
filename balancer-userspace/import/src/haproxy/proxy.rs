//! Fills a service from HAProxy's `backend` or `listen` section.

use super::{
    check::{Http, http_check, httpchk},
    other::{BEHIND, other},
    parse::Line,
    server::{Options, time},
    stick::{stick, stick_table},
};
use crate::{
    notes::Conversion,
    service::{CheckKind, Service},
};

/// Whether a section inherits this line from a `defaults` section.
pub(super) fn inherits(line: &Line) -> bool {
    match line.word(0) {
        "balance" | "hash-type" | "default-server" | "option" | "http-check" => true,
        "timeout" => line.word(1) == "check",
        _ => false,
    }
}

/// Adds a note if HAProxy would use only one backup server at a time.
fn one_backup(conversion: &mut Conversion, service: &Service) {
    if let Some(second) = service.backends.iter().filter(|backend| backend.backup).nth(1) {
        let why =
            "HAProxy uses its backups one after another, and here all share the clients; keep one where that matters";
        conversion.needs_you(&second.place, format!("server {} backup", second.name), why);
    }
}

pub(super) fn fill<'a>(
    conversion: &mut Conversion,
    service: &mut Service,
    lines: impl Iterator<Item = &'a Line>,
    inherited: &'a [Line],
) {
    let (mut default, mut http, mut timeout) = (Options::default(), None::<Http>, None);
    let mut all_backups = false;
    for line in inherited.iter().chain(lines) {
        match line.word(0) {
            "default-server" => default.read(conversion, line, 1),
            "server" | "server-template" => {
                let mut options = default.clone();
                options.read(conversion, line, if line.word(0) == "server" { 3 } else { 4 });
                match options.discover(conversion, line) {
                    Some(list) => service.discover.push(list),
                    None => service.backends.extend(options.backends(conversion, line)),
                }
            }
            "option" if line.word(1) == "httpchk" => httpchk(http.get_or_insert_default(), line),
            "no" if line.word(1) == "option" && line.word(2) == "httpchk" => http = None,
            "http-check" => http_check(conversion, http.get_or_insert_default(), line),
            "timeout" if line.word(1) == "check" => timeout = time(line.word(2)),
            "balance" => balance(conversion, service, line),
            "hash-type" => conversion.not_needed(
                &line.place,
                line.text(),
                "the lookup table moves few clients of itself; nothing to do",
            ),
            "stick-table" => stick_table(conversion, service, line),
            "stick" => stick(conversion, service, line),
            _ => {
                all_backups |= line.word(0) == "option" && line.word(1) == "allbackups";
                other(conversion, line);
            }
        }
    }
    if !all_backups {
        one_backup(conversion, service);
    }
    for (place, name, check) in service.checks_mut() {
        check.timeout_ms = timeout;
        let (tls, http2) = match &check.kind {
            CheckKind::Http(http) => (http.tls.clone(), http.http2),
            CheckKind::Tcp | CheckKind::Exec { .. } => (None, None),
        };
        check.kind = match &http {
            Some(http) => CheckKind::Http(http.kind(tls, http2)),
            None => {
                if tls.is_some() {
                    let why =
                        "a check of type `https` asks for a page; without one, only whether the port opens is checked";
                    conversion.needs_you(place, format!("server {name} check over TLS"), why);
                }
                CheckKind::Tcp
            }
        };
    }
}

fn balance(conversion: &mut Conversion, service: &mut Service, line: &Line) {
    match line.word(1) {
        // HAProxy hashes the whole address of the client.
        "source" => service.prefix = service.prefix.or(Some((32, 128))),
        "roundrobin" | "static-rr" => conversion.not_needed(
            &line.place,
            line.text(),
            "clients are spread evenly by a hash of their address, by the servers' weights; nothing to do",
        ),
        "leastconn" | "first" | "random" => conversion.needs_you(
            &line.place,
            line.text(),
            "clients are assigned by a hash and remembered; give weights, or have `bounded_load` keep new clients from a busy server",
        ),
        _ => conversion.needs_you(&line.place, line.text(), format!("it chooses the server by the request; {BEHIND}")),
    }
}
