//! Services of nginx's `server`s and `upstream`s.

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    rc::Rc,
};

use super::parse::{Directive, Reader};
use crate::{
    Include,
    address::{numeric, refusal, split},
    service::{Backend, Check, CheckKind, Conversion, Forwarding, Listener, NotUnderstood, Service},
};

const BEHIND: &str = "this is layer 7, which this balancer does not do; to keep it, run nginx on several machines and make them the backends";
const OWN: &str = "it concerns nginx's own process or connections; nothing to do";
const L7: [&str; 24] = [
    "ssl_certificate",
    "ssl_certificate_key",
    "sub_filter",
    "rewrite",
    "return",
    "if",
    "auth_basic",
    "auth_request",
    "proxy_cache",
    "proxy_set_header",
    "add_header",
    "proxy_ssl",
    "proxy_redirect",
    "proxy_cookie_path",
    "limit_req",
    "limit_conn",
    "sticky",
    "root",
    "try_files",
    "fastcgi_pass",
    "grpc_pass",
    "uwsgi_pass",
    "map",
    "split_clients",
];

type Upstreams<'a> = BTreeMap<&'a str, &'a Directive>;

pub(crate) fn convert(files: &[(String, String)], include: Include<'_>) -> Result<Conversion, NotUnderstood> {
    let mut reader = Reader { include, files: 0, unread: Vec::new() };
    let mut top = Vec::new();
    for (name, text) in files {
        let file = (files.len() > 1).then(|| Rc::from(name.as_str()));
        top.append(&mut reader.read(file, text, 0)?);
    }
    let mut conversion = Conversion::default();
    for (place, directive, why) in &reader.unread {
        conversion.needs_you(place, directive, format!("{why}; name the file on the command line as well"));
    }
    for directive in &top {
        match directive.name() {
            "http" | "stream" => context(&mut conversion, directive.children(), directive.name() == "stream"),
            // A file of conf.d by itself.
            "upstream" | "server" => {}
            _ => other(&mut conversion, directive),
        }
    }
    if top.iter().any(|directive| directive.name() == "server") {
        let bare: Vec<_> = top.into_iter().filter(|one| ["upstream", "server"].contains(&one.name())).collect();
        let passes =
            |one: &Directive| one.name() == "server" && one.children().iter().any(|each| each.name() == "proxy_pass");
        // In `http`, `proxy_pass` is in a location and has a scheme.
        context(&mut conversion, &bare, bare.iter().any(passes));
    }
    Ok(conversion)
}

fn context(conversion: &mut Conversion, directives: &[Directive], stream: bool) {
    let named = |name: &'static str| directives.iter().filter(move |directive| directive.name() == name);
    let upstreams: Upstreams<'_> = named("upstream").map(|one| (one.argument(), one)).collect();
    let mut used = Vec::new();
    for each in named("server") {
        used.extend(server(conversion, each, &upstreams, stream));
    }
    for (name, upstream) in &upstreams {
        if !used.contains(name) {
            conversion.needs_you(
                &upstream.place,
                format!("upstream {name}"),
                "no server could be converted that passes to it alone; add a service for it by hand",
            );
        }
    }
    for each in directives.iter().filter(|one| !["upstream", "server"].contains(&one.name())) {
        other(conversion, each);
    }
}

/// Names a directive that is not about where connections go.
fn other(conversion: &mut Conversion, directive: &Directive) {
    if L7.iter().any(|name| directive.name().starts_with(name)) {
        conversion.needs_you(&directive.place, directive.text(), BEHIND);
    } else {
        conversion.not_needed(&directive.place, directive.text(), OWN);
    }
}

