//! Makes backends from keepalived's `real_server` and `sorry_server`.

use super::check::{Defaults, NOTIFY, checker, is_checker, is_on};
use crate::{
    address::{Host, as_name, shown},
    ipvsadm::{GUE_PORT, LIMIT, TOA},
    notes::Conversion,
    place::Place,
    service::{Backend, Forwarding},
    tree::Directive,
};

const INHIBIT: &str = "a backend that fails keeps no known clients unless `on_failure` of the service says \"drain\"; write it where it should";

/// The forwarding method that `lvs_method` or `lb_kind` names. If the balancer lacks this method, the function adds a
/// note and returns `None`.
pub(super) fn method(conversion: &mut Conversion, directive: &Directive) -> Option<Forwarding> {
    let words: Vec<_> = directive.arguments().iter().map(String::as_str).collect();
    let upper = words.first().map(|word| word.to_ascii_uppercase());
    let option = |name: &str| words.iter().skip_while(|word| **word != name).nth(1).copied();
    match (upper.as_deref(), option("type")) {
        (Some("NAT"), _) => Some(Forwarding::Nat),
        (Some("DR"), _) => Some(Forwarding::Dsr),
        (Some("FNAT"), _) => {
            conversion.needs_you(&directive.place, directive.text(), TOA);
            Some(Forwarding::Snat)
        }
        (Some("TUN"), None | Some("ipip")) => Some(Forwarding::Ipip),
        (Some("TUN"), Some("gue")) => {
            if option("port").is_some_and(|port| port != "6080") {
                conversion.needs_you(&directive.place, directive.text(), GUE_PORT);
            }
            Some(Forwarding::Gue)
        }
        _ => {
            let why = "methods are NAT, DR, FNAT, and TUN with ipip or gue; let the servers take one of these";
            conversion.needs_you(&directive.place, directive.text(), why);
            None
        }
    }
}

/// Makes a backend from the address and port of a directive.
fn backend(conversion: &mut Conversion, directive: &Directive) -> Option<Backend> {
    let port = directive.words.get(2).map(|port| port.parse::<u16>()).transpose();
    let (Ok(address), Ok(port)) = (directive.argument().parse(), port) else {
        let why = "this is no numeric address and port; write them";
        conversion.needs_you(&directive.place, directive.text(), why);
        return None;
    };
    let port = port.filter(|port| *port != 0);
    let place = directive.place.clone();
    let name = as_name(&shown(address, port));
    Some(Backend {
        place,
        name,
        host: Host::At(address),
        port,
        weight: None,
        backup: false,
        disabled: false,
        check: None,
    })
}

/// Makes a backend from the server that takes over when all other servers are down.
pub(super) fn sorry(conversion: &mut Conversion, directive: &Directive) -> Option<Backend> {
    let mut backend = backend(conversion, directive)?;
    backend.backup = true;
    Some(backend)
}

/// Converts a real server, as far as the balancer has the same features.
pub(super) fn real(
    conversion: &mut Conversion,
    directive: &Directive,
    defaults: &Defaults,
    forwarding: Forwarding,
    udp: bool,
) -> Option<Backend> {
    let mut backend = backend(conversion, directive)?;
    let mut defaults = defaults.clone();
    let rest: Vec<_> = directive.children().iter().filter(|one| !defaults.read(conversion, one)).collect();
    for one in &rest {
        match one.name() {
            name if is_checker(name) => {
                let check = checker(conversion, one, &defaults);
                // A server whose check could not be converted is still asked whether its port opens.
                let Some(check) = check.or_else(|| (!udp).then(|| defaults.connect())) else { continue };
                if backend.check.is_some() {
                    let why = "a backend has one check; use one of type `exec` that asks all";
                    conversion.needs_you(&one.place, one.name(), why);
                } else {
                    backend.check = Some(check);
                }
            }
            "weight" => match one.argument().parse() {
                Ok(weight) => backend.weight = Some(weight),
                Err(_) => conversion.needs_you(&one.place, one.text(), "this is no weight; write a number"),
            },
            "lvs_method" => {
                if method(conversion, one)? != forwarding {
                    let why = "all backends of a service are reached in the same way; make a service for it";
                    conversion.needs_you(&one.place, format!("{} {}", directive.text(), one.text()), why);
                    return None;
                }
            }
            _ => other(conversion, one),
        }
    }
    Some(backend)
}

fn other(conversion: &mut Conversion, one: &Directive) {
    let place: &Place = &one.place;
    match one.name() {
        "inhibit_on_failure" if is_on(one) => conversion.needs_you(place, one.text(), INHIBIT),
        "inhibit_on_failure" => {}
        "notify_up" | "notify_down" => conversion.needs_you(place, one.text(), NOTIFY),
        "smtp_alert" if is_on(one) => conversion.needs_you(place, one.text(), NOTIFY),
        "uthreshold" | "lthreshold" => conversion.needs_you(place, one.text(), LIMIT),
        "smtp_alert" | "warmup" | "snmp_name" => {
            conversion.own(place, one.text());
        }
        _ => conversion.needs_you(place, one.text(), "this balancer has no counterpart; check whether you need it"),
    }
}
