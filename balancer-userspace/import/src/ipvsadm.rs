//! Reads the rules that `ipvsadm -Sn` prints.

use std::{collections::BTreeMap, net::IpAddr};

use crate::{
    address::{Host, as_name, mask, numeric, shown, unspecified},
    error::NotUnderstood,
    notes::Conversion,
    place::{Place, named},
    service::{Backend, Check, Forwarding, Listener, Service},
};

const ADDED: &str = "IPVS checks nothing, so this check is an addition; type = \"none\" switches it off";

/// The services by the selectors of their rules, in the order of the file.
#[derive(Default)]
struct Services {
    places: BTreeMap<String, usize>,
    services: Vec<Service>,
}

pub(crate) fn convert(conversion: &mut Conversion, files: &[(String, String)]) -> Result<(), NotUnderstood> {
    let mut services = Services::default();
    for (name, text) in files {
        let file = named(files, name);
        for (number, line) in text.lines().enumerate() {
            let place = Place { line: number + 1, file: file.clone() };
            let words: Vec<&str> = line.split_whitespace().collect();
            match words.as_slice() {
                [] => {}
                [word, ..] if word.starts_with('#') => {}
                ["-A" | "--add-service", rest @ ..] => add_service(conversion, &place, rest, &mut services),
                ["-a" | "--add-server", rest @ ..] => add_server(conversion, &place, rest, &mut services),
                ["-P" | "--add-laddr", rest @ ..] => add_own_address(conversion, &place, rest, &mut services),
                [word, ..] => {
                    let what = format!("`{word}` begins no rule; `ipvsadm -Sn` prints lines with -A and -a");
                    return Err(NotUnderstood::at(&place, what));
                }
            }
        }
    }
    for mut service in services.services {
        give_port(&mut service);
        if service.forwarding == Forwarding::Snat {
            conversion.needs_you(&service.place, service.name.clone(), TOA);
        }
        keep_own_addresses(conversion, &mut service);
        conversion.add(service);
    }
    Ok(())
}

/// The option of a rule that selects the packets of a service.
#[derive(Clone, Copy)]
enum Selector<'a> {
    Address { text: &'a str, udp: bool },
    Sctp,
    Mark(&'a str),
}

impl Selector<'_> {
    /// A key that is equal for the rule of a service and the rules of its servers.
    fn key(self) -> String {
        match self {
            Self::Address { text, udp } => format!("{} {text}", if udp { "-u" } else { "-t" }),
            Self::Sctp => "--sctp-service".to_owned(),
            Self::Mark(mark) => format!("-f {mark}"),
        }
    }
}

/// Reads the selector of a service from an option.
fn selector<'a>(option: &str, rest: &mut impl Iterator<Item = &'a &'a str>) -> Option<Selector<'a>> {
    let mut value = || rest.next().copied().unwrap_or_default();
    Some(match option {
        "-t" | "--tcp-service" => Selector::Address { text: value(), udp: false },
        "-u" | "--udp-service" => Selector::Address { text: value(), udp: true },
        "-f" | "--fwmark-service" => Selector::Mark(value()),
        "--sctp-service" => {
            value();
            Selector::Sctp
        }
        _ => return None,
    })
}

fn add_service(conversion: &mut Conversion, place: &Place, words: &[&str], services: &mut Services) {
    conversion.has_candidates = true;
    let mut service = Service::new(place, "");
    let (mut found, mut is_v4) = (None, true);
    let mut rest = words.iter();
    while let Some(word) = rest.next() {
        if let Some(selector) = selector(word, &mut rest) {
            found = Some(selector);
            continue;
        }
        match *word {
            "-6" | "--ipv6" => is_v4 = false,
            "-s" | "--scheduler" => scheduler(conversion, place, rest.next().copied().unwrap_or_default()),
            "-p" | "--persistent" => {
                let seconds = rest.clone().next().and_then(|seconds| seconds.parse().ok());
                if seconds.is_some() {
                    rest.next();
                }
                service.remember = seconds.or(Some(300));
            }
            "-M" | "--netmask" => match rest.next().and_then(|text| mask(text)) {
                Some(prefix) => service.prefix = Some(prefix),
                None => conversion.needs_you(place, "-M", "this is no prefix; write `client_prefix`"),
            },
            "-b" | "--sched-flags" => {
                let flags = rest.next().copied().unwrap_or_default();
                conversion.not_needed(place, format!("-b {flags}"), FLAGS);
            }
            "-o" | "--ops" => conversion.not_needed(place, *word, "each datagram is steered by itself; nothing to do"),
            "--pe" => {
                let engine = rest.next().copied().unwrap_or_default();
                conversion.needs_you(place, format!("--pe {engine}"), PERSISTENCE_ENGINE);
            }
            word => conversion.needs_you(place, word, "unknown option; check whether you need it"),
        }
    }
    let text = || format!("-A {}", words.join(" "));
    let Some(selector) = found else {
        return conversion.needs_you(place, text(), "it names no service; write -t, -u or -f");
    };
    match selector {
        Selector::Sctp => return conversion.needs_you(place, text(), SCTP),
        Selector::Mark(mark) => {
            conversion.needs_you(place, format!("-f {mark}"), MARK);
            service.name = format!("mark-{mark}");
            service.listeners = vec![Listener { address: unspecified(is_v4), first: 0, last: 0, udp: false }];
        }
        Selector::Address { text: value, udp } => {
            let Some((address, Some(port))) = numeric(value) else {
                return conversion.needs_you(
                    place,
                    text(),
                    "this is no numeric address and port; print the rules with -n",
                );
            };
            service.name = service_name(address, port, udp);
            service.listeners = vec![Listener { address, first: port, last: port, udp }];
        }
    }
    services.places.insert(selector.key(), services.services.len());
    services.services.push(service);
}

