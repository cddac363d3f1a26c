//! Makes services from keepalived's virtual servers.

use std::{collections::BTreeMap, rc::Rc};

use super::{
    check::{Defaults, NOTIFY, is_on},
    group::{listeners, own_addresses},
    lines::Reader,
    parse::parse,
    real::{method, real, sorry},
    vrrp,
};
use crate::{
    Include,
    address::{as_name, mask},
    error::NotUnderstood,
    ipvsadm::{FLAGS, PERSISTENCE_ENGINE, SCTP, give_port, keep_own_addresses, scheduler, service_name},
    notes::{
        Answer::{NeedsYou, NotNeeded, Own},
        Conversion,
    },
    place::named,
    service::{Backend, Forwarding, Listener, Service},
    tree::Directive,
};

/// The default timeout of persistence in keepalived, in seconds.
const PERSISTENCE: u64 = 360;

type Groups<'a> = BTreeMap<&'a str, &'a Directive>;

pub(crate) fn convert(
    conversion: &mut Conversion,
    files: &[(String, String)],
    include: Include<'_>,
) -> Result<(), NotUnderstood> {
    let mut reader = Reader { conversion, include, parameters: BTreeMap::new(), lines: Vec::new(), files: 0, seen: 0 };
    for (name, text) in files {
        let file: Option<Rc<str>> = named(files, name);
        reader.read(file.as_ref(), name, text, 0)?;
    }
    let directives = parse(&reader.lines)?;
    let is_group = |one: &&Directive| one.name() == "virtual_server_group";
    let groups: Groups<'_> = directives.iter().filter(is_group).map(|one| (one.argument(), one)).collect();
    let is_own = |one: &&Directive| one.name() == "local_address_group";
    let own: Groups<'_> = directives.iter().filter(is_own).map(|one| (one.argument(), one)).collect();
    for directive in &directives {
        match directive.name() {
            "virtual_server" => {
                conversion.has_candidates = true;
                virtual_server(conversion, directive, &groups, &own);
            }
            "virtual_server_group" | "local_address_group" => {}
            "vrrp_instance" => vrrp::instance(conversion, directive),
            name if name.starts_with("vrrp_") => {
                conversion.not_needed(&directive.place, directive.text(), "keepalived goes on with it; nothing to do")
            }
            "SSL" => conversion.needs_you(
                &directive.place,
                directive.text(),
                "checks show no certificate; use a check of type `exec`",
            ),
            _ => conversion.own(&directive.place, directive.text()),
        }
    }
    Ok(())
}

/// The directives in a `virtual_server` block.
#[derive(Default)]
struct Parts<'a> {
    defaults: Defaults,
    forwarding: Option<Forwarding>,
    udp: bool,
    sctp: bool,
    is_v6: bool,
    quorum: bool,
    real: Vec<&'a Directive>,
    sorry: Option<Backend>,
    /// The directive that names the addresses which servers see.
    local: Option<&'a Directive>,
}

fn virtual_server(conversion: &mut Conversion, directive: &Directive, groups: &Groups<'_>, own: &Groups<'_>) {
    let mut service = Service::new(&directive.place, "");
    let Some(parts) = parts(conversion, directive, &mut service) else { return };
    if parts.sctp {
        return conversion.needs_you(&directive.place, directive.text(), SCTP);
    }
    let words = directive.arguments();
    let (name, listeners) = match words {
        [word, name, ..] if word == "group" => {
            let Some(group) = groups.get(name.as_str()) else {
                let why = "there is no such `virtual_server_group`; name one";
                return conversion.needs_you(&directive.place, directive.text(), why);
            };
            let all: Vec<Listener> = group
                .children()
                .iter()
                .flat_map(|one| listeners(conversion, &one.place, &one.words, parts.udp, !parts.is_v6))
                .collect();
            (name.clone(), all)
        }
        words => {
            let one = listeners(conversion, &directive.place, words, parts.udp, !parts.is_v6);
            (name(words, &one, parts.udp), one)
        }
    };
    if listeners.is_empty() {
        return conversion.needs_you(&directive.place, directive.text(), "it has no listener; see its addresses");
    }
    (service.name, service.listeners) = (name, listeners);
    service.forwarding = parts.forwarding.unwrap_or_default();
    service.start_down = parts.defaults.alpha;
    let of_all = inhibits(directive).unwrap_or(false);
    service.keeps_clients_of_failed = parts.real.iter().all(|real| inhibits(real).unwrap_or(of_all));
    for one in &parts.real {
        service.backends.extend(real(conversion, one, &parts.defaults, service.forwarding, parts.udp));
    }
    if let Some(named) = parts.local {
        let group = own.get(named.argument()).map(|group| group.children()).unwrap_or_default();
        service.seen_as = own_addresses(group);
        if service.seen_as.is_empty() {
            let why = "there is no such `local_address_group` with addresses; write them as `addresses` in `snat`";
            conversion.needs_you(&named.place, named.text(), why);
        }
    }
    keep_own_addresses(conversion, &mut service);
    service.backends.extend(parts.sorry);
    give_port(&mut service);
    conversion.add(service);
}

