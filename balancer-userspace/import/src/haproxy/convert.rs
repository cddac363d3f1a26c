//! Services of HAProxy's listeners and backends.

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr},
};

use super::{
    parse::{Line, Section, parse},
    server::{Options, time},
};
use crate::{
    address::{refusal, split},
    service::{CheckKind, Conversion, Forwarding, Listener, NotUnderstood, Service},
};

const BEHIND: &str = "this is layer 7, which this balancer does not do; to keep it, run HAProxy on several machines and make them the backends";
const OWN: &str = "it concerns HAProxy's own process or connections; nothing to do";

/// What `defaults` sets for the sections behind it.
const INHERITED: [&str; 5] = ["balance", "hash-type", "default-server", "option", "http-check"];

pub(crate) fn convert(files: &[(String, String)]) -> Result<Conversion, NotUnderstood> {
    let sections = parse(files)?;
    let mut conversion = Conversion::default();
    let mut defaults: Vec<Line> = Vec::new();
    let mut backends: BTreeMap<&str, (&Section, Vec<Line>)> = BTreeMap::new();
    let mut fronts = Vec::new();
    for section in &sections {
        match section.head.word(0) {
            "defaults" => {
                defaults = section.lines.iter().filter(|line| INHERITED.contains(&line.word(0))).cloned().collect();
                for line in section.lines.iter().filter(|line| !INHERITED.contains(&line.word(0))) {
                    other(&mut conversion, line);
                }
            }
            "backend" => {
                backends.insert(section.head.word(1), (section, defaults.clone()));
            }
            "frontend" | "listen" => fronts.push((section, defaults.clone())),
            "global" => section.lines.iter().for_each(|line| conversion.not_needed(&line.place, line.text(), OWN)),
            _ => conversion.needs_you(
                &section.head.place,
                section.head.text(),
                "it has no counterpart; several balancers share clients by [fleet]",
            ),
        }
    }
    let mut used = Vec::new();
    for (section, inherited) in &fronts {
        if section.head.word(0) == "listen" {
            listen(&mut conversion, section, inherited);
        } else {
            used.extend(frontend(&mut conversion, section, &backends));
        }
    }
    for (name, (section, _)) in &backends {
        if !used.iter().any(|one| one == name) {
            conversion.needs_you(
                &section.head.place,
                section.head.text(),
                "no frontend could be converted that leads to it alone; add a service for it by hand",
            );
        }
    }
    Ok(conversion)
}

fn service(section: &Section, name: &str) -> Service {
    Service {
        place: section.head.place.clone(),
        name: name.to_owned(),
        listeners: Vec::new(),
        forwarding: Forwarding::Nat,
        remember: None,
        prefix: None,
        check: None,
        backends: Vec::new(),
    }
}

fn listen(conversion: &mut Conversion, section: &Section, inherited: &[Line]) {
    let mut service = service(section, section.head.word(1));
    service.listeners =
        section.lines.iter().filter(|line| line.word(0) == "bind").flat_map(|line| bind(conversion, line)).collect();
    fill(conversion, &mut service, section.lines.iter().filter(|line| line.word(0) != "bind"), inherited);
    finish(conversion, service);
}

fn finish(conversion: &mut Conversion, service: Service) {
    if service.listeners.is_empty() {
        conversion.needs_you(&service.place, service.name, "none of its listeners could be converted; see its `bind`");
    } else {
        conversion.add(service);
    }
}

fn frontend(
    conversion: &mut Conversion,
    section: &Section,
    backends: &BTreeMap<&str, (&Section, Vec<Line>)>,
) -> Option<String> {
    let (mut listeners, mut target) = (Vec::new(), None);
    for line in &section.lines {
        match line.word(0) {
            "bind" => listeners.extend(bind(conversion, line)),
            "default_backend" => target = Some(line),
            "use_backend" if line.words.len() == 2 => target = Some(line),
            "use_backend" => conversion.needs_you(&line.place, line.text(), BEHIND),
            _ => other(conversion, line),
        }
    }
    let Some(line) = target else {
        conversion.needs_you(
            &section.head.place,
            section.head.text(),
            format!("it has no `default_backend`; {BEHIND}"),
        );
        return None;
    };
    let Some((backend, inherited)) = backends.get(line.word(1)) else {
        conversion.needs_you(&line.place, line.text(), "there is no such backend; name one");
        return None;
    };
    let mut service = service(section, line.word(1));
    service.listeners = listeners;
    fill(conversion, &mut service, backend.lines.iter(), inherited);
    finish(conversion, service);
    Some(line.word(1).to_owned())
}