pub(crate) const FLAGS: &str =
    "clients are hashed by their address alone, and go to another backend where one fails; nothing to do";
pub(crate) const PERSISTENCE_ENGINE: &str =
    "clients are remembered by their address alone; keep IPVS where what is in the packets decides";
pub(crate) const SCTP: &str = "TCP and UDP are steered; keep IPVS for SCTP";
pub(crate) const MARK: &str =
    "marks of the firewall are not read; write what its rule selects as `listen` of the service below";
pub(crate) const LIMIT: &str =
    "limit a backend's clients by `max_clients`, or with `snat` its connections by `max_connections`";

pub(crate) fn service_name(address: IpAddr, port: u16, udp: bool) -> String {
    format!("{}-{}{port}", as_name(&address.to_string()), if udp { "udp-" } else { "" })
}

/// Converts a scheduler of ipvsadm, or adds a note.
pub(crate) fn scheduler(conversion: &mut Conversion, place: &Place, scheduler: &str) {
    let why = match scheduler {
        "sh" | "mh" => return,
        "rr" | "wrr" => "clients are spread evenly by a hash of their address, by the servers' weights; nothing to do",
        _ => {
            return conversion.needs_you(
                place,
                format!("scheduler {scheduler}"),
                "clients are assigned by a hash of their address, and remembered; look at `balancer stats`, and give weights",
            );
        }
    };
    conversion.not_needed(place, format!("scheduler {scheduler}"), why);
}

/// The note about DPVS's `FNAT`, which tells servers the client's address in an option of TCP.
pub(crate) const TOA: &str = "with FNAT, DPVS tells servers the clients' addresses in a TCP option, and this balancer does \
                              not; if the servers must know clients, use nat, dsr or a tunnel";

/// The maximum number of addresses of one family that servers of a service see.
const MOST_SEEN: usize = 8;

/// Keeps as many of the addresses that servers see as the balancer takes.
pub(crate) fn keep_own_addresses(conversion: &mut Conversion, service: &mut Service) {
    if service.forwarding != Forwarding::Snat && !service.seen_as.is_empty() {
        service.seen_as.clear();
        let why = "its servers are not reached by FNAT, so they see no local addresses; nothing to do";
        conversion.not_needed(&service.place, format!("the local addresses of {}", service.name), why);
    }
    let mut kept: Vec<IpAddr> = Vec::new();
    for address in std::mem::take(&mut service.seen_as) {
        let of_family = kept.iter().filter(|one| one.is_ipv4() == address.is_ipv4()).count();
        if kept.contains(&address) {
            continue;
        }
        if of_family == MOST_SEEN {
            let why = "a service has up to 8 addresses of a family; give it more ports by `ports` in `snat`";
            conversion.needs_you(&service.place, format!("the local address {address} of {}", service.name), why);
            break;
        }
        kept.push(address);
    }
    service.seen_as = kept;
}

/// Reads a rule `-P -t SERVICE -z ADDRESS [-F DEVICE]` of DPVS, which adds an address that servers see.
fn add_own_address(conversion: &mut Conversion, place: &Place, words: &[&str], services: &mut Services) {
    let (mut found, mut address) = (None, None);
    let mut rest = words.iter();
    while let Some(word) = rest.next() {
        if let Some(selector) = selector(word, &mut rest) {
            found = Some(selector);
            continue;
        }
        match *word {
            "-z" | "--laddr" => address = rest.next().and_then(|text| text.parse().ok()),
            "-F" | "--ifname" => drop(rest.next()),
            word => conversion.needs_you(place, word, "unknown option; check whether you need it"),
        }
    }
    let at = found.and_then(|selector| services.places.get(&selector.key()));
    match (at.and_then(|&at| services.services.get_mut(at)), address) {
        (Some(service), Some(address)) => service.seen_as.push(address),
        (None, _) | (_, None) => {
            let why = "its service could not be converted, or this is no address; see the line with -A";
            conversion.needs_you(place, format!("-P {}", words.join(" ")), why);
        }
    }
}