/// Converts one server, and gives the name of the upstream that it used.
fn server<'a>(
    conversion: &mut Conversion,
    server: &Directive,
    upstreams: &Upstreams<'a>,
    stream: bool,
) -> Option<&'a str> {
    let mut listeners = Vec::new();
    let mut passes = Vec::new();
    for each in server.children() {
        match each.name() {
            "listen" => listeners.extend(listen(conversion, each)),
            "proxy_pass" => passes.push(each),
            "location" => {
                let inside = each.children().iter().filter(|one| one.name() == "proxy_pass");
                let before = passes.len();
                passes.extend(inside);
                for one in each.children().iter().filter(|one| one.name() != "proxy_pass") {
                    other(conversion, one);
                }
                if passes.len() == before || each.words.get(1).map(String::as_str) != Some("/") {
                    conversion.needs_you(&each.place, each.text(), BEHIND);
                }
            }
            "server_name" if each.arguments().iter().all(|name| name == "_" || name.is_empty()) => {}
            "server_name" => conversion.not_needed(
                &each.place,
                each.text(),
                "clients of every name that come to the address are steered; nothing to do",
            ),
            "proxy_protocol" => conversion.needs_you(
                &each.place,
                each.text(),
                "the backends would see no PROXY line but the client's own address; switch it off at the backends",
            ),
            _ => other(conversion, each),
        }
    }
    let target = |pass: &&Directive| {
        let url = pass.argument();
        let rest = url.split_once("://").map_or(url, |(_, rest)| rest);
        rest.split('/').next().unwrap_or_default().to_owned()
    };
    let mut targets: Vec<_> = passes.iter().map(target).collect();
    targets.dedup();
    let ([target], Some(pass)) = (targets.as_slice(), passes.first()) else {
        let why =
            if targets.is_empty() { "it passes to no other server" } else { "it chooses the server by the request" };
        conversion.needs_you(&server.place, "server", format!("{why}; {BEHIND}"));
        return None;
    };
    if listeners.is_empty() {
        conversion.needs_you(&server.place, "server", "none of its listeners could be converted; see its `listen`");
        return None;
    }
    if pass.argument().starts_with("https://") {
        conversion.needs_you(&pass.place, pass.text(), format!("nginx encrypts towards the backends; {BEHIND}"));
        return None;
    }
    let udp = listeners.iter().any(|listener: &Listener| listener.udp);
    let mut service = Service {
        place: server.place.clone(),
        name: target.clone(),
        listeners,
        forwarding: Forwarding::Nat,
        remember: None,
        prefix: None,
        check: None,
        backends: Vec::new(),
    };
    let found = upstreams.get_key_value(target.as_str());
    match found {
        Some((_, upstream)) => fill(conversion, &mut service, upstream, stream, udp),
        None => {
            let port = split(target).1.is_none().then_some(80).filter(|_| !stream);
            match numeric(target) {
                Some((address, own)) => service.backends.push(Backend {
                    place: pass.place.clone(),
                    name: format!("server-{}", pass.place.line),
                    address,
                    port: own.or(port),
                    weight: None,
                    backup: false,
                    disabled: false,
                    checked: true,
                }),
                None => {
                    conversion.needs_you(&pass.place, pass.text(), refusal(target));
                    return None;
                }
            }
        }
    }
    conversion.add(service);
    found.map(|(name, _)| *name)
}

fn listen(conversion: &mut Conversion, directive: &Directive) -> Option<Listener> {
    let text = directive.argument();
    let (host, port) = split(text);
    let options = directive.arguments().get(1..).unwrap_or_default();
    let mut refuse = |why: &str| {
        conversion.needs_you(&directive.place, directive.text(), why);
        None
    };
    if text.starts_with("unix:") {
        return refuse("clients on this machine cannot be steered; they connect to a server themselves");
    }
    for option in options {
        match option.as_str() {
            "ssl" | "quic" | "http2" => {
                return refuse(
                    "TLS ends at nginx, and this balancer does not end TLS; let the backends do it, or keep nginx as the backend",
                );
            }
            "proxy_protocol" => return refuse("this balancer reads no PROXY line; let clients connect to it directly"),
            _ => {}
        }
    }
    let (host, port) = match (host.parse::<IpAddr>(), host.parse::<u16>(), port) {
        (Err(_), Ok(port), None) => ("*", port.to_string()),
        (_, _, port) => (host, port.unwrap_or("80").to_owned()),
    };
    let address = match host {
        "*" => Some(IpAddr::V4(Ipv4Addr::UNSPECIFIED)),
        "::" => Some(IpAddr::V6(Ipv6Addr::UNSPECIFIED)),
        host => host.parse().ok(),
    };
    let Some(address) = address else { return refuse(refusal(host)) };
    if address.is_unspecified() {
        return refuse(
            "it listens on every address of this machine, and the balancer steers named ones; write the address that clients use",
        );
    }
    let (first, last) = port.split_once('-').unwrap_or((&port, &port));
    match (first.parse::<u16>(), last.parse::<u16>()) {
        (Ok(first), Ok(last)) if 0 < first && first <= last => {
            Some(Listener { address, first, last, udp: options.iter().any(|option| option == "udp") })
        }
        _ => refuse("this is no port or range of ports; write one, 1 to 65535"),
    }
}

