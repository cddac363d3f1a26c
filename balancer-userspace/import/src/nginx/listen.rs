//! Reads listeners from nginx's `listen`.

use std::net::IpAddr;

use crate::{
    address::{refusal, split, unspecified},
    notes::Conversion,
    service::Listener,
    tree::Directive,
};

/// Returns the listeners of a `listen` directive. A `listen` on every address may become several listeners, one for
/// each known address.
pub(super) fn listen(conversion: &mut Conversion, directive: &Directive) -> Vec<Listener> {
    let options = directive.arguments().get(1..).unwrap_or_default();
    match parse(directive.argument(), options) {
        Err(why) => {
            conversion.needs_you(&directive.place, directive.text(), why);
            Vec::new()
        }
        Ok(listener) => {
            let known = |option: &&String| !["udp", "default_server", "default", "bind"].contains(&option.as_str());
            let rest: Vec<_> = options.iter().filter(known).map(String::as_str).collect();
            if !rest.is_empty() {
                let why = "it concerns nginx's own sockets; nothing to do";
                conversion.not_needed(&directive.place, format!("listen … {}", rest.join(" ")), why);
            }
            if listener.address.is_unspecified() {
                conversion.named_addresses(&directive.place, &directive.text(), listener)
            } else {
                vec![listener]
            }
        }
    }
}

fn parse(text: &str, options: &[String]) -> Result<Listener, &'static str> {
    if text.starts_with("unix:") {
        return Err("clients on this machine cannot be steered; they connect to a server themselves");
    }
    for option in options {
        match option.as_str() {
            "ssl" | "quic" | "http2" | "http3" => {
                return Err(
                    "TLS ends at nginx, and this balancer does not end TLS; let the backends do it, or keep nginx as the backend",
                );
            }
            "proxy_protocol" => return Err("this balancer reads no PROXY line; let clients connect to it directly"),
            _ => {}
        }
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
