//! Reads listeners from HAProxy's `bind`.

use super::parse::Line;
use crate::{
    address::{refusal, split, unspecified},
    notes::{BEHIND_A_PROXY, Conversion},
    service::Listener,
};

/// Returns the listeners of a line `bind ADDRESS:PORT[-PORT],…`.
pub(super) fn bind(conversion: &mut Conversion, line: &Line) -> Vec<Listener> {
    let has = |option: &str| line.after(2).iter().any(|word| word == option);
    let why = if has("accept-proxy") || has("accept-netscaler-cip") {
        Some(BEHIND_A_PROXY)
    } else if has("ssl") || line.word(1).starts_with("quic") {
        Some(
            "TLS ends at HAProxy, and this balancer does not end TLS; let the backends do it, or keep HAProxy as the backend",
        )
    } else {
        None
    };
    if let Some(why) = why {
        conversion.needs_you(&line.place, line.text(), why);
        return Vec::new();
    }
    if !line.after(2).is_empty() {
        conversion.own(&line.place, format!("bind … {}", line.after(2).join(" ")));
    }
    let mut listeners = Vec::new();
    let takes_both = has("v4v6");
    for text in line.word(1).split(',') {
        match listener(text) {
            Ok(listener) if listener.address.is_unspecified() && takes_both => {
                for is_v4 in [true, false] {
                    let of_family = Listener { address: unspecified(is_v4), ..listener };
                    listeners.extend(conversion.named_addresses(&line.place, &format!("bind {text} v4v6"), of_family));
                }
            }
            Ok(listener) if listener.address.is_unspecified() => {
                listeners.extend(conversion.named_addresses(&line.place, &format!("bind {text}"), listener));
            }
            Ok(listener) => listeners.push(listener),
            Err(why) => conversion.needs_you(&line.place, format!("bind {text}"), why),
        }
    }
    listeners
}

fn listener(text: &str) -> Result<Listener, &'static str> {
    let (is_v4, bare) = match (text.strip_prefix("ipv4@"), text.strip_prefix("ipv6@")) {
        (Some(bare), _) => (true, bare),
        (_, Some(bare)) => (false, bare),
        _ => (true, text),
    };
    // The port follows the last colon, even if the address has no brackets, as in `:::80`.
    let (host, ports) = bare.rsplit_once(':').unwrap_or((bare, ""));
    let host = host.trim_start_matches('[').trim_end_matches(']');
    let address = match host {
        "" | "*" => unspecified(is_v4),
        host => host.parse().map_err(|_| if split(bare).1.is_some() { refusal(host) } else { refusal(bare) })?,
    };
    let (first, last) = ports.split_once('-').unwrap_or((ports, ports));
    match (first.parse::<u16>(), last.parse::<u16>()) {
        (Ok(first), Ok(last)) if 0 < first && first <= last => Ok(Listener { address, first, last, udp: false }),
        _ => Err("this is no port or range of ports; write one, 1 to 65535"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn when_an_address_is_left_out_then_it_is_every_address() {
        let shown = |text: &str| listener(text).map(|one| (one.address.to_string(), one.first, one.last));
        for (text, expected) in [
            (":80", ("0.0.0.0", 80, 80)),
            ("*:8080", ("0.0.0.0", 8080, 8080)),
            (":::80", ("::", 80, 80)),
            ("[::]:80", ("::", 80, 80)),
            ("ipv6@:80", ("::", 80, 80)),
            ("[2001:db8::10]:443", ("2001:db8::10", 443, 443)),
            ("198.51.100.10:5000-5010", ("198.51.100.10", 5000, 5010)),
        ] {
            let (address, first, last) = expected;
            assert_eq!(shown(text), Ok((address.to_owned(), first, last)), "{text}");
        }
        for text in ["", ":", ":0", "www.example:80", "/run/haproxy.sock", "abns@x", "198.51.100.10", ":90-80"] {
            assert!(shown(text).is_err(), "{text}");
        }
    }
}
