//! Findings about services that follow from the operator's settings.

use balancer_api::model::{AgentView, BackendView, ServiceView};

use crate::{
    facts::{Controller, Facts},
    finding::{Cure, Finding, Kind},
};

pub(super) fn findings(facts: &Facts, controller: &Controller) -> Vec<Finding> {
    let asked = |service: &&ServiceView| facts.vips.iter().any(|vip| vip.service == service.name);
    let services = controller.after.services.iter().filter(asked);
    services
        .flat_map(|service| {
            no_backends(service).into_iter().chain(none_eligible(service)).chain(denied(service, controller))
        })
        .collect()
}

fn about(service: &ServiceView, kind: Kind, what: String, seen: &str, cure: Cure) -> Finding {
    Finding { kind, service: Some(service.name.clone()), backend: None, what, seen: seen.to_owned(), cure }
}

fn no_backends(service: &ServiceView) -> Option<Finding> {
    let name = &service.name;
    service.backends.is_empty().then(|| {
        about(
            service,
            Kind::NoBackends,
            format!("service {name} has no backends, so that its packets are dropped"),
            "`balancer status`",
            Cure::here(&[format!("balancer backend add {name}/NAME ADDRESS")]),
        )
    })
}

/// Returns a finding if operator or agents have taken every backend of a service out of use. The doctor reports failed
/// backends by separate findings.
fn none_eligible(service: &ServiceView) -> Option<Finding> {
    let name = &service.name;
    let by_agent = |agent: &AgentView| agent.weight_percent == 0 || agent.admin != "ready" || agent.down.is_some();
    let by_agent = |backend: &BackendView| backend.agent.as_ref().is_some_and(by_agent);
    let out = |backend: &BackendView| backend.admin != "ready" || backend.weight == 0;
    let all = service.backends.iter().all(|backend| out(backend) || by_agent(backend));
    (all && !service.backends.is_empty()).then(|| {
        let commands: Vec<String> = service
            .backends
            .iter()
            .filter(|backend| out(backend))
            .map(|backend| match backend.admin.as_str() {
                "ready" => format!("balancer backend weight {name}/{} 100", backend.name),
                _ => format!("balancer backend ready {name}/{}", backend.name),
            })
            .collect();
        about(
            service,
            Kind::NoneEligible,
            format!("every backend of service {name} is in drain or maint, has weight 0, or is taken out by its agent: it takes no new clients"),
            "the columns ADMIN and REASON of `balancer status`",
            Cure::here(&commands),
        )
    })
}

/// Returns findings about rules that deny all clients of an address family.
fn denied(service: &ServiceView, controller: &Controller) -> Vec<Finding> {
    let rules = controller.rules.iter().filter(|rule| rule.service == service.name && rule.active);
    let all =
        rules.filter(|rule| rule.prefix.ends_with("/0") && matches!(rule.action, balancer_api::model::Action::Deny));
    all.map(|rule| {
        about(
            service,
            Kind::DeniesAll,
            format!("a rule of service {} denies every client of {}", service.name, rule.prefix),
            &format!("`balancer rule list`: the rule has matched {} packets", rule.packets),
            Cure::here(&[format!("balancer rule remove {} {}", service.name, rule.prefix)]),
        )
    })
    .collect()
}
