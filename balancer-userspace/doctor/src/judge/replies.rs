//! Findings about clients that begin connections and complete none, although the backends answer this machine: whether
//! the backends' replies do not arrive here, or this machine does not send them on, or the clients do not want them.

#[cfg(test)]
mod tests;
mod way_back;

use std::collections::BTreeSet;

use balancer_api::model::{BackendView, ServiceView, StatusView, UnansweredView};

use ipnet::IpNet;

use super::{
    backends::{about, is_of},
    cases::{Case, HOST, joined as each_fault_once, name},
    some,
};
use crate::{
    facts::{Backend, Controller, Facts, Way, WayBack},
    finding::{Cure, Finding, Kind},
};

/// A backend with which clients complete no connection.
struct Waited<'a> {
    backend: &'a Backend,
    unanswered: UnansweredView,
}

impl Waited<'_> {
    fn is(&self, service: &ServiceView, backend: &BackendView) -> bool {
        self.backend.service == service.name && self.backend.name == backend.name
    }
}

/// Returns findings about backends that answer this machine but whose answers do not reach the clients. This machine's
/// own faults come first, because they explain what the clients of all backends see.
pub(super) fn lost(facts: &Facts, controller: &Controller, others: &[Finding]) -> Vec<Finding> {
    let explained = |backend: &Backend| others.iter().any(|finding| finding.backends.contains(&name(backend)));
    let backends = facts.backends.iter().filter(|backend| !explained(backend));
    let all: Vec<Waited<'_>> = backends.filter_map(|backend| waited(backend, controller)).collect();
    let (translated, direct): (Vec<_>, Vec<_>) = all.into_iter().partition(|of| of.backend.answers_the_balancer());
    let mut findings = way_back::findings(facts, controller, &translated);
    if findings.is_empty() {
        let pass = replies_pass(controller, &translated);
        let (replying, silent): (Vec<_>, Vec<_>) = translated.iter().partition(|of| of.backend.replied || pass);
        findings.extend(answered(&replying));
        let (lost, doubted): (Vec<_>, Vec<_>) = silent.into_iter().partition(|of| no_reply_passes(controller, of));
        findings.extend(not_back(&lost, facts, controller));
        let (nat, snat): (Vec<_>, Vec<_>) = doubted.into_iter().partition(|of| of.backend.forwarding == "nat");
        findings.extend(in_doubt(&nat, &nat_causes(&nat, facts, controller)));
        findings.extend(in_doubt(&snat, &with_containers(facts, &snat, SNAT.map(str::to_owned))));
    }
    let direct: Vec<&Waited<'_>> = direct.iter().collect();
    findings.extend(in_doubt(&direct, &with_containers(facts, &direct, DIRECT.map(str::to_owned))));
    if findings.is_empty() {
        findings.extend(way_back::without_handshakes(facts));
    }
    findings
}

fn waited<'a>(backend: &'a Backend, controller: &Controller) -> Option<Waited<'a>> {
    let unanswered = view(&controller.after, backend)?.unanswered.filter(UnansweredView::is_trouble)?;
    // Handshakes from before a backend came up are no sign of a current problem.
    let checked = controller.health.iter().filter(|view| is_of(view, backend));
    let was_up = checked.map(|view| view.verdict_seconds).fold(f64::INFINITY, f64::min) >= unanswered.seconds;
    was_up.then_some(Waited { backend, unanswered })
}

fn view<'a>(status: &'a StatusView, backend: &Backend) -> Option<&'a BackendView> {
    let service = status.services.iter().find(|service| service.name == backend.service)?;
    service.backends.iter().find(|view| view.name == backend.name)
}

/// The packets and the new connections that the program sent to a backend during the examination.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Sent {
    packets: u64,
    connections: u64,
}

fn sent_to(controller: &Controller, service: &ServiceView, backend: &BackendView) -> Sent {
    let before = controller.before.services.iter().find(|of| of.name == service.name);
    let before = before.and_then(|of| of.backends.iter().find(|of| of.name == backend.name));
    Sent {
        packets: backend.packets.saturating_sub(before.map_or(0, |of| of.packets)),
        connections: backend.connections.saturating_sub(before.map_or(0, |of| of.connections)),
    }
}

