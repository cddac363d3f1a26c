//! Findings about VIPs: which machines have a VIP, and which packets of clients the program does not steer.

use std::net::IpAddr;

use balancer_api::model::StatusView;

use super::{may_be_elsewhere, name_interface};
use crate::{
    facts::{Address, Backend, Controller, Duplicates, Facts, Mac, Unsteered, Vip},
    finding::{Cure, Finding, Kind},
};

pub(super) fn findings(facts: &Facts, controller: &Controller) -> Vec<Finding> {
    let asked = facts.vips.iter().filter(|vip| vip.asked);
    let unsteered = facts.vips.iter().flat_map(|vip| unsteered(vip, facts, controller));
    let unusable = facts.vips.iter().filter_map(|vip| unusable(vip, facts, controller));
    asked.flat_map(|vip| of(vip, facts, controller)).chain(unsteered).chain(unusable).collect()
}

/// Returns a finding about an IPv6 VIP of this machine that the kernel does not use: neighbours get no answer for it.
/// Packets that a router sends to this machine arrive nevertheless.
fn unusable(vip: &Vip, facts: &Facts, controller: &Controller) -> Option<Finding> {
    let mut own = facts.addresses.iter().filter(|own| own.address == vip.address);
    let own = own.find(|own| own.duplicates != Duplicates::None).filter(|_| !flows(vip, controller))?;
    let interface = facts.link(own.ifindex).map_or("INTERFACE", |link| link.name.as_str());
    let place = format!("{}/{} dev {interface}", vip.address, own.length);
    let again = format!("ip addr change {place} nodad");
    let (word, what, commands) = if own.duplicates == Duplicates::Found {
        let find =
            format!("# end the other machine's use of {}; to find it: ndisc6 {} {interface}", vip.address, vip.address);
        let again = format!("ip addr del {place}; ip addr add {place}");
        ("dadfailed", "another machine has it", vec![find, again])
    } else {
        ("tentative", "the search for another machine with it has not ended", vec![again])
    };
    Some(finding(
        vip,
        Kind::VipUnusable,
        format!("the kernel does not use the VIP {} on {interface}: {what}", vip.address),
        format!("`ip address show to {}` says {word}", vip.address),
        Cure::here(&commands),
    ))
}

/// Returns findings about packets that clients sent to the VIP during the examination and that the program did not
/// steer.
fn unsteered(vip: &Vip, facts: &Facts, controller: &Controller) -> Vec<Finding> {
    let attached = |ifindex: u32| controller.after.interfaces.iter().any(|view| view.ifindex == ifindex);
    // If the program passes packets on an attached interface, the packets also appear on the interfaces above that
    // interface.
    let passed = vip.unsteered.iter().any(|of| attached(of.ifindex));
    let mut findings = Vec::new();
    for Unsteered { ifindex, for_another, packets } in &vip.unsteered {
        let Some(link) = facts.link(*ifindex) else { continue };
        let (name, address) = (&link.name, vip.address);
        if attached(*ifindex) && *for_another && !flows(vip, controller) {
            findings.push(finding(
                vip,
                Kind::WrongMac,
                format!("clients' packets for {address} come in by {name}, and are for another hardware address"),
                format!("{packets} requests to connect were seen that the program had passed, and none was steered"),
                Cure::elsewhere("the router, or the clients", &[format!("ip neigh flush to {address}")]),
            ));
        } else if !attached(*ifindex) && !*for_another && !passed && link.kind.as_deref() != Some("loopback") {
            findings.push(finding(
                vip,
                Kind::NotAttached,
                format!("clients' packets for {address} come in by {name}, which lacks the program"),
                format!("{packets} requests to connect were seen on {name}"),
                name_interface(name, controller),
            ));
        }
    }
    findings
}

/// Whether the program steered packets of a service during the examination.
fn flows(vip: &Vip, controller: &Controller) -> bool {
    let packets = |status: &StatusView| -> u64 {
        let service = status.services.iter().find(|service| service.name == vip.service);
        service.map_or(0, |service| service.backends.iter().map(|backend| backend.packets).sum())
    };
    packets(&controller.after) > packets(&controller.before)
}

fn of(vip: &Vip, facts: &Facts, controller: &Controller) -> Vec<Finding> {
    let own = |mac: &Mac| facts.links.iter().any(|link| link.mac == Some(*mac));
    let others: Vec<Mac> = vip.answered.iter().map(|(_, mac)| *mac).filter(|mac| !own(mac)).collect();
    if others.is_empty() {
        return unowned(vip, facts, controller).into_iter().collect();
    }
    // The standby of a pair, or a balancer that has withdrawn its VIPs, cannot tell whether the machine that answers is
    // the one that should have the VIP.
    if !is_here(vip, facts, controller) || keeps_quiet(vip, facts, controller) {
        return Vec::new();
    }
    let is_routed = is_routed(vip, facts, controller);
    let mut findings: Vec<Finding> = others
        .into_iter()
        .filter_map(|mac| {
            let backend = facts.backends.iter().find(|backend| is_of(backend, mac));
            match backend.filter(|backend| backend.has_the_vip()) {
                Some(backend) => Some(answered(vip, backend)),
                None => (!is_routed).then(|| twice(vip, mac, backend)),
            }
        })
        .collect();
    findings.dedup();
    findings
}