/// The options in the rule of a server.
#[derive(Default)]
struct Server<'a> {
    service: Option<Selector<'a>>,
    address: &'a str,
    forwarding: Option<Forwarding>,
    tunnel: &'a str,
    weight: Option<u32>,
}

fn add_server(conversion: &mut Conversion, place: &Place, words: &[&str], services: &mut Services) {
    let server = server(conversion, place, words);
    let text = format!("-a {}", words.join(" "));
    let at = server.service.and_then(|selector| services.places.get(&selector.key()));
    let Some(service) = at.and_then(|&at| services.services.get_mut(at)) else {
        return conversion.needs_you(
            place,
            text,
            "its service could not be converted, or is not there; see the line with -A",
        );
    };
    let Some((address, port)) = numeric(server.address) else {
        return conversion.needs_you(place, text, "this is no numeric address; print the rules with -n");
    };
    let forwarding = match (server.forwarding, server.tunnel) {
        (Some(Forwarding::Ipip), "" | "ipip") => Forwarding::Ipip,
        (Some(Forwarding::Ipip), "gue") => Forwarding::Gue,
        (Some(Forwarding::Ipip), _) => {
            return conversion.needs_you(place, text, "tunnels are ipip or gue; let the server take one of them");
        }
        (forwarding, _) => forwarding.unwrap_or(Forwarding::Dsr),
    };
    if service.backends.is_empty() {
        service.forwarding = forwarding;
    } else if service.forwarding != forwarding {
        return conversion.needs_you(
            place,
            text,
            "all backends of a service are reached in the same way; make a service for it",
        );
    }
    let udp = service.listeners.iter().any(|listener| listener.udp || listener.first == 0);
    service.about_check = (!udp).then_some(ADDED);
    service.backends.push(Backend {
        place: place.clone(),
        name: as_name(&shown(address, port)),
        host: Host::At(address),
        port,
        weight: server.weight,
        backup: false,
        disabled: false,
        check: (!udp).then(Check::default),
    });
}

/// If a mark selects the packets of a service, gives the service the port of its servers.
pub(crate) fn give_port(service: &mut Service) {
    let Some(port) = service.backends.first().and_then(|backend| backend.port) else { return };
    let is_common = service.backends.iter().all(|backend| backend.port == Some(port));
    for listener in service.listeners.iter_mut().filter(|listener| listener.address.is_unspecified()) {
        (listener.first, listener.last) = if is_common { (port, port) } else { (0, 0) };
    }
}

fn server<'a>(conversion: &mut Conversion, place: &Place, words: &'a [&'a str]) -> Server<'a> {
    let mut server = Server::default();
    let mut rest = words.iter();
    while let Some(word) = rest.next() {
        if let Some(selector) = selector(word, &mut rest) {
            server.service = Some(selector);
            continue;
        }
        let mut value = || rest.next().copied().unwrap_or_default();
        match *word {
            "-6" | "--ipv6" => {}
            "-r" | "--real-server" => server.address = value(),
            "-m" | "--masquerading" => server.forwarding = Some(Forwarding::Nat),
            "-b" | "--fullnat" => server.forwarding = Some(Forwarding::Snat),
            "-g" | "--gatewaying" => server.forwarding = Some(Forwarding::Dsr),
            "-i" | "--ipip" => server.forwarding = Some(Forwarding::Ipip),
            "--tun-type" => server.tunnel = value(),
            "--tun-port" => {
                let port = value();
                if port != "6080" {
                    conversion.needs_you(place, format!("--tun-port {port}"), GUE_PORT);
                }
            }
            "--tun-nocsum" => {}
            "--tun-csum" | "--tun-remcsum" => {
                conversion.not_needed(place, *word, "the outer header is the balancer's own; nothing to do");
            }
            "-w" | "--weight" => {
                let weight = value();
                server.weight = weight.parse().ok();
                if server.weight.is_none() {
                    conversion.needs_you(place, format!("-w {weight}"), "this is no weight; write a number");
                }
            }
            "-x" | "--u-threshold" | "-y" | "--l-threshold" => {
                let limit = value();
                if limit != "0" {
                    conversion.needs_you(place, format!("{word} {limit}"), LIMIT);
                }
            }
            word => conversion.needs_you(place, word, "unknown option; check whether you need it"),
        }
    }
    server
}

pub(crate) const GUE_PORT: &str = "gue goes to port 6080; let the servers listen there";
