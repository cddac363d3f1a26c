//! Findings about the probes to the VIP, which take the path of clients' packets.

use std::net::IpAddr;

use crate::{
    facts::{Backend, Outcome, Refusal, Rejection, Said, ServiceProbe},
    finding::{Cure, Kind},
    judge::{
        backends::rejected,
        cases::{AT, Case, HOST, OWN},
    },
};

pub(super) fn service(backend: &Backend) -> Option<Case<'_>> {
    let probe = backend.service_probe.as_ref()?;
    let ServiceProbe { echo, bare_echo, tcp, refused_outer, rejected: error, .. } = probe;
    let vip = backend.vip?;
    match tcp {
        Some(Outcome::Connected) => None,
        _ if *refused_outer || *bare_echo == Some(true) && !*echo => Some(no_decap(backend, probe)),
        Some(Outcome::Refused) => Some(Case::new(
            backend,
            Kind::ServerBound,
            format!("the server does not listen on the VIP {vip}"),
            refused(backend, &vip.to_string()),
            Cure::elsewhere(
                HOST,
                &[
                    format!("# make the server listen on {vip} as well, or on all addresses"),
                    format!("# to see what listens: ss -ltn 'sport = :{}'", vip.port()),
                ],
            ),
        )),
        Some(Outcome::Silent | Outcome::NotSent(_)) => match error {
            Some(error) if !passed_on(backend, *error) => Some(rejected(backend, &vip.to_string(), *error)),
            _ if *echo => Some(Case::new(
                backend,
                Kind::Server,
                format!("the VIP answers pings, and {vip} answers no request to connect"),
                format!(
                    "the VIP answered a ping by the way of clients' packets, and a probe to {vip} was not answered"
                ),
                Cure::elsewhere(
                    HOST,
                    &[format!("# to see rules and listeners: nft list ruleset; ss -ltn 'sport = :{}'", vip.port())],
                ),
            )),
            _ => Some(not_taken(backend, probe, vip.ip())),
        },
        // For a service without TCP, an unanswered ping proves something only if the backend answers others.
        None if !*echo && backend.path.is_some() => Some(not_taken(backend, probe, vip.ip())),
        None => None,
    }
}

/// Whether the backend passes packets for the VIP on, because it does not have the VIP.
fn passed_on(backend: &Backend, Rejection { from, said }: Rejection) -> bool {
    from == backend.address.ip() && matches!(said, Said::HostUnreachable | Said::HopLimitExceeded)
}

fn refused(backend: &Backend, vip: &str) -> String {
    let serves = backend.direct.as_ref().is_some_and(|direct| direct.outcome == Outcome::Connected);
    let beside = if serves { format!(", and {AT} serves") } else { String::new() };
    format!("a probe to {vip} by the way of clients' packets was refused{beside}")
}

/// Returns the case that the backend answers nothing that is for the VIP.
fn not_taken<'a>(backend: &'a Backend, probe: &ServiceProbe, ip: IpAddr) -> Case<'a> {
    let length = if ip.is_ipv4() { "32 dev lo" } else { "128 dev lo nodad" };
    let mut commands = Vec::new();
    if ip.is_ipv4() {
        commands.push("sysctl -w net.ipv4.conf.all.arp_ignore=1 net.ipv4.conf.all.arp_announce=2".to_owned());
    }
    commands.push(format!("ip addr add {ip}/{length}"));
    let certain = probe.rejected.is_some_and(|error| passed_on(backend, error));
    let may_lack_decap = backend.forwarding != "dsr" && probe.bare_echo.is_none();
    let firewall = "a firewall there drops packets for it: nft list ruleset; iptables-save";
    let other = if may_lack_decap {
        format!("nothing there removes the outer header, or {firewall}")
    } else {
        firewall.to_owned()
    };
    if !certain {
        commands.push(format!("# if the backend has it already (ip address show to {ip}): {other}"));
    }
    let (what, seen) = if certain {
        let seen = format!("the backend passed a probe to {ip} on, and reported that it cannot reach {ip}");
        (format!("the backend does not have the VIP {ip}"), seen)
    } else {
        let own = if backend.path.is_some() { format!("; {OWN} answers pings") } else { String::new() };
        let probes = if probe.tcp.is_some() { "neither a ping nor a request to connect" } else { "not even a ping" };
        (
            format!("no packet for the VIP {ip} is answered; most likely, the backend does not have the VIP"),
            format!("probes to {ip} by the way of clients' packets were not answered, {probes}{own}"),
        )
    };
    Case::new(backend, Kind::VipMissing, what, seen, Cure::elsewhere(HOST, &commands))
}

fn no_decap<'a>(backend: &'a Backend, probe: &ServiceProbe) -> Case<'a> {
    let mode = &backend.forwarding;
    let from = backend.source.map(|source| format!(" --from {source}")).unwrap_or_default();
    let mut commands = vec![format!("balancer decap --interface INTERFACE{from}")];
    let (what, seen) = if probe.refused_outer {
        let seen = format!("the backend answered a probe with an outer header of {mode} that it has nothing for it");
        (format!("nothing removes the outer header of {mode}"), seen)
    } else {
        commands
            .push("# if `balancer decap` runs there: a firewall drops the outer header: nft list ruleset".to_owned());
        (
            format!("packets with the outer header of {mode} are not taken; most likely, nothing removes the header"),
            format!("the VIP answers a ping without an outer header, and none with that of {mode}"),
        )
    };
    Case::new(backend, Kind::NoDecap, what, seen, Cure::elsewhere(HOST, &commands))
}

/// Returns a finding if an ICMP error answered a datagram to a UDP port of the service.
pub(super) fn datagram(backend: &Backend) -> Option<Case<'_>> {
    let Refusal { to, rejection } = backend.datagram?;
    let port = to.port();
    let to = if to.ip() == backend.address.ip() { format!("{OWN} port {port}") } else { to.to_string() };
    let Rejection { said, .. } = rejection;
    Some(match said {
        Said::PortUnreachable => Case::new(
            backend,
            Kind::Server,
            format!("nothing listens on {to} (UDP)"),
            format!("a datagram to {to} by the way of clients' packets was answered: {}", said.words()),
            Cure::elsewhere(
                HOST,
                &[
                    format!("# start the server that listens on {to}"),
                    format!(
                        "# to see what listens: ss -lun 'sport = :{port}'; if the server does, a firewall there rejects datagrams: nft list ruleset"
                    ),
                ],
            ),
        ),
        Said::ProtocolUnreachable | Said::HostUnreachable | Said::Prohibited | Said::HopLimitExceeded => {
            rejected(backend, &format!("{to} (UDP)"), rejection)
        }
    })
}