/// The listeners of `bind ADDRESS:PORT[-PORT],…`.
fn bind(conversion: &mut Conversion, line: &Line) -> Vec<Listener> {
    if line.after(2).iter().any(|word| ["ssl", "accept-proxy"].contains(&word.as_str())) {
        conversion.needs_you(&line.place, line.text(), "TLS and PROXY lines end at HAProxy, and this balancer does neither; let the backends do it, or keep HAProxy as the backend");
        return Vec::new();
    }
    if !line.after(2).is_empty() {
        conversion.not_needed(&line.place, line.after(2).join(" "), OWN);
    }
    let mut listeners = Vec::new();
    for text in line.word(1).split(',') {
        let bare = text.trim_start_matches("ipv4@").trim_start_matches("ipv6@");
        let (host, port) = split(bare);
        let ports = port.unwrap_or_default();
        let (first, last) = ports.split_once('-').unwrap_or((ports, ports));
        let address =
            if host.is_empty() || host == "*" { Ok(IpAddr::V4(Ipv4Addr::UNSPECIFIED)) } else { host.parse::<IpAddr>() };
        let why = match (address, first.parse::<u16>(), last.parse::<u16>()) {
            (Ok(address), _, _) if address.is_unspecified() => {
                "it listens on every address of this machine, and the balancer steers named ones; write the address that clients use"
            }
            (Ok(address), Ok(first), Ok(last)) if 0 < first && first <= last => {
                listeners.push(Listener { address, first, last, udp: false });
                continue;
            }
            (Ok(_), _, _) => "this is no port or range of ports; write one, 1 to 65535",
            (Err(_), _, _) => refusal(bare),
        };
        conversion.needs_you(&line.place, format!("bind {text}"), why);
    }
    listeners
}

fn fill<'a>(
    conversion: &mut Conversion,
    service: &mut Service,
    lines: impl Iterator<Item = &'a Line>,
    inherited: &'a [Line],
) {
    let (mut default, mut http, mut timing) = (Options::default(), None, None);
    for line in inherited.iter().chain(lines) {
        match line.word(0) {
            "default-server" => default.read(conversion, line, 1),
            "server" | "server-template" => {
                let mut options = default.clone();
                options.read(conversion, line, if line.word(0) == "server" { 3 } else { 4 });
                service.backends.extend(options.backends(conversion, line));
                if options.check {
                    timing.get_or_insert(options.timing);
                }
            }
            "option" if line.word(1) == "httpchk" => httpchk(http.get_or_insert_default(), line),
            "http-check" => http_check(conversion, http.get_or_insert_default(), line),
            "balance" if line.word(1) == "source" => {}
            "balance" => {
                let why = "clients are assigned by a hash of their address, and remembered; keep HAProxy as the backend where another key decides";
                conversion.needs_you(&line.place, line.text(), why);
            }
            "hash-type" => conversion.not_needed(
                &line.place,
                line.text(),
                "the lookup table moves few clients of itself; nothing to do",
            ),
            "stick-table" => stick_table(conversion, service, line),
            "stick" if line.word(1) == "on" && line.word(2) == "src" && line.words.len() == 3 => {}
            "stick" => conversion.needs_you(
                &line.place,
                line.text(),
                "clients are remembered by their address alone; keep HAProxy as the backend where another key decides",
            ),
            _ => other(conversion, line),
        }
    }
    let checked = service.backends.iter().any(|backend| backend.checked);
    let mut check = timing.unwrap_or_default();
    check.kind = match http {
        _ if !checked => CheckKind::None,
        Some(http) => http.kind(),
        None => CheckKind::Tcp,
    };
    service.check = Some(check);
}

