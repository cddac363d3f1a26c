//! Who has the VIPs.

use std::net::IpAddr;

use super::may_be_elsewhere;
use crate::{
    facts::{Backend, Controller, Facts, Mac, Vip},
    finding::{Cure, Finding, Kind},
};

/// VRRP's virtual hardware addresses begin so: the VIP is with another router, as is meant.
const VRRP: [&[u8]; 2] = [&[0, 0, 0x5e, 0, 1], &[0, 0, 0x5e, 0, 2]];

pub(super) fn findings(facts: &Facts, controller: &Controller) -> Vec<Finding> {
    let asked = facts.vips.iter().filter(|vip| vip.asked);
    asked.flat_map(|vip| of(vip, facts, controller)).collect()
}

fn of(vip: &Vip, facts: &Facts, controller: &Controller) -> Vec<Finding> {
    let own = |mac: &Mac| facts.links.iter().any(|link| link.mac == Some(*mac));
    let others: Vec<Mac> = vip.answered.iter().map(|(_, mac)| *mac).filter(|mac| !own(mac)).collect();
    if others.is_empty() {
        return unowned(vip, facts, controller).into_iter().collect();
    }
    let mut findings = Vec::new();
    for mac in others {
        let backend = facts.backends.iter().find(|backend| is_of(backend, mac));
        let is_meant = VRRP.iter().any(|begin| mac.starts_with(begin)) || may_be_elsewhere(controller);
        if let Some(backend) = backend.filter(|backend| backend.forwarding != "nat") {
            findings.push(answered(vip, backend));
        } else if facts.is_own(vip.address) || !is_meant {
            findings.push(twice(vip, mac, backend));
        }
    }
    findings.dedup();
    findings
}

/// Whether a backend is the neighbour that has this hardware address.
fn is_of(backend: &Backend, mac: Mac) -> bool {
    let near = matches!(backend.way, crate::facts::Way::Known { next_hop, .. } if next_hop == backend.address.ip());
    near && backend.neighbour.as_ref().is_some_and(|of| of.answered.contains(&mac))
}

fn finding(vip: &Vip, kind: Kind, what: String, seen: String, cure: Cure) -> Finding {
    Finding { kind, service: Some(vip.service.clone()), backend: None, what, seen, cure }
}

fn answered(vip: &Vip, backend: &Backend) -> Finding {
    let Vip { service, address, .. } = vip;
    let (name, own) = (&backend.name, backend.address.ip());
    let switches = "sysctl -w net.ipv4.conf.all.arp_ignore=1 net.ipv4.conf.all.arp_announce=2";
    let what =
        format!("backend {service}/{name} answers ARP for the VIP {address}: clients may be led past the balancer");
    let seen = format!("asked who has {address}, the hardware address of {own} answered");
    let cure = Cure::elsewhere(&format!("{name} ({own})"), &[switches.to_owned()]);
    Finding { backend: Some(name.clone()), ..finding(vip, Kind::VipAnswered, what, seen, cure) }
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
    let cure = Cure::elsewhere(&machine, &[format!("ip addr del {address}/32 dev INTERFACE")]);
    finding(vip, Kind::VipDuplicate, what, seen, cure)
}

/// A VIP within the prefix of an interface has to be somebody's. One beyond is routed here, or not, which is not to be seen.
fn unowned(vip: &Vip, facts: &Facts, controller: &Controller) -> Option<Finding> {
    let IpAddr::V4(address) = vip.address else { return None };
    let is_here = facts.is_own(vip.address) || controller.after.vips.iter().any(|of| of.address == vip.address);
    let link = facts.on_link(vip.address).and_then(|ifindex| facts.link(ifindex))?;
    (!is_here && !may_be_elsewhere(controller)).then(|| {
        let name = &link.name;
        finding(
            vip,
            Kind::VipUnowned,
            format!("nobody answers ARP for the VIP {address}, which lies in the prefix of {name}"),
            format!("asked on {name} who has {address}, nobody answered, and this machine does not have it"),
            Cure::fixable(
                &format!("ip addr add {address}/32 dev {name}"),
                &format!("ip addr del {address}/32 dev {name}"),
            ),
        )
    })
}
