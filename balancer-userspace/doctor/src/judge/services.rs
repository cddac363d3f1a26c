//! Findings about services that follow from the operator's settings.

use balancer_api::model::{Action, AgentView, BackendView, DiscoverView, RuleView, ServiceView};
use balancer_common::verdict::DropReason;
use ipnet::IpNet;

use crate::{
    facts::{Controller, Facts},
    finding::{Cure, Finding, Kind},
};

pub(super) fn findings(facts: &Facts, controller: &Controller) -> Vec<Finding> {
    let asked = |service: &&ServiceView| facts.vips.iter().any(|vip| vip.service == service.name);
    let services = controller.after.services.iter().filter(asked);
    services
        .flat_map(|service| {
            let lists = unread(service);
            let empty = no_backends(service, controller).filter(|_| lists.is_empty());
            lists.into_iter().chain(empty).chain(none_eligible(service)).chain(denied(service, controller))
        })
        .collect()
}

fn about(service: &ServiceView, kind: Kind, what: String, seen: &str, cure: Cure) -> Finding {
    let (service, backends) = (Some(service.name.clone()), Vec::new());
    Finding { kind, service, backend: None, backends, what, seen: seen.to_owned(), cure }
}

/// The errors of the lists of targets about which there are findings.
pub(super) fn errors_of_unread<'a>(facts: &Facts, controller: &'a Controller) -> Vec<&'a str> {
    let asked = |service: &&ServiceView| facts.vips.iter().any(|vip| vip.service == service.name);
    let lists = controller.after.services.iter().filter(asked).flat_map(|service| &service.discover);
    lists.filter(|list| is_unread(list)).filter_map(|list| list.error.as_deref()).collect()
}

/// Whether the controller has never been able to read a list of targets.
const fn is_unread(list: &DiscoverView) -> bool {
    list.targets.is_none() && list.error.is_some()
}

/// Returns a finding for each list of targets that the controller has never been able to read.
fn unread(service: &ServiceView) -> Vec<Finding> {
    service
        .discover
        .iter()
        .filter(|list| is_unread(list))
        .map(|list| {
            let name = &service.name;
            let why = list.error.as_deref().unwrap_or_default();
            let effect = if service.backends.is_empty() { ", so that the service has no backends" } else { "" };
            about(
                service,
                Kind::Discover,
                format!("the backends of service {name} are not known: {} has never been read{effect}", source(list)),
                why,
                Cure::here(&[format!(
                    "# mend the source of the list; then, to see its targets: balancer service show {name}"
                )]),
            )
        })
        .collect()
}

/// The source of a list of targets, in words.
fn source(list: &DiscoverView) -> String {
    let dns = list.dns.as_ref().or(list.dns_a.as_ref()).or(list.address.as_ref());
    match (&list.file, dns, &list.etcd) {
        (Some(file), _, _) => format!("the file {file}"),
        (None, Some(name), _) => format!("the DNS name {name}"),
        (None, None, Some(prefix)) => format!("etcd's prefix {prefix}"),
        (None, None, None) => "its list of targets".to_owned(),
    }
}

/// Whether clients have sent packets to a service without backends.
fn are_clients_turned_away(controller: &Controller) -> bool {
    controller.after.drops.get(DropReason::NoBackend.label()).is_some_and(|&packets| packets > 0)
}

/// Returns a finding about a service without backends for which packets came.
fn no_backends(service: &ServiceView, controller: &Controller) -> Option<Finding> {
    let name = &service.name;
    (service.backends.is_empty() && are_clients_turned_away(controller)).then(|| {
        about(
            service,
            Kind::NoBackends,
            format!("service {name} has no backends, so that its packets are dropped"),
            "`balancer status`; the program has dropped packets for want of a backend",
            Cure::here(&[format!("balancer backend add {name}/NAME ADDRESS")]),
        )
    })
}

/// The services that have no backends yet and for which no packets came, a line each.
pub(super) fn empty(facts: &Facts) -> Vec<String> {
    let Some(controller) = &facts.controller else { return Vec::new() };
    let services = controller.after.services.iter().filter(|service| service.backends.is_empty());
    let asked = services.filter(|service| facts.vips.iter().any(|vip| vip.service == service.name));
    let quiet = asked.filter(|_| !are_clients_turned_away(controller));
    quiet.map(|service| format!("{}: it has no backends, and no packet for it has come", service.name)).collect()
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

/// Returns findings about rules that together deny all clients of an address family. If a rule lets some clients in, the
/// operator denies the others on purpose.
fn denied(service: &ServiceView, controller: &Controller) -> Vec<Finding> {
    let active = controller.rules.iter().filter(|rule| rule.service == service.name && rule.active);
    let (denies, others): (Vec<&RuleView>, Vec<&RuleView>) = active.partition(|rule| is_denial(rule));
    let families = [(true, "0.0.0.0/0"), (false, "::/0")];
    let of_family = |rules: &[&RuleView], v4: bool| -> Vec<IpNet> {
        let prefixes = rules.iter().filter_map(|rule| rule.prefix.parse::<IpNet>().ok());
        prefixes.filter(|prefix| prefix.addr().is_ipv4() == v4).collect()
    };
    let all = families.into_iter().filter(|&(v4, _)| {
        let covered = IpNet::aggregate(&of_family(&denies, v4)).iter().any(|prefix| prefix.prefix_len() == 0);
        covered && of_family(&others, v4).is_empty()
    });
    all.map(|(_, family)| match denies.iter().find(|rule| rule.prefix == family) {
        Some(rule) => about(
            service,
            Kind::DeniesAll,
            format!("a rule of service {} denies every client of {family}", service.name),
            &format!("`balancer rule list`: the rule has matched {} packets", rule.packets),
            Cure::here(&[format!("balancer rule remove {} {family}", service.name)]),
        ),
        None => about(
            service,
            Kind::DeniesAll,
            format!("rules of service {} together deny every client of {family}", service.name),
            "`balancer rule list`",
            Cure::here(&[format!(
                "# remove the rules that should not be there: balancer rule list {0}; balancer rule remove {0} PREFIX",
                service.name
            )]),
        ),
    })
    .collect()
}

fn is_denial(rule: &RuleView) -> bool {
    matches!(rule.action, Action::Deny)
}
