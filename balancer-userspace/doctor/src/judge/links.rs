//! Findings about interfaces: whether frames can pass an interface, and whether an interface changes frames.

use super::general;
use crate::{
    facts::{Controller, Facts, Link, Way},
    finding::{Cure, Finding, Kind},
};

/// The names of the kernel programs of this product: two for balancers, and one for backends.
const OWN: [&str; 3] = ["balancer", "tell_and_steer", "decap"];

/// The broken interfaces among those that packets must pass, each with a finding.
pub(super) fn broken(facts: &Facts, controller: &Controller) -> Vec<(u32, Finding)> {
    let broken = needed(facts, controller).into_iter().filter(|link| !(link.up && link.carrier));
    broken.map(|link| (link.ifindex, passes_nothing(link))).collect()
}

/// The interfaces on which packets arrive, and the interfaces towards backends.
fn needed<'a>(facts: &'a Facts, controller: &Controller) -> Vec<&'a Link> {
    let attached = controller.after.interfaces.iter().map(|view| view.ifindex);
    let egress = facts.backends.iter().filter_map(|backend| match backend.way {
        Way::Known { ifindex, .. } => Some(ifindex),
        Way::Local | Way::None(_) => None,
    });
    let mut indices: Vec<u32> = attached.chain(egress).collect();
    indices.sort_unstable();
    indices.dedup();
    indices.into_iter().filter_map(|ifindex| facts.link(ifindex)).collect()
}

pub(super) fn passes_nothing(link: &Link) -> Finding {
    let name = &link.name;
    if link.up {
        let other = if link.kind.as_deref() == Some("veth") { "the other end of the veth pair" } else { "the switch" };
        return general(
            Kind::Link,
            format!("interface {name} has no carrier"),
            format!("`ip link show dev {name}` says NO-CARRIER"),
            Cure::elsewhere(
                other,
                &["# connect the cable, or switch the port on:".to_owned(), "ip link set dev PORT up".to_owned()],
            ),
        );
    }
    general(
        Kind::Link,
        format!("interface {name} is switched off"),
        format!("`ip link show dev {name}` does not say UP"),
        Cure::fixable(&format!("ip link set dev {name} up"), &format!("ip link set dev {name} down")),
    )
}

/// Findings about interfaces that change frames in a harmful way, or on which another program runs.
pub(super) fn spoiled(facts: &Facts, controller: &Controller) -> Vec<Finding> {
    let attached: Vec<u32> = controller.after.interfaces.iter().map(|view| view.ifindex).collect();
    let mut findings = foreign_programs(facts, &attached);
    for view in &controller.after.interfaces {
        let Some(link) = facts.link(view.ifindex) else { continue };
        findings.extend(generic(link, view.xdp_mode == "generic" && controller.asks_generic == Some(false)));
        findings.extend(offloads(link, view.xdp_mode == "native"));
        findings.extend(forwarding(facts, link));
    }
    for (name, frames) in &controller.after.redirect_errors {
        let before = controller.before.redirect_errors.get(name).copied().unwrap_or(0);
        if *frames > before {
            findings.push(not_taken(name, frames - before));
        }
    }
    findings
}

/// Findings about other products' programs on the interfaces to which the balancer is `attached`, or, without a
/// controller, on all interfaces.
pub(super) fn foreign_programs(facts: &Facts, attached: &[u32]) -> Vec<Finding> {
    let concerned = |link: &&Link| facts.controller.is_none() || attached.contains(&link.ifindex);
    let all = facts.links.iter().filter(concerned).flat_map(|link| link.programs.iter().map(move |of| (link, of)));
    let named = all.filter_map(|(link, program)| Some((link, program.name.as_deref()?, program.id)));
    let foreign = named.filter(|(_, name, _)| !OWN.contains(name));
    foreign.map(|(link, name, id)| foreign_program(link, name, id)).collect()
}