#[derive(Debug, Default)]
struct Http {
    method: Option<String>,
    path: Option<String>,
    host: Option<String>,
    status: Option<String>,
}

impl Http {
    fn kind(self) -> CheckKind {
        let method = self.method.or_else(|| Some("OPTIONS".to_owned()));
        CheckKind::Http { https: false, method, path: self.path, host: self.host, status: self.status }
    }
}

/// `option httpchk [METHOD] [URI] [VERSION]`, with `\r\nHost:\ www` at the version in old files.
fn httpchk(http: &mut Http, line: &Line) {
    match line.after(2) {
        [] => {}
        [path] => http.path = Some(path.clone()),
        [method, path, ..] => (http.method, http.path) = (Some(method.clone()), Some(path.clone())),
    }
    http.host =
        line.after(4).join(" ").split_once("Host: ").map(|(_, host)| host.trim().to_owned()).or(http.host.take());
}

fn http_check(conversion: &mut Conversion, http: &mut Http, line: &Line) {
    match (line.word(1), line.word(2)) {
        ("send", _) => {
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
        ("expect", "status") => http.status = Some(line.word(3).to_owned()),
        _ => conversion.needs_you(
            &line.place,
            line.text(),
            "a check asks once, and compares the status or `expect_body`; use a check of type `exec`",
        ),
    }
}

fn stick_table(conversion: &mut Conversion, service: &mut Service, line: &Line) {
    let mut words = line.after(1).iter().map(String::as_str);
    while let Some(word) = words.next() {
        let value = if word == "nopurge" { "" } else { words.next().unwrap_or_default() };
        match (word, value) {
            ("type", "ip" | "ipv6") => {}
            ("size", _) => conversion.not_needed(
                &line.place,
                format!("stick-table size {value}"),
                "`[client_table] capacity` is for all services; nothing to do below 262144",
            ),
            ("expire", value) => service.remember = time(value).map(|ms| ms.div_ceil(1000)),
            ("peers", _) => conversion.needs_you(
                &line.place,
                format!("stick-table peers {value}"),
                "several balancers share clients by `[fleet]`",
            ),
            _ => conversion.needs_you(
                &line.place,
                format!("stick-table {word} {value}"),
                "clients are remembered by their address alone; `balancer stats` has what is counted",
            ),
        }
    }
}

/// Names a line that is not about where connections go.
fn other(conversion: &mut Conversion, line: &Line) {
    const L7: [&str; 22] = [
        "acl",
        "http-request",
        "http-response",
        "http-after-response",
        "cookie",
        "redirect",
        "use-server",
        "tcp-request",
        "tcp-response",
        "reqrep",
        "rspadd",
        "compression",
        "capture",
        "errorfile",
        "errorloc",
        "stats",
        "filter",
        "force-persist",
        "ignore-persist",
        "http-reuse",
        "monitor-uri",
        "use_backend",
    ];
    let checks = line.word(0) == "option" && line.word(1).ends_with("-check") || line.word(0) == "tcp-check";
    let headers = line.word(0) == "option" && ["forwardfor", "originalto"].contains(&line.word(1));
    if checks {
        conversion.needs_you(
            &line.place,
            line.text(),
            "checks are tcp, http, https or exec; use a check of type `exec`",
        );
    } else if L7.contains(&line.word(0)) || headers {
        conversion.needs_you(&line.place, line.text(), BEHIND);
    } else if matches!(
        line.word(0),
        "mode"
            | "timeout"
            | "maxconn"
            | "log"
            | "option"
            | "no"
            | "retries"
            | "description"
            | "bind-process"
            | "fullconn"
            | "log-format"
            | "backlog"
            | "unique-id-format"
            | "load-server-state-from-file"
            | "id"
            | "email-alert"
    ) {
        conversion.not_needed(&line.place, line.text(), OWN);
    } else {
        conversion.needs_you(&line.place, line.text(), "it has no counterpart; look whether it matters");
    }
}
