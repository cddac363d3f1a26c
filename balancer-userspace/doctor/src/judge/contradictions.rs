//! Signs that clients are not served, if no fault explains them.

use balancer_api::model::{ServiceView, StatusView};
use balancer_common::verdict::DropReason;

use super::general;
use crate::{
    facts::{Controller, Facts},
    finding::{Cure, Finding, Kind},
};

/// The reasons for which the program drops packets that it should steer. Packets of attacks and scans have others.
const HARMFUL: [DropReason; 9] = [
    DropReason::NoBackend,
    DropReason::AllDown,
    DropReason::NoNextHop,
    DropReason::NoRoute,
    DropReason::NoNeighbour,
    DropReason::NoHeadroom,
    DropReason::WrongInterface,
    DropReason::NoPort,
    DropReason::FlowTableFull,
];

pub(super) fn findings(facts: &Facts, controller: &Controller) -> Vec<Finding> {
    let asked = |service: &&ServiceView| facts.vips.iter().any(|vip| vip.service == service.name);
    let (asked, others): (Vec<_>, Vec<_>) = controller.after.services.iter().partition(asked);
    let mut findings: Vec<Finding> = asked.into_iter().filter_map(without_slots).collect();
    // The counters are those of all services.
    if findings.is_empty() && others.is_empty() {
        findings.extend(drops(controller));
    }
    findings
}

/// Returns a finding about a service with backends of which none takes clients, for whatever reason.
fn without_slots(service: &ServiceView) -> Option<Finding> {
    let none = service.backends.iter().all(|backend| backend.slots == 0);
    let states = service.backends.iter().take(5).map(|backend| {
        let why = if backend.reason.is_empty() { String::new() } else { format!(" ({})", backend.reason) };
        format!("{} {}{why}", backend.name, backend.state)
    });
    let states: Vec<String> = states.collect();
    (none && !service.backends.is_empty()).then(|| Finding {
        service: Some(service.name.clone()),
        ..general(
            Kind::NoneEligible,
            format!("no backend of service {} takes clients", service.name),
            format!("`balancer status`: {}", states.join(", ")),
            Cure::here(&[format!("# to see why: balancer health show {}", service.name)]),
        )
    })
}

/// Returns a finding if the program dropped packets during the examination that it should have steered, or failed to
/// process packets.
fn drops(controller: &Controller) -> Option<Finding> {
    let dropped = |status: &StatusView, reason: DropReason| status.drops.get(reason.label()).copied().unwrap_or(0);
    let aborted = |status: &StatusView| status.interfaces.iter().map(|of| of.packets_seen.aborted).sum::<u64>();
    let (before, after) = (&controller.before, &controller.after);
    let counts = HARMFUL.into_iter().map(|of| (of.label(), dropped(after, of).saturating_sub(dropped(before, of))));
    let failed = ("aborted", aborted(after).saturating_sub(aborted(before)));
    let counts = counts.chain([failed]).filter(|(_, packets)| *packets > 0);
    let counts: Vec<String> = counts.map(|(reason, packets)| format!("{packets} {reason}")).collect();
    (!counts.is_empty()).then(|| {
        general(
            Kind::Drops,
            "the program drops packets of clients or backends".to_owned(),
            format!("packets dropped during the examination, by reason: {}", counts.join(", ")),
            Cure::here(&[
                "# what the reasons mean: balancer help troubleshooting".to_owned(),
                "# to see each packet: balancer trace --service SVC".to_owned(),
            ]),
        )
    })
}