fn fill(conversion: &mut Conversion, service: &mut Service, upstream: &Directive, stream: bool, udp: bool) {
    let mut fall = None;
    for each in upstream.children() {
        match each.name() {
            "server" => {
                if let Some((backend, fails)) = upstream_server(conversion, each, stream) {
                    fall = fall.max(fails);
                    service.backends.push(backend);
                }
            }
            // For IPv4 it hashes three octets, for IPv6 the whole address.
            "ip_hash" => service.prefix = Some((24, 128)),
            "hash" if ["$remote_addr", "$binary_remote_addr"].contains(&each.argument()) => service.prefix = Some((32, 128)),
            "hash" => conversion.needs_you(&each.place, each.text(), "this balancer hashes the client's address alone; keep nginx as the backend where another key decides"),
            "least_conn" | "random" | "least_time" => conversion.needs_you(&each.place, each.text(), "clients are assigned by a hash and remembered, connections are not counted; give weights, and watch `balancer stats`"),
            "zone" | "keepalive" | "keepalive_timeout" | "keepalive_requests" | "keepalive_time" => conversion.not_needed(&each.place, each.text(), OWN),
            _ => other(conversion, each),
        }
    }
    if !udp {
        let kind =
            if service.backends.iter().any(|backend| backend.checked) { CheckKind::Tcp } else { CheckKind::None };
        service.check = Some(Check { kind, fall, ..Check::default() });
    }
}

/// A backend, and after how many failures it is down.
fn upstream_server(conversion: &mut Conversion, directive: &Directive, stream: bool) -> Option<(Backend, Option<u32>)> {
    let text = directive.argument();
    let Some((address, port)) = numeric(text) else {
        conversion.needs_you(&directive.place, directive.text(), refusal(text));
        return None;
    };
    let mut backend = Backend {
        place: directive.place.clone(),
        name: text.trim_start_matches('[').replace("]:", "-").replace(':', "-"),
        address,
        port: port.or((!stream).then_some(80)),
        weight: None,
        backup: false,
        disabled: false,
        checked: true,
    };
    let mut fails = None;
    for option in directive.arguments().get(1..).unwrap_or_default() {
        let mut tell = |why: &str| conversion.needs_you(&directive.place, format!("server {text} {option}"), why);
        match option.split_once('=').unwrap_or((option, "")) {
            ("weight", value) => match value.parse() {
                Ok(weight) => backend.weight = Some(weight),
                Err(_) => tell("this is no weight; write a number"),
            },
            ("backup", _) => backend.backup = true,
            ("down", _) => backend.disabled = true,
            ("max_fails", "0") => backend.checked = false,
            ("max_fails", value) => fails = value.parse().ok(),
            ("fail_timeout", _) => conversion.not_needed(
                &directive.place,
                format!("server {text} {option}"),
                "checks of its own find out when a backend is back; nothing to do",
            ),
            ("max_conns", _) => tell("connections are not counted; set the limit in the server itself"),
            ("slow_start", _) => tell("it is a key of the service here; write `slow_start`"),
            ("resolve" | "service" | "route", _) => tell("names and routes are not looked up; write numeric addresses"),
            _ => tell("this parameter is not known; look whether it matters"),
        }
    }
    Some((backend, fails))
}
