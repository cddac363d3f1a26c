//! Derives findings from facts, without side effects. The module reports each fault once, and leaves out the
//! consequences of the fault.

mod attempts;
mod backends;
mod cases;
mod contradictions;
mod dropping;
mod links;
mod machine;
mod pools;
mod replies;
mod services;
mod unattached;
mod vips;

#[cfg(test)]
mod tests;

use crate::{
    facts::{Controller, Facts, Link},
    finding::{Cure, Finding, Kind, Report},
};

/// Derives a report from facts.
#[must_use]
pub fn judge(facts: &Facts) -> Report {
    let mut findings = machine::findings(facts);
    findings.extend(facts.hanging.as_ref().map(machine::hanging));
    let Some(controller) = &facts.controller else {
        findings.extend(links::foreign_programs(facts, &[]));
        return report(facts, findings);
    };
    let broken = links::broken(facts, controller);
    findings.extend(broken.iter().map(|(_, finding)| finding.clone()));
    findings.extend(links::spoiled(facts, controller));
    let unattached = unattached::interfaces(facts, controller);
    let unread = services::errors_of_unread(facts, controller);
    findings.extend(machine::of_controller(controller, !broken.is_empty(), unattached.keys(), &unread));
    findings.extend(unattached.iter().map(|(interface, names)| unattached::finding(interface, names, controller)));
    findings.extend(services::findings(facts, controller));
    let broken: Vec<u32> = broken.into_iter().map(|(ifindex, _)| ifindex).collect();
    findings.extend(backends::findings(facts, controller, &broken));
    findings.extend(vips::findings(facts, controller));
    findings.extend(pools::findings(facts));
    if findings.iter().all(|finding| explains_no_loss(finding.kind)) {
        findings.extend(replies::lost(facts, controller, &findings));
        if findings.iter().all(|finding| explains_no_loss(finding.kind)) {
            findings.extend(attempts::findings(facts, controller, &findings));
        }
    }
    if findings.is_empty() {
        findings.extend(contradictions::findings(facts, controller));
    }
    let mut report = report(facts, findings);
    report.not_looked_at.extend(attempts::not_here(facts, controller));
    report
}

/// Derives the findings about requests to connect like those of clients alone.
#[must_use]
pub fn judge_attempts(facts: &Facts) -> Vec<Finding> {
    facts.controller.as_ref().map(|controller| attempts::findings(facts, controller, &[])).unwrap_or_default()
}

/// Whether clients whose connections do not complete have another problem than this one.
const fn explains_no_loss(kind: Kind) -> bool {
    matches!(
        kind,
        Kind::Generic
            | Kind::Memory
            | Kind::Clock
            | Kind::ClientTable
            | Kind::Ports
            | Kind::Unhealthy
            | Kind::NoBackends
            | Kind::Discover
            | Kind::NotReady
    )
}

fn report(facts: &Facts, mut findings: Vec<Finding>) -> Report {
    let mut seen = Vec::new();
    findings.retain(|finding| {
        let is_new = !seen.contains(finding);
        seen.push(finding.clone());
        is_new
    });
    Report {
        controller: facts.controller.is_some(),
        findings,
        tried: attempts::tried(facts),
        looked_at: looked_at(facts),
        not_looked_at: facts.unseen.clone(),
    }
}

fn looked_at(facts: &Facts) -> Vec<String> {
    let mut lines = vec![format!("kernel {}", facts.kernel)];
    lines.extend(facts.links.iter().filter(|link| !link.programs.is_empty()).map(|link| {
        let modes = link.programs.iter().map(|program| {
            format!(
                "program {} {}",
                program.name.as_deref().unwrap_or("of unknown name"),
                if program.native { "in the driver" } else { "in generic mode" }
            )
        });
        let modes: Vec<String> = modes.collect();
        let kind = link.kind.as_deref().unwrap_or("hardware");
        let features = link.xdp.map_or("", |features| match (features.runs_programs, features.takes_frames) {
            (true, true) => ", driver runs programs and takes redirected frames",
            (true, false) => ", driver runs programs and takes no redirected frames",
            (false, _) => ", driver runs no programs",
        });
        let Link { name, mtu, rx_queues, .. } = link;
        format!("{name} ({kind}, MTU {mtu}, {rx_queues} receive queues{features}): {}", modes.join(", "))
    }));
    lines.extend(services::empty(facts));
    lines.extend(facts.vips.iter().filter(|vip| vip.asked).map(|vip| format!("who answers for {}", vip.address)));
    let whole = |backend: &&crate::facts::Backend| backend.path.is_some_and(|path| path.passed == path.wanted);
    for backend in &facts.backends {
        let name = format!("{}/{}", backend.service, backend.name);
        let parts = [
            backend.neighbour.as_ref().map(|_| "its neighbour"),
            backend.direct.as_ref().map(|_| "a connection to its own address"),
            backend.service_probe.as_ref().map(|_| "a probe to the VIP by its forwarding mode"),
            Some(backend).filter(whole).map(|_| "packets of full size"),
        ];
        let parts: Vec<&str> = parts.into_iter().flatten().collect();
        if !parts.is_empty() {
            lines.push(format!("{name}: {}", parts.join(", ")));
        }
    }
    lines
}

/// Makes a finding that concerns no particular service or backend.
fn general(kind: Kind, what: String, seen: String, cure: Cure) -> Finding {
    Finding { kind, service: None, backend: None, backends: Vec::new(), what, seen, cure }
}

/// Makes a finding about an interface without the program by which replies of backends arrive.
fn replies_come_in_by(interface: &str, seen: String, controller: &Controller) -> Finding {
    general(
        Kind::NotAttached,
        format!("replies of backends come in by {interface}, which lacks the program: clients get none of them"),
        seen,
        name_interface(interface, controller),
    )
}

/// Makes a cure that adds an interface to those of the configuration.
fn name_interface(interface: &str, controller: &Controller) -> Cure {
    let attached = controller.after.interfaces.iter().map(|view| view.name.as_str());
    let all: Vec<&str> = attached.filter(|name| *name != interface).chain([interface]).collect();
    Cure::here(&[format!("# in the configuration: interfaces = {all:?}"), "balancer apply FILE".to_owned()])
}

/// Returns a list of names such as `web/web1, web/web2 and 3 more`.
fn some(names: &[&str]) -> String {
    const NAMED: usize = 5;
    let (shown, others) = names.split_at(names.len().min(NAMED));
    let shown = shown.join(", ");
    if others.is_empty() { shown } else { format!("{shown} and {} more", others.len()) }
}

/// Whether another member of a fleet may have the VIPs.
fn may_be_elsewhere(controller: &Controller) -> bool {
    controller.after.fleet.is_some() || controller.after.withdrawn
}
