//! Reads listeners from nginx's `listen`.

use std::net::IpAddr;

use crate::{
    address::{refusal, split, unspecified},
    notes::{BEHIND_A_PROXY, Conversion},
    place::Place,
    service::Listener,
    tree::Directive,
};

/// The option by which a listener on every IPv6 address also takes IPv4 clients.
const BOTH: &str = "ipv6only=off";
/// The options about which no note is needed.
const KNOWN: [&str; 6] = ["udp", "default_server", "default", "bind", BOTH, "ipv6only=on"];

/// A `listen` directive whose address could be read.
pub(super) struct Listen {
    pub(super) place: Place,
    pub(super) text: String,
    pub(super) listener: Listener,
    /// The reason why the balancer cannot serve connections to this listener; `None` if it can.
    pub(super) refused: Option<&'static str>,
}

/// Reads a `listen` directive, and adds a note if the address or an option has no counterpart. `passes` says whether the
/// `server` passes connections to another one.
pub(super) fn listen(conversion: &mut Conversion, directive: &Directive, passes: bool) -> Vec<Listen> {
    let read = read(directive);
    match &read {
        _ if !passes => {
            let why = "its server passes to no other one, see there";
            conversion.not_needed(&directive.place, directive.text(), why);
        }
        Err(why) | Ok(Listen { refused: Some(why), .. }) => {
            conversion.needs_you(&directive.place, directive.text(), *why);
        }
        Ok(_) => {
            let known = |option: &&String| !KNOWN.contains(&option.as_str());
            let rest: Vec<_> = options(directive).iter().filter(known).map(String::as_str).collect();
            if !rest.is_empty() {
                conversion.own(&directive.place, format!("listen … {}", rest.join(" ")));
            }
        }
    }
    let Ok(listen) = read else { return Vec::new() };
    let takes_both = listen.listener.address == unspecified(false) && options(directive).iter().any(|one| one == BOTH);
    let of_v4 = takes_both.then(|| Listen {
        listener: Listener { address: unspecified(true), ..listen.listener },
        text: listen.text.clone(),
        place: listen.place.clone(),
        refused: listen.refused,
    });
    of_v4.into_iter().chain([listen]).collect()
}

fn options(directive: &Directive) -> &[String] {
    directive.arguments().get(1..).unwrap_or_default()
}

/// Reads a `listen` directive. The error says why its address is unknown.
pub(super) fn read(directive: &Directive) -> Result<Listen, &'static str> {
    let options = options(directive);
    let listener = parse(directive.argument(), options)?;
    let refused = options.iter().find_map(|option| match option.as_str() {
        "ssl" | "quic" | "http2" | "http3" => Some(
            "TLS ends at nginx, and this balancer does not end TLS; let the backends do it, or keep nginx as the backend",
        ),
        "proxy_protocol" => Some(BEHIND_A_PROXY),
        _ => None,
    });
    Ok(Listen { place: directive.place.clone(), text: directive.text(), listener, refused })
}

fn parse(text: &str, options: &[String]) -> Result<Listener, &'static str> {
    if text.starts_with("unix:") {
        return Err("the balancer cannot steer clients on this machine; let them connect to a server directly");
    }
    let (host, port) = split(text);
    let (host, port) = match (host.parse::<IpAddr>(), port) {
        // The text contains only a port or a range of ports.
        (Err(_), None) if host.starts_with(|c: char| c.is_ascii_digit()) => ("*", host),
        (_, port) => (host, port.unwrap_or("80")),
    };
    let address = match host {
        "*" => unspecified(true),
        host => host.parse().map_err(|_| refusal(host))?,
    };
    let (first, last) = port.split_once('-').unwrap_or((port, port));
    match (first.parse::<u16>(), last.parse::<u16>()) {
        (Ok(first), Ok(last)) if 0 < first && first <= last => {
            Ok(Listener { address, first, last, udp: options.iter().any(|option| option == "udp") })
        }
        _ => Err("this is no port or range of ports; write one, 1 to 65535"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn when_an_address_is_left_out_then_it_is_every_address() {
        let shown = |text: &str| parse(text, &[]).map(|one| (one.address.to_string(), one.first, one.last));
        for (text, expected) in [
            ("80", ("0.0.0.0", 80, 80)),
            ("*:8080", ("0.0.0.0", 8080, 8080)),
            ("[::]:80", ("::", 80, 80)),
            ("198.51.100.10", ("198.51.100.10", 80, 80)),
            ("198.51.100.10:5000-5010", ("198.51.100.10", 5000, 5010)),
            ("5000-5010", ("0.0.0.0", 5000, 5010)),
        ] {
            let (address, first, last) = expected;
            assert_eq!(shown(text), Ok((address.to_owned(), first, last)), "{text}");
        }
        for text in ["0", "70000", "localhost:80", "www.example:80", "80-", "90-80", ""] {
            assert!(shown(text).is_err(), "{text}");
        }
    }
}
