//! Fills a service from HAProxy's `backend` or `listen` section.

use super::{
    check::{Http, http_check, httpchk},
    other::{BEHIND, other},
    parse::Line,
    script::Script,
    server::{Agent, Options, time},
    stick::{Halves, stick, stick_table},
};
use crate::{
    notes::Conversion,
    service::{CheckKind, Service},
};

/// Whether a section inherits this line from a `defaults` section.
pub(super) fn inherits(line: &Line) -> bool {
    matches!(
        line.word(0),
        "balance" | "hash-type" | "default-server" | "option" | "http-check" | "tcp-check" | "timeout"
    )
}

/// The times after which HAProxy closes a silent connection.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Timeouts {
    sides: Option<u64>,
    tunnel: Option<u64>,
}

impl Timeouts {
    /// Reads a line `timeout NAME TIME`; returns `false` for times that do not end silent connections.
    pub(super) fn read(&mut self, line: &Line) -> bool {
        let time = time(line.word(2));
        match line.word(1) {
            "client" | "server" | "clitimeout" | "srvtimeout" => self.sides = self.sides.max(time),
            "tunnel" => self.tunnel = time,
            _ => return false,
        }
        true
    }

    /// Reads the times in the lines of a section and in those that it inherits.
    pub(super) fn of<'a>(lines: impl Iterator<Item = &'a Line>) -> Self {
        let mut timeouts = Self::default();
        for line in lines.filter(|line| line.word(0) == "timeout") {
            timeouts.read(line);
        }
        timeouts
    }

    /// The longest of these times, in milliseconds.
    pub(super) fn longest(self, other: Self) -> Option<u64> {
        [self.sides, self.tunnel, other.sides, other.tunnel].into_iter().max().flatten()
    }
}

/// The servers' agents: those of all servers, if they are the same.
fn agents(conversion: &mut Conversion, service: &mut Service, agents: &[(&Line, Option<Agent>)]) {
    let first = agents.first().and_then(|(_, agent)| *agent);
    if agents.iter().all(|(_, agent)| *agent == first) {
        service.agent = first.map(|Agent { port, interval_ms }| (port, interval_ms));
        return;
    }
    for (line, agent) in agents {
        let why = if agent.is_some() {
            "agents are a key of the service here, and its servers differ; write `agent = { port = …, interval = \"…\" }`"
        } else {
            continue;
        };
        conversion.needs_you(&line.place, format!("server {} agent-check", line.word(1)), why);
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
    of_clients: Timeouts,
) {
    let (mut default, mut http, mut timeout) = (Options::default(), None::<Http>, None);
    let (mut script, mut timeouts, mut halves) = (None::<Script>, Timeouts::default(), Halves::default());
    let mut all_agents = Vec::new();
    let mut all_backups = false;
    for line in inherited.iter().chain(lines) {
        match line.word(0) {
            "default-server" => default.read(conversion, line, 1),
            "server" | "server-template" => {
                let mut options = default.clone();
                options.read(conversion, line, if line.word(0) == "server" { 3 } else { 4 });
                all_agents.push((line, options.agent(conversion, line)));
                match options.discover(conversion, line) {
                    Some(list) => service.discover.push(list),
                    None => service.backends.extend(options.backends(conversion, line)),
                }
            }
            "option" if line.word(1) == "httpchk" => {
                script = None;
                httpchk(http.get_or_insert_default(), line);
            }
            "no" if line.word(1) == "option" && line.word(2) == "httpchk" => http = None,
            "option" if line.word(1) == "tcp-check" => (http, script) = (None, Some(Script::default())),
            "option" if line.word(1) == "redis-check" => (http, script) = (None, Some(Script::of_redis())),
            "option" if line.word(1) == "smtpchk" => (http, script) = (None, Some(Script::of_smtp(conversion, line))),
            "no" if line.word(1) == "option" && ["tcp-check", "redis-check"].contains(&line.word(2)) => script = None,
            "tcp-check" => script.get_or_insert_default().read(conversion, line),
            "http-check" => http_check(conversion, http.get_or_insert_default(), line),
            "timeout" if line.word(1) == "check" => timeout = time(line.word(2)),
            "timeout" if timeouts.read(line) => {}
            "balance" => balance(conversion, service, line),
            "hash-type" => conversion.not_needed(
                &line.place,
                line.text(),
                "a change of the lookup table moves few clients; nothing to do",
            ),
            "stick-table" => stick_table(conversion, service, line),
            "stick" => stick(conversion, service, &mut halves, line),
            _ => {
                all_backups |= line.word(0) == "option" && line.word(1) == "allbackups";
                other(conversion, line);
            }
        }
    }
    if !all_backups {
        one_backup(conversion, service);
    }
    halves.finish(conversion, service);
    agents(conversion, service, &all_agents);
    service.idle_ms = timeouts.longest(of_clients);
    let plain = match (&http, &script) {
        (None, Some(script)) if service.checks_mut().next().is_some() => script.kind(conversion),
        (None | Some(_), _) => CheckKind::Tcp,
    };
    for (place, name, check) in service.checks_mut() {
        check.timeout_ms = timeout;
        let (tls, http2) = match &check.kind {
            CheckKind::Http(http) => (http.tls.clone(), http.http2),
            CheckKind::Tcp
            | CheckKind::Talk { .. }
            | CheckKind::Udp { .. }
            | CheckKind::Dns { .. }
            | CheckKind::Exec { .. } => (None, None),
        };
        check.kind = match &http {
            Some(http) => CheckKind::Http(http.kind(tls, http2)),
            None => {
                if tls.is_some() {
                    let why =
                        "a check of type `https` asks for a page; without one, only whether the port opens is checked";
                    conversion.needs_you(place, format!("server {name} check over TLS"), why);
                    CheckKind::Tcp
                } else {
                    plain.clone()
                }
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
