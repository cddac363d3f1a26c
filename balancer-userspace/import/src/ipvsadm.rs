//! The rules that `ipvsadm -Sn` prints.

use std::{collections::BTreeMap, rc::Rc};

use crate::{
    address::{numeric, shown},
    service::{Backend, Conversion, Forwarding, Listener, NotUnderstood, Place, Service},
};

pub(crate) fn convert(files: &[(String, String)]) -> Result<Conversion, NotUnderstood> {
    let mut conversion = Conversion::default();
    let mut services: BTreeMap<String, Service> = BTreeMap::new();
    for (name, text) in files {
        let file: Option<Rc<str>> = (files.len() > 1).then(|| Rc::from(name.as_str()));
        for (number, line) in text.lines().enumerate() {
            let place = Place { line: number + 1, file: file.clone() };
            let words: Vec<&str> = line.split_whitespace().collect();
            match words.first() {
                None => {}
                Some(word) if word.starts_with('#') => {}
                Some(&("-A" | "--add-service")) => {
                    if let Some((key, service)) = service(&mut conversion, &place, &words) {
                        services.insert(key, service);
                    }
                }
                Some(&("-a" | "--add-server")) => server(&mut conversion, &place, &words, &mut services),
                Some(word) => {
                    return Err(NotUnderstood::at(
                        &place,
                        format!("`{word}` is not known; `ipvsadm -Sn` prints -A and -a"),
                    ));
                }
            }
        }
    }
    let mut services: Vec<_> = services.into_values().collect();
    services.sort_by_key(|service| (service.place.file.clone(), service.place.line));
    services.into_iter().for_each(|service| conversion.add(service));
    Ok(conversion)
}

/// The words of the service itself: `-t ADDRESS:PORT`, `-u ADDRESS:PORT` or `-f MARK`.
fn which<'a>(words: &[&'a str]) -> Option<(&'a str, &'a str)> {
    words.windows(2).find_map(|pair| match pair {
        [
            kind @ ("-t" | "-u" | "-f" | "--tcp-service" | "--udp-service" | "--fwmark-service" | "--sctp-service"),
            value,
        ] => Some((*kind, *value)),
        _ => None,
    })
}

fn service(conversion: &mut Conversion, place: &Place, words: &[&str]) -> Option<(String, Service)> {
    let text = words.join(" ");
    let (kind, value) = which(words)?;
    if kind.starts_with("-f") || kind.starts_with("--f") {
        conversion.needs_you(
            place,
            text,
            "marks of the firewall are not read; write what the mark selects as `listen`",
        );
        return None;
    }
    let Some((address, Some(port))) = numeric(value).filter(|_| kind != "--sctp-service") else {
        conversion.needs_you(place, text, "this is no numeric address and port of TCP or UDP; print the rules with -n");
        return None;
    };
    let udp = kind.contains('u');
    let mut service = Service {
        place: place.clone(),
        name: format!("{}-{}{port}", address.to_string().replace(':', "-"), if udp { "udp-" } else { "" }),
        listeners: vec![Listener { address, first: port, last: port, udp }],
        forwarding: Forwarding::Nat,
        remember: None,
        prefix: None,
        check: None,
        backends: Vec::new(),
    };
    let mut rest = words.iter().skip(1);
    while let Some(word) = rest.next() {
        match *word {
            "-t" | "-u" | "--tcp-service" | "--udp-service" => drop(rest.next()),
            "-s" | "--scheduler" => {
                let scheduler = rest.next().copied().unwrap_or_default();
                if !["sh", "mh"].contains(&scheduler) {
                    conversion.needs_you(place, format!("-s {scheduler}"), "clients are assigned by a hash of their address, and remembered; look at `balancer stats`, and give weights");
                }
            }
            "-p" | "--persistent" => {
                service.remember = rest.next().and_then(|seconds| seconds.parse().ok()).or(Some(300))
            }
            "-M" | "--netmask" => match rest.next().and_then(|mask| prefix(mask)) {
                Some(prefix) => service.prefix = Some(prefix),
                None => conversion.needs_you(place, "-M", "this is no prefix; write `client_prefix`"),
            },
            word => conversion.needs_you(place, word, "it has no counterpart; look whether it matters"),
        }
    }
    Some((format!("{udp}{value}"), service))
}

/// The lengths that a mask in dotted notation, or a length for IPv6, gives.
fn prefix(mask: &str) -> Option<(u8, u8)> {
    if let Ok(length) = mask.parse::<u8>() {
        return (1..=128).contains(&length).then_some((32, length));
    }
    let bits = u32::from(mask.parse::<std::net::Ipv4Addr>().ok()?);
    let ones = bits.leading_ones();
    (ones > 0 && ones == bits.count_ones()).then_some((u8::try_from(ones).ok()?, 64))
}

fn server(conversion: &mut Conversion, place: &Place, words: &[&str], services: &mut BTreeMap<String, Service>) {
    let text = words.join(" ");
    let found = which(words).and_then(|(kind, value)| services.get_mut(&format!("{}{value}", kind.contains('u'))));
    let after = |names: [&str; 2]| {
        words
            .windows(2)
            .find_map(|pair| pair.first().is_some_and(|one| names.contains(one)).then(|| pair.get(1).copied())?)
    };
    let Some(service) = found else {
        conversion.needs_you(place, text, "its service could not be converted, or is not there; see the line with -A");
        return;
    };
    let Some((address, port)) = after(["-r", "--real-server"]).and_then(numeric) else {
        conversion.needs_you(place, text, "this is no numeric address; print the rules with -n");
        return;
    };
    let has = |names: [&str; 2]| words.iter().any(|word| names.contains(word));
    let forwarding = if has(["-m", "--masquerading"]) {
        Forwarding::Nat
    } else if !has(["-i", "--ipip"]) {
        Forwarding::Dsr
    } else if after(["--tun-type", "--tun-type"]) == Some("gue") {
        Forwarding::Gue
    } else {
        Forwarding::Ipip
    };
    if service.backends.is_empty() {
        service.forwarding = forwarding;
    } else if service.forwarding != forwarding {
        conversion.needs_you(
            place,
            text,
            "all backends of a service are reached in the same way; make a service for it",
        );
        return;
    }
    let weight: Option<u32> = after(["-w", "--weight"]).and_then(|weight| weight.parse().ok());
    service.backends.push(Backend {
        place: place.clone(),
        name: shown(address, port).replace(['[', ']'], "").replace(':', "-"),
        address,
        port,
        weight,
        backup: false,
        disabled: false,
        checked: false,
    });
    for (name, why) in [
        ("-x", "connections are not counted; set the limit in the server itself"),
        ("-y", "connections are not counted; set the limit in the server itself"),
    ] {
        if let Some(value) = after([name, name]).filter(|value| *value != "0") {
            conversion.needs_you(place, format!("{name} {value}"), why);
        }
    }
}
