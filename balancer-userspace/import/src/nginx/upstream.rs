//! Reads nginx's `upstream` blocks and their servers.

use super::other::{BEHIND, other};
use crate::{
    address::{as_name, host, refusal},
    ipvsadm::LIMIT,
    notes::Conversion,
    service::{Backend, Check, Service},
    tree::Directive,
};

/// Fills a service from the `upstream` that it uses. In an `http` context, the default port of servers is 80.
pub(super) fn fill(conversion: &mut Conversion, service: &mut Service, upstream: &Directive, stream: bool, udp: bool) {
    for each in upstream.children() {
        let mut tell = |why: &str| conversion.needs_you(&each.place, each.text(), why);
        match each.name() {
            "server" => service.backends.extend(server(conversion, each, stream, udp)),
            // nginx hashes three octets of an IPv4 address, or the whole IPv6 address.
            "ip_hash" => service.prefix = Some((24, 128)),
            "hash" if ["$remote_addr", "$binary_remote_addr"].contains(&each.argument()) => {
                service.prefix = Some((32, 128));
            }
            "hash" | "sticky" => tell(
                "this balancer hashes the client's address alone; keep nginx as the backend where another key decides",
            ),
            "least_conn" | "random" | "least_time" => tell(
                "clients are assigned by a hash and remembered; give weights, or have `bounded_load` keep new clients from a busy server",
            ),
            "zone" | "keepalive" | "keepalive_timeout" | "keepalive_requests" | "keepalive_time" => {
                conversion.own(&each.place, each.text());
            }
            _ => other(conversion, each),
        }
    }
}

fn server(conversion: &mut Conversion, directive: &Directive, stream: bool, udp: bool) -> Option<Backend> {
    let text = directive.argument();
    let Some((host, port)) = host(text) else {
        conversion.needs_you(&directive.place, directive.text(), refusal(text));
        return None;
    };
    let mut backend = Backend {
        place: directive.place.clone(),
        name: as_name(text),
        host,
        port: port.or((!stream).then_some(80)),
        weight: None,
        backup: false,
        disabled: false,
        check: (!udp).then(Check::default),
    };
    for option in directive.arguments().get(1..).unwrap_or_default() {
        server_option(conversion, directive, option, &mut backend);
    }
    Some(backend)
}

fn server_option(conversion: &mut Conversion, directive: &Directive, option: &str, backend: &mut Backend) {
    let about = || format!("server {} {option}", directive.argument());
    let mut tell = |why: &str| conversion.needs_you(&directive.place, about(), why);
    match option.split_once('=').unwrap_or((option, "")) {
        ("weight", value) => match value.parse() {
            Ok(weight) => backend.weight = Some(weight),
            Err(_) => tell("this is no weight; write a number"),
        },
        ("backup", _) => backend.backup = true,
        ("down", _) => backend.disabled = true,
        ("max_fails", "0") => backend.check = None,
        ("max_fails", value) => match value.parse() {
            Ok(fall) => backend.check = backend.check.take().map(|check| Check { fall: Some(fall), ..check }),
            Err(_) => tell("this is no number of failures; write one"),
        },
        ("fail_timeout", _) => {
            let why = "checks of its own find out when a backend is back; nothing to do";
            conversion.not_needed(&directive.place, about(), why);
        }
        ("max_conns", _) => tell(LIMIT),
        ("slow_start", _) => tell("it is a key of the service here; write `slow_start`"),
        ("resolve", _) => {
            conversion.not_needed(&directive.place, about(), "a backend's name is followed; nothing to do")
        }
        ("service", _) => tell("follow the name's SRV records with `dns` in a `[[service.discover]]`"),
        ("route", _) => tell(BEHIND),
        _ => tell("unknown parameter; check whether you need it"),
    }
}
