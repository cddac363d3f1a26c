//! Findings about the path to each backend, and about the results of probes.

mod direct;
mod path;
mod service;

use std::net::IpAddr;

use balancer_api::model::HealthView;
use balancer_config::states::Forced;

use super::cases::{AT, Case, HOST, OWN, joined, name};
use crate::{
    facts::{Backend, Controller, Facts, Mac, Neighbour, Outcome, Rejection, Said, Way},
    finding::{Cure, Finding, Kind},
};

pub(super) fn findings(facts: &Facts, controller: &Controller, broken: &[u32]) -> Vec<Finding> {
    let backends = facts.backends.iter().filter(|backend| !is_expected_down(controller, backend));
    joined(backends.filter_map(|backend| of(facts, controller, broken, backend)).collect())
}

/// Whether a backend fails its check while as many backends of its service are up as the operator expects.
fn is_expected_down(controller: &Controller, backend: &Backend) -> bool {
    let service = controller.after.services.iter().find(|service| service.name == backend.service);
    let Some((service, expected)) = service.and_then(|service| Some((service, service.expected?))) else {
        return false;
    };
    let up = service.backends.iter().filter(|view| view.state == "up").count();
    let is_down = service.backends.iter().any(|view| view.name == backend.name && view.health == "down");
    is_down && up >= expected as usize
}

/// Returns only the first problem on the path to a backend, because the first problem causes the later ones.
fn of<'a>(facts: &Facts, controller: &Controller, broken: &[u32], backend: &'a Backend) -> Option<Case<'a>> {
    let (ifindex, next_hop) = match &backend.way {
        Way::Known { ifindex, next_hop } => (*ifindex, *next_hop),
        Way::Local => return without_the_vip(facts, backend).or_else(|| unhealthy(backend, controller)),
        Way::None(_) if !broken.is_empty() => return None,
        Way::None(why) => return Some(no_route(facts, backend, why)),
    };
    if broken.contains(&ifindex) {
        return None;
    }
    let interface = facts.link(ifindex).map_or("its interface", |link| link.name.as_str());
    let case = neighbour(backend, interface, next_hop)
        .or_else(|| direct::direct(facts, backend))
        .or_else(|| direct::checksum(backend, controller))
        .or_else(|| service::service(backend))
        .or_else(|| service::datagram(backend))
        .or_else(|| path::path(facts, backend, (ifindex, next_hop)))
        .or_else(|| unhealthy(backend, controller))?;
    Some(twice(case, next_hop))
}

/// Returns a finding if this machine is the backend and lacks the VIP, because it then receives untranslated packets
/// for the VIP.
fn without_the_vip<'a>(facts: &Facts, backend: &'a Backend) -> Option<Case<'a>> {
    let vip = backend.vip.filter(|vip| backend.has_the_vip() && !facts.is_own(vip.ip()))?.ip();
    let place = if vip.is_ipv4() { format!("{vip}/32 dev lo") } else { format!("{vip}/128 dev lo") };
    Some(Case::new(
        backend,
        Kind::VipMissing,
        format!("the backend is this machine, which does not have the VIP {vip}"),
        format!("`ip address show to {vip}` says nothing"),
        Cure::fixable(&format!("ip addr add {place}"), &format!("ip addr del {place}")),
    ))
}

fn no_route<'a>(facts: &Facts, backend: &'a Backend, why: &str) -> Case<'a> {
    let address = backend.address.ip();
    let near = facts.on_link(address).and_then(|ifindex| {
        let own = facts.addresses.iter().find(|own| own.ifindex == ifindex && covers(own, address))?;
        let prefix = ipnet::IpNet::new(own.address, own.length).ok()?.trunc();
        Some((prefix, &facts.link(ifindex)?.name))
    });
    let Some((prefix, interface)) = near else {
        return Case::new(
            backend,
            Kind::Route,
            format!("this machine has no route to {OWN}"),
            format!("the kernel's route lookup (`ip route get`) says: {why}"),
            Cure::here(&[format!("ip route add {OWN} via GATEWAY")]),
        );
    };
    let route = format!("{prefix} dev {interface}");
    Case::on_the_way(
        backend,
        Kind::Route,
        format!("this machine has no route to {prefix}, the prefix of {interface}"),
        format!("the kernel's route lookup (`ip route get`) says: {why}"),
        Cure::fixable(&format!("ip route add {route}"), &format!("ip route del {route}")),
    )
}

fn covers(own: &crate::facts::Address, address: IpAddr) -> bool {
    ipnet::IpNet::new(own.address, own.length).is_ok_and(|prefix| prefix.contains(&address))
}