/// Whether replies passed the program during the examination, and only the backends in `waited` can have sent them. The
/// program counts packets to each backend, but replies only together with everything else that it sends.
fn replies_pass(controller: &Controller, waited: &[Waited<'_>]) -> bool {
    let (mut there, mut others) = (0, 0);
    for service in &controller.after.services {
        for backend in &service.backends {
            let Sent { packets, .. } = sent_to(controller, service, backend);
            let is_waited = waited.iter().any(|of| of.is(service, backend));
            there += packets;
            others += if is_translated(service) && !is_waited { packets } else { 0 };
        }
    }
    let replies = all_sent(&controller.after).saturating_sub(all_sent(&controller.before)).saturating_sub(there);
    // The program also answers pings, and clients repeat their packets.
    others == 0 && there > 0 && replies >= there.div_ceil(2).max(ENOUGH)
}

/// A number of replies that cannot be answers to somebody's pings.
const ENOUGH: u64 = 3;

/// Whether clients tried to connect to a `nat` backend during the examination, and nothing shows that a reply passed:
/// no client went on with a connection, and what else the program sent are replies of the service's other backends.
fn no_reply_passes(controller: &Controller, waited: &Waited<'_>) -> bool {
    let services = &controller.after.services;
    let Some(own) = services.iter().find(|of| of.name == waited.backend.service) else { return false };
    let Some(view) = own.backends.iter().find(|view| waited.is(own, view)) else { return false };
    let Sent { packets, connections } = sent_to(controller, own, view);
    let flows = |service: &ServiceView, backend: &BackendView| sent_to(controller, service, backend).packets > 0;
    let mut others = services.iter().filter(|of| is_translated(of) && of.name != own.name);
    let elsewhere = others.any(|of| of.backends.iter().any(|backend| flows(of, backend)));
    let completes = |of: &BackendView| !of.unanswered.as_ref().is_some_and(UnansweredView::is_trouble);
    let beside = own.backends.iter().any(|of| of.name != view.name && completes(of) && flows(own, of));
    own.forwarding == "nat" && packets > 0 && packets == connections && (beside || !elsewhere)
}

fn is_translated(service: &ServiceView) -> bool {
    matches!(service.forwarding.as_str(), "nat" | "snat")
}

/// The number of packets that the program has sent or handed to the kernel for sending.
fn all_sent(status: &StatusView) -> u64 {
    status.interfaces.iter().map(|of| of.packets_seen).map(|of| of.tx + of.redirect + of.handed + of.local).sum()
}

fn seen(unanswered: UnansweredView) -> String {
    let UnansweredView { begun, seconds } = unanswered;
    format!(
        "clients began {begun} handshakes in the last {seconds:.0} s and completed none, while connections from this machine succeed"
    )
}

/// The sum of the handshakes with all these backends, and the longest wait.
fn together(waited: &[&Waited<'_>]) -> UnansweredView {
    let begun = waited.iter().map(|of| of.unanswered.begun).fold(0, u32::saturating_add);
    UnansweredView { begun, seconds: waited.iter().map(|of| of.unanswered.seconds).fold(0.0, f64::max) }
}

/// Makes one finding about several backends, without a command: there is no proof of anybody's fault.
fn joined(waited: &[&Waited<'_>], what: impl Fn(&str) -> String, seen: String, looks: &[String]) -> Option<Finding> {
    let first = waited.first()?.backend;
    let names: BTreeSet<String> = waited.iter().map(|of| name(of.backend)).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    let looks: Vec<String> = looks.iter().map(|look| format!("# {look}")).collect();
    let finding = about(first, Kind::Replies, what(&some(&names)), seen, Cure::here(&looks));
    let one_service = waited.iter().all(|of| of.backend.service == first.service);
    Some(Finding {
        service: finding.service.filter(|_| one_service),
        backend: finding.backend.filter(|_| names.len() == 1),
        backends: names.iter().map(|&name| name.to_owned()).collect(),
        ..finding
    })
}

/// Returns a finding about backends whose answers pass this machine. Neither these backends nor their routes are at
/// fault.
fn answered(waited: &[&Waited<'_>]) -> Option<Finding> {
    joined(
        waited,
        |names| format!("clients do not go on with connections to {names}, whose answers pass this machine"),
        format!("{}; replies of these backends were sent on to clients", seen(together(waited))),
        &ANSWERED.map(str::to_owned),
    )
}

/// Causes that explain why clients do not continue connections although answers pass this machine, most likely first.
const ANSWERED: [&str; 2] = [
    "most likely first: somebody scans, or checks whether the port is open, and wants no connection: balancer client top",
    "or answers are lost between this machine and the clients: tcpdump on a client's machine shows whether they arrive",
];

/// Causes that explain why clients of `snat` services complete no connection, most likely first.
const SNAT: [&str; 3] = [
    "most likely first: a firewall of this machine or of the servers drops the answers: nft list ruleset",
    "or the pool's address (balancer flow list, SEEN AS) is not this machine's: ip -brief address",
    "or no client wants a connection, as in a scan: balancer client top",
];

/// Causes that explain why clients complete no connection if the servers answer them directly, most likely first.
const DIRECT: [&str; 3] = [
    "most likely first: no client wants a connection, as in a scan: balancer client top",
    "or a server's route to the clients is wrong: on the server, ip route get CLIENT",
    "or a server, or a router on the way, drops answers from the VIP, as a reverse-path filter does: on the server, sysctl net.ipv4.conf.all.rp_filter net.ipv4.conf.INTERFACE.rp_filter (the larger one counts)",
];

fn in_doubt(waited: &[&Waited<'_>], causes: &[String]) -> Option<Finding> {
    let what = |names: &str| format!("clients complete no connection with {names}");
    joined(waited, what, seen(together(waited)), causes)
}

/// Causes that explain why clients complete no connection with `nat` backends, most likely first, as far as is known
/// without a client that tries to connect during the examination.
fn nat_causes(waited: &[&Waited<'_>], facts: &Facts, controller: &Controller) -> Vec<String> {
    let route = waited.iter().find_map(|of| route(of.backend, controller.clients));
    let needs = route.map(|route| format!(" (if it does not: {route})")).unwrap_or_default();
    let causes = [
        format!(
            "most likely first: replies do not come back through this machine: on the servers, ip route get CLIENT must name it{needs}"
        ),
        "or no client wants a connection, as in a scan: balancer client top".to_owned(),
        "to tell which: run doctor again while clients try to connect".to_owned(),
    ];
    with_containers(facts, waited, causes)
}

/// The causes, and one more if clients are containers of this machine.
fn with_containers(facts: &Facts, waited: &[&Waited<'_>], causes: impl IntoIterator<Item = String>) -> Vec<String> {
    causes.into_iter().chain(container(facts, waited)).collect()
}

/// The cause that the checksums of clients' packets are not computed, if clients are containers of this machine. The
/// program then sends their packets on with unfinished checksums, and servers drop them.
fn container(facts: &Facts, waited: &[&Waited<'_>]) -> Option<String> {
    let concerned = |of: &&WayBack| waited.iter().any(|waited| waited.backend.service == of.service);
    facts.ways_back.iter().filter(concerned).find_map(|of| {
        let Way::Known { ifindex, next_hop } = of.way else { return None };
        let link = facts.link(ifindex).filter(|_| next_hop == of.client)?;
        let is_virtual = link.kind.as_deref().is_some_and(|kind| matches!(kind, "veth" | "bridge"));
        is_virtual.then(|| {
            format!(
                "or clients such as {}, behind {}, are containers of this machine and leave checksums unfinished; to end that, in the container: ethtool -K INTERFACE tx off",
                of.client, link.name
            )
        })
    })
}

/// The command that sets a backend's route to the network of clients.
pub(super) fn route(backend: &Backend, clients: Option<IpNet>) -> Option<String> {
    let clients = clients.map_or_else(|| "default".to_owned(), |prefix| prefix.to_string());
    backend.source.map(|source| format!("ip route replace {clients} via {source}"))
}

/// Returns findings about `nat` backends from which no reply has passed this machine, one for backends that need the
/// same route.
fn not_back(waited: &[&Waited<'_>], facts: &Facts, controller: &Controller) -> Vec<Finding> {
    let look = "# to see the route of replies: ip route get CLIENT".to_owned();
    let container = container(facts, waited).map(|cause| format!("# {cause}"));
    let seen = seen(together(waited));
    let mut cases = Vec::new();
    for Waited { backend, .. } in waited {
        let route = route(backend, controller.clients);
        let route =
            route.map(|route| if container.is_some() { format!("# most likely first: {route}") } else { route });
        let commands = route.into_iter().chain([look.clone()]).chain(container.clone());
        cases.push(Case::new(
            backend,
            Kind::Replies,
            "replies do not come back through the balancer".to_owned(),
            seen.clone(),
            Cure::elsewhere(HOST, &commands.collect::<Vec<_>>()),
        ));
    }
    each_fault_once(cases)
}