fn foreign_program(link: &Link, name: &str, id: u32) -> Finding {
    let interface = &link.name;
    general(
        Kind::ForeignProgram,
        format!("interface {interface} has another tool's XDP program (number {id}, name `{name}`)"),
        format!("`ip -details link show dev {interface}`"),
        Cure::here(&[
            format!("ip link set dev {interface} xdp off xdpgeneric off"),
            "# if the kernel answers `Can't replace active BPF XDP link`, end the process that holds the link"
                .to_owned(),
        ]),
    )
}

/// Returns a finding about generic mode, which is several times slower than native mode. A driver that has native mode
/// refuses it if it conflicts with an offload.
fn generic(link: &Link, unasked: bool) -> Option<Finding> {
    let could = link.xdp.is_some_and(|features| features.runs_programs);
    let name = &link.name;
    (unasked && could).then(|| {
        general(
            Kind::Generic,
            format!("interface {name} is in generic mode, which is slow, though its driver has native mode"),
            "`balancer status` says generic, and the configuration does not ask for it".to_owned(),
            Cure::here(&[
                format!("ethtool -K {name} lro off rx-gro-hw off"),
                "# restart the balancer; its log says why the driver refuses".to_owned(),
            ]),
        )
    })
}

fn offloads(link: &Link, native: bool) -> Vec<Finding> {
    let Some(offloads) = link.offloads else { return Vec::new() };
    let name = &link.name;
    let off = |word: &str, what: String| {
        let (off, on) = (format!("ethtool -K {name} {word} off"), format!("ethtool -K {name} {word} on"));
        general(Kind::Offload, what, format!("`ethtool -k {name}`"), Cure::fixable(&off, &on))
    };
    let mut findings = Vec::new();
    if native && offloads.lro {
        findings.push(off("lro", format!("interface {name} merges packets (LRO) before the program sees them")));
    }
    if !native && offloads.gro {
        findings.push(off(
            "gro",
            format!("interface {name} is in generic mode and merges packets (GRO) before the program sees them"),
        ));
    }
    if link.carries_vlans && offloads.strips_tags {
        findings.push(off(
            "rxvlan",
            format!("interface {name} removes the tags of its VLANs before the program sees them"),
        ));
    }
    findings
}

/// Returns findings about the kernel's forwarding, which `nat` and `snat` need and the controller switches on.
fn forwarding(facts: &Facts, link: &Link) -> Vec<Finding> {
    // The program asks for the way back to clients, which with `snat` may have another family than the backend.
    let uses = |v4: bool| {
        let translated =
            |service: &str| facts.backends.iter().any(|of| of.service == service && of.answers_the_balancer());
        facts.vips.iter().any(|vip| vip.address.is_ipv4() == v4 && translated(&vip.service))
    };
    let families = [("ipv4", uses(true), link.forwards.v4), ("ipv6", uses(false), link.forwards.v6)];
    let off = families.into_iter().filter(|(_, used, forwards)| *used && *forwards == Some(false));
    off.map(|(family, _, _)| {
        // In sysctl(8), a slash replaces each dot of an interface name.
        let key = format!("net.{family}.conf.{}.forwarding", link.name.replace('.', "/"));
        general(
            Kind::Forwarding,
            format!("the kernel does not forward packets that come in by {}: the program gets no route back to clients of nat and snat services", link.name),
            format!("{key} is 0"),
            Cure::fixable(&format!("sysctl -w {key}=1"), &format!("sysctl -w {key}=0")),
        )
    })
    .collect()
}

fn not_taken(name: &str, frames: u64) -> Finding {
    general(
        Kind::Redirect,
        format!("{frames} frames were redirected to {name} during the examination, and it did not take them"),
        "`balancer status` counts them".to_owned(),
        Cure::here(&[format!(
            "# name {name} in `interfaces` of the configuration; on a veth pair: ethtool -K PEER gro on, at its other end"
        )]),
    )
}