/// Whether another machine most likely has all VIPs of a service, as on the standby of a pair.
pub(super) fn are_elsewhere(service: &str, facts: &Facts, controller: &Controller) -> bool {
    // Neighbours are not asked about VIPs of IPv6.
    let is_near_v6 = |vip: &Vip| vip.address.is_ipv6() && facts.on_link(vip.address).is_some();
    let has_owner = |vip: &Vip| !vip.answered.is_empty() || is_near_v6(vip) || may_be_elsewhere(controller);
    let mut vips = facts.vips.iter().filter(|vip| vip.service == service);
    vips.all(|vip| !is_here(vip, facts, controller) && has_owner(vip))
}

fn is_here(vip: &Vip, facts: &Facts, controller: &Controller) -> bool {
    facts.is_own(vip.address) || controller.after.vips.iter().any(|of| of.address == vip.address)
}

/// Whether this machine has the VIP only on its loopback interface and does not answer ARP for it, as a backend of `dsr`
/// does, and as each of two machines does that are both servers and balancers.
fn keeps_quiet(vip: &Vip, facts: &Facts, controller: &Controller) -> bool {
    let mut attached = controller.after.interfaces.iter().filter_map(|view| facts.link(view.ifindex));
    is_only_on_loopback(vip, facts) && attached.all(|link| link.answers_for_all == Some(false))
}

/// Whether routers send packets for the VIP by routes to any of several balancers, each of which has the VIP on its
/// loopback interface: nobody asks their link for the VIP, which lies in no prefix of this machine.
fn is_routed(vip: &Vip, facts: &Facts, controller: &Controller) -> bool {
    let status = &controller.after;
    let assigned = status.vips.iter().any(|of| of.address == vip.address && of.interface == "lo");
    facts.on_link(vip.address).is_none() && is_only_on_loopback(vip, facts) && (status.fleet.is_some() || assigned)
}

fn is_only_on_loopback(vip: &Vip, facts: &Facts) -> bool {
    let on_loopback = |own: &Address| facts.link(own.ifindex).is_some_and(|link| link.name == "lo");
    facts.addresses.iter().filter(|own| own.address == vip.address).all(on_loopback)
}

/// Whether the hardware address of the backend is `mac`.
fn is_of(backend: &Backend, mac: Mac) -> bool {
    let near = matches!(backend.way, crate::facts::Way::Known { next_hop, .. } if next_hop == backend.address.ip());
    near && backend.neighbour.as_ref().is_some_and(|of| of.answered.contains(&mac))
}

fn finding(vip: &Vip, kind: Kind, what: String, seen: String, cure: Cure) -> Finding {
    let (service, backends) = (Some(vip.service.clone()), Vec::new());
    Finding { kind, service, backend: None, backends, what, seen, cure }
}

fn answered(vip: &Vip, backend: &Backend) -> Finding {
    let Vip { service, address, .. } = vip;
    let (name, own) = (&backend.name, backend.address.ip());
    let switches = "sysctl -w net.ipv4.conf.all.arp_ignore=1 net.ipv4.conf.all.arp_announce=2";
    let what =
        format!("backend {service}/{name} answers ARP for the VIP {address}: clients may be led past the balancer");
    let seen = format!("asked who has {address}, the hardware address of {own} answered");
    let cure = Cure::elsewhere(&format!("{name} ({own})"), &[switches.to_owned()]);
    let backends = vec![format!("{service}/{name}")];
    Finding { backend: Some(name.clone()), backends, ..finding(vip, Kind::VipAnswered, what, seen, cure) }
}

fn twice(vip: &Vip, mac: Mac, backend: Option<&Backend>) -> Finding {
    let address = vip.address;
    let mac = mac.map(|byte| format!("{byte:02x}")).join(":");
    let machine = backend.map_or_else(
        || format!("the machine with the hardware address {mac}"),
        |backend| format!("{} ({})", backend.name, backend.address.ip()),
    );
    let what = format!("{machine} answers ARP for the VIP {address}, beside or instead of this one");
    let seen = format!("asked who has {address}, {mac} answered");
    let find = format!("# to find the machine, ask the switches for its port: bridge fdb show | grep {mac}");
    let find = backend.is_none().then_some(find);
    let commands: Vec<String> = find.into_iter().chain([format!("ip addr del {address}/32 dev INTERFACE")]).collect();
    let cure = Cure::elsewhere(&machine, &commands);
    finding(vip, Kind::VipDuplicate, what, seen, cure)
}

/// Returns a finding if a VIP within the prefix of an interface belongs to no machine. Packets for a VIP outside all
/// prefixes reach this machine by a route on other machines, which the doctor cannot see; packets for a VIP within a
/// prefix may do so, too.
fn unowned(vip: &Vip, facts: &Facts, controller: &Controller) -> Option<Finding> {
    let IpAddr::V4(address) = vip.address else { return None };
    let link = facts.on_link(vip.address).and_then(|ifindex| facts.link(ifindex))?;
    let is_wanted = is_here(vip, facts, controller) || may_be_elsewhere(controller) || flows(vip, controller);
    (!is_wanted).then(|| {
        let name = &link.name;
        finding(
            vip,
            Kind::VipUnowned,
            format!("no machine answers ARP for the VIP {address}, which lies in the prefix of {name}"),
            format!(
                "no machine answered ARP requests for {address} on {name}, and this machine does not have the address"
            ),
            Cure::fixable(
                &format!("ip addr add {address}/32 dev {name}"),
                &format!("ip addr del {address}/32 dev {name}"),
            ),
        )
    })
}