fn neighbour<'a>(backend: &'a Backend, interface: &str, next_hop: IpAddr) -> Option<Case<'a>> {
    let Neighbour { known, permanent, answered } = backend.neighbour.as_ref()?;
    // The kernel's entry is right if an answer came by it.
    if is_alive(backend) {
        return None;
    }
    let is_gateway = next_hop != backend.address.ip();
    let case = if is_gateway { Case::on_the_way } else { Case::new };
    if answered.is_empty() {
        let question = if next_hop.is_ipv4() { "ARP requests" } else { "neighbour solicitations" };
        let hop = if is_gateway { next_hop.to_string() } else { OWN.to_owned() };
        let subject = if is_gateway { format!("the gateway {hop}") } else { hop.clone() };
        let cure = [
            format!("# check that {hop} runs, and that its cable, switch port, VLAN and address are right"),
            "# to see its addresses and interfaces: ip -br address; to switch one on: ip link set dev INTERFACE up"
                .to_owned(),
        ];
        let on = if is_gateway { hop.as_str() } else { HOST };
        return Some(case(
            backend,
            Kind::Neighbour,
            format!("{subject} does not answer on {interface}"),
            format!("no machine answered {question} for {hop} on {interface}"),
            Cure::elsewhere(&format!("{on}, or on the switch between"), &cure),
        ));
    }
    let mac = written(known.filter(|known| !answered.contains(known))?);
    let right = written(*answered.first()?);
    let how = if *permanent { "a permanent entry" } else { "the entry" };
    let undo = format!("ip neigh replace {next_hop} lladdr {mac} dev {interface} nud permanent");
    let subject = if is_gateway { format!("packets for the gateway {next_hop}") } else { "packets".to_owned() };
    Some(case(
        backend,
        Kind::NeighbourEntry,
        format!("{subject} go to the wrong hardware address, {mac}"),
        format!("the neighbour table has {how} with {mac}, and {right} answers ARP requests for {next_hop}"),
        Cure::fixable(&format!("ip neigh del {next_hop} dev {interface}"), &undo),
    ))
}

fn written(mac: Mac) -> String {
    mac.map(|byte| format!("{byte:02x}")).join(":")
}

/// Whether an answer came from the backend.
fn is_alive(backend: &Backend) -> bool {
    let direct = backend.direct.as_ref().is_some_and(|direct| direct.came || direct.outcome == Outcome::Connected);
    let probe = backend.service_probe.as_ref();
    let vip = probe.is_some_and(|probe| {
        probe.echo || probe.refused_outer || probe.tcp.as_ref().is_some_and(|tcp| *tcp != Outcome::Silent)
    });
    direct || vip || backend.path.is_some()
}

/// If several machines answer ARP for the address of a backend with a problem, this explains the problem.
fn twice(case: Case<'_>, next_hop: IpAddr) -> Case<'_> {
    let Case { backend, .. } = case;
    let Some(Neighbour { answered, .. }) = &backend.neighbour else { return case };
    let near = next_hop == backend.address.ip();
    if !near || answered.len() < 2 {
        return case;
    }
    let macs: Vec<String> = answered.iter().copied().map(written).collect();
    let Finding { what, seen, cure, .. } = case.finding;
    let find = macs.iter().map(|mac| format!(" -e {mac}")).collect::<String>();
    let mut looks = vec![
        format!(
            "# most likely first: another machine has the address as well; on the switch, bridge fdb show | grep{find}"
        ),
        format!("# or one machine has two interfaces there (ip -br address), and then, on {}:", cure.on),
    ];
    looks.extend(cure.commands.iter().map(|command| format!("#   {}", command.trim_start_matches("# "))));
    Case::new(
        backend,
        Kind::AddressDuplicate,
        format!("{} hardware addresses answer ARP for {OWN}, and {what}", answered.len()),
        format!("{} answered ARP requests; {seen}", macs.join(" and ")),
        Cure::elsewhere("the machines with these hardware addresses", &looks),
    )
}

/// Returns the case of a backend to which packets for `to` are rejected by ICMP.
fn rejected<'a>(backend: &'a Backend, to: &str, Rejection { from, said }: Rejection) -> Case<'a> {
    let is_own = from == backend.address.ip() || backend.vip.is_some_and(|vip| vip.ip() == from);
    let (host, on) =
        if is_own { ("the backend".to_owned(), HOST.to_owned()) } else { (from.to_string(), from.to_string()) };
    let look = match said {
        Said::HostUnreachable | Said::HopLimitExceeded => {
            format!("# to see where packets go from there: ip route get {OWN}; ip neigh show {OWN}")
        }
        Said::PortUnreachable | Said::ProtocolUnreachable | Said::Prohibited => {
            "# to see the rule of the firewall there that rejects them: nft list ruleset; iptables-save".to_owned()
        }
    };
    let said = said.words();
    Case::new(
        backend,
        Kind::Rejected,
        format!("{host} rejects packets to {to} ({said})"),
        format!("a probe to {to} left, and {host} answered it with an ICMP error: {said}"),
        Cure::elsewhere(&on, &[look]),
    )
}

/// Returns a finding if a server answers although its health check fails.
fn unhealthy<'a>(backend: &'a Backend, controller: &Controller) -> Option<Case<'a>> {
    let fails = |view: &&HealthView| {
        // An operator that holds a backend up knows that its check fails.
        is_of(view, backend) && view.verdict == "down" && view.forced != Some(Forced::Up)
    };
    let view = controller.health.iter().find(fails)?;
    let target = if view.target == backend.address.to_string() { AT } else { view.target.as_str() };
    Some(Case::new(
        backend,
        Kind::Unhealthy,
        format!("the health check fails: {}", view.last_reason),
        format!("{} of {target}", view.check),
        Cure::elsewhere(
            HOST,
            &[
                "# look at the server's own log".to_owned(),
                format!("# to see the checks, on the balancer: balancer health show {}", backend.service),
            ],
        ),
    ))
}

pub(super) fn is_of(view: &HealthView, backend: &Backend) -> bool {
    view.service == backend.service && view.backend == backend.name
}

pub(super) fn about(backend: &Backend, kind: Kind, what: String, seen: String, cure: Cure) -> Finding {
    let (service, backends) = (Some(backend.service.clone()), vec![name(backend)]);
    Finding { kind, service, backend: Some(backend.name.clone()), backends, what, seen, cure }
}