/// Whether a block says that a server whose check fails keeps its clients; `None` if the block does not say.
fn inhibits(block: &Directive) -> Option<bool> {
    block.children().iter().rfind(|one| one.name() == "inhibit_on_failure").map(is_on)
}

fn name(words: &[String], listeners: &[Listener], udp: bool) -> String {
    match listeners {
        [one] if !one.address.is_unspecified() => service_name(one.address, one.first, udp),
        _ => as_name(&words.join("-")).replace("fwmark", "mark"),
    }
}

/// Reads a `virtual_server` block; `None` if the balancer lacks the block's forwarding method.
fn parts<'a>(conversion: &mut Conversion, directive: &'a Directive, service: &mut Service) -> Option<Parts<'a>> {
    let mut parts = Parts::default();
    for one in directive.children() {
        if parts.defaults.read(conversion, one) {
            continue;
        }
        let (place, argument) = (&one.place, one.argument());
        match one.name() {
            "real_server" => parts.real.push(one),
            "sorry_server" => parts.sorry = sorry(conversion, one),
            "lb_kind" | "lvs_method" => parts.forwarding = Some(method(conversion, one)?),
            "lb_algo" | "lvs_sched" => scheduler(conversion, place, argument),
            "protocol" => match argument.to_ascii_uppercase().as_str() {
                "UDP" => parts.udp = true,
                "SCTP" => parts.sctp = true,
                _ => {}
            },
            "ip_family" => parts.is_v6 = argument == "inet6",
            "persistence_timeout" => service.remember = argument.parse().ok().or(Some(PERSISTENCE)),
            "persistence_granularity" => match mask(argument) {
                Some(prefix) => service.prefix = Some(prefix),
                None => conversion.needs_you(place, one.text(), "this is no mask; write `client_prefix`"),
            },
            "persistence_engine" => conversion.needs_you(place, one.text(), PERSISTENCE_ENGINE),
            "laddr_group_name" => parts.local = Some(one),
            "establish_timeout" => {
                service.idle_ms = argument.parse::<u64>().ok().and_then(|seconds| seconds.checked_mul(1000));
            }
            "quorum" => parts.quorum = argument != "1",
            _ => other(conversion, one),
        }
    }
    if parts.quorum {
        let why = "backups take over when no other backend is eligible; a minimum number is not possible";
        conversion.needs_you(&directive.place, format!("quorum of {}", directive.text()), why);
    }
    Some(parts)
}

fn other(conversion: &mut Conversion, one: &Directive) {
    let answer = match one.name() {
        "flag-1" | "flag-2" | "flag-3" | "sh-port" | "sh-fallback" | "mh-port" | "mh-fallback" => NotNeeded(FLAGS),
        "ops" => NotNeeded("each datagram is steered by itself; nothing to do"),
        "quorum_up" | "quorum_down" => NeedsYou(NOTIFY),
        "smtp_alert" if is_on(one) => NeedsYou(NOTIFY),
        "inhibit_on_failure" if is_on(one) => NeedsYou(
            "known clients leave a backend that fails; write `on_failure = { hard = \"drain\" }` where they should not",
        ),
        "sorry_server_lvs_method" => {
            NeedsYou("all backends of a service are reached in the same way, the backup too; let it accept that")
        }
        "ha_suspend"
        | "omega"
        | "hysteresis"
        | "smtp_alert"
        | "snmp_name"
        | "warmup"
        | "sorry_server_inhibit"
        | "inhibit_on_failure" => Own,
        _ => NeedsYou("this balancer has no counterpart; check whether you need it"),
    };
    conversion.tell(&one.place, one.text(), answer);
}
